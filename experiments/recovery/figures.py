"""A grid: each log's half-life over the planted one, coverage, kernels chosen; a picture, and tables printed.

python experiments/recovery/figures.py DIR [--impressions 20000]
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from grid import HALF_LIVES, KERNELS
from numpy.typing import NDArray

COLOURS = ["tab:blue", "tab:orange", "tab:green", "tab:purple"]
APART = 0.19  # of kernels beside each other at one half-life

Cells = dict[tuple[str, float], dict[str, Any]]


def places(cells: Cells) -> Iterator[tuple[float, str, str, dict[str, Any]]]:
    """Where each cell stands, its colour and kernel, and the cell: by half-life, then kernel."""
    for at, half_life in enumerate(HALF_LIVES):
        for which, (kernel, colour) in enumerate(zip(KERNELS, COLOURS, strict=True)):
            yield at + (which - 1.5) * APART, colour, kernel, cells[kernel, half_life]


def ratios(axes: Any, cells: Cells) -> None:
    """Fitted over planted half-life of each log that identified one, and their geometric mean."""
    rng = np.random.default_rng(0)
    bottom = axes.get_xaxis_transform()  # x as the data, y as a share of the axes
    for x, colour, kernel, cell in places(cells):
        planted = cell["planted"]["half_life_days"]
        ratio = np.array([r["half_life_days"] / planted for r in cell["logs"] if r.get("identified")])
        axes.plot(x + rng.uniform(-0.05, 0.05, len(ratio)), ratio, ".", ms=4, color=colour, alpha=0.45)
        if len(ratio):
            mean = np.exp(np.log(ratio).mean())
            label = kernel if planted == HALF_LIVES[0] else None
            axes.plot([x - 0.08, x + 0.08], [mean, mean], color=colour, lw=2.5, label=label)
        if missing := cell["not_identified"]:
            axes.text(x, 0.02, f"{missing} refused", transform=bottom, rotation=90, fontsize=7, ha="center")
    axes.axhline(1, color="black", lw=0.8, ls=":")
    axes.set(ylabel="fitted half-life / planted", yscale="log", title="each log, and the geometric mean")
    low, high = axes.get_ylim()
    if any(cell["not_identified"] for cell in cells.values()):  # room for what is written below
        low /= (high / low) ** 0.15
        axes.set_ylim(low, high)
    ticks = [t for t in (0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4) if low < t < high]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks([], minor=True)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")


def coverage(axes: Any, cells: Cells) -> None:
    """The share of intervals that hold the planted half-life, with Wilson's interval."""
    for x, colour, _, cell in places(cells):
        if cell["coverage"] is not None:
            axes.plot([x, x], cell["coverage_interval"], color=colour, lw=1.5)
            axes.plot(x, cell["coverage"], "o", ms=4, color=colour)
    axes.axhline(0.95, color="black", lw=0.8, ls=":")
    axes.set(ylabel="share", ylim=(None, 1.01), title="95 % intervals that hold the planted half-life")


def chosen(axes: Any, cells: Cells) -> None:
    """Which kernel AIC chose of those planted, all half-lives together."""
    counts = confusion(cells)
    axes.imshow(counts, cmap="Blues", vmin=0)
    for row, column in np.ndindex(counts.shape):
        light = "white" if counts[row, column] > counts.max() / 2 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", color=light)
    axes.set(xticks=range(len(KERNELS)), yticks=range(len(KERNELS)), xlabel="chosen", ylabel="planted")
    axes.set_xticklabels(KERNELS, rotation=30, ha="right")
    axes.set_yticklabels(KERNELS)
    axes.set_title("kernel chosen by AIC (logs)")


def confusion(cells: Cells) -> NDArray[np.int64]:
    """How often each kernel (columns) was chosen where another (rows) was planted."""
    counts = np.zeros((len(KERNELS), len(KERNELS)), np.int64)
    for (kernel, _), cell in cells.items():
        for other, times in cell["chosen_kernel"].items():
            counts[KERNELS.index(kernel), KERNELS.index(other)] += times
    return counts


def tables(cells: Cells) -> str:
    """What the README says of a grid, as Markdown."""
    lines = [
        "| planted kernel | half-life (days) | bias | sd of log half-life | sd as stated | coverage "
        "| not identified | kernel chosen rightly |",
        "|---|---|---|---|---|---|---|---|",
    ]
    held = stated = 0
    for _, _, kernel, cell in places(cells):
        told = cell["seeds"] - cell["not_identified"] - cell["failures"]
        hits = round((cell["coverage"] or 0) * told)
        held, stated = held + hits, stated + told
        numbers = [
            form.format(cell[key]) if cell[key] is not None else ""
            for key, form in (
                ("bias", "{:+.1%}"),
                ("sd_log_half_life", "{:.3f}"),
                ("stated_sd_log_half_life", "{:.3f}"),
            )
        ]
        rightly = f"{cell['chosen_kernel'].get(kernel, 0)} of {cell['seeds']}"
        named = [kernel, f"{cell['planted']['half_life_days']:g}"]
        after = [f"{hits} of {told}", str(cell["not_identified"]), rightly]
        lines.append(f"| {' | '.join([*named, *numbers, *after])} |")
    lines += ["", f"{held} of {stated} intervals hold the planted half-life ({held / stated:.1%}).", ""]
    lines += [f"| | {' | '.join(KERNELS)} |", f"|---|{len(KERNELS) * '---|'}"]
    lines += [
        f"| {kernel} | {' | '.join(map(str, row))} |"
        for kernel, row in zip(KERNELS, confusion(cells), strict=True)
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the cells that `grid.py` wrote, leave the picture beside this file, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="what grid.py was given")
    parser.add_argument("--impressions", type=int, choices=[1000, 5000, 20000], default=20000)
    given = parser.parse_args()
    cells = {}
    for kernel in KERNELS:
        for half_life in HALF_LIVES:
            cell = given.out / f"sink-{given.impressions}-{kernel}-{half_life:g}d" / "recovery.json"
            if not cell.exists():
                parser.error(
                    f"DIR must hold {cell}, got none; run grid.py DIR --only sink-{given.impressions}"
                )
            cells[kernel, half_life] = json.loads(cell.read_text())
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(15, 4.8), layout="constrained", dpi=120, width_ratios=[1.5, 1.2, 1]
    )
    ratios(left, cells)
    coverage(middle, cells)
    chosen(right, cells)
    for axes in (left, middle):
        axes.set_xticks(range(len(HALF_LIVES)), [f"{h:g}" for h in HALF_LIVES])
        axes.set_xlabel("planted half-life (days), in a log of 60 days")
    figure.savefig(Path(__file__).parent / f"grid-{given.impressions}.png")
    print(tables(cells))


if __name__ == "__main__":
    main()

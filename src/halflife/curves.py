"""The pictures of a run: what a click weighs over its age, and the half-lives of groups."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from halflife.ranges import ranges
from halflife.recommender import Recommender
from halflife.splits import duration
from halflife.store import Store
from halflife.tables import DAY_S

Array = NDArray[Any]

GROUPS_DRAWN = 40


def ages(store: Store, rows: Array, unit: str, max_history: int) -> Array:
    """Ages of the clicks that a model reads, in the histories of at most a thousand rows, evenly spread over
    them.

    Args:
        store: of the log.
        rows: impressions.
        unit: `days` or `rank`.
        max_history: a longer history keeps its newest clicks.
    """
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), 1000)).astype(np.int64)]
    end = store.history_end[some]
    length = np.minimum(store.past_clicks[some], max_history)
    index, mask = ranges(end - length, length)
    if unit == "rank":
        return (length[:, None] - 1 - np.arange(index.shape[1]))[mask].astype(np.float64)
    index = np.clip(index, 0, len(store.event_time) - 1)
    return np.asarray((store.impression_time[some][:, None] - store.event_time[index])[mask] / DAY_S)


def curve(module: Recommender, half_life: float | None, ages: Array) -> dict[str, list[float]]:
    """The fitted weight over ages, to eight half-lives or nearly the oldest click.

    Args:
        module: after the fit.
        half_life: in the module's unit; None where there is none.
        ages: a sample of ages in test histories.

    Returns:
        `age` (days, or newer clicks), `weight` at each, and `clicks`, how many ages lie between every
        fourth age and the next.
    """
    most = float(np.quantile(ages, 0.98)) if len(ages) else 1.0
    most = min(most, 8 * half_life) if half_life else most
    age = np.linspace(0, max(most, 1e-3), 241)
    with torch.no_grad():
        weight = module.decay(torch.from_numpy(age).float().to(module.device)).exp().cpu().numpy()
    clicks, _ = np.histogram(ages, bins=age[::4])
    return {"age": age.tolist(), "weight": weight.tolist(), "clicks": clicks.tolist()}


def decay_curve(
    drawn: dict[str, list[float]], estimate: dict[str, Any], planted: dict[str, Any] | None
) -> Any:
    """Picture of the fitted weight over age, above a histogram of the ages that histories hold.

    Args:
        drawn: from `curve`.
        estimate: from `estimate.estimate`; its interval is shaded.
        planted: kernel and half-life of a simulated log, drawn beside the fitted one.
    """
    from matplotlib.figure import Figure

    unit = estimate["unit"]
    half_life = estimate[f"half_life_{unit}"]
    age = drawn["age"]
    figure = Figure(
        figsize=(7, 5), layout="constrained", dpi=120
    )  # pyplot would keep it: a sweep has hundreds
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot(age, drawn["weight"], color="tab:blue", label=f"fitted: {estimate['kernel']}")
    if half_life is not None:
        text = f"half-life {half_life:.3g} {unit}{short(half_life, unit)}"
        if estimate["low"] is not None:
            text += f" [{estimate['low']:.3g}, {estimate['high']:.3g}]"
            top.axvspan(
                estimate["low"], estimate["high"], color="tab:blue", alpha=0.15, lw=0, label="95 % interval"
            )
        top.axvline(half_life, color="tab:blue", lw=1, ls="--", label=text)
    if planted and planted.get("half_life_days") and unit == "days":
        top.axvline(
            planted["half_life_days"],
            color="tab:orange",
            lw=1.5,
            ls=":",
            label=f"planted: {planted['kernel']}, {planted['half_life_days']:g} days",
        )
    top.set(ylabel="weight of a past click", ylim=(0, 1.05), xlim=(0, age[-1]))
    top.legend(frameon=False)
    low.stairs(drawn["clicks"], age[::4], fill=True, color="0.6")
    low.set(
        xlabel="age of the click (days)" if unit == "days" else "age of the click (newer clicks)",
        ylabel="clicks",
    )
    return figure


def half_lives(estimate: dict[str, Any]) -> Any:
    """Picture of each group's half-life with its interval, the shared one dashed, the planted ones beside.

    Args:
        estimate: from `estimate.estimate`, of a kernel with groups; of more than GROUPS_DRAWN the surest are
            drawn.
    """
    from matplotlib.figure import Figure

    names, every = surest(estimate), len(estimate["half_lives"])
    figure = Figure(figsize=(7, 1.4 + 0.22 * len(names)), layout="constrained", dpi=120)
    axes = figure.subplots()
    draw_half_lives(axes, estimate, "tab:blue", "tab:orange", "0.4")
    if len(names) < every:
        axes.set_xlabel(f"{axes.get_xlabel()}, the surest {len(names)} of {every} groups")
    readable_log(axes.xaxis)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="lower right")
    return figure


def draw_half_lives(axes: Any, estimate: dict[str, Any], fitted: str, planted: str, shared: str) -> None:
    """The groups of `surest`, one above the other, on a logarithmic axis.

    Args:
        axes: of Matplotlib.
        estimate: as of `half_lives`.
        fitted, planted, shared: colours of half-lives and intervals, of what was planted, and of the line at
            the shared half-life.
    """
    unit, groups, names = estimate["unit"], estimate["half_lives"], surest(estimate)
    ends, known = estimate.get("half_lives_intervals", {}), estimate.get("half_lives_planted", {})
    for at, name in enumerate(names):
        if name in ends:
            axes.plot(ends[name], [at, at], color=fitted, lw=2, label=None if at else "95 % interval")
        axes.plot(groups[name], at, "o", color=fitted, ms=5)
        if name in known:
            label = None if any(n in known for n in names[:at]) else "planted"
            axes.plot(known[name], at, "|", color=planted, ms=12, mew=2, label=label)
    if (middle := estimate[f"half_life_{unit}"]) is not None:
        text = f"shared: {middle:.3g} {unit}{short(middle, unit)}"
        axes.axvline(middle, color=shared, lw=1, ls="--", label=text)
    axes.set_yticks(range(len(names)), names)
    axes.set(xscale="log", xlabel=f"half-life ({'days' if unit == 'days' else 'newer clicks'})")


def surest(estimate: dict[str, Any]) -> list[str]:
    """At most GROUPS_DRAWN groups, those with the narrowest intervals, from the shortest half-life to the
    longest.

    >>> surest({"half_lives": {"a": 3.0, "b": 1.0}})
    ['b', 'a']
    """
    groups, ends = estimate["half_lives"], estimate.get("half_lives_intervals", {})
    narrow = sorted(groups, key=lambda g: ends[g][1] / ends[g][0] if g in ends else float("inf"))
    return sorted(narrow[:GROUPS_DRAWN], key=lambda g: groups[g])


def readable_log(axis: Any, most: int | None = None) -> None:
    """Ticks at 1, 2 and 5 of each decade, in plain numbers; at most so many, or what there is room for."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=most))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def tell(figure: Any, caveats: list[str]) -> None:
    """Write caveats below a picture."""
    if caveats:
        figure.supxlabel("\n".join(caveats), fontsize=7, color="tab:red")


def short(half_life: float, unit: str) -> str:
    """A half-life far below a day in its natural unit, in brackets; nothing for others.

    >>> short(0.00035, "days"), short(5.0, "days")
    (' (30.2 s)', '')
    """
    return f" ({duration(half_life)})" if unit == "days" and half_life < 0.1 else ""

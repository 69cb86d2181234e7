"""What recovery shows: a table, each log's interval, and the half-life of each topic over the planted one."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.table import Table

from halflife.curves import readable_log


def table(found: dict[str, Any]) -> Table:
    """The last table."""
    p = found["planted"]
    control = f", control {p['control']}" if p["control"] else ""
    out = Table(title=f"{p['kernel']}, {p['half_life_days']:g} days, {p['composition']}{control}")
    out.add_column(f"{found['vectors']} vectors")
    out.add_column("", justify="right")

    def show(name: str, key: str, form: str = "{:.3f}", of: dict[str, Any] = found) -> None:
        value = of[key]
        out.add_row(name, "" if value is None else form.format(value))

    show("logs", "seeds", "{}")
    show("impressions in each", "impressions", "{:,.0f}")
    show("bias of the half-life", "bias", "{:+.1%}")
    show("sd of log half-life", "sd_log_half_life")
    show("sd as stated", "stated_sd_log_half_life")
    show("coverage of the 95 % interval", "coverage", "{:.2f}")
    show("not identified", "not_identified", "{}")
    show("failures", "failures", "{}")
    for kernel, times in sorted(found["chosen_kernel"].items(), key=lambda x: -x[1]):
        out.add_row(f"chosen: {kernel}", str(times))
    if (topics := found["topics"]) is not None:
        out.add_section()
        show("half-lives of topics, in all logs", "topics", "{}", topics)
        show("bias", "bias", "{:+.1%}", topics)
        show("sd of log half-life about the planted", "sd_log_half_life", "{:.3f}", topics)
        show("coverage of their 95 % intervals", "coverage", "{:.2f}", topics)
        show("without an interval", "not_identified", "{}", topics)
        show("estimated sd between topics", "sd_between", "{:.3f}", topics)
    for row in found["logs"]:
        if "failure" in row:
            out.add_row(f"seed {row['seed']}", row["failure"])
    return out


def picture(found: dict[str, Any], path: Path) -> None:
    """Each log's half-life with its interval against the planted one."""
    told = sorted((r for r in found["logs"] if r.get("identified")), key=lambda r: r["half_life_days"])
    planted = found["planted"]["half_life_days"]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained", dpi=120)
    for at, row in enumerate(told):
        hit = row["low"] <= planted <= row["high"]
        axes.plot([row["low"], row["high"]], [at, at], color="tab:blue" if hit else "tab:red", lw=1.5)
        axes.plot(row["half_life_days"], at, "o", ms=3, color="tab:blue" if hit else "tab:red")
    if found["planted"]["control"] is None:
        axes.axvline(planted, color="tab:orange", ls=":", label=f"planted: {planted:g} days")
        axes.legend(frameon=False)
    missing = f"; {found['not_identified']} not identified" if found["not_identified"] else ""
    axes.set(
        xlabel="fitted half-life (days) and its 95 % interval; red misses",
        ylabel=f"logs, in order{missing}",
        yticks=[],
        xscale="log",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    figure.savefig(path)
    plt.close(figure)


def topics_picture(found: dict[str, Any], path: Path) -> None:
    """The fitted half-life of each topic of each log, with its interval, over the planted one."""
    each = [t for r in found["logs"] if r.get("topics") for t in r["topics"]["by_topic"].values()]
    told = [t for t in each if t["planted"] is not None and t["low"] is not None]
    figure, axes = plt.subplots(figsize=(6, 5.5), layout="constrained", dpi=120)
    for hit, color in ((True, "tab:blue"), (False, "tab:red")):
        some = [t for t in told if (t["low"] <= t["planted"] <= t["high"]) == hit]
        planted, fitted, low, high = (
            np.array([t[k] for t in some]) for k in ("planted", "fitted", "low", "high")
        )
        label = f"{len(some)} whose interval {'holds' if hit else 'misses'} it"
        axes.errorbar(
            planted,
            fitted,
            [fitted - low, high - fitted],
            fmt="o",
            ms=3,
            lw=0.8,
            color=color,
            alpha=0.6,
            label=label,
        )
    ends = [f([t[k] for t in told for k in ("planted", "fitted")], default=1.0) for f in (min, max)]
    axes.plot(ends, ends, color="0.3", lw=1, ls=":")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="planted half-life (days)",
        ylabel="fitted (days), and its 95 % interval",
    )
    for axis in (axes.xaxis, axes.yaxis):
        readable_log(axis)
    axes.set_title("a half-life for each topic, in every log")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    plt.close(figure)

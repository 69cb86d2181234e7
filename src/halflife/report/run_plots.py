"""Pictures of runs: what a click weighs over its age, how sure that is, calibration, AUC by history."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from halflife.curves import draw_half_lives, readable_log, surest
from halflife.report.drawing import COLORS, GREY, grid, picture
from halflife.report.page import Picture
from halflife.report.predictions import Bin, Slice

AGE = {"days": "age of the click (days)", "rank": "age of the click (newer clicks)"}


def decay(curve: dict[str, list[float]], decay: dict[str, Any], planted: float | None) -> Picture:
    """The fitted weight over age, above the ages that histories hold.

    Args:
        curve: of `decay_curve.json`.
        decay: of `decay.json`.
        planted: half-life of a simulated log (days).
    """
    unit, kernel = decay["unit"], decay["kernel"]
    half_life, low, high = decay[f"half_life_{unit}"], decay["low"], decay["high"]

    def draw(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        top.plot(curve["age"], curve["weight"], color=COLORS[0], label=f"fitted: {kernel}")
        if low is not None:
            top.axvspan(low, high, color=COLORS[0], alpha=0.18, lw=0, label="95 % interval")
        if half_life is not None:
            top.axvline(
                half_life, color=COLORS[0], lw=1.2, ls="--", label=f"half-life {half_life:.3g} {unit}"
            )
        if planted is not None and unit == "days":
            top.axvline(planted, color=COLORS[1], lw=1.6, ls=":", label=f"planted {planted:g} days")
        top.set(ylabel="weight of a past click", xlim=(0, curve["age"][-1]))
        top.set_ylim(min(0.0, 1.05 * min(curve["weight"])), 1.05 * max(1.0, *curve["weight"]))
        top.legend(loc="upper right")
        grid(top)
        bottom.stairs(curve["clicks"], curve["age"][::4], fill=True, color=GREY)
        bottom.set(xlabel=AGE[unit], ylabel="clicks", yticks=[])

    what = (
        f"a click's weight falls to a half at {half_life:.3g} {unit}"
        if half_life
        else "no half-life is stated"
    )
    return picture(
        "decay",
        f"Weight of a past click over its age under the {kernel} kernel: {what}.",
        f"What a click weighs, by its age, under the fitted {kernel} kernel; below, the ages that test "
        "histories hold.",
        draw,
        height=3.9,
    )


def half_lives(decay: dict[str, Any]) -> Picture:
    """The half-life of each group, with its interval, around the shared one.

    Args:
        decay: of `decay.json`, of a kernel with groups.
    """
    unit, groups, shown = decay["unit"], decay["half_lives"], surest(decay)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        draw_half_lives(axes, decay, COLORS[0], COLORS[1], GREY)
        readable_log(axes.xaxis, 7)
        grid(axes)

    values = "; ".join(f"{name}: {groups[name]:.3g}" for name in shown)
    some = f", of the surest {len(shown)} of {len(groups)} groups" if len(shown) < len(groups) else ""
    beside = "; upright strokes, what was planted" if "half_lives_planted" in decay else ""
    return picture(
        "half-lives",
        f"Half-life ({unit}) of each group: {values}.",
        f"Half-lives with 95 % intervals{some}; dashed, the shared one, to which they are drawn{beside}.",
        draw,
        height=1.0 + 0.22 * len(shown),
    )


def curves(drawn: dict[str, tuple[dict[str, list[float]], str]]) -> Picture:
    """The fitted weights of several settings in one picture.

    Args:
        drawn: for each setting, `decay_curve.json` of its first seed, and the unit.
    """
    units = {unit for _, unit in drawn.values()}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (setting, (curve, _)), style in zip(drawn.items(), 4 * ["-", "--", ":", "-."], strict=False):
            axes.plot(curve["age"], curve["weight"], ls=style, label=setting)
        axes.set(xlabel=AGE[units.pop()] if len(units) == 1 else "age of the click", xlim=(0, None))
        axes.set(ylabel="weight of a past click", ylim=(None, 1.05))
        axes.legend(loc="best")
        grid(axes)

    return picture(
        "curves",
        f"Fitted weight of a past click over its age, for {', '.join(drawn)}.",
        "What a click weighs, by its age, in the first seed of each setting.",
        draw,
    )


def forest(settings: dict[str, tuple[list[float], float, float | None]]) -> Picture:
    """AUC of several settings: each seed, their mean and its interval.

    Args:
        settings: for each, the AUC of every seed, their mean, and half of its 95 % interval.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for at, (values, middle, half) in enumerate(settings.values()):
            color = COLORS[at % len(COLORS)]  # as the curves
            axes.plot(values, len(values) * [at], "o", ms=4, color=GREY, alpha=0.7)
            width = None if half is None else [half]
            axes.errorbar([middle], [at], xerr=width, fmt="D", ms=5, capsize=3, color=color)
        axes.set(yticks=range(len(settings)), yticklabels=list(settings), xlabel="test AUC")
        axes.set_ylim(len(settings) - 0.4, -0.6)
        grid(axes)

    values = "; ".join(f"{name}: {middle:.4f}" for name, (_, middle, _) in settings.items())
    return picture(
        "settings",
        f"Test AUC of each setting: {values}.",
        "Diamonds: mean over seeds with its 95 % interval; dots: single seeds.",
        draw,
        height=1.1 + 0.32 * len(settings),
    )


def profile(found: dict[str, Any]) -> Picture:
    """How far the likelihood drops away from the fitted half-life.

    Args:
        found: of `profile.json`.
    """
    unit, interval = found["unit"], found["likelihood_ratio"]
    x, y = np.array(found["profile"]["half_life"]), np.array(found["profile"]["drop"])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(x, -y, "o-", ms=3, color=COLORS[0])
        axes.axhline(-1.92, color=GREY, lw=1, ls=":")
        for name, color, at in (("bootstrap", COLORS[1], 0.05), ("sandwich", COLORS[2], 0.11)):
            low, high = found[name]["low"], found[name]["high"]
            if low is not None:
                axes.plot(
                    [low, high], 2 * [at], transform=axes.get_xaxis_transform(), color=color, lw=4, label=name
                )
        near = y < 12
        axes.set(xscale="log", ylim=(-12, 0.5), xlim=(x[near].min() / 1.3, x[near].max() * 1.3))
        axes.set(xlabel=f"half-life ({unit})", ylabel="log-likelihood below the maximum (nats)")
        readable_log(axes.xaxis, 7)
        grid(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(title="95 % intervals")

    low, high = ("open" if interval[end] is None else f"{interval[end]:.3g}" for end in ("low", "high"))
    return picture(
        "profile",
        f"Log-likelihood over half-lives; 95 % interval by likelihood ratio {low} to {high} {unit}.",
        "Everything else refitted at each half-life. The dotted line, 1.92 nats below the maximum, bounds "
        f"the 95 % interval by likelihood ratio: {low} to {high} {unit}.",
        draw,
    )


def calibration(bins: list[Bin], error: float, listwise: bool) -> Picture:
    """Observed share of clicks over the predicted one."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x = np.array([b.predicted for b in bins])
        y, low, high = (np.array([getattr(b, k) for b in bins]) for k in ("observed", "low", "high"))
        most = 1.08 * max(x.max(), high.max())
        axes.plot([0, most], [0, most], color=GREY, lw=1, ls="--", label="perfectly calibrated")
        axes.errorbar(x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt="o", ms=4.5, lw=1.3)
        axes.set(xlim=(0, most), ylim=(0, most), xlabel="predicted chance of a click", ylabel="share clicked")
        axes.legend(loc="upper left")
        grid(axes)

    how = "the softmax of the scores within an impression" if listwise else "σ(score)"
    return picture(
        "calibration",
        f"Share of candidates clicked over the predicted chance, in {len(bins)} bins; calibration error "
        f"{error:.3f}.",
        f"Chance of a click by {how}, in bins of equally many test candidates, with 95 % intervals by a "
        f"bootstrap over users. Expected calibration error {error:.4f}.",
        draw,
    )


def by_history(slices: list[Slice], name: str, label: str, overall: float) -> Picture:
    """AUC within parts of the test impressions.

    Args:
        slices: from `predictions.auc_by`.
        name: of the picture.
        label: what the parts are ordered by.
        overall: AUC of all rows.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        at = np.arange(len(slices))
        y, low, high = (np.array([getattr(s, k) for s in slices]) for k in ("auc", "low", "high"))
        error = [np.maximum(y - low, 0), np.maximum(high - y, 0)]
        axes.axhline(overall, color=GREY, lw=1, ls="--", label=f"all impressions: {overall:.3f}")
        axes.errorbar(at, y, error, fmt="o", ms=5, lw=1.4, capsize=2.5)
        axes.set(xticks=at, xticklabels=[s.name for s in slices], xlabel=label, ylabel="AUC")
        axes.set_xlim(-0.5, len(slices) - 0.5)
        axes.legend(loc="best")
        grid(axes)

    values = "; ".join(f"{s.name}: {s.auc:.3f}" for s in slices)
    return picture(
        name,
        f"AUC by {label}: {values}.",
        f"AUC by {label}, in parts of equally many test impressions, with 95 % intervals by a bootstrap over "
        "users.",
        draw,
        height=2.9,
    )

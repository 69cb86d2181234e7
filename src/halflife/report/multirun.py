"""Several runs → a page: settings side by side over their seeds, and each against the same without decay."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from halflife.report import predictions, run, run_plots
from halflife.report.page import Page, Section, Table
from halflife.summary import caveats

COLUMNS = {
    "AUC": "test/auc",
    "gAUC": "test/gauc",
    "nDCG@10": "test/ndcg@10",
    "log-loss": "test/logloss",
    "popularity AUC": "baseline/popularity/auc",
}


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone.

    Args:
        name: what sets it apart from the other settings of the multirun.
        runs: by seed.
        found: `metrics.json` of each, in the order of `runs`.
        kernel: the choice of `decay`.
        beside: the other overrides that set it apart.
    """

    name: str
    runs: dict[str, Path]
    found: list[dict[str, Any]]
    kernel: str
    beside: frozenset[str]


def page(path: Path, runs: list[Path]) -> Page:
    """The page of a multirun.

    Args:
        path: its directory.
        runs: the finished runs in it.

    Raises:
        InputError: for a run that did not reach its end.
    """
    for each in runs:
        run.check(each)
    settings, common = grouped(runs)
    best = max(settings, key=lambda s: mean([f["test/auc"] for f in s.found])[0])
    auc, half = mean([f["test/auc"] for f in best.found])
    drawn = {}
    for setting in settings:
        first = next(iter(setting.runs.values()))
        drawn[setting.name] = run.read(first, "decay_curve.json"), run.read(first, "decay.json")["unit"]
    compared, note = comparisons(settings)
    shown = {s.name: [f["test/auc"] for f in s.found] for s in settings}
    forest = run_plots.forest({name: (aucs, *mean(aucs)) for name, aucs in shown.items()})
    sections = [Section("Side by side", [], [forest], [table(settings)])]
    sections.append(Section("Against no decay", [note] if note else [], [], [compared] if compared else []))
    sections.append(Section("How a click fades", [], [run_plots.curves(drawn)]))
    sections.append(Section("Every run", [], [], [every(settings)], folded=True))
    first = next(iter(settings[0].runs.values()))
    fingerprints = {str(f["data/fingerprint"]) for s in settings for f in s.found}
    rows = [
        ["in common", " ".join(common) or "nothing"],
        ["log's fingerprint", ", ".join(sorted(fingerprints))],
    ]
    if (first / "versions.json").is_file():
        rows += [[name, release] for name, release in run.read(first, "versions.json").items()]
    sections.append(Section("Where it comes from", tables=[Table(["", ""], rows)]))
    seeds = max(len(s.runs) for s in settings)
    return Page(
        title=f"Halflife: {path.resolve().name}",
        headline=f"{best.name} predicts best: AUC {auc:.4f}{spread(half, '.4f')}.",
        lead=f"{len(runs)} runs of {len(settings)} settings, up to {seeds} seeds each. Intervals are "
        "mean ± t · s / √n over seeds.",
        figures=figures(best, len(runs)),
        sections=sections,
        caveats=caveats(f for s in settings for f in s.found),
    )


def grouped(runs: list[Path]) -> tuple[list[Setting], list[str]]:
    """Settings in the order of their runs, and the overrides that all runs share."""
    words = {each: [w for w in run.overrides(each) if not w.startswith("logger")] for each in runs}
    common = [w for w in words[runs[0]] if all(w in other for other in words.values())]
    found: dict[str, Setting] = {}
    for each in sorted(runs, key=lambda r: (len(r.name), r.name)):
        apart = [w for w in words[each] if w not in common and not w.startswith("seed=")]
        seed = next((w.removeprefix("seed=") for w in words[each] if w.startswith("seed=")), "as given")
        name = " ".join(apart) or "as given"
        kernel = run.choices(each)["decay"]
        beside = frozenset(w for w in apart if not w.startswith("decay"))
        setting = found.setdefault(name, Setting(name, {}, [], kernel, beside))
        setting.runs[seed if seed not in setting.runs else each.name] = each
        setting.found.append(run.read(each, "metrics.json"))
    return list(found.values()), common


def mean(values: list[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval, t · s / √n; None for a single value.

    >>> mean([1.0]), mean([1.0, 1.0])
    ((1.0, None), (1.0, 0.0))
    """
    n = len(values)
    if n == 1:
        return float(values[0]), None
    return float(np.mean(values)), float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def spread(half: float | None, digits: str) -> str:
    """` ± half`, or nothing for a single run and for values that are all the same."""
    return "" if half is None or half < 1e-12 else f" ± {half:{digits}}"


def table(settings: list[Setting]) -> Table:
    """Means with intervals over seeds, one row a setting."""
    columns = dict(COLUMNS)
    for unit in ("days", "rank"):
        key = f"decay/half_life_{unit}"
        if any(key in f for s in settings for f in s.found):
            columns[f"half-life ({unit})"] = key
    rows = []
    for setting in settings:
        cells = []
        for key in columns.values():
            values = [f[key] for f in setting.found if key in f]
            digits = ".4f" if "/half_life" not in key else ".3g"
            if not values:
                cells.append("")
                continue
            middle, half = mean(values)
            cells.append(f"{middle:{digits}}{spread(half, '.2g')}")
        rows.append([setting.name, str(len(setting.runs)), *cells])
    return Table(
        ["setting", "seeds", *columns], rows, "Test split: mean ± half of the 95 % interval over seeds."
    )


def comparisons(settings: list[Setting]) -> tuple[Table | None, str]:
    """Each setting against `decay=none` with the same other overrides: AUC on the same rows, seed by seed."""
    base = {s.beside: s for s in settings if s.kernel == "none"}
    rows, unlike = [], 0
    for setting in settings:
        other = base.get(setting.beside)
        if setting.kernel == "none" or other is None:
            continue
        seeds = [seed for seed in setting.runs if seed in other.runs]
        pairs = [(predictions.read(setting.runs[s]), predictions.read(other.runs[s])) for s in seeds]
        found = predictions.paired(pairs) if pairs else None
        if found is None:
            unlike += 1
            continue
        point, low, high = found
        verdict = "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"
        rows.append([setting.name, str(len(seeds)), f"{point:+.4f}", f"[{low:+.4f}, {high:+.4f}]", verdict])
    if not rows:
        return (
            None,
            "No setting has a counterpart with decay=none on the same test rows.",
        )
    caption = (
        "Difference in AUC to decay=none on the same test impressions, mean over the seeds that both have; "
        f"the interval is a bootstrap over users, {predictions.DRAWS} draws, the same users for both."
    )
    note = f"{unlike} settings have no test rows in common with theirs." if unlike else ""
    return Table(["setting", "seeds", "AUC over no decay", "95 % interval", ""], rows, caption), note


def figures(best: Setting, runs: int) -> list[tuple[str, str, str]]:
    """The few numbers on top."""
    auc, half = mean([f["test/auc"] for f in best.found])
    popularity = mean([f["baseline/popularity/auc"] for f in best.found])[0]
    shown = [("best AUC", f"{auc:.4f}", f"± {half:.2g} over seeds" if half is not None else "one seed")]
    shown.append(("over popularity", f"{auc - popularity:+.4f}", f"popularity {popularity:.4f}"))
    days = [f["decay/half_life_days"] for f in best.found if "decay/half_life_days" in f]
    if days:
        middle, width = mean(days)
        shown.append(("its half-life", f"{middle:.3g} days", f"± {width:.2g} over seeds" if width else ""))
    return [*shown, ("runs", str(runs), "")]


def every(settings: list[Setting]) -> Table:
    """One row a run."""
    rows = []
    for setting in settings:
        for (seed, where), found in zip(setting.runs.items(), setting.found, strict=True):
            decay = run.read(where, "decay.json")
            half_life = decay[f"half_life_{decay['unit']}"]
            stated = "" if half_life is None else f"{half_life:.3g} {run.span(decay['low'], decay['high'])}"
            auc = f"{found['test/auc']:.4f} {run.span(found['test/auc_low'], found['test/auc_high'], '.4f')}"
            rows.append([setting.name, seed, auc, stated.strip(), where.name])
    return Table(["setting", "seed", "AUC", "half-life", "directory"], rows)

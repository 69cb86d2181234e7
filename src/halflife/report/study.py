"""A study → a page: the best trial, the objective over half-life, what matters, what failed and why."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars

from halflife.report import study_plots
from halflife.report.page import Page, Picture, Section, Table
from halflife.report.trials import Study, half_life_of, rate_of, read
from halflife.summary import caveats

SHOWN = 15  # trials in the table of the best; trials.parquet has all
WORDS = {"COMPLETE": "finished", "FAIL": "failed", "AGAIN": "interrupted and begun again"}


def pictures(study: Study) -> list[Picture]:
    """What people look at after a sweep; each only where the study holds what it shows."""
    finished, half_life, rate = study.finished, half_life_of(study), rate_of(study)
    found = []
    if len(study.objectives) > 1:
        found.append(study_plots.pareto(study.trials, study.objectives, study.front))
    else:
        objective, more = study.objectives[0], study.maximize[0]
        found.append(study_plots.history(study.trials, objective, more))
        if half_life is not None and len(finished.drop_nulls(half_life)):
            kernel = "decay" if "decay" in study.parameters else None
            found.append(study_plots.over_half_life(study.trials, half_life, objective, more, kernel))
            both = finished.drop_nulls([half_life, rate]) if rate is not None else finished
            if rate is not None and len(both) >= 3:
                found.append(study_plots.heat_map(both, rate, half_life, objective, more))
    if study.importance:
        found.append(study_plots.importance(study.importance))
    return found


def page(sweep_dir: Path) -> Page:
    """The page of a study, running or ended.

    Args:
        sweep_dir: what the sweeper wrote.

    Raises:
        InputError: when there is no study, or its storage cannot be reached.
    """
    study = read(sweep_dir)
    states = Counter(study.trials["state"])
    drawn = pictures(study)
    several = len(study.objectives) > 1
    title = "The trade-off" if several else "What was found"
    sections = [
        Section(title, [], [p for p in drawn if p.name != "importance"], [best_table(study)]),
        Section("What matters", *importance(study, drawn)),
        Section("What did not finish", *unfinished(study)),
        Section("Every trial", [], [], [trials_table(study, study.trials)], folded=True),
    ]
    if (sweep_dir / "best.yaml").is_file():
        text = "best.yaml, in the sweep's directory, is the best trial's configuration; it runs as it is."
        sections.append(Section("Again", [text], code=(sweep_dir / "best.yaml").read_text(), folded=True))
    counted = ", ".join(f"{n} {WORDS.get(state, state.lower())}" for state, n in sorted(states.items()))
    seconds = study.trials["duration_s"].sum() or 0.0
    return Page(
        title=f"Halflife study: {study.name}",
        headline=headline(study),
        lead=f"Study {study.name}: {len(study.trials)} trials ({counted}), over "
        f"{', '.join(study.parameters) or 'nothing'}; {seconds / 60:,.1f} minutes of trials in all.",
        figures=[
            *figures(study),
            ("finished trials", str(states["COMPLETE"]), f"of {len(study.trials)}"),
            ("pruned", str(states["PRUNED"]), ""),
            ("failed", str(states["FAIL"]), ""),
        ],
        sections=sections,
        caveats=caveats(json.loads(f.read_text()) for f in sorted(sweep_dir.rglob("metrics.json"))),
    )


def headline(study: Study) -> str:
    """The answer in one sentence."""
    best = study.finished
    if len(best) == 0:
        return "No trial has finished yet."
    if len(study.objectives) > 1:
        return f"{len(study.front)} trials are beaten by none in both {' and '.join(study.objectives)}."
    top, half_life = best.row(0, named=True), half_life_of(study)
    found = f"{study.objectives[0]} {top[study.objectives[0]]:.4f}"
    if half_life is None or top[half_life] is None:
        return f"The best trial reaches {found}."
    searched = best.drop_nulls(half_life)
    peak, low, high = study_plots.optimum(searched, half_life, study.objectives[0], study.maximize[0])
    unit = "days" if half_life.endswith("days") else "newer clicks"
    if peak is None:
        return f"The best trial, with a half-life of {top[half_life]:.3g} {unit}, reaches {found}."
    return (
        f"A half-life of {peak:.3g} {unit} [{low:.3g}, {high:.3g}] does best; the best trial reaches {found} "
        f"at {top[half_life]:.3g}."
    )


def figures(study: Study) -> list[tuple[str, str, str]]:
    """The best trial's numbers."""
    if len(study.objectives) > 1 or len(study.finished) == 0:
        return []
    top = study.finished.row(0, named=True)
    return [(f"best {study.objectives[0]}", f"{top[study.objectives[0]]:.4f}", f"trial {top['number']}")]


def text_of(value: Any) -> str:
    """A value of a trial in a table."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trials_table(study: Study, trials: polars.DataFrame) -> Table:
    """Trials with their values and parameters."""
    columns = ["number", "state", *study.objectives, *study.parameters, "duration_s", "run_dir"]
    rows = [[text_of(value) for value in row] for row in trials.select(columns).rows()]
    return Table(["trial", *columns[1:-2], "seconds", "directory"], rows)


def best_table(study: Study) -> Table:
    """The best trials, or those of the front."""
    several = len(study.objectives) > 1
    done = study.finished
    best = done.filter(polars.col("number").is_in(study.front)) if several else done.head(SHOWN)
    table = trials_table(study, best)
    caption = "Trials that no other beats in every objective." if several else "The best trials."
    return Table(table.columns, table.rows, caption)


def importance(study: Study, drawn: list[Picture]) -> tuple[list[str], list[Picture]]:
    """The picture, or why there is none."""
    found = [p for p in drawn if p.name == "importance"]
    return ([] if found else ["Too few trials have finished to tell what matters."]), found


def unfinished(study: Study) -> tuple[list[str], list[Picture], list[Table]]:
    """Pruned and failed trials, counted by reason."""
    left = study.trials.filter(~polars.col("state").is_in(["COMPLETE"]))
    if len(left) == 0:
        return ["Every trial finished."], [], []
    said = left.with_columns(polars.col("reason").fill_null(""))
    counted = said.group_by("state", "reason").agg(polars.col("number").sort()).sort("state", "reason")
    rows = []
    for state, reason, numbers in counted.rows():
        which = ", ".join(map(str, numbers[:12])) + (" …" if len(numbers) > 12 else "")
        rows.append([reason or "no reason given", WORDS.get(state, state.lower()), str(len(numbers)), which])
    return [], [], [Table(["reason", "state", "trials", "which"], rows)]

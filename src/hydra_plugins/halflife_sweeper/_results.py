"""After each trial and at the end: trials.parquet, best.yaml, and the last table."""

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table
from scipy.stats import t as student

from hydra_plugins.halflife_sweeper._study import counts
from hydra_plugins.halflife_sweeper._trial import replaced

BEST_SHOWN = 10


def half_width(values: list[float]) -> float | None:
    """Half of the 95 % interval of a mean: t · s / √n; None for fewer than two values.

    >>> round(half_width([0.6, 0.7, 0.8]), 3)
    0.248
    """
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return float(student.ppf(0.975, n - 1)) * sd / math.sqrt(n)


def seed_values(trial: FrozenTrial, objective: int = 0) -> list[float]:
    """One objective of a trial by seed, in the order they ran."""
    return [values[objective] for values in trial.user_attrs.get("seeds", {}).values()]


def state_of(trial: FrozenTrial) -> str:
    """complete, pruned, failed, running, waiting; or again, for one whose parameters were queued anew."""
    if trial.state == TrialState.FAIL:
        return "failed" if counts(trial) else "again"
    return trial.state.name.lower()


def frame(study: optuna.Study) -> pl.DataFrame:
    """One row a trial; a column for each parameter under the key that it overrides."""
    trials = study.get_trials(deepcopy=False)
    single = len(study.directions) == 1
    columns: dict[str, list[Any]] = {
        "number": [t.number for t in trials],
        "state": [state_of(t) for t in trials],
    }
    for i in range(len(study.directions)):
        columns["value" if single else f"values_{i}"] = [t.values[i] if t.values else None for t in trials]
    for key in sorted({key for t in trials for key in t.params}):
        values = [t.params.get(key) for t in trials]
        kinds = {type(v) for v in values if v is not None}
        if kinds == {int, float}:
            values = [None if v is None else float(v) for v in values]
        elif len(kinds) > 1:
            values = [None if v is None else str(v) for v in values]
        columns[key] = values
    columns["datetime_start"] = [t.datetime_start for t in trials]
    columns["datetime_complete"] = [t.datetime_complete for t in trials]
    columns["duration_s"] = [t.duration.total_seconds() if t.duration else None for t in trials]
    columns["run_dir"] = [t.user_attrs.get("run_dir") for t in trials]
    columns["reason"] = [t.user_attrs.get("reason") for t in trials]
    if any("seeds" in t.user_attrs for t in trials):
        columns["seed_values"] = [seed_values(t) or None for t in trials]
        columns["half_width"] = [half_width(seed_values(t)) for t in trials]
    types = {"value": pl.Float64, "duration_s": pl.Float64, "run_dir": pl.String, "reason": pl.String}
    return pl.DataFrame(columns, schema_overrides={k: v for k, v in types.items() if k in columns})


def ranked(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials, the best first; of several objectives the Pareto front, by the first."""
    several = len(study.directions) > 1
    done = study.best_trials if several else study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    return sorted(done, key=lambda t: (sign * t.values[0], t.number))


@dataclass(frozen=True)
class Brought:
    """What a group that says how to search sets of a run as well.

    Args:
        choices: of other groups.
        values: by key.
    """

    choices: dict[str, str]
    values: dict[str, Any]


@dataclass(frozen=True)
class App:
    """What best.yaml is written for.

    Args:
        config_name: its primary configuration, where it has one.
        loader: Hydra's, which knows its groups.
        search: groups that say how to search, which is no part of a run, and what they bring along.
        seed_key: the key that a seed goes to, where trials run over several.
        command: what runs best.yaml, but for what it says itself.
    """

    config_name: str | None
    loader: ConfigLoader
    search: dict[str, Brought]
    seed_key: str
    command: str


def write_results(study: optuna.Study, sweep_dir: Path, app: App) -> None:
    """trials.parquet and best.yaml, whole or not at all."""
    with replaced(sweep_dir / "trials.parquet") as own:
        frame(study).write_parquet(own)
    best, file = ranked(study), sweep_dir / "best.yaml"
    if best and not (file.is_file() and file.read_text().startswith(title(study, best[0], app))):
        with replaced(file) as own:
            own.write_text(best_yaml(study, best[0], app))


def title(study: optuna.Study, best: FrozenTrial, app: App) -> str:
    """The first line of best.yaml: which trial it is, and what that reached."""
    told = ", ".join(f"{v:.6g}" for v in best.values)
    seeds = list(best.user_attrs.get("seeds", {}))
    over = f", the mean over {app.seed_key} {', '.join(seeds)}" if seeds else ""
    return f"# The best of study {study.study_name}: trial {best.number} reached {told}{over}. To run it:\n"


def best_yaml(study: optuna.Study, best: FrozenTrial, app: App) -> str:
    """A primary configuration that runs the best trial again, with the first of its seeds if it had several.

    What says how to search, such as the group `search`, is left out: it is no part of the run. What such a
    group sets of the run stands in its place.
    """
    overrides = list(best.user_attrs["overrides"])
    defaults: list[Any] = [app.config_name] if app.config_name else []
    values = OmegaConf.create()
    for brought in app.search.values():
        defaults += [{f"override {group}": choice} for group, choice in brought.choices.items()]
        values.merge_with(brought.values)
    seeds = list(best.user_attrs.get("seeds", {}))
    for override in OverridesParser.create().parse_overrides(overrides):
        key, bare = override.get_key_element(), override.key_or_group
        if any(bare == group or bare.startswith(f"{group}.") for group in app.search):
            continue
        if override.is_delete():
            continue  # a configuration cannot delete: `again` has it
        if app.loader.get_group_options(bare):
            group = key.lstrip("+")
            entry = (
                {group: override.value()} if override.is_add() else {f"override {group}": override.value()}
            )
            defaults.append(entry)
        else:
            OmegaConf.update(values, bare, override.value(), force_add=True)
    if seeds:
        OmegaConf.update(values, app.seed_key, int(seeds[0]), force_add=True)
    text = OmegaConf.to_yaml(OmegaConf.merge({"defaults": [*defaults, "_self_"]}, values))
    return f"{title(study, best, app)}# {again(best, app)}\n{text}"


def again(best: FrozenTrial, app: App) -> str:
    """The command that runs the best trial again."""
    overrides = OverridesParser.create().parse_overrides(list(best.user_attrs["overrides"]))
    deleted = [f"'{o.input_line}'" for o in overrides if o.is_delete()]
    seeds = list(best.user_attrs.get("seeds", {}))
    every = ["-m", f"{app.seed_key}={','.join(seeds)}"] if seeds else []
    return " ".join([app.command, *every, *deleted])


def search_groups(overrides: list[str], config_name: str | None, loader: ConfigLoader) -> dict[str, Brought]:
    """Groups whose choice configures the sweeper: they say how to search, not what to run.

    Overrides of hydra's own are left out, since some of them need such a group to be there.

    Returns:
        By group, what its choice sets of a run all the same.
    """

    def composed(*words: str) -> Any:
        return loader.load_configuration(config_name, list(words), run_mode=RunMode.RUN)

    found, plain = {}, composed()
    for override in OverridesParser.create().parse_overrides(overrides):
        group, value = override.key_or_group, override.value()
        if not isinstance(value, str) or value not in loader.get_group_options(group):
            continue
        chosen = composed(str(override.input_line))
        if chosen.hydra.sweeper != plain.hydra.sweeper:
            before, choices = plain.hydra.runtime.choices, chosen.hydra.runtime.choices
            theirs = {k: c for k, c in choices.items() if before.get(k) != c and k != group}
            new, old = (OmegaConf.to_container(cfg, resolve=False) for cfg in (chosen, plain))
            values = {k: v for k, v in _difference(new, old).items() if k not in ("hydra", group)}
            found[group] = Brought({k: c for k, c in theirs.items() if not k.startswith("hydra/")}, values)
    return found


def _difference(new: Any, old: Any) -> dict[str, Any]:
    """What of a configuration another one has not, or has otherwise."""
    return {
        key: _difference(value, old[key])
        if isinstance(value, dict) and isinstance(old.get(key), dict)
        else value
        for key, value in new.items()
        if key not in old or old[key] != value
    }


def last_table(study: optuna.Study, n_trials: int) -> Table:
    """The best trials, what was pruned, and why others failed."""
    trials = study.get_trials(deepcopy=False)
    by_state: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        by_state[state_of(trial)].append(trial)
    best = ranked(study)
    single = len(study.directions) == 1
    done = len(by_state["complete"]) + len(by_state["pruned"]) + len(by_state["failed"])
    what = "" if single else " · the Pareto front"
    table = Table(title=f"Study {study.study_name}: {done} of {n_trials} trials{what}")
    table.add_column("trial", justify="right")
    directions = [d.name.lower() for d in study.directions]
    for direction in directions:
        table.add_column(f"value ({direction})", justify="right")
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    for key in keys:
        table.add_column(key, justify="right", overflow="fold")
    for trial in best[:BEST_SHOWN] if single else best:
        cells = []
        for i, value in enumerate(trial.values):
            half = half_width(seed_values(trial, i))
            cells.append(f"{value:.6g}" if half is None else f"{value:.4g} ± {half:.2g}")
        shown = [
            f"{v:.4g}" if isinstance(v, float) else str(v) for v in (trial.params.get(k, "") for k in keys)
        ]
        table.add_row(str(trial.number), *cells, *shown)
    notes = [f"{len(best) - BEST_SHOWN} more in trials.parquet"] if single and len(best) > BEST_SHOWN else []
    if by_state["pruned"]:
        notes.append(f"pruned: {len(by_state['pruned'])}")
    causes: dict[str, list[str]] = defaultdict(list)
    for trial in by_state["failed"]:
        causes[trial.user_attrs.get("reason", "its worker's heartbeat stopped")].append(str(trial.number))
    notes += [f"failed: {', '.join(numbers)}: {reason}" for reason, numbers in causes.items()]
    if by_state["again"]:
        notes.append(f"interrupted and begun again: {len(by_state['again'])}")
    if by_state["running"]:
        notes.append(f"running in other processes: {len(by_state['running'])}")
    table.caption = "\n".join(notes) or None
    return table

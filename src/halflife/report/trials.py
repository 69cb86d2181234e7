"""What a sweep's directory holds: the study, its trials, what was searched and what matters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
from omegaconf import OmegaConf

from halflife.errors import InputError
from halflife.report.multirun import mean


@dataclass(frozen=True)
class Study:
    """What a sweep's directory holds.

    Args:
        name: of the study.
        maximize: for each objective, whether more is better.
        objectives: their names.
        trials: a row a trial: `number`, `state`, a column an objective, a column a parameter, `duration_s`,
            `run_dir`, `reason`, and `half_width` of the 95 % interval where a trial ran over several seeds.
        parameters: the columns that were searched.
        front: numbers of the finished trials that no other beats in every objective.
        importance: share of the objective's variation that a parameter explains; empty where too few trials
            finished to tell.
    """

    name: str
    maximize: list[bool]
    objectives: list[str]
    trials: polars.DataFrame
    parameters: list[str]
    front: list[int]
    importance: dict[str, float]

    @property
    def finished(self) -> polars.DataFrame:
        """Trials that reached their end, best first; by number where there are several objectives."""
        done = self.trials.filter(polars.col("state") == "COMPLETE").drop_nulls(self.objectives)
        if len(self.objectives) > 1:
            return done.sort("number")
        return done.sort(self.objectives[0], descending=self.maximize[0])


def load(sweep_dir: Path) -> Any:
    """The Optuna study of a sweep: of `study.log`, or of the storage and name that `study.json` gives.

    Raises:
        InputError: when there is none, or several, or the storage cannot be reached.
    """
    import optuna
    from optuna.exceptions import StorageInternalError
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import SQLAlchemyError

    from hydra_plugins.halflife_sweeper._study import connect

    log, about = sweep_dir / "study.log", sweep_dir / "study.json"
    given: Any = OmegaConf.to_container(OmegaConf.load(about), resolve=True) if about.is_file() else {}
    if not log.is_file() and given.get("storage", "memory") == "memory":
        raise InputError(
            f"PATH must hold a study, got {sweep_dir} without study.log or a study.json that names its "
            "storage; give the directory of a sweep"
        )
    try:
        # a journal is read as it is: nothing is written where a page is asked for
        journal = JournalStorage(JournalFileBackend(str(log))) if log.is_file() else None
        storage = journal or connect(given["storage"])
        names = optuna.get_all_study_names(storage)
        name = given.get("study_name", names[0] if len(names) == 1 else None)
        if name not in names:
            raise InputError(
                f"PATH must hold one study, got {', '.join(names) or 'none'} in {sweep_dir}; name it in "
                "study.json"
            )
        return optuna.load_study(study_name=name, storage=storage)
    except (OSError, ImportError, SQLAlchemyError, StorageInternalError) as error:
        raise InputError(f"the storage must be reachable, got: {error}; start it and repeat") from error


def read(sweep_dir: Path) -> Study:
    """The study of a sweep's directory, running or ended.

    A trial's attributes `run_dir`, `reason`, `seeds` (values by seed) and `again` (interrupted, and begun
    anew under another number) are those that the sweeper sets.

    Args:
        sweep_dir: what the sweeper wrote.
    """
    from optuna.importance import get_param_importances
    from optuna.study import StudyDirection

    found = load(sweep_dir)
    everything = found.get_trials(deepcopy=False)
    count = len(found.directions)
    objectives = names(sweep_dir, everything, count)
    rows, parameters = [], list(dict.fromkeys(p for trial in everything for p in trial.params))
    for trial in everything:
        said, state = trial.user_attrs, trial.state.name
        values = trial.values or count * [None]
        if state == "PRUNED" and count == 1 and trial.intermediate_values:
            values = [trial.intermediate_values[max(trial.intermediate_values)]]
        seeds = [each[0] for each in said.get("seeds", {}).values()]
        row = {
            "number": trial.number,
            "state": "AGAIN" if state == "FAIL" and (said.get("again") or "reason" not in said) else state,
            "duration_s": trial.duration.total_seconds() if trial.duration is not None else None,
            "half_width": mean(seeds)[1] if seeds else None,
            "run_dir": said.get("run_dir"),
            "reason": said.get("reason"),
        }
        rows.append(row | dict(zip(objectives, values, strict=True)) | trial.params)
    done = [trial for trial in everything if trial.state.name == "COMPLETE"]
    some = len(done) > len(parameters) + 1 and len({tuple(trial.values) for trial in done}) > 1
    types: dict[str, Any] = {column: polars.Float64 for column in ("duration_s", "half_width")}
    types |= {column: polars.String for column in ("state", "run_dir", "reason")}
    columns = ["number", *types, *objectives, *parameters]
    table = {column: [row.get(column) for row in rows] for column in columns}
    return Study(
        found.study_name,
        [d == StudyDirection.MAXIMIZE for d in found.directions],
        objectives,
        polars.DataFrame(table, schema_overrides=types, strict=False),
        parameters,
        [t.number for t in found.best_trials] if done else [],
        dict(get_param_importances(found)) if some else {},
    )


def names(sweep_dir: Path, trials: list[Any], count: int) -> list[str]:
    """The objectives' names, as a trial's configuration has them, else `value` or `values_0` and so on."""
    for trial in trials:
        given = Path(trial.user_attrs.get("run_dir", str(trial.number)))
        for place in (given, sweep_dir / given.name):  # a sweep may have been moved since
            for config in sorted(place.rglob(".hydra/config.yaml")):
                said = OmegaConf.select(OmegaConf.load(config), "objective")
                listed = [said] if isinstance(said, str) else list(said or [])
                if len(listed) == count:
                    return [str(name) for name in listed]
    return ["value"] if count == 1 else [f"values_{i}" for i in range(count)]


def half_life_of(study: Study) -> str | None:
    """The parameter that is a half-life, where one was searched."""
    return next((p for p in study.parameters if p.rpartition(".")[2].startswith("half_life")), None)


def rate_of(study: Study) -> str | None:
    """The parameter that is a learning rate, where one was searched."""
    last = {p: p.rpartition(".")[2] for p in study.parameters}
    return next((p for p, name in last.items() if name == "lr" or name.endswith("_lr")), None)

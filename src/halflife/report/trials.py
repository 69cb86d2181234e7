"""What a sweep's directory holds: the study, its trials, what was searched and what matters."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
from omegaconf import OmegaConf

from halflife.errors import InputError


@dataclass(frozen=True)
class Study:
    """What a sweep's directory holds.

    Args:
        name: of the study.
        maximize: for each objective, whether more is better.
        objectives: their names.
        trials: a row a trial: `number`, `state`, a column an objective, a column a parameter, `duration_s`,
            `run_dir`, `reason`.
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

    log = sweep_dir / "study.log"
    places = (sweep_dir / "study.json", sweep_dir / ".hydra" / "study.json")
    about = next((file for file in places if file.is_file()), None)
    given = json.loads(about.read_text()) if about is not None else {}
    if not log.is_file() and not given.get("storage"):
        raise InputError(
            f"PATH must hold a study, got {sweep_dir} without study.log or a study.json that names its "
            "storage; give the directory of a sweep"
        )
    storage = JournalStorage(JournalFileBackend(str(log))) if log.is_file() else given["storage"]
    try:
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

    The storage is what counts, since it is right at any moment; `trials.parquet` adds where each trial ran
    and why it failed.

    Args:
        sweep_dir: what the sweeper wrote.
    """
    from optuna.importance import get_param_importances
    from optuna.study import StudyDirection

    found = load(sweep_dir)
    count = len(found.directions)
    objectives = names(sweep_dir, count)
    rows, parameters = [], []
    for trial in found.get_trials(deepcopy=False):
        values = trial.values or count * [None]
        if trial.state.name == "PRUNED" and count == 1 and trial.intermediate_values:
            values = [trial.intermediate_values[max(trial.intermediate_values)]]
        parameters += [p for p in trial.params if p not in parameters]
        duration = trial.duration.total_seconds() if trial.duration is not None else None
        row = {"number": trial.number, "state": trial.state.name, "duration_s": duration}
        rows.append(row | dict(zip(objectives, values, strict=True)) | trial.params)
    trials = polars.DataFrame(rows, infer_schema_length=None, strict=False)
    if (sweep_dir / "trials.parquet").is_file():
        table = polars.read_parquet(sweep_dir / "trials.parquet")
        said = [c for c in ("number", "run_dir", "reason") if c in table.columns]
        trials = trials.join(table.select(said).cast({"number": polars.Int64}), on="number", how="left")
    absent = [c for c in ("run_dir", "reason") if c not in trials.columns]
    done = [t for t in found.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    some = len(done) > len(parameters) + 1 and len({tuple(t.values) for t in done}) > 1
    return Study(
        found.study_name,
        [d == StudyDirection.MAXIMIZE for d in found.directions],
        objectives,
        trials.with_columns(polars.lit(None, polars.String).alias(c) for c in absent),
        parameters,
        [t.number for t in found.best_trials] if done else [],
        dict(get_param_importances(found)) if some else {},
    )


def names(sweep_dir: Path, count: int) -> list[str]:
    """The objectives' names: what `best.yaml` says, else `value`, or `values_0`, `values_1`, …"""
    best = sweep_dir / "best.yaml"
    said = OmegaConf.select(OmegaConf.load(best), "objective") if best.is_file() else None
    given = [said] if isinstance(said, str) else list(said or [])
    if len(given) == count:
        return [str(name) for name in given]
    return ["value"] if count == 1 else [f"values_{i}" for i in range(count)]


def half_life_of(study: Study) -> str | None:
    """The parameter that is a half-life, where one was searched."""
    return next((p for p in study.parameters if p.rpartition(".")[2].startswith("half_life")), None)


def rate_of(study: Study) -> str | None:
    """The parameter that is a learning rate, where one was searched."""
    last = {p: p.rpartition(".")[2] for p in study.parameters}
    return next((p for p, name in last.items() if name == "lr" or name.endswith("_lr")), None)

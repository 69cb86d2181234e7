"""Inside a trial: reports to the study, and what the trial leaves in its run directory."""

import json
import logging
import math
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from halflife.errors import InputError, shown

log = logging.getLogger(__name__)
NOTE = "trial.json"


def first_line(error: BaseException) -> str:
    """What an exception says first, or its name where it says nothing.

    >>> first_line(ValueError("too large\\nsee above")), first_line(MemoryError())
    ('too large', 'MemoryError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def replaced(place: Path) -> Iterator[Path]:
    """A file to write to, which is moved to `place` when it is whole: readers see the old one or the new one.

    Each process writes to its own, since the workers of a study share its directory.
    """
    own = place.with_name(f".{place.name}.{platform.node()}-{os.getpid()}")
    yield own
    own.replace(place)


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Args:
        state: complete, pruned, failed, or died, where its process left without a word.
        values: of the objectives, where it is complete.
        reason: why it was pruned, failed or died.
        traceback: of the exception, where there was one.
        seconds: that the app's function took.
        cpu_seconds: the same of processor time, of this process; on a shared machine it says more.
    """

    state: str
    values: list[float] = field(default_factory=list)
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def write(self, directory: Path) -> None:
        """Write whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        with replaced(directory / NOTE) as file:
            file.write_text(json.dumps({k: v for k, v in asdict(self).items() if v}, indent=2) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "Outcome | None":
        """What a trial left, or None where it left nothing."""
        file = directory / NOTE
        return cls(**json.loads(file.read_text())) if file.is_file() else None


@dataclass(frozen=True)
class Where:
    """How another process finds the study; texts only, so that every launcher can carry it.

    Args:
        storage: see `_study.connect`, as JSON.
        study_name: in that storage.
        pruner: its configuration, as JSON.
        directions: minimize or maximize, one an objective.
    """

    storage: str
    study_name: str
    pruner: str
    directions: tuple[str, ...]


@dataclass
class _Running:
    """The trial that this process runs."""

    where: Where
    number: int
    lost: bool = False

    def judge(self, value: float, step: int) -> str | None:
        from hydra_plugins.halflife_sweeper._study import LOST, open_study

        try:
            study, storage = open_study(self.where)
            study_id = storage.get_study_id_from_name(study.study_name)
            trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, self.number)
            storage.set_trial_intermediate_value(trial_id, step, value)
            prune = study.pruner.prune(study, storage.get_trial(trial_id))
        except LOST as error:
            if not self.lost:
                reason = first_line(error.__cause__ or error)
                log.warning(f"the study cannot be reached, so that this trial cannot be pruned: {reason}")
            self.lost = True
            return None
        return f"pruned at step {step} with {value:.6g}" if prune else None


_running: _Running | None = None


def report(value: float, step: int) -> None:
    """Tell the study how a trial is doing, and end the trial where the study's pruner says so.

    Call it at each validation, from anywhere in the app. In a run that is no trial it does nothing, and so it
    does in a trial over several seeds, which is pruned between them, or with several objectives.

    Args:
        value: the objective so far.
        step: rises with each report; the pruner compares trials at the same step.

    Raises:
        optuna.TrialPruned: to end the trial; let it pass.

    >>> report(0.7, step=1)
    """
    end = judge(value, step)
    if end is not None:
        from optuna import TrialPruned

        raise TrialPruned(end)


def judge(value: float, step: int) -> str | None:
    """`report` that says why the trial shall end, or None: for an app that has other processes to end first.

    >>> judge(0.7, step=1)
    """
    return None if _running is None else _running.judge(float(value), int(step))


@dataclass(frozen=True)
class TrialTask:
    """The app's function, which also writes down what came of it.

    Args:
        task: the function under `hydra.main`.
        where: the study.
        reports: whether it is told how a trial is doing.
    """

    task: Callable[[Any], Any]
    where: Where
    reports: bool

    def __call__(self, cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        global _running
        hydra = HydraConfig.get()
        place = Path(hydra.runtime.output_dir)
        _running = _Running(self.where, hydra.sweeper.trial) if self.reports else None
        begin, begin_cpu = time.perf_counter(), time.process_time()

        def leave(outcome: Outcome) -> None:
            took, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
            replace(outcome, seconds=took, cpu_seconds=cpu).write(place)

        try:
            result = self.task(cfg)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from error  # as Lightning ends
            leave(_outcome_of(error))
            if isinstance(error, SystemExit):  # of this trial, not of the sweep
                raise RuntimeError(f"the job left with exit code {error.code}") from error
            raise
        finally:
            _running = None
        leave(_checked(result, len(self.where.directions)))
        return result


def _outcome_of(error: BaseException) -> Outcome:
    """Pruned, or failed with a reason in one line."""
    if type(error).__name__ == "TrialPruned":
        return Outcome("pruned", reason=str(error))
    told = error.__context__ if isinstance(error, SystemExit) and error.__context__ else error
    reason = f"{type(told).__name__}: {first_line(told)}"
    if isinstance(told, InputError):
        reason = first_line(told)
    elif isinstance(told, MemoryError) or type(told).__name__ == "OutOfMemoryError":
        reason = f"out of memory ({reason})"
    elif isinstance(told, SystemExit):
        reason = f"the job left with exit code {told.code}"
    return Outcome("failed", reason=reason, traceback="".join(traceback.format_exception(error)))


def _checked(result: Any, objectives: int) -> Outcome:
    """Complete, or failed where the function did not return so many finite numbers."""
    returned = list(result) if isinstance(result, list | tuple) else [result]
    try:
        values = [float(v) for v in returned]
    except (TypeError, ValueError):
        return Outcome("failed", reason=f"the app must return a number, got {shown(result)}")
    if len(values) != objectives:
        return Outcome("failed", reason=f"the app must return {objectives} numbers, got {len(values)}")
    if not all(map(math.isfinite, values)):
        return Outcome("failed", reason=f"the objective must be finite, got {', '.join(map(str, values))}")
    return Outcome("complete", values=values)

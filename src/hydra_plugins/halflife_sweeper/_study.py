"""The study: where it is kept, who works on it, what to run next, and what came of it."""

import json
import os
import re
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from hydra.utils import instantiate
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalRedisBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from halflife.errors import InputError
from hydra_plugins.halflife_sweeper._space import Node, suggest
from hydra_plugins.halflife_sweeper._trial import Outcome, Where, first_line

LOST: tuple[type[Exception], ...] = (StorageInternalError, OSError)
"""What a storage raises that went away."""
with suppress(ImportError):  # Redis, where its driver is installed, has errors of its own
    from redis.exceptions import RedisError

    LOST = (*LOST, RedisError)
PATIENCE_S = (1, 2, 4, 8)
HEARTBEAT_S = 60
DEATHS = 3
"""So often a trial whose process died is begun, before it counts as failed: it may be what kills them."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)
warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with Study.optimize")


def lost(error: Exception, then: str = "") -> InputError:
    """The sentence for a storage that went away and did not come back.

    Args:
        error: one of LOST.
        then: what the same command does beyond going on.
    """
    reason = first_line(error.__cause__ or error)  # Optuna's own sentence about a database is of no help
    return InputError(
        f"hydra.sweeper.storage must stay reachable, got: {reason}; bring it back and run the same command "
        f"again{then}"
    )


class _KernelLock(JournalFileSymlinkLock):
    """A lock that the kernel opens again when its process dies; Optuna's own are waited for 30 seconds."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class Journal(JournalFileBackend):
    """Optuna's journal, which survives a line that a crash cut off, and a file that went away is an error."""

    def __init__(self, path: Path) -> None:
        lock = _KernelLock(path)
        lock.acquire()
        if path.exists():
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                os.truncate(path, content.rfind(b"\n") + 1)
        super().__init__(str(path), lock_obj=lock)
        lock.release()
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if not self.path.exists():  # it would begin anew, without what it held
            raise FileNotFoundError(f"{self.path} is gone")
        super().append_logs(logs)


def connect(storage: Any, stale: Callable[[optuna.Study, FrozenTrial], None] | None = None) -> BaseStorage:
    """A storage by what `hydra.sweeper.storage` says.

    Args:
        storage: `memory`, a URL of a database or of Redis, a journal's file, or a mapping with `_target_`.
        stale: told of a trial whose heartbeat stopped, where the storage has one.

    Raises:
        InputError: when it cannot be reached.
    """
    if isinstance(storage, dict):
        made = instantiate(storage)
        if not isinstance(made, BaseStorage):
            raise InputError(
                f"hydra.sweeper.storage must be a storage of Optuna's, got {type(made).__name__}; correct "
                "its _target_"
            )
        return made
    if storage == "memory":
        return InMemoryStorage()
    try:
        if "://" not in storage:
            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(Journal(Path(storage)))
        if storage.startswith("redis"):
            return JournalStorage(JournalRedisBackend(storage))
        # several workers wait for each other longer than SQLite's 5 seconds
        waits = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
        return RDBStorage(
            storage,
            engine_kwargs=waits,
            heartbeat_interval=HEARTBEAT_S,
            heartbeat_stale_trial_callback=stale,
        )
    except Exception as error:  # each driver has its own; none is a defect of ours
        hidden = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", storage)  # the password, if it has one
        raise InputError(
            f"hydra.sweeper.storage must be a storage that can be reached, got {hidden} "
            f"({first_line(error)}); correct it, start it, or install its driver"
        ) from error


@lru_cache(maxsize=4)
def open_study(where: Where) -> tuple[optuna.Study, BaseStorage]:
    """The study, opened once a process: in-process trials share it with the sweeper."""
    storage = connect(json.loads(where.storage), _retry_stale)
    study = optuna.create_study(
        study_name=where.study_name,
        storage=storage,
        pruner=instantiate(json.loads(where.pruner)),
        directions=[StudyDirection[d.upper()] for d in where.directions],
        load_if_exists=True,
    )
    return study, storage


def _retry_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    """Called once for each trial whose heartbeat stopped, by whichever worker found it."""
    again(study, trial, died=True)


def again(study: optuna.Study, trial: FrozenTrial, died: bool) -> bool:
    """Queue a trial's parameters again, unless that was done, or it died too often.

    Args:
        study: where.
        trial: interrupted or dead.
        died: whether its process did; Ctrl-C is no death.
    """
    deaths = trial.user_attrs.get("deaths", 0) + died
    if deaths >= DEATHS:
        return False
    everyone = study.get_trials(deepcopy=False)
    if any(t.user_attrs.get("retry_of") == trial.number for t in everyone):
        return True
    told = trial.system_attrs
    fixed = {**told.get("fixed_params", {}), **trial.params}
    kept: dict[str, Any] = {k: told[k] for k in ("grid_id", "search_space") if k in told}
    attrs: dict[str, Any] = {"retry_of": trial.number, "deaths": deaths}
    attrs |= {k: trial.user_attrs[k] for k in ("seeds",) if k in trial.user_attrs}
    study.add_trial(
        create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": fixed, **kept}, user_attrs=attrs)
    )
    return True


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial counts towards the planned number: one that was begun again does not."""
    return not trial.user_attrs.get("again", False) and not _stale(trial)


def _stale(trial: FrozenTrial) -> bool:
    """Whether Optuna failed it for its heartbeat: nobody wrote down why."""
    return trial.state == TrialState.FAIL and "reason" not in trial.user_attrs


class Workers:
    """Which processes work on a study: each holds a lock in the sweep's directory as long as it lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.me = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock = FileLock(folder / f"{self.me}.lock")
        self._lock.acquire()

    def lives(self, worker: str) -> bool:
        """Whether a worker may still be at work; of one on a machine without this directory nobody knows."""
        if worker == self.me:
            return True
        host, pid, _ = worker.rsplit("-", 2)
        here = host == socket.gethostname()
        if here and not _process_exists(int(pid)):
            return False
        file = self.folder / f"{worker}.lock"
        if not file.exists():
            return not here
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
        file.unlink(missing_ok=True)
        return False

    def leave(self) -> None:
        """No longer at work."""
        self._lock.release()
        (self.folder / f"{self.me}.lock").unlink(missing_ok=True)


def _process_exists(pid: int) -> bool:
    """A process that was forked off a dead worker may keep its lock for a while."""
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


@dataclass
class Job:
    """A trial to run.

    Args:
        trial: that Optuna gave out.
        overrides: its parameters, and what is the same in every trial.
        directory: where it runs.
    """

    trial: optuna.Trial
    overrides: list[str]
    directory: Path


class Plan:
    """What is left to do in a study, shared with every other worker on it.

    Args:
        where: the study.
        sampler: picks the parameters.
        nodes: the space.
        about: what a study is begun with, and a resumed one must agree with.
        n_trials: planned in all, those that failed included.
        sweep_dir: of the trials; its locks keep workers apart.

    Raises:
        InputError: when the study was begun with something else.
    """

    def __init__(
        self,
        where: Where,
        sampler: Any,
        nodes: list[Node],
        about: dict[str, Any],
        n_trials: int,
        sweep_dir: Path,
    ) -> None:
        self.nodes, self.n_trials, self.sweep_dir = nodes, n_trials, sweep_dir
        folder = sweep_dir / ".workers"
        folder.mkdir(exist_ok=True)
        self.lock = FileLock(folder / "ask.lock")
        self.exhausted = False
        # on a machine that does not share the directory, a worker may be just about to sign a trial
        self.apart = "://" in where.storage and "sqlite" not in where.storage
        with self.lock:
            self.study, self.storage = open_study(where)
            self.study.sampler = sampler
            self.study_id = self.storage.get_study_id_from_name(where.study_name)
            about = json.loads(json.dumps({**about, "directions": list(where.directions)}))
            self._check(about)
            self.workers = Workers(folder)
        self._at_work: set[int] = set()
        self._beats_s = getattr(self.storage, "get_heartbeat_interval", lambda: None)()
        if self._beats_s is not None:
            threading.Thread(target=self._beat, args=(self._beats_s,), daemon=True).start()

    def _check(self, about: dict[str, Any]) -> None:
        """Sign a new study, or raise the InputError when an old one was begun with something else."""
        begun = self.study.user_attrs
        for key, mine in about.items():
            if key not in begun:
                self.study.set_user_attr(key, mine)
            elif begun[key] != mine:
                raise InputError(
                    f"hydra.sweeper.study_name must be a new name for other {key}, got "
                    f"{self.study.study_name}, begun with {_difference(begun[key], mine)}; "
                    "name another study, or repeat its command"
                )

    def ask(self) -> Job | None:
        """The next trial, or None when all that were planned are done or given out."""
        with self.lock:
            self._bury()
            trials = self.study.get_trials(deepcopy=False)
            waiting = any(t.state == TrialState.WAITING for t in trials)
            if not waiting and (self.exhausted or sum(map(counts, trials)) >= self.n_trials):
                return None
            trial = self.study.ask()
            directory = self.sweep_dir / str(trial.number)
            trial.set_user_attr("run_dir", str(directory))
            trial.set_user_attr("worker", self.workers.me)
            self._at_work.add(trial.number)
            if self._beats_s is not None:
                self._pulse(trial.number)
        # outside the lock: a sampler may take its time
        overrides = suggest(self.nodes, trial)
        trial.set_user_attr("overrides", overrides)
        return Job(trial, overrides, directory)

    def _bury(self) -> None:
        """Begin again what dead workers left unfinished; a result that they wrote down before is taken."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            attrs = trial.user_attrs
            if "worker" in attrs:
                if self.workers.lives(attrs["worker"]):
                    continue
            elif (
                self.apart
                and trial.datetime_start
                and time.time() - trial.datetime_start.timestamp() < HEARTBEAT_S
            ):
                continue
            left = Outcome.read(Path(attrs["run_dir"])) if "run_dir" in attrs else None
            self.tell(trial.number, left or Outcome("died", reason="its process died"))
        optuna.storages.fail_stale_trials(self.study)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Record what came of a trial, and queue it again where it did not get to its end.

        Raises:
            InputError: when the storage went away and does not come back.
        """
        for pause in (*PATIENCE_S, None):
            try:
                self._tell(number, outcome)
                break
            except LOST as error:
                if pause is None:
                    found = f", which finds the result of trial {number} in its directory"
                    raise lost(error, found) from error
                time.sleep(pause)
        self._at_work.discard(number)

    def _tell(self, number: int, outcome: Outcome) -> None:
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)
        trial = self.storage.get_trial(trial_id)
        if trial.state.is_finished():  # another worker took this one for dead
            return
        if outcome.state in ("died", "interrupted"):
            # queued before it is marked: a worker that is killed in between leaves no trial behind
            if again(self.study, trial, died=outcome.state == "died"):
                self.storage.set_trial_user_attr(trial_id, "again", True)
            else:
                outcome = Outcome("failed", reason=f"{outcome.reason} {DEATHS} times")
        if outcome.reason:
            self.storage.set_trial_user_attr(trial_id, "reason", outcome.reason)
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(
            outcome.state, TrialState.FAIL
        )
        try:
            self.study.tell(number, outcome.values or None, state=state, skip_if_finished=True)
        except RuntimeError as error:
            # a grid that is searched through stops a loop of Optuna's own; this one has another
            if "Study.stop" not in str(error):
                raise
            self.exhausted = True

    def _beat(self, interval_s: int) -> None:
        """Say that the trials of this worker are alive, as long as it is."""
        while True:
            time.sleep(interval_s)
            for number in list(self._at_work):
                with suppress(*LOST):  # a storage that is away is told of by `tell`
                    self._pulse(number)

    def _pulse(self, number: int) -> None:
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)
        self.storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]


def _difference(begun: Any, mine: Any) -> str:
    """What of two descriptions is not the same, in the words of the older one."""
    if isinstance(begun, dict) and isinstance(mine, dict):
        key = next(k for k in begun | mine if begun.get(k) != mine.get(k))
        return f"{key}: {json.dumps(begun.get(key))}, not {json.dumps(mine.get(key))}"
    if isinstance(begun, list) and isinstance(mine, list):
        gone, new = [x for x in begun if x not in mine], [x for x in mine if x not in begun]
        return f"{', '.join(map(str, gone)) or 'none'}, not {', '.join(map(str, new)) or 'none'}"
    return f"{begun}, not {mine}"

"""Killed workers, several at once, jobs in other processes: no trial is lost, and none is run twice."""

import collections
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import polars as pl
import pytest
from optuna.trial import TrialState

from hydra_plugins.halflife_sweeper._study import Journal, Workers

APP = Path(__file__).parent / "app" / "app.py"


def start(cwd: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(APP), "-m", "hydra.sweep.dir=study", f"log={cwd}/started", *words],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def started(cwd: Path) -> list[list[str]]:
    """Trial, process and x of each run that began."""
    file = cwd / "started"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def trials(cwd: Path, storage: str | None = None) -> list[optuna.trial.FrozenTrial]:
    journal = (
        optuna.storages.JournalStorage(Journal(cwd / "study" / "study.log")) if storage is None else None
    )
    return optuna.load_study(study_name="study", storage=journal or storage).trials


def kill_at(process: "subprocess.Popen[str]", cwd: Path, begun: int, later_s: float = 0.0) -> None:
    """kill -9 once so many runs have begun, and a little later."""
    deadline = time.monotonic() + 120
    while len(started(cwd)) < begun:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(later_s)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("storage", [None, "sqlite:///trials.db"])
def test_a_sweep_killed_at_five_moments_ends_with_its_twelve_trials(
    storage: str | None, tmp_path: Path
) -> None:
    words = ["x=interval(-5,5)", "hydra.sweeper.n_trials=12", "seconds=0.3", "do=work"]
    words += [] if storage is None else [f"hydra.sweeper.storage={storage}"]
    for begun, later_s in ((1, 0.0), (3, 0.15), (6, 0.32), (8, 0.4), (11, 0.05)):
        kill_at(start(tmp_path, *words), tmp_path, begun, later_s)
    out = finish(start(tmp_path, *words))
    assert "12 of 12 trials" in out
    found = trials(tmp_path, f"sqlite:///{tmp_path}/trials.db" if storage else None)
    done = [t for t in found if t.state == TrialState.COMPLETE]
    assert len(done) == 12
    assert {t.state for t in found} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert len({t.params["x"] for t in done}) == 12, "no duplicates"
    again = {t.user_attrs["retry_of"]: t for t in found if "retry_of" in t.user_attrs}
    failed = {t.number: t for t in found if t.state == TrialState.FAIL}
    assert again.keys() == failed.keys()
    for number, trial in failed.items():
        assert trial.user_attrs["reason"] == "its process died"
        assert trial.params.items() <= again[number].params.items(), "retried with the same parameters"
    # a run that was told of is never repeated
    runs = collections.Counter(number for number, _, _ in started(tmp_path))
    assert set(runs.values()) == {1}


def test_a_trial_whose_process_dies_each_time_does_not_hold_up_the_sweep(tmp_path: Path) -> None:
    words = ["size=range(0,2)", "hydra/sweeper/sampler=grid", "do=die", "limit=0"]
    process = start(tmp_path, *words, "hydra.sweeper.n_trials=2")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    # trial 0 died; its retry is another trial, and lives
    finish(start(tmp_path, *words, "hydra.sweeper.n_trials=2"))
    first, *others = trials(tmp_path)
    assert first.state == TrialState.FAIL
    assert sorted(t.params["size"] for t in others if t.state == TrialState.COMPLETE) == [0, 1]


@pytest.mark.slow
def test_two_workers_on_one_study_run_no_trial_twice(tmp_path: Path) -> None:
    words = ["size=range(0,10)", "hydra.sweeper.n_trials=10", "hydra/sweeper/sampler=grid", "seconds=0.5"]
    one, two = start(tmp_path, *words), start(tmp_path, *words)
    finish(one), finish(two)
    found = trials(tmp_path)
    assert [t.state for t in found] == [TrialState.COMPLETE] * 10
    assert sorted(t.params["size"] for t in found) == list(range(10))
    runs = started(tmp_path)
    assert sorted(int(number) for number, _, _ in runs) == list(range(10))
    assert len({pid for _, pid, _ in runs}) == 2, "both had a share"
    assert pl.read_parquet(tmp_path / "study" / "trials.parquet")["state"].to_list() == ["complete"] * 10


@pytest.mark.slow
def test_a_worker_takes_over_from_one_that_dies_beside_it(tmp_path: Path) -> None:
    words = ["x=interval(-5,5)", "hydra.sweeper.n_trials=8", "seconds=0.5"]
    one = start(tmp_path, *words)
    while not started(tmp_path):
        time.sleep(0.01)
    two = start(tmp_path, *words)
    while len({pid for _, pid, _ in started(tmp_path)}) < 2:
        assert two.poll() is None
        time.sleep(0.01)
    os.kill(one.pid, signal.SIGKILL)
    one.communicate()
    finish(two)
    assert sum(t.state == TrialState.COMPLETE for t in trials(tmp_path)) == 8


@pytest.mark.slow
def test_joblib_runs_trials_beside_each_other_and_prunes_them(tmp_path: Path) -> None:
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_jobs=2"]
    prune = ["hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2"]
    finish(
        start(
            tmp_path, "x=range(1,9)", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=8", *words, *prune
        )
    )
    found = trials(tmp_path)
    assert {t.state for t in found} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(found) == 8
    assert len({pid for _, pid, _ in started(tmp_path)}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_job_that_dies_is_begun_again_and_ends_as_a_failure_when_it_dies_each_time(
    launcher: str, tmp_path: Path
) -> None:
    # the job of trial 0 is killed; that of its retry is another trial
    words = [f"hydra/launcher={launcher}", "size=range(0,3)", "hydra/sweeper/sampler=grid"]
    out = finish(start(tmp_path, *words, "hydra.sweeper.n_trials=3", "do=die", "limit=0"))
    found = trials(tmp_path)
    assert [t.state for t in found] == [TrialState.FAIL] + [TrialState.COMPLETE] * 3, out
    assert found[0].user_attrs["reason"].startswith("its job died (")
    assert sorted(t.params["size"] for t in found[1:]) == [0, 1, 2]
    assert "interrupted and begun again: 1" in out


@pytest.mark.slow
def test_a_trial_that_kills_three_processes_counts_as_failed(tmp_path: Path) -> None:
    out = finish(
        start(
            tmp_path,
            "hydra/launcher=submitit_local",
            "do=work,die_always",
            "hydra/sweeper/sampler=grid",
            "hydra.sweeper.n_trials=2",
        )
    )
    found = trials(tmp_path)
    assert sum(t.state == TrialState.COMPLETE for t in found) == 1
    died = [t for t in found if t.state == TrialState.FAIL]
    assert len(died) == 3
    assert died[-1].user_attrs["reason"].endswith("3 times")
    assert "2 of 2 trials" in out


def test_a_worker_that_left_or_died_is_no_longer_at_work(tmp_path: Path) -> None:
    one, two = Workers(tmp_path), Workers(tmp_path)
    assert one.lives(two.me)
    assert two.lives(one.me)
    two.leave()
    assert not one.lives(two.me)
    host, _, tail = one.me.rsplit("-", 2)
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    (tmp_path / f"{host}-{dead.stdout.strip()}-{tail}.lock").touch()
    assert not one.lives(f"{host}-{dead.stdout.strip()}-{tail}")
    assert one.lives("elsewhere-1-abcdef01"), "of a worker on another machine nobody knows"
    one.leave()

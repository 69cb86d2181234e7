"""A sweep of Halflife's own: best.yaml runs as it is, and reaches what the best trial reached."""

import runpy
import shlex
import sys
from pathlib import Path

import polars as pl
import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.conftest import SMALL_LOG, metrics

TRAIN = Path(__file__).parents[2] / "train.py"
SMALL = [*SMALL_LOG, "model=id_embedding", "trainer=debug", "logger=none"]


def test_the_best_trial_runs_again_to_the_same_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def python(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", list(words))
        GlobalHydra.instance().clear()
        runpy.run_path(words[0], run_name="__main__")

    # a kernel with its shape, a list, a seed, settings of the sweeper that only the search brings, and a
    # setting of the run that stands in the search's file
    search = TRAIN.with_name("conf") / "search" / "kernel.yaml"
    mine = tmp_path / "mine" / "search" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(search.read_text() + "optimizer:\n  weight_decay: 0.3\n")
    words = [
        "--config-dir",
        "mine",
        "search=mine",
        "search.n_trials=2",
        "decay=power,weibull",
        "metrics=[auc,logloss]",
        "seed=7",
    ]
    sweeper = ["hydra.sweep.dir=study", "hydra/sweeper/pruner=median", "hydra.sweeper.sampler.seed=1"]
    python(str(TRAIN), "-m", *words, *sweeper, *SMALL)
    found = pl.read_parquet("study/trials.parquet")
    assert found["state"].to_list() == ["complete", "complete"]
    worse, best = found.sort("value").iter_rows(named=True)
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("The best one again: ")
    assert command == f"python {TRAIN} --config-dir study --config-name best"
    python(*shlex.split(command)[1:], "hydra.run.dir=again")
    assert metrics(Path("again")) == metrics(Path(best["run_dir"]))
    assert "weight_decay: 0.3" in Path("study/best.yaml").read_text()
    assert metrics(Path("again"))["val/auc"] == best["value"]
    assert metrics(Path("again")) != metrics(Path(worse["run_dir"]))

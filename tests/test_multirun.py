"""The table of a multirun: which jobs share a row, and means with intervals over seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.stats import t

from halflife.errors import InputError
from halflife.multirun import MultirunTable, SweepRun, check_directions, multirun_table


def cells(table: Any) -> dict[str, dict[str, str]]:
    """Setting → column → text."""
    names = [str(c.header) for c in table.columns]
    rows = zip(*(c.cells for c in table.columns), strict=True)
    return {str(row[0]): dict(zip(names, map(str, row), strict=True)) for row in rows}


def found(auc: float, half_life: float | None = None, unit: str = "days") -> dict[str, float]:
    extra = {} if half_life is None else {f"decay/half_life_{unit}": half_life}
    return {"test/auc": auc, "test/logloss": 0.5, "baseline/popularity/auc": 0.55, **extra}


def test_seeds_share_a_row_with_their_mean_and_interval() -> None:
    aucs = [0.61, 0.68, 0.70]
    done = [(["decay=exponential", f"seed={i}"], found(auc, 4.0 + i)) for i, auc in enumerate(aucs)]
    (row,) = cells(multirun_table(done)).values()
    half = t.ppf(0.975, 2) * np.std(aucs, ddof=1) / np.sqrt(3)
    assert row["seeds"] == "3"
    assert row["AUC"] == f"{np.mean(aucs):.4g} ± {half:.2g}" == "0.6633 ± 0.12"
    assert row["half-life (days)"] == f"5 ± {4.302652729911275 / np.sqrt(3):.2g}"
    assert row["log-loss"] == "0.5 ± 0"
    assert row["gAUC"] == ""


def test_settings_that_differ_have_rows_of_their_own_and_what_is_common_is_in_the_title() -> None:
    done = [
        (["model=bert_frozen", f"decay={kernel}", f"seed={seed}"], found(auc, half_life))
        for kernel, auc, half_life in (("none", 0.6, None), ("exponential", 0.7, 5.0))
        for seed in (1, 2)
    ]
    table = multirun_table(done)
    rows = cells(table)
    assert list(rows) == ["decay=none", "decay=exponential"]
    assert rows["decay=none"]["half-life (days)"] == ""
    assert rows["decay=exponential"]["half-life (days)"] == "5 ± 0"
    assert str(table.title) == "Test, 4 runs · model=bert_frozen"


def test_one_run_has_no_interval() -> None:
    rows = cells(multirun_table([(["seed=1"], found(0.7123456, 3.25, "rank"))]))
    assert rows["as given"]["AUC"] == "0.7123"
    assert rows["as given"]["half-life (rank)"] == "3.25"
    assert "half-life (days)" not in rows["as given"]


def job(place: Path, words: list[str], metrics: dict[str, Any] | None) -> None:
    """What a job leaves; one that failed has no metrics."""
    (place / ".hydra").mkdir(parents=True)
    (place / ".hydra" / "overrides.yaml").write_text(json.dumps(words))
    if metrics is not None:
        (place / "metrics.json").write_text(json.dumps(metrics))


def test_the_table_is_of_what_the_jobs_left_without_those_that_failed_or_were_there_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    job(tmp_path / "old", ["decay=power", "seed=9"], found(0.1))
    callback = MultirunTable()
    callback.on_multirun_start(config)
    for seed, auc in enumerate([0.6, None, 0.8]):  # in any process: the callback is not told of single jobs
        job(tmp_path / str(seed), ["decay=power", f"seed={seed}"], None if auc is None else found(auc))
    callback.on_multirun_end(config)
    written = (tmp_path / "summary.txt").read_text()
    assert "Test, 2 runs" in written
    assert "0.7 ± 1.3" in written
    assert "0.7 ± 1.3" in capsys.readouterr().out


LEAKS = {"data/split": "leave-last-out leaks", "data/split_leaks": 1}


def test_the_table_tells_of_splits_that_leak_and_times_that_are_reconstructed() -> None:
    noted = {"data/split": "val 0.1", "data/note": "times are reconstructed"}
    table = multirun_table([(["seed=1"], found(0.6) | LEAKS), (["seed=2"], found(0.6) | noted)])
    assert table.caption == "leave-last-out leaks\ntimes are reconstructed"
    assert multirun_table([(["seed=1"], found(0.6))]).caption is None


def test_after_a_study_only_what_its_own_table_cannot_know_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job(tmp_path / "0", [], found(0.6) | LEAKS)
    study = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"study_name": "x"}}
    MultirunTable().on_multirun_end(OmegaConf.create({"hydra": study}))
    assert capsys.readouterr().out.strip() == "note: leave-last-out leaks"
    assert not (tmp_path / "summary.txt").exists()


def test_a_multirun_of_which_nothing_is_left_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MultirunTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "summary.txt").exists()


def swept(objective: Any, direction: Any, **sweeper: Any) -> Any:
    hydra = {"sweeper": {"direction": direction, "study_name": None, **sweeper}}
    return OmegaConf.create({"objective": objective, "hydra": hydra})


@pytest.mark.parametrize(
    ("objective", "direction", "fits"),
    [
        ("val/logloss", "maximize", "minimize for objective=val/logloss, got maximize"),
        ("test/loss", "maximize", "minimize for objective=test/loss, got maximize"),
        ("val/auc", "minimize", "maximize for objective=val/auc, got minimize"),
        (
            ["val/auc", "speed/train_s"],
            ["maximize", "maximize"],
            r"\[maximize,minimize\] for objective=val/auc,speed/train_s, got maximize,maximize",
        ),
        (["val/auc", "val/logloss"], "maximize", r"\[maximize,minimize\] for objective="),
    ],
)
def test_a_sweep_for_the_worst_is_refused_before_its_first_trial(
    objective: Any, direction: Any, fits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = swept(objective, direction)
    with pytest.raises(InputError, match=f"hydra.sweeper.direction must be {fits}"):
        check_directions(config)
    with pytest.raises(SystemExit) as end:  # Hydra makes a warning of any other exception in a callback
        SweepRun().on_multirun_start(config)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: hydra.sweeper.direction must be")


def test_a_sweep_for_the_best_and_a_multirun_without_a_study_may_begin() -> None:
    for objective, direction in (("val/ndcg@10", "maximize"), ("test/logloss", "minimize")):
        check_directions(swept(objective, direction))
    check_directions(swept(["val/auc", "speed/train_s"], ["maximize", "minimize"]))
    check_directions(OmegaConf.create({"objective": "val/loss", "hydra": {"sweeper": {}}}))

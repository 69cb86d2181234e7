"""A sweep's own run in W&B, read back from the file that it leaves offline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from halflife.multirun import SweepRun
from halflife.report.sweep_run import log


def test_a_sweep_logs_its_table_and_its_pictures_in_the_group_of_its_trials(
    front_dir: Path,
    wandb_records: Callable[[Path], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    where = {"_target_": "halflife.loggers.wandb_logger", "project": "p", "group": None, "tags": ["t"]}
    sweep = {"sweep": {"dir": str(front_dir)}, "sweeper": {"study_name": "trade_off"}}
    SweepRun().on_multirun_end(OmegaConf.create({"logger": where | {"offline": True}, "hydra": sweep}))
    (held,) = (front_dir / "wandb").glob("offline-run-*/*.wandb")
    records = wandb_records(held)
    begun = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (begun.job_type, begun.run_group, list(begun.tags)) == ("sweep", front_dir.name, ["t"])
    told = [r.history for r in records if r.WhichOneof("record_type") == "history"]
    paths = {
        i.nested_key[0]: json.loads(i.value_json)
        for history in told
        for i in history.item
        if i.nested_key and i.nested_key[-1] == "path"
    }
    assert set(paths) == {"sweep/trials", "sweep/pareto", "sweep/importance"}
    table = json.loads((held.parent / "files" / paths["sweep/trials"]).read_text())
    assert len(table["data"]) == 20
    assert {"number", "state", "val/auc", "cost", "decay.half_life_days"} <= set(table["columns"])
    assert (held.parent / "files" / paths["sweep/pareto"]).read_bytes().startswith(b"\x89PNG")
    summary = {u.key: u.value_json for r in records for u in r.summary.update}
    assert summary["trials/complete"] == "19"
    assert summary["trials/fail"] == "1"


def test_a_sweep_that_another_worker_is_still_at_is_not_told_of(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.log")))
    optuna.create_study(study_name="shared", storage=storage).ask()
    before = sorted(tmp_path.rglob("*"))
    log(OmegaConf.create({"_target_": "halflife.loggers.wandb_logger"}), tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "logger", [None, OmegaConf.create({"_target_": "lightning.pytorch.loggers.CSVLogger"})]
)
def test_other_loggers_get_no_run_of_the_sweep(logger: Any, front_dir: Path) -> None:
    before = sorted(front_dir.rglob("*"))
    log(logger, front_dir)
    assert sorted(front_dir.rglob("*")) == before

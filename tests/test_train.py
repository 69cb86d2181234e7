"""Whole runs: what they write, that they repeat, resume, spread over processes and jobs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.source.users=80",
    "data.source.items=48",
    "data.source.days=30",
    "data.batch_size=64",
    "logger=none",
]
TIMES = re.compile(r"^(speed|memory)/")


def start(cwd: Path, *words: str, cache: Path | None = None) -> "subprocess.Popen[str]":
    flags = ["-m"] if "-m" in words else []
    environment = {**os.environ, "HALFLIFE_CACHE": str(cache or cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *flags, *SMALL, *(w for w in words if w != "-m")],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def run(cwd: Path, *words: str) -> str:
    process = start(cwd, *words)
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, out
    return out


def metrics(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "metrics.json").read_text())
    return {k: v for k, v in found.items() if not TIMES.match(k)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[Path, str]:
    """A run of two epochs through a tiny tuned BERT, and what it printed."""
    place = tmp_path_factory.mktemp("finished")
    out = run(
        place, "model=bert_lora", f"model.pretrained={tiny_bert}", "trainer.max_epochs=2", "hydra.run.dir=run"
    )
    return place / "run", out


def test_a_run_writes_its_directory_and_prints_its_table(finished: tuple[Path, str]) -> None:
    directory, out = finished
    for name in (
        "metrics.json",
        "decay.json",
        "decay_curve.png",
        "predictions.parquet",
        "summary.txt",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        ".hydra/config.yaml",
    ):
        assert (directory / name).stat().st_size > 0, name
    for word in ("parameters train", "lora_A", "AUC", "popularity", "best possible", "planted", "half-life"):
        assert word in out
    assert (directory / "summary.txt").read_text().strip() in out


def test_metrics_hold_every_key_that_the_design_names(finished: tuple[Path, str]) -> None:
    found = json.loads((finished[0] / "metrics.json").read_text())
    for key in (
        "test/auc",
        "test/gauc",
        "test/logloss",
        "test/mrr",
        "test/ndcg@5",
        "test/ndcg@10",
        "val/auc",
        "baseline/popularity/auc",
        "decay/half_life_days",
        "decay/planted_half_life_days",
        "data/bayes_auc",
        "speed/train_impressions_per_s",
        "speed/train_tokens_per_s",
        "memory/peak_mib",
        "params/trainable",
        "params/total",
        "data/fingerprint",
    ):
        assert key in found, key


def test_predictions_give_the_metrics_again(finished: tuple[Path, str]) -> None:
    from sklearn.metrics import log_loss, roc_auc_score

    frame = pl.read_parquet(finished[0] / "predictions.parquet")
    ids, given = ["impression_id", "user_id", "item_id", "timestamp_s"], ["history", "last_age_days"]
    assert frame.columns == [*ids, "label", "score", *given]
    assert frame["history"].min() >= 1
    assert 0 < frame["last_age_days"].min() <= frame["last_age_days"].max() <= 30
    found = json.loads((finished[0] / "metrics.json").read_text())
    assert roc_auc_score(frame["label"], frame["score"]) == pytest.approx(found["test/auc"], abs=1e-6)
    probability = 1 / (1 + (-frame["score"].cast(pl.Float64)).exp())
    assert log_loss(frame["label"], probability) == pytest.approx(found["test/logloss"], abs=1e-5)


def test_one_seed_gives_one_result(finished: tuple[Path, str], tiny_bert: Path, tmp_path: Path) -> None:
    run(
        tmp_path,
        "model=bert_lora",
        f"model.pretrained={tiny_bert}",
        "trainer.max_epochs=2",
        "hydra.run.dir=run",
    )
    assert metrics(tmp_path / "run") == metrics(finished[0])


def test_a_run_stopped_after_an_epoch_resumes_to_the_same_metrics(
    finished: tuple[Path, str], tiny_bert: Path, tmp_path: Path
) -> None:
    common = ["model=bert_lora", f"model.pretrained={tiny_bert}"]
    run(tmp_path, *common, "trainer.max_epochs=1", "hydra.run.dir=first")
    ckpt = tmp_path / "first" / "checkpoints" / "last.ckpt"
    run(tmp_path, *common, "trainer.max_epochs=2", f"ckpt={ckpt}", "hydra.run.dir=second")
    assert metrics(tmp_path / "second") == metrics(finished[0])


def test_a_run_killed_inside_an_epoch_resumes_to_the_same_metrics(tiny_bert: Path, tmp_path: Path) -> None:
    common = [
        "model=bert_lora",
        f"model.pretrained={tiny_bert}",
        "trainer.max_epochs=6",
        "data.batch_size=8",
        "trainer.val_check_interval=20",
    ]
    process = start(tmp_path, *common, "hydra.run.dir=killed")
    ckpt = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    until = time.monotonic() + 200
    while not ckpt.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert ckpt.exists(), "the run ended before its first checkpoint"
    run(tmp_path, *common, f"ckpt={ckpt}", "hydra.run.dir=resumed")
    run(tmp_path, *common, "hydra.run.dir=whole")
    assert metrics(tmp_path / "resumed") == metrics(tmp_path / "whole")


def test_two_processes_see_every_test_row_once(tiny_bert: Path, tmp_path: Path) -> None:
    common = ["model=bert_frozen", f"model.pretrained={tiny_bert}"]
    run(tmp_path, *common, "trainer=ddp", "hydra.run.dir=two")
    run(tmp_path, *common, "hydra.run.dir=one")
    two, one = (pl.read_parquet(tmp_path / d / "predictions.parquet") for d in ("two", "one"))
    assert two.drop("score").equals(one.drop("score"))
    assert not list((tmp_path / "two").glob("part-*")), "the parts of the processes are gone"
    assert [p.name for p in tmp_path.iterdir() if p.is_dir() and p.name not in ("two", "one", "cache")] == []


def test_a_multirun_over_processes_gives_each_job_its_own_overrides(tiny_bert: Path, tmp_path: Path) -> None:
    out = run(
        tmp_path,
        "-m",
        "decay=none,exponential",
        "model=bert_frozen",
        f"model.pretrained={tiny_bert}",
        "trainer=ddp",
        "hydra.sweep.dir=sweep",
    )
    kernels = [json.loads((tmp_path / "sweep" / n / "decay.json").read_text())["kernel"] for n in ("0", "1")]
    assert kernels == ["none", "exponential"]
    assert "decay=none" in out
    assert (tmp_path / "sweep" / "summary.txt").exists()


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_loggers_hold_loss_auc_half_life_and_learning_rates(
    logger: str, tiny_bert: Path, tmp_path: Path
) -> None:
    run(
        tmp_path,
        f"logger={logger}",
        "model=bert_frozen",
        f"model.pretrained={tiny_bert}",
        "hydra.run.dir=run",
    )
    place = tmp_path / "run"
    if logger == "csv":
        text = (place / "csv" / "metrics.csv").read_text()
        for key in ("train/loss", "val/auc", "decay/half_life_days", "lr/decay"):
            assert key in text.splitlines()[0]
    elif logger == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(place / "tensorboard"))
        events.Reload()
        assert {"train/loss", "val/auc", "decay/half_life_days", "lr/decay"} <= set(events.Tags()["scalars"])
        assert "decay/curve" in events.Tags()["images"]
    else:
        held = list((place / "wandb").glob("offline-run-*/*.wandb"))
        assert len(held) == 1
        content = held[0].read_bytes()
        for key in (b"half_life_days", b"val/auc", b"test/auc"):
            assert key in content

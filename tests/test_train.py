"""Whole runs: what they write, that they repeat, resume, spread over processes and jobs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import SMALL_LOG, metrics

ROOT = Path(__file__).parents[1]
SMALL = [*SMALL_LOG, "logger=none"]


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


def test_a_half_life_for_each_category_falls_out_of_one_yaml(tmp_path: Path) -> None:
    planted = "data.source.half_life_days_by_topic={football: 1, cooking: 30}"
    words = ["decay.estimate_sd=true", "trainer.max_epochs=1", "hydra.run.dir=run", planted]
    out = run(tmp_path, "model=topics", "decay=by_category", *words)
    found = json.loads((tmp_path / "run" / "decay.json").read_text())
    own = found["half_lives_planted"]
    assert (own["football"], own["cooking"], own["music"]) == (1.0, 30.0, 5.0)
    for name, half_life in found["half_lives"].items():
        low, high = found["half_lives_intervals"][name]
        assert low < half_life < high
        row = rf"{name}, planted {own[name]:.3g} +│ +{half_life:.3g} │ +{low:.3g} – {high:.3g}"
        assert re.search(row, out)
    assert found["half_lives"]["football"] < 2 < 3 < found["half_lives"]["music"] < 8
    assert found["half_lives"]["cooking"] > 12
    assert found["half_lives_sd"] > 0.3
    assert re.search(rf"sd of its logarithm between groups +│ +{found['half_lives_sd']:.3g}", out)
    assert (tmp_path / "run" / "half_lives.png").stat().st_size > 0


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


def test_a_run_over_item_vectors_resumes_to_the_same_metrics_and_with_the_same_vectors_alone(
    tmp_path: Path,
) -> None:
    files = [tmp_path / "v.csv", tmp_path / "other.csv"]
    for shift, file in enumerate(files):
        # an item's topic is one of twelve, four items each; the last twelve items have no vector
        rows = [f"N{i:05d}," + ",".join(str(int(i // 4 == t) + shift) for t in range(12)) for i in range(36)]
        file.write_text("\n".join(rows) + "\n")
    common = ["model=item_vectors", f"data.vectors={files[0]}"]
    run(tmp_path, *common, "trainer.max_epochs=2", "hydra.run.dir=whole")
    run(tmp_path, *common, "trainer.max_epochs=1", "hydra.run.dir=first")
    ckpt = tmp_path / "first" / "checkpoints" / "last.ckpt"
    run(tmp_path, *common, "trainer.max_epochs=2", f"ckpt={ckpt}", "hydra.run.dir=second")
    assert metrics(tmp_path / "second") == metrics(tmp_path / "whole")
    assert metrics(tmp_path / "whole")["test/auc"] > 0.6
    process = start(tmp_path, *common[:1], f"data.vectors={files[1]}", f"ckpt={ckpt}", "hydra.run.dir=third")
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 2
    assert re.search(
        r"^error: ckpt must be of the same log.*in which data is the log with", out, re.MULTILINE
    )
    assert not (tmp_path / "third").exists()


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


@pytest.mark.slow
def test_a_multirun_whose_jobs_run_in_other_processes_has_its_table_too(tmp_path: Path) -> None:
    jobs = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.max_epochs=1", "model=id_embedding"]
    run(tmp_path, "-m", *jobs, "decay=none,exponential", "data.split.by=last", "hydra.sweep.dir=sweep")
    table = (tmp_path / "sweep" / "summary.txt").read_text()
    assert re.search(r"decay=none +│ +1 │ +0\.", table)
    assert re.search(r"decay=exponential +│ +1 │ +0\.", table)
    assert "leave-last-out leaks" in table


def experiment(events: Any) -> Any:
    """What TensorBoard's table of hyperparameters shows as columns."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    return HParamsPluginData.FromString(content).experiment


def check_wandb(records: list[Any], files: Path, run_dir: Path) -> None:
    """What an offline run holds, against what the run wrote itself."""
    found = json.loads((run_dir / "metrics.json").read_text())
    by_kind: dict[str, list[Any]] = {}
    for record in records:
        kind = record.WhichOneof("record_type")
        by_kind.setdefault(kind, []).append(getattr(record, kind))
    begun = by_kind["run"][0]
    assert begun.job_type == "train"
    assert begun.run_group == ""
    assert begun.display_name.endswith("model=bert_frozen," + begun.display_name.rpartition(",")[2])
    config = {u.key: json.loads(u.value_json) for each in by_kind["config"] for u in each.update}
    assert {k: config[f"choice/{k}"] for k in ("decay", "model", "data", "decay/candidate")} == {
        "decay": "exponential",
        "model": "bert_frozen",
        "data": "synthetic",
        "decay/candidate": "none",
    }
    assert config["data/source/users"] == 80
    assert config["decay/learn"] is True
    assert not [key for key in config if "." in key], "W&B takes a dot for a level of nesting"

    def flat(items: Any) -> dict[str, Any]:
        return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}

    history = [flat(each.item) for each in by_kind["history"]]
    losses = [h["train/loss"] for h in history if "train/loss" in h]
    half_lives = [h["decay/half_life_days"] for h in history if "train/loss" in h]
    assert len(losses) == len(half_lives) > 2
    assert len(set(half_lives)) > 2, "it moves"
    assert history[-1]["decay/age_days"] > 0
    weights = [h["decay/weight"] for h in history if "decay/weight" in h]
    assert weights == sorted(weights, reverse=True)
    assert len(weights) == 61
    picture = next(h["decay/curve/path"] for h in history if "decay/curve/path" in h)
    assert (files / picture).read_bytes().startswith(b"\x89PNG")
    summary: dict[str, Any] = {}
    for each in by_kind["summary"]:
        summary |= flat(each.update)
    for key in ("test/auc", "val/auc", "test/logloss", "decay/half_life_days"):
        assert summary[key] == pytest.approx(found[key])
    assert summary["data/fingerprint"] == found["data/fingerprint"]
    (kept,) = by_kind["artifact"]
    assert (kept.type, [c.path for c in kept.manifest.contents]) == ("model", ["best.ckpt"])
    assert "best" in kept.aliases


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "wandb"])
def test_loggers_hold_loss_auc_half_life_and_learning_rates(
    logger: str,
    tiny_bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wandb_records: Callable[[Path], list[Any]],
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    out = run(
        tmp_path,
        f"logger={logger}",
        *(["logger.checkpoint=true"] if logger == "wandb" else []),
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
        hparams = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        assert b"choice/decay" in hparams
        assert b"exponential" in hparams
        shown = {m.name.tag for m in experiment(events).metric_infos}
        assert {"test/auc", "val/auc", "decay/half_life_days"} <= shown
    else:
        assert "anonymous" not in out
        held = list((place / "wandb").glob("offline-run-*/*.wandb"))
        assert len(held) == 1
        check_wandb(wandb_records(held[0]), held[0].parent / "files", place)

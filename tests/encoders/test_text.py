"""Encoding each distinct item once, in chunks of like length, is the plain path with less work."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertModel

from halflife.batches import Batch, DataModule, Impressions
from halflife.encoders import pooling, text, tuning
from halflife.encoders.text import CHUNK_ITEMS, TextEncoder, encode
from halflife.errors import InputError

torch.manual_seed(0)
BACKBONE = BertModel(
    BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    ),
    add_pooling_layer=False,
).eval()

POOLINGS = pytest.mark.parametrize("pool", [pooling.mean, pooling.cls])


def texts_of(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random token ids on end, none of them the padding's."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor(lengths)
    return torch.randint(1, 50, (int(length.sum()),), generator=generator), length


def one_at_a_time(pool: pooling.Pooling, tokens: Tensor, length: Tensor) -> Tensor:
    """Every text alone, without any padding."""
    rows = []
    for ids in tokens.split(length.tolist()):
        mask = torch.ones(1, len(ids), dtype=torch.bool)
        hidden = BACKBONE(input_ids=ids[None], attention_mask=mask.long()).last_hidden_state
        rows.append(pool(hidden, mask))
    return torch.cat(rows)


def padded(pool: pooling.Pooling, tokens: Tensor, length: Tensor) -> Tensor:
    """All texts in one rectangle, padded to the longest."""
    ids = torch.nn.utils.rnn.pad_sequence(tokens.split(length.tolist()), batch_first=True)
    mask = torch.arange(ids.shape[1]) < length[:, None]
    return pool(BACKBONE(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask)


def encoder_of(small_log: DataModule, tiny_bert: Path, cache: Path, tune: Any, **changes: Any) -> TextEncoder:
    given = {"pooling": "mean", "dim": 8, "max_tokens": 16, "lr": 0.01} | changes
    torch.manual_seed(3)
    return TextEncoder(small_log.store, str(tiny_bert), tune, **given, cache_dir=str(cache))


def batch_of(small_log: DataModule, encoder: TextEncoder, size: int) -> Batch:
    rows = small_log.rows("test")[:size]
    return Impressions(small_log.store, small_log.max_history, small_log.age, encoder.tokens)[rows]


@POOLINGS
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30), seed=st.integers(0, 9))
@torch.no_grad()
def test_a_text_has_the_vector_it_has_alone(pool: pooling.Pooling, lengths: list[int], seed: int) -> None:
    tokens, length = texts_of(lengths, seed)
    got = encode(BACKBONE, pool, tokens, length)
    torch.testing.assert_close(got, one_at_a_time(pool, tokens, length), atol=1e-5, rtol=0)


@POOLINGS
@pytest.mark.parametrize("items", [1, CHUNK_ITEMS - 1, CHUNK_ITEMS, CHUNK_ITEMS + 1, 2 * CHUNK_ITEMS + 1])
@torch.no_grad()
def test_the_end_of_a_chunk_is_nothing_special(pool: pooling.Pooling, items: int) -> None:
    tokens, length = texts_of([1 + 7 * i % 11 for i in range(items)])
    got = encode(BACKBONE, pool, tokens, length)
    assert got.shape == (items, 16)
    torch.testing.assert_close(got, one_at_a_time(pool, tokens, length), atol=1e-5, rtol=0)


@torch.no_grad()
def test_vectors_follow_the_order_of_the_texts() -> None:
    tokens, length = texts_of([3, 9, 1, 9, 5, 2, 12])
    order = torch.tensor([4, 1, 6, 0, 3, 2, 5])
    texts = tokens.split(length.tolist())
    got = encode(BACKBONE, pooling.mean, torch.cat([texts[i] for i in order]), length[order])
    torch.testing.assert_close(got, encode(BACKBONE, pooling.mean, tokens, length)[order], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_same_text_twice_has_the_same_vector_twice() -> None:
    tokens, length = texts_of([4, 7])
    first, second = tokens.split([4, 7])
    # a chunk's worth of others in between, so that the copies are encoded apart
    many, lengths = texts_of([5] * CHUNK_ITEMS)
    got = encode(
        BACKBONE,
        pooling.mean,
        torch.cat([first, second, many, first, second]),
        torch.cat([length, lengths, length]),
    )
    torch.testing.assert_close(got[:2], got[-2:], atol=1e-5, rtol=0)


@POOLINGS
def test_gradients_are_those_of_the_padded_path(
    pool: pooling.Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK_ITEMS", 4)
    tokens, length = texts_of([3, 11, 1, 7, 7, 2, 9, 4, 5, 12, 6])
    along = torch.randn(len(length), 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for vectors in (encode(BACKBONE, pool, tokens, length), padded(pool, tokens, length)):
        gradients.append(torch.autograd.grad((vectors * along).sum(), list(BACKBONE.parameters())))
    for (name, _), ours, plain in zip(BACKBONE.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("tune", [tuning.frozen, tuning.full, partial(tuning.last_k, k=1)])
def test_a_batch_and_the_catalogue_give_an_item_the_same_vector(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path, tune: Any
) -> None:
    encoder = encoder_of(small_log, tiny_bert, tmp_path, tune).eval()
    batch = batch_of(small_log, encoder, 20)
    with torch.no_grad():
        got, catalogue = encoder(batch), encoder.catalogue()
    assert got.shape == (len(batch.item), 8)
    assert catalogue.shape == (small_log.store.n_items, 8)
    torch.testing.assert_close(got, catalogue[batch.item], atol=1e-5, rtol=0)
    torch.testing.assert_close(catalogue.norm(dim=1), torch.ones(len(catalogue)), atol=1e-5, rtol=0)


def test_frozen_and_tuned_start_from_the_same_vectors(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path
) -> None:
    lora = partial(tuning.lora, r=2, alpha=4.0, dropout=0.1, target_modules=["query", "value"])
    frozen = encoder_of(small_log, tiny_bert, tmp_path, tuning.frozen)
    for tune in (tuning.full, partial(tuning.last_k, k=2), lora):
        tuned = encoder_of(small_log, tiny_bert, tmp_path, tune)
        tuned.projection.load_state_dict(frozen.projection.state_dict())  # LoRA's own draws shift the seed
        torch.testing.assert_close(tuned.catalogue(), frozen.catalogue(), atol=1e-5, rtol=0)


def test_training_has_dropout_and_the_catalogue_has_none(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path
) -> None:
    encoder = encoder_of(small_log, tiny_bert, tmp_path, tuning.full)
    batch = batch_of(small_log, encoder, 4)
    assert not torch.allclose(encoder(batch), encoder(batch))
    torch.testing.assert_close(encoder.catalogue(), encoder.catalogue(), atol=0, rtol=0)
    assert encoder.backbone.training
    assert not encoder.catalogue().requires_grad


def test_a_frozen_model_is_counted_but_not_kept(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path
) -> None:
    frozen = encoder_of(small_log, tiny_bert, tmp_path, tuning.frozen)
    tuned = encoder_of(small_log, tiny_bert, tmp_path, tuning.full)
    assert (frozen.reads_tokens, tuned.reads_tokens) == (False, True)
    assert {n for n, _ in frozen.named_parameters()} == {"projection.weight"}
    assert list(frozen.state_dict()) == ["projection.weight"]
    assert frozen.frozen_parameters == sum(p.numel() for p in tuned.backbone.parameters())


def test_settings_out_of_range_are_refused(small_log: DataModule, tiny_bert: Path, tmp_path: Path) -> None:
    for changes, name in (
        ({"max_tokens": 2}, "model.max_tokens"),
        ({"max_tokens": 100_000}, "model.max_tokens"),
        ({"dim": 0}, "model.dim"),
        ({"lr": -1.0}, "model.lr"),
        ({"pooling": "men"}, "model.pooling"),
    ):
        with pytest.raises(InputError, match=f"^{name} must be"):
            encoder_of(small_log, tiny_bert, tmp_path, tuning.frozen, **changes)


def test_recomputed_activations_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    length = torch.tensor([3, 7, 5, 4])
    tokens = torch.randint(5, 40, (int(length.sum()),))
    found = []
    for limit in (2048, 0):
        monkeypatch.setattr(text, "RECOMPUTE_ITEMS", limit)
        BACKBONE.zero_grad()
        encode(BACKBONE, pooling.mean, tokens, length).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in BACKBONE.named_parameters() if p.grad is not None})
    BACKBONE.zero_grad()
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-6) for n in found[0])

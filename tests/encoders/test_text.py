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

from halflife.batches import Batch, Impressions
from halflife.datamodule import DataModule
from halflife.encoders import chunks, pooling, tuning
from halflife.encoders.text import TextEncoder
from halflife.errors import InputError
from tests.conftest import TEXT

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

ATTENTION = pooling.Attention(16)
torch.nn.init.normal_(ATTENTION.query)  # as if it had learned
POOLINGS = pytest.mark.parametrize("pool", [pooling.mean, pooling.cls, pooling.last, ATTENTION])
encode = partial(chunks.encode, chunk_tokens=64, keep_tokens=10_000)


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
    torch.manual_seed(3)
    return TextEncoder(small_log.store, str(tiny_bert), tuning=tune, **(TEXT | changes), cache_dir=str(cache))


def batch_of(small_log: DataModule, encoder: TextEncoder, size: int) -> Batch:
    rows = small_log.rows("test")[:size]
    return Impressions(small_log.store, small_log.max_history, small_log.age, encoder.tokens)[rows]


@POOLINGS
@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30), seed=st.integers(0, 9))
@torch.no_grad()
def test_a_text_has_the_vector_it_has_alone(pool: pooling.Pooling, lengths: list[int], seed: int) -> None:
    tokens, length = texts_of(lengths, seed)
    got = encode(BACKBONE, pool, tokens, length)
    torch.testing.assert_close(got, one_at_a_time(pool, tokens, length), atol=1e-5, rtol=0)


@POOLINGS
@pytest.mark.parametrize("items", [1, 15, 16, 17, 33])
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
    many, lengths = texts_of([5] * 20)
    got = encode(
        BACKBONE,
        pooling.mean,
        torch.cat([first, second, many, first, second]),
        torch.cat([length, lengths, length]),
    )
    torch.testing.assert_close(got[:2], got[-2:], atol=1e-5, rtol=0)


@POOLINGS
def test_gradients_are_those_of_the_padded_path(pool: pooling.Pooling) -> None:
    tokens, length = texts_of([3, 11, 1, 7, 7, 2, 9, 4, 5, 12, 6])
    along = torch.randn(len(length), 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for vectors in (encode(BACKBONE, pool, tokens, length, chunk_tokens=24), padded(pool, tokens, length)):
        gradients.append(torch.autograd.grad((vectors * along).sum(), list(BACKBONE.parameters())))
    for (name, _), ours, plain in zip(BACKBONE.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("tune", [tuning.frozen, tuning.full])
@pytest.mark.parametrize("pool", ["mean", "last", "attention"])
def test_a_batch_and_the_catalogue_give_an_item_the_same_vector(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path, tune: Any, pool: str
) -> None:
    encoder = encoder_of(small_log, tiny_bert, tmp_path, tune, pooling=pool).eval()
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
    for tune in (tuning.full, partial(tuning.last_k, k=2, layer_decay=1.0), lora):
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


def test_recomputed_activations_give_the_same_gradients_and_nothing_is_kept() -> None:
    tokens, length = texts_of([3, 7, 5, 4])
    found, kept = [], []
    for keep_tokens in (19, 18):  # one token fewer than there are: recompute
        BACKBONE.zero_grad()
        held: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, held=held: held.append(t.numel()) or t, lambda t: t
        ):
            vectors = encode(BACKBONE, pooling.mean, tokens, length, chunk_tokens=8, keep_tokens=keep_tokens)
        kept.append(sum(held))
        vectors.square().sum().backward()
        found.append({n: p.grad.clone() for n, p in BACKBONE.named_parameters() if p.grad is not None})
    BACKBONE.zero_grad()
    assert kept[1] < kept[0] / 10
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-6) for n in found[0])


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), chunk_tokens=st.integers(1, 200))
def test_chunks_hold_every_text_once_and_no_more_tokens_than_told(
    lengths: list[int], chunk_tokens: int
) -> None:
    length = torch.tensor(lengths)
    parts = list(chunks.chunks(length, chunk_tokens))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    assert all(len(part) == 1 or len(part) * int(length[part].max()) <= chunk_tokens for part in parts)


@torch.no_grad()
def test_vectors_of_tokens_are_in_the_order_of_the_tokens() -> None:
    tokens, length = texts_of([3, 9, 1, 9, 5])
    got = chunks.token_vectors(BACKBONE, tokens, length, 20)
    alone = [BACKBONE(input_ids=ids[None]).last_hidden_state[0] for ids in tokens.split(length.tolist())]
    torch.testing.assert_close(got, torch.cat(alone), atol=1e-5, rtol=0)


def test_attention_over_a_frozen_model_learns_as_over_the_model_itself(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path
) -> None:
    def nothing_but_a_bias(model: Any) -> Any:  # so that the model runs at every step
        model.requires_grad_(False)
        model.encoder.layer[0].output.dense.bias.requires_grad_(True)
        return model

    looked_up = encoder_of(small_log, tiny_bert, tmp_path, tuning.frozen, pooling="attention")
    running = encoder_of(small_log, tiny_bert, tmp_path, nothing_but_a_bias, pooling="attention").eval()
    assert (looked_up.reads_tokens, running.reads_tokens) == (False, True)
    batch = batch_of(small_log, running, 12)
    found = []
    for encoder in (looked_up, running):
        torch.nn.init.normal_(encoder.pooling.query, generator=torch.Generator().manual_seed(1))
        vectors = encoder(batch)
        vectors[:, 0].sum().backward()
        gradients = [p.grad for n, p in encoder.named_parameters() if not n.startswith("backbone.")]
        found.append([vectors.detach(), *gradients])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_memory_and_no_gradient(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path
) -> None:
    found, kept = [], []
    for on in (False, True):
        encoder = encoder_of(small_log, tiny_bert, tmp_path, tuning.full, gradient_checkpointing=on)
        held: list[int] = []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, held=held: held.append(t.numel()) or t, lambda t: t
        ):
            vectors = encoder(batch_of(small_log, encoder, 8))
        kept.append(sum(held))
        vectors[:, 0].sum().backward()
        found.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    assert kept[1] < kept[0] / 2
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_a_prompt_counts_towards_the_longest_text(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path
) -> None:
    prompt = partial(tuning.prompt, tokens=60)
    with pytest.raises(InputError, match=r"^model\.max_tokens must be at most 4 \(tokens\)"):
        encoder_of(small_log, tiny_bert, tmp_path, prompt, max_tokens=5)
    encoder_of(small_log, tiny_bert, tmp_path, prompt, max_tokens=4).catalogue()

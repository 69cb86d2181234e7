"""Texts of like length go through a model together: hardly any padding, and memory that a setting bounds."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from halflife.encoders import packing
from halflife.encoders.pooling import Pooling


def chunks(length: Tensor, chunk_tokens: int, packed: bool = False) -> Iterator[Tensor]:
    """Places of texts of like length, as many together as fit into so many tokens, the longest first.

    What a long chunk leaves free holds a shorter one; the other way around a process grows by every chunk.

    Args:
        length: tokens of each text, at least 1.
        chunk_tokens: of a chunk; padding counts, unless `packed`.
        packed: whether the texts of a chunk lie on end, without padding.

    Shape: length (U,) → several (n,), n at least 1, each place once.
    """
    order = torch.argsort(length, descending=True, stable=True)
    lengths = length[order].tolist()
    first = before = 0
    for i, own in enumerate(lengths):
        tokens = before + own if packed else (i + 1 - first) * lengths[first]
        if i > first and tokens > chunk_tokens:
            yield order[first:i]
            first, before = i, 0
        before += own
    yield order[first:]


def encode(
    backbone: Any,
    pooling: Pooling,
    tokens: Tensor,
    length: Tensor,
    chunk_tokens: int,
    keep_tokens: int,
    packed: bool = False,
) -> Tensor:
    """Encode texts given on end, in chunks of like length, so that hardly a padded token is computed.

    Args:
        backbone: a `transformers` model.
        pooling: token vectors and mask to one vector.
        tokens: token ids of all texts on end.
        length: tokens of each text, at least 1.
        chunk_tokens: tokens that go through the model together.
        keep_tokens: with more tokens than that in all, activations are recomputed chunk by chunk instead of
            kept: a third more work, and memory that does not grow with the batch.
        packed: whether the texts of a chunk stay on end, as in `encoders.packing`; else rows are padded.

    Shape: tokens (T,), length (U,) → (U, width), in the order given.
    """
    recompute = torch.is_grad_enabled() and len(tokens) > keep_tokens
    way = _pooled_packed if packed else _pooled
    run = partial(checkpoint, way, use_reentrant=False) if recompute else way
    found, places = [], []
    for chunk in chunks(length, chunk_tokens, packed):
        ids, mask = rectangle(tokens, length, chunk)
        found.append(run(backbone, pooling, ids, mask))
        places.append(chunk)
    back = torch.empty_like(length)
    back[torch.cat(places)] = torch.arange(len(length), device=length.device)
    return torch.cat(found)[back]


def token_vectors(backbone: Any, tokens: Tensor, length: Tensor, chunk_tokens: int) -> Tensor:
    """Vectors of every token of texts given on end, in the order given; (T,), (U,) → (T, width)."""
    start, parts, places = length.cumsum(0) - length, [], []
    for chunk in chunks(length, chunk_tokens):
        ids, mask = rectangle(tokens, length, chunk)
        parts.append(_hidden(backbone, ids, mask)[mask])
        places.append((start[chunk].unsqueeze(1) + torch.arange(ids.shape[1], device=ids.device))[mask])
    found = torch.cat(parts)
    out = torch.empty_like(found)
    out[torch.cat(places)] = found
    return out


def rectangle(tokens: Tensor, length: Tensor, chunk: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the texts, or their vectors, as rows padded behind, and a mask that is True where real.

    Shape: tokens (T, …), length (U,), chunk (n,) → (n, longest, …), (n, longest).
    """
    start = length.cumsum(0) - length
    place = torch.arange(int(length[chunk].max()), device=tokens.device)
    mask = place < length[chunk].unsqueeze(1)
    at = (start[chunk].unsqueeze(1) + place).clamp_max(len(tokens) - 1)
    return tokens[at].masked_fill(~mask.view(*mask.shape, *(1,) * (tokens.ndim - 1)), 0), mask


def _pooled(backbone: Any, pooling: Pooling, ids: Tensor, mask: Tensor) -> Tensor:
    """Encode one padded chunk and pool it."""
    return pooling(_hidden(backbone, ids, mask), mask)


def _pooled_packed(backbone: Any, pooling: Pooling, ids: Tensor, mask: Tensor) -> Tensor:
    """Encode the texts of one chunk on end and pool them."""
    return pooling(packing.hidden(backbone, ids, mask), mask)


def _hidden(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Vectors of the tokens of one padded chunk; what a prompt puts in front is none of them."""
    hidden: Tensor = backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return hidden[:, -ids.shape[1] :]

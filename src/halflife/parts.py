"""Batches with their vectors gathered, in pieces that are quick to score: what a likelihood sums over."""

import itertools
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding

from halflife.batches import PAD_AGE, Batch

PIECE = 2**20  # clicks times candidates scored at once; larger arrays the system hands out anew each time
# of a Batch, not of its impressions
PER_ITEM = ("item", "tokens", "token_length", "category", "item_vectors", "item_vector_mask", "log_rate")


@dataclass(frozen=True)
class Part:
    """A batch with its vectors gathered: history (B, H, d), candidates (B, C, d)."""

    batch: Batch
    history: Tensor
    candidates: Tensor


def rows_of(part: Part, rows: slice) -> Part:
    """Some impressions of a part."""
    batch = part.batch
    kept = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name not in PER_ITEM}
    some = replace(batch, **{n: v[rows] for n, v in kept.items()})
    return Part(some, part.history[rows], part.candidates[rows])


def pieces(part: Part) -> list[Part]:
    """A part in pieces of at most PIECE clicks times candidates, or of one impression."""
    each = max(1, part.history.shape[1] * part.candidates.shape[1])
    size = max(1, PIECE // each)
    return [rows_of(part, slice(i, i + size)) for i in range(0, len(part.history), size)]


def joined(parts: list[Part]) -> list[Part]:
    """The same impressions in fewer parts: what a pass costs beside its sums, it costs once a part."""
    out: list[list[Part]] = []
    clicks = candidates = impressions = 0
    for part in sorted(parts, key=lambda p: p.history.shape[1]):
        b, h, c = len(part.history), part.history.shape[1], part.candidates.shape[1]
        clicks, candidates, impressions = max(clicks, h), max(candidates, c), impressions + b
        if not out or impressions * clicks * candidates > PIECE:
            out.append([])
            clicks, candidates, impressions = h, c, b
        out[-1].append(part)
    return [_join(some) if len(some) > 1 else some[0] for some in out]


def _join(parts: list[Part]) -> Part:
    """Parts on end, padded behind to the longest history and the largest impression."""

    def on_end(values: list[Tensor], padding: float = 0) -> Tensor:
        sizes = [max(v.shape[i] for v in values) for i in range(1, values[0].ndim)]
        out = values[0].new_full((sum(len(v) for v in values), *sizes), padding)
        for v, rows in zip(values, out.split([len(v) for v in values]), strict=True):
            rows[tuple(slice(n) for n in v.shape)] = v
        return out

    batches = [part.batch for part in parts]
    first = [0, *itertools.accumulate(len(b.item) for b in batches[:-1])]
    moved = [
        replace(b, history=b.history + n, candidates=b.candidates + n, tokens=None, token_length=None)
        for b, n in zip(batches, first, strict=True)
    ]
    named = {f.name: [getattr(b, f.name) for b in moved] for f in fields(Batch)}
    # a padded age of 0 would be the newest click to a kernel that counts them
    padding = {"age": PAD_AGE}
    whole = {n: on_end(v, padding.get(n, 0)) for n, v in named.items() if v[0] is not None and v[0].ndim}
    return Part(
        replace(moved[0], **whole),
        on_end([part.history for part in parts]),
        on_end([part.candidates for part in parts]),
    )


def gathered(batch: Batch, vectors: Tensor, bilinear: bool) -> Part:
    """Gather a batch's vectors, in their own type; where only inner products count, as those alone.

    u·v_c = Σ_i w_i (v_i·v_c): with the similarities S for the clicks' vectors and the unit vectors for the
    candidates', the scores are the same, and the width is the number of candidates.
    """
    items = vectors[batch.item]
    batch = replace(batch, item_vectors=None, item_vector_mask=None)  # they are in the encoder's
    history, candidates = embedding(batch.history, items), embedding(batch.candidates, items)
    if bilinear:
        history = (candidates @ history.transpose(1, 2)).transpose(
            1, 2
        )  # clicks side by side: quick to sum over
        candidates = torch.eye(candidates.shape[1]).expand(len(candidates), -1, -1)
    return Part(batch, history, candidates)

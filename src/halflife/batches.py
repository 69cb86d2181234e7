"""Store to Batch: each distinct item once, histories as ranges."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from halflife.draws import Fresh, InView
from halflife.ranges import ranges, shuffled
from halflife.store import Store
from halflife.tables import DAY_S

Array = NDArray[Any]

PAD_AGE = 1e6
"""Age of a padded place: old enough to rank behind every click, small enough to square in float32."""


@dataclass(frozen=True)
class Batch:
    """What a step needs, each distinct item once.

    Shape: U distinct items, T tokens of all of them on end, V numbers of an item's own vector, B impressions,
    H places of the longest history, C candidates of the largest impression.

    Args:
        item: (U,) int64, catalogue indices, ascending.
        tokens: (T,) int64, token ids of the distinct items on end, or None where nobody reads text.
        token_length: (U,) int64, tokens of each distinct item, or None.
        category: (U,) int64, code of each distinct item's category; its name is in the Store.
        history: (B, H) int64, places in `item`, oldest first, padded behind.
        history_mask: (B, H) bool, True where real.
        age: (B, H) float32, days between click and prediction (ranks under `data.age=rank`: 0 is the newest).
        kind: (B, H) int64, code of each click's kind; its name is in the Store; 0 where padded.
        candidates: (B, C) int64, places in `item`.
        candidate_mask: (B, C) bool.
        candidate_age: (B, C) float32, days since the item appeared (`Store.item_born`), also under
            `data.age=rank`; 0 for an item that appears later, and where padded. Where negatives were drawn, a
            positive that nobody clicked before is of age 0 and no negative is.
        label: (B, C) float32, 1 clicked.
        impression: (B,) int64, row of the Store.
        user: (B,) int64, user index.
        past_clicks: (B,) int64, the user's clicks before the impression, those behind `max_history` too.
        item_vectors: (U, V) float32, the distinct items' own vectors, 0 where an item has none; None where
            the log has none.
        item_vector_mask: (U,) bool, True where an item has one; None likewise.
        log_rate: () float32, log of the share of what was not clicked that is among the candidates, which the
            loss takes from the scores; None where all of it is.
    """

    item: Tensor
    tokens: Tensor | None
    token_length: Tensor | None
    category: Tensor
    history: Tensor
    history_mask: Tensor
    age: Tensor
    kind: Tensor
    candidates: Tensor
    candidate_mask: Tensor
    candidate_age: Tensor
    label: Tensor
    impression: Tensor
    user: Tensor
    past_clicks: Tensor
    item_vectors: Tensor | None = None
    item_vector_mask: Tensor | None = None
    log_rate: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{k: v.to(device, non_blocking=non_blocking) for k, v in moved.items() if v is not None}
        )

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory, for a faster copy to a GPU."""
        have = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.pin_memory() for k, v in have.items() if v is not None})

    def __len__(self) -> int:
        return len(self.impression)

    def __getstate__(self) -> dict[str, Any]:
        """All tensors on end in one: a loader's worker hands over one file of shared memory, not one each."""
        have = {f.name: getattr(self, f.name) for f in fields(self)}
        # the widest first, so that each begins where its type may
        real = sorted(
            ((n, v) for n, v in have.items() if v is not None), key=lambda nv: -nv[1].element_size()
        )
        flat = torch.cat([v.contiguous().reshape(-1).view(torch.uint8) for _, v in real])
        return {"flat": flat, "parts": [(name, v.dtype, tuple(v.shape)) for name, v in real]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, None)
        start = 0
        for name, dtype, shape in state["parts"]:
            end = start + math.prod(shape) * dtype.itemsize
            object.__setattr__(self, name, state["flat"][start:end].view(dtype).view(shape))
            start = end


class Impressions(Dataset[Batch]):
    """Rows of the Store, asked for a batch at a time.

    Args:
        store: the log.
        max_history: a longer history keeps its newest clicks.
        age: `days`, `rank`, or `shuffled`: days, dealt out anew among the clicks of each history.
        tokens: (ids, start) of the catalogue, or None.
        draws: which negatives a batch takes, in training; None takes those of the Store.
    """

    def __init__(
        self,
        store: Store,
        max_history: int,
        age: str,
        tokens: tuple[Array, Array] | None,
        draws: InView | Fresh | None = None,
    ) -> None:
        self.store, self.max_history, self.age, self.tokens = store, max_history, age, tokens
        self.draws = draws

    def past_clicks(self, rows: Array) -> Array:
        """Clicks before the impression of each row."""
        return np.asarray(self.store.past_clicks[rows])

    def lengths(self, rows: Array) -> Array:
        """Clicks in the history of each row, after the cut to `max_history`."""
        return np.minimum(self.past_clicks(rows), self.max_history)

    def token_counts(self, rows: Array) -> Array:
        """Tokens of the history and the candidates of each row, an item counted wherever it stands."""
        if self.tokens is None:
            raise AssertionError("tokens are counted where an encoder reads them")
        store, each = self.store, np.diff(self.tokens[1])
        clicks = np.r_[0, np.cumsum(each[store.event_item])]
        shown = np.r_[0, np.cumsum(each[store.candidate_item])]
        end, first = store.history_end[rows], store.candidate_start[rows]
        in_history = clicks[end] - clicks[end - self.lengths(rows)]
        return np.asarray(in_history + shown[store.candidate_start[rows + 1]] - shown[first])

    def __getitem__(self, asked: Array | tuple[int, Array]) -> Batch:
        """The Batch of these rows, of an epoch where one is named; no Python loop over impressions."""
        store = self.store
        epoch, rows = asked if isinstance(asked, tuple) else (0, asked)
        rows = np.asarray(rows)
        end, past = store.history_end[rows], self.past_clicks(rows)
        now, length = store.impression_time[rows][:, None], np.minimum(past, self.max_history)
        index, mask = ranges(end - length, length)
        # a reader without any click points at place 0, behind a mask
        index = np.clip(index, 0, len(store.event_item) - 1)
        history = store.event_item[index]
        if self.age != "rank":
            # int64 first: float32 cannot hold seconds since 1970
            age = (now - store.event_time[index]) / np.float32(DAY_S)
            if self.age == "shuffled":
                age = np.take_along_axis(age, shuffled(rows, mask), 1)
        else:
            age = (length[:, None] - 1 - np.arange(index.shape[1])).astype(np.float32)
        first = store.candidate_start[rows]
        shown, shown_mask = ranges(first, store.candidate_start[rows + 1] - first)
        candidates, label = store.candidate_item[shown], store.candidate_label[shown]
        log_rate = None
        if self.draws is not None:
            candidates, label, shown_mask = self.draws(epoch, rows, shown, candidates, label, shown_mask)
            log_rate = self.draws.log_rate
        candidate_age = np.maximum(now - store.item_born[candidates], 0) / np.float32(DAY_S)

        item, place = np.unique(np.concatenate([history[mask], candidates[shown_mask]]), return_inverse=True)
        history_place, candidate_place = np.zeros(mask.shape, np.int64), np.zeros(shown_mask.shape, np.int64)
        n = int(mask.sum())
        history_place[mask], candidate_place[shown_mask] = place[:n], place[n:]
        tokens, token_length = self._tokens(item)
        vectors, with_vector = self._vectors(item)
        return Batch(
            item=torch.from_numpy(item.astype(np.int64)),
            tokens=tokens,
            token_length=token_length,
            category=torch.from_numpy(store.item_category[item].astype(np.int64)),
            history=torch.from_numpy(history_place),
            history_mask=torch.from_numpy(mask),
            age=torch.from_numpy(np.where(mask, age, PAD_AGE).astype(np.float32)),
            kind=torch.from_numpy(np.where(mask, store.event_kind[index], 0).astype(np.int64)),
            candidates=torch.from_numpy(candidate_place),
            candidate_mask=torch.from_numpy(shown_mask),
            candidate_age=torch.from_numpy(np.where(shown_mask, candidate_age, 0).astype(np.float32)),
            label=torch.from_numpy(np.where(shown_mask, label, 0).astype(np.float32)),
            impression=torch.from_numpy(rows.astype(np.int64)),
            user=torch.from_numpy(store.impression_user[rows].astype(np.int64)),
            past_clicks=torch.from_numpy(past.astype(np.int64)),
            item_vectors=vectors,
            item_vector_mask=with_vector,
            log_rate=None if log_rate is None else torch.tensor(log_rate),
        )

    def _tokens(self, item: Array) -> tuple[Tensor | None, Tensor | None]:
        """Token ids of the distinct items on end, and their lengths."""
        if self.tokens is None:
            return None, None
        ids, start = self.tokens
        first, length = start[item], start[item + 1] - start[item]
        at = np.repeat(first - (np.cumsum(length) - length), length) + np.arange(int(length.sum()))
        return torch.from_numpy(ids[at].astype(np.int64)), torch.from_numpy(np.asarray(length))

    def _vectors(self, item: Array) -> tuple[Tensor | None, Tensor | None]:
        """Own vectors of the distinct items, and which of them have one."""
        if not self.store.has_vectors:
            return None, None
        vectors, mask = self.store.item_vector[item], self.store.item_vector_mask[item]
        return torch.from_numpy(np.asarray(vectors)), torch.from_numpy(np.asarray(mask))

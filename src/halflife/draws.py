"""The negatives of a training batch: a part of what was shown, or drawn anew in every epoch.

Every random number is a hash of seed, epoch and the candidate's place in the Store, so a draw is the same
whatever the batch, the process and the worker it falls to, and in a run that was resumed.
"""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.negatives import Negatives, contains, draw_distinct
from halflife.pools import Pool
from halflife.ranges import mixed, ranges
from halflife.store import Store

Array = NDArray[Any]

CHUNK = 100_000  # impressions whose labels are counted together


class InView:
    """A random part of what was shown and not clicked.

    Each is kept with one probability π for the whole split, whatever was clicked beside it: so many that
    `per_positive` come to a positive on average. Odds among what is kept are odds / π, so the loss takes
    score − log π, and σ(score) stays the probability of a click among all that is shown.

    Args:
        settings: `per_positive`, `seed` and `fresh` are read.
        store: of a log with impressions.
        rows: the training split.

    Source: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook (ADKDD 2014), section 6.3.
    """

    def __init__(self, settings: Negatives, store: Store, rows: Array) -> None:
        self.seed, self.fresh = settings.seed, settings.fresh
        positives = candidates = 0
        for part in np.array_split(rows, max(1, len(rows) // CHUNK)):
            index, mask = ranges(
                store.candidate_start[part], store.candidate_start[part + 1] - store.candidate_start[part]
            )
            candidates += int(mask.sum())
            positives += int(store.candidate_label[index[mask]].sum(dtype=np.int64))
        wanted = settings.per_positive * positives
        self.share = min(1.0, wanted / max(candidates - positives, 1))
        self.log_rate = float(np.log(self.share)) if self.share > 0 else 0.0

    def __call__(
        self, epoch: int, rows: Array, place: Array, item: Array, label: Array, mask: Array
    ) -> tuple[Array, Array, Array]:
        """Items, labels and mask of what is kept, in front.

        Shape: place, item, label, mask (B, C) → three of (B, at most C).
        """
        kept = mask & ((label > 0) | (_uniform(place, self.seed, epoch * self.fresh, 0) < self.share))
        order = np.argsort(~kept, axis=1, kind="stable")[:, : max(1, int(kept.sum(1).max(initial=0)))]
        return tuple(np.take_along_axis(each, order, 1) for each in (item, label, kept))  # type: ignore[return-value]


class Fresh:
    """Negatives that are drawn anew in every epoch, by the rule that drew those of the Store.

    Where repeated draws find none, one of the Store's stays, so that an impression has as many as before.

    Args:
        settings: how to draw.
        store: of a log without impressions.
    """

    log_rate = None  # as in the splits that are not drawn anew

    def __init__(self, settings: Negatives, store: Store) -> None:
        self.settings, self.store = settings, store

    @cached_property
    def pool(self) -> Pool:
        """The events in the order of time; made once in every worker."""
        settings, store = self.settings, self.store
        return Pool(
            settings.by, settings.window_s, np.asarray(store.event_item), np.asarray(store.event_time)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "store": self.store}

    def __call__(
        self, epoch: int, rows: Array, place: Array, item: Array, label: Array, mask: Array
    ) -> tuple[Array, Array, Array]:
        """Items anew where the label is 0; labels and mask as they are.

        Args:
            epoch: from 0.
            rows: of the Store.
            place: of each candidate in the Store.
            item, label, mask: as the Store has them.

        Shape: rows (B,); place, item, label, mask (B, C) → three of (B, C).
        """
        n_items, store = self.store.n_items, self.store
        row, column = np.nonzero(mask & (label == 0))
        now, where = store.impression_time[rows][row], place[row, column]
        closed = self._closed(rows)

        def attempt(turn: int, todo: Array) -> tuple[Array, Array]:
            draw = self.pool.draw(_uniform(where[todo], self.settings.seed, epoch, turn), now[todo])
            return draw, contains(closed, row[todo].astype(np.int64) * n_items + draw)

        found, taken = draw_distinct(row, n_items, attempt)
        todo = np.flatnonzero(found < 0)
        old = row.astype(np.int64) * n_items + item[row, column]
        spare = np.flatnonzero(~contains(taken, old))  # of the Store's, in the order of rows
        rank = np.arange(len(todo)) - np.searchsorted(row[todo], row[todo])
        found[todo] = item[row, column][spare[np.searchsorted(row[spare], row[todo]) + rank]]
        drawn = item.copy()
        drawn[row, column] = found
        return drawn, label, mask

    def _closed(self, rows: Array) -> Array:
        """What must not be drawn, as row · items + item: the basket, and with `exclude_seen` the past."""
        store = self.store
        user, now = store.impression_user[rows], store.impression_time[rows]
        first, end, last = store.user_start[user], store.history_end[rows], store.user_start[user + 1]
        first, end = np.asarray(first if self.settings.exclude_seen else end), np.array(end)
        more = np.flatnonzero(end < last)
        while len(more := more[store.event_time[end[more]] <= now[more]]):  # once for each item of a basket
            end[more] += 1
            more = more[end[more] < last[more]]
        index, mask = ranges(first, end - first)
        owner = np.broadcast_to(np.arange(len(rows))[:, None], mask.shape)[mask]
        return np.unique(owner * store.n_items + store.event_item[index[mask]])


def _uniform(place: Array, seed: int, epoch: int, turn: int) -> Array:
    """A number in [0, 1) for each place, seed, epoch and turn."""
    salt = np.random.SeedSequence([seed, epoch, turn]).generate_state(1, np.uint64)[0]
    return (mixed(place.astype(np.uint64) ^ salt) >> np.uint64(11)) * 2.0**-53

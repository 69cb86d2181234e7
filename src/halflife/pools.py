"""What negatives are drawn from: the items that may be drawn at a moment, and how likely each is."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CELLS = 4  # to a window: an item that is found in a cell is alive at the moment 4 times of 5, or more often


class Pool:
    """Items that a negative may be, at any moment of a log.

    popularity: an event of the window before the moment is picked, and its item drawn.
    alive: every item with an event in the window before the moment is drawn alike.
    uniform: every item with an event before the moment is drawn alike.

    An item is alive from an event to the end of the window behind it. Such spans are cut into cells of a
    quarter of a window; of those in the moment's cell that began before the moment one is picked, and refused
    where it has ended, so that all that hold the moment are as likely.

    Args:
        by: `popularity`, `alive` or `uniform`.
        window_s: length of the window (seconds), above 0.
        item, time: events in any order, time in seconds.

    Shape: item, time: (events,).
    """

    def __init__(self, by: str, window_s: int, item: Array, time: Array) -> None:
        self.by, self.window_s = by, window_s
        order = np.argsort(time, kind="stable")
        self.item, self.time = item[order], time[order]
        if by != "popularity":
            self._find_spans()
        if by == "alive":
            self._cut_spans()

    @cached_property
    def _by_item(self) -> tuple[Array, Array]:
        """Item and time of the events, sorted by both."""
        order = np.argsort(self.item, kind="stable")
        return self.item[order], self.time[order]

    @cached_property
    def _keys(self) -> tuple[Array, int, int]:
        """The same as one ascending number an event; the first second, and how many numbers an item has."""
        item, time = self._by_item
        first = int(self.time[0])
        width = int(self.time[-1]) - first + 2
        return item.astype(np.int64) * width + (time - first), first, width

    def _find_spans(self) -> None:
        """From when to when each item may be drawn, by the start."""
        item, time = self._by_item
        new = np.r_[True, item[1:] != item[:-1]]
        if self.by == "alive":
            opens = np.flatnonzero(new | (np.diff(time, prepend=0) > self.window_s))
            end = time[np.r_[opens[1:], len(time)] - 1] + self.window_s
        else:
            opens = np.flatnonzero(new)
            end = np.full(len(opens), np.iinfo(np.int64).max)
        order = np.argsort(time[opens], kind="stable")
        self.span_item, self.start, self.end = item[opens][order], time[opens][order], end[order]
        self.sorted_end = np.sort(end)

    def _cut_spans(self) -> None:
        """Deal the spans to the cells they touch."""
        self.first_s, self.cell_s = int(self.start[0]), max(1, self.window_s // CELLS)
        low, high = ((edge - self.first_s) // self.cell_s for edge in (self.start, self.end))
        cells = high - low + 1
        span = np.repeat(np.arange(len(cells), dtype=np.int32), cells)
        cell = np.repeat(low - (np.cumsum(cells) - cells), cells) + np.arange(int(cells.sum()))
        # ascending: by cell, and there by the start of the span
        self.cell_key = np.sort(cell * len(cells) + span)
        self.cell_start = np.r_[0, np.cumsum(np.bincount(cell))]

    def draw(self, uniform: Array, moment: Array) -> Array:
        """One item for each moment, −1 where the pool is empty or the draw is refused.

        Args:
            uniform: random numbers in [0, 1).
            moment: seconds.

        Shape: both (draws,).
        """
        if self.by == "popularity":
            low, high = self._window(moment)
            at = low + (uniform * (high - low)).astype(np.int64)
            return np.where(high > low, self.item[np.minimum(at, len(self.item) - 1)], -1)
        if self.by == "uniform":
            born = np.searchsorted(self.start, moment)
            at = np.minimum((uniform * born).astype(np.int64), len(self.start) - 1)
            return np.where(born > 0, self.span_item[at], -1)
        cell = np.clip((moment - self.first_s) // self.cell_s, 0, len(self.cell_start) - 2)
        first = self.cell_start[cell]
        spans = len(self.start)
        size = np.searchsorted(self.cell_key, cell * spans + np.searchsorted(self.start, moment)) - first
        at = np.minimum(first + (uniform * size).astype(np.int64), len(self.cell_key) - 1)
        span = self.cell_key[at] % spans
        alive = (size > 0) & (moment <= self.end[span])
        return np.where(alive, self.span_item[span], -1)

    def chance(self, item: Array, moment: Array) -> Array:
        """How likely a draw at a moment is to be an item; 0 for one that is not in the pool.

        Shape: both (draws,) → (draws,).
        """
        last, first = (self._before(item, edge) for edge in (moment, moment - self.window_s))
        if self.by == "popularity":
            low, high = self._window(moment)
            return np.asarray((last - first) / np.maximum(high - low, 1))
        size = np.searchsorted(self.start, moment) - np.searchsorted(self.sorted_end, moment)
        inside = last > (first if self.by == "alive" else self._before(item, np.zeros_like(moment)))
        return np.where(inside, 1 / np.maximum(size, 1), 0.0)

    def _window(self, moment: Array) -> tuple[Array, Array]:
        """The first event of the window before each moment, and the first behind it."""
        return np.searchsorted(self.time, moment - self.window_s), np.searchsorted(self.time, moment)

    def _before(self, item: Array, moment: Array) -> Array:
        """The place among events by (item, time) of an item's first event at a moment or later."""
        keys, first, width = self._keys
        return np.searchsorted(keys, item.astype(np.int64) * width + np.clip(moment - first, 0, width - 1))

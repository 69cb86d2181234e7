"""Which rows make a batch: shuffled within buckets of like length, the same in every run of one seed."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from halflife.errors import InputError
from halflife.ranges import ranges

Array = NDArray[Any]

BUCKET_BATCHES = 16
"""Impressions are sorted by length within this many batches, so batches stay nearly random."""


class BatchRows(Sampler[Any]):
    """Rows of each batch: a pure function of seed, epoch and rank, so a resumed run sees the same.

    Args:
        rows: the split's rows.
        lengths: history lengths of the rows it is called with, for bucketing; None keeps the order of time.
        batch_size: impressions a batch and process.
        seed: of the shuffle.
        runs: places in `rows` that stay side by side, from `ranges.runs`; None shuffles each on its own.
        rank, world: this process and how many there are. In training every process gets as many batches; in
            evaluation every row is seen exactly once, so metrics count nothing twice.
        tokens: of each row; None cuts batches of `batch_size` impressions.
        batch_tokens: what no batch exceeds, at least three times the largest row.

    Raises:
        InputError: for too few tokens or rows.
    """

    def __init__(
        self,
        rows: Array,
        lengths: Callable[[Array], Array] | None,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        tokens: Array | None = None,
        batch_tokens: int = 0,
        runs: tuple[Array, Array] | None = None,
    ) -> None:
        if lengths is None:  # every process needs a batch, or the others wait for it for ever
            batch_size = max(1, min(batch_size, len(rows) // world))
        self.rows, self.lengths, self.batch_size, self.seed = rows, lengths, batch_size, seed
        self.rank, self.world = rank, world
        self.runs = runs
        self.tokens = tokens
        if tokens is not None:
            largest = int(tokens.max())
            if batch_tokens < 3 * largest:
                raise InputError(
                    f"data.batch_tokens must be a whole number (tokens), got {batch_tokens}; give "
                    f"{3 * largest} or more, three times what the largest impression holds"
                )
            # equal shares of the epoch's tokens; a batch exceeds its share by less than one row
            self.shares = -(-int(tokens.sum()) // (batch_tokens - largest))
        self.epoch = 0
        self.skip = 0
        self.names_epoch = False  # whether each batch is asked for as (epoch, rows)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        n = -(-len(self.rows) // self.batch_size)
        if self.lengths is None:
            return len(range(self.rank, n, self.world))
        if self.tokens is not None:
            n = self.shares
        return max(n // self.world, 1)

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0  # a resumed epoch goes on behind the batches it had
        for rows in self.batches(skip):
            yield (self.epoch, rows) if self.names_epoch else rows

    def batches(self, skip: int = 0) -> Iterator[Array]:
        """This process's batches of the current epoch, without the first ones."""
        if self.lengths is None:
            parts = np.array_split(self.rows, range(self.batch_size, len(self.rows), self.batch_size))
            yield from parts[self.rank :: self.world][skip:]
        elif self.runs is None and self.tokens is None:
            yield from self._one_by_one(self.lengths, skip)
        else:
            yield from self._all_at_once(self.lengths)[skip:]

    def _one_by_one(self, lengths: Callable[[Array], Array], skip: int) -> Iterator[Array]:
        """Batches of the same number of rows. A bucket is sorted when the first of its batches is asked for,
        so that an epoch of many million rows begins at once.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.rows))
        bucket = self.batch_size * BUCKET_BATCHES
        is_sorted = np.zeros(-(-len(order) // bucket), bool)
        for i in self._mine(rng, -(-len(order) // self.batch_size))[skip:]:
            at = i // BUCKET_BATCHES
            if not is_sorted[at]:
                places = order[at * bucket : (at + 1) * bucket]
                places[:] = places[np.argsort(lengths(self.rows[places]), kind="stable")]
                is_sorted[at] = True
            yield self.rows[order[i * self.batch_size : (i + 1) * self.batch_size]]

    def _all_at_once(self, lengths: Callable[[Array], Array]) -> list[Array]:
        """Batches of whole runs or of so many tokens: where one ends depends on all before it."""
        rng = np.random.default_rng([self.seed, self.epoch])
        place, start = self.runs or (np.arange(len(self.rows)), np.arange(len(self.rows) + 1))
        longest = np.maximum.reduceat(lengths(self.rows[place]), start[:-1])
        order = rng.permutation(len(longest))
        chunk = max(1, self.batch_size * BUCKET_BATCHES * len(order) // len(self.rows))
        chunks = (order[i : i + chunk] for i in range(0, len(order), chunk))
        order = np.concatenate([c[np.argsort(longest[c], kind="stable")] for c in chunks])
        index, mask = ranges(start[order], np.diff(start)[order])
        order = place[index[mask]]
        cuts: Any = range(self.batch_size, len(order), self.batch_size)
        if self.tokens is not None:  # as many batches in every epoch, whatever the order
            passed = np.cumsum(self.tokens[order])
            middle = 2 * passed - self.tokens[order]  # of each row, doubled
            cuts = np.flatnonzero(np.diff(middle * self.shares // (2 * passed[-1]))) + 1
        parts = np.array_split(self.rows[order], cuts)
        return [parts[i] for i in self._mine(rng, len(parts))]

    def _mine(self, rng: np.random.Generator, count: int) -> Array:
        """Which of the epoch's batches this process takes, in the order it takes them."""
        order = rng.permutation(count)
        if count < self.world:
            raise InputError(
                f"data.batch_size must leave each of {self.world} processes a batch (impressions), got "
                f"{self.batch_size} for {len(self.rows)}; give a smaller one"
            )
        return order[self.rank :: self.world][: len(self)]

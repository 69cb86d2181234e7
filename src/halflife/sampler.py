"""Which rows make a batch: shuffled within buckets of like length, the same in every run of one seed."""

from collections.abc import Iterator
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
        lengths: history length of each row, for bucketing; None keeps the order of time.
        batch_size: impressions a batch and process.
        seed: of the shuffle.
        runs: rows that stay side by side, from `ranges.runs`; None shuffles each on its own.
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
        lengths: Array | None,
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
        self.runs = runs or (np.arange(len(rows)), np.arange(len(rows) + 1))
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
        for rows in self.batches()[skip:]:
            yield (self.epoch, rows) if self.names_epoch else rows

    def batches(self) -> list[Array]:
        """This process's batches of the current epoch."""
        if self.lengths is None:
            parts = np.array_split(self.rows, range(self.batch_size, len(self.rows), self.batch_size))
            return parts[self.rank :: self.world]
        rng = np.random.default_rng([self.seed, self.epoch])
        place, start = self.runs
        longest = np.maximum.reduceat(self.lengths[place], start[:-1])
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
        shuffled = [parts[i] for i in rng.permutation(len(parts))]
        if len(shuffled) < self.world:
            raise InputError(
                f"data.batch_size must leave each of {self.world} processes a batch (impressions), got "
                f"{self.batch_size} for {len(self.rows)}; give a smaller one"
            )
        return shuffled[self.rank :: self.world][: len(self)]

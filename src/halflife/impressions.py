"""Impressions to arrays: logged or drawn, in the order of time, with the popularity of every candidate."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from halflife import negatives, quality, shards, tables
from halflife.engines import Engine
from halflife.errors import InputError
from halflife.negatives import Negatives
from halflife.pools import Pool
from halflife.progress import bar
from halflife.spill import Buckets, Column
from halflife.tables import Tables

Array = NDArray[Any]

PART_ROWS = 100_000  # impressions that are sorted together
READ_ROWS = 5_000  # impressions, each with all its candidates, read in one piece; some dozen at a time
SEEN = np.dtype([("time", np.int64), ("item", np.int32)])


class Index:
    """Ids and their places.

    Args:
        item_id, user_id: sorted, each once.
    """

    def __init__(self, item_id: pl.Series, user_id: pl.Series) -> None:
        self.item_id, self.items, self.users = item_id, pl.Enum(item_id), pl.Enum(user_id)

    def item(self, column: str) -> pl.Expr:
        """The item's place, null where it is unknown."""
        return pl.col(column).cast(self.items, strict=False).to_physical()

    def user(self, column: str) -> pl.Expr:
        """The user's place."""
        return pl.col(column).cast(self.users).to_physical()


class Part(NamedTuple):
    """Impressions of one stretch of time, in its order; candidates and labels on end."""

    ids: pl.Series
    user: Array
    time: Array
    length: Array
    item: Array
    label: Array
    probability: Array | None
    log_rate: Array | None


@dataclass(frozen=True)
class Counts:
    """What was written, and when items were first shown (the largest int64 where they never were)."""

    impressions: int
    candidates: int
    positives: int
    first_shown: Array
    last_s: int


class Sweep:
    """Events in the order of time, counted by item as time goes on.

    Args:
        edges: ascending moments (seconds) that cut time into stretches.
        first_s: events before it are counted at once, since no impression lies among them.
        n_items: size of the catalogue.
        scratch: for the events of each stretch.
    """

    def __init__(self, edges: Array, first_s: int, n_items: int, scratch: Path) -> None:
        self.edges, self.first_s = edges, first_s
        self.count = np.zeros(n_items, np.int64)
        self.dealt = Buckets(scratch / "sweep", SEEN, len(edges) + 1)

    def add(self, time: Array, item: Array) -> None:
        """Take events in, in any order."""
        early = time < self.first_s
        self.count += np.bincount(item[early], minlength=len(self.count))
        rows = np.empty(int((~early).sum()), SEEN)
        rows["time"], rows["item"] = time[~early], item[~early]
        self.dealt.add(np.searchsorted(self.edges, rows["time"], side="right"), rows)

    def stretch(self, at: int) -> tuple[Array, Array]:
        """Events of each item before a stretch, asked for one after another, and those of the stretch."""
        before, rows = self.count, self.dealt.take(at)
        self.count = before + np.bincount(rows["item"], minlength=len(before))
        return before, rows


class Logged:
    """Impressions as the log has them.

    Args:
        log: with impressions.
        index: of its ids.
        scratch: for the impressions of each stretch of time.

    Raises:
        InputError: where there are none, or their times will not do.
    """

    def __init__(self, log: Tables, index: Index, scratch: Path) -> None:
        frame = tables.check_columns("impressions", log.impressions, tables.IMPRESSION_COLUMNS)  # type: ignore[arg-type]
        time = frame.select("timestamp_s").collect(engine="streaming").to_series()
        if len(time) == 0:
            raise InputError("the log must hold at least 1 impression, got 0; check the files of data.root")
        refuse_missing_times("impressions", time.null_count())
        rules = quality.impossible_times("impressions")
        flags = time.to_frame().select(bad.sum().alias(name) for name, (_, bad) in rules.items())
        frame, self.found = quality.sift(frame, flags.row(0, named=True), len(time), rules)
        if self.found:
            time = frame.select("timestamp_s").collect(engine="streaming").to_series()
        sorted_time = np.sort(time.to_numpy())
        self.count, self.first_s = len(sorted_time), int(sorted_time[0])
        tables.check_times("impressions", self.first_s, int(sorted_time[-1]))
        self.edges = np.unique(sorted_time[PART_ROWS::PART_ROWS])
        self.edges = self.edges[self.edges > self.first_s]
        columns = ["labels"]
        if log.truth and "probabilities" in log.truth:
            frame = frame.join(log.truth["probabilities"].lazy(), on="impression_id", how="left")
            columns.append("probabilities")
        self.has_truth, self.frame = "probabilities" in columns, frame
        self.lazy = frame.select(
            "impression_id",
            "timestamp_s",
            *columns,
            user=index.user("user_id"),
            items=pl.col("candidates").list.eval(pl.element().cast(index.items, strict=False).to_physical()),
        )
        self.index, self.scratch = index, scratch / "shown"
        self.has_rates, self.candidates = False, None

    def deal(self) -> int:
        """Check every impression and put it with those of its stretch of time; returns all candidates."""
        self.scratch.mkdir()
        candidates = 0
        with pl.Config(streaming_chunk_size=READ_ROWS):
            # in the log's own order, which settles ties of time, id and user
            batches = self.lazy.collect_batches(chunk_size=PART_ROWS, maintain_order=True, engine="streaming")
            for at, batch in enumerate(batches):
                candidates += self._check(batch)
                stretch = np.searchsorted(self.edges, batch["timestamp_s"].to_numpy(), side="right")
                for i in np.unique(stretch):
                    part = batch.filter(pl.Series(stretch == i))
                    part.write_ipc(self.scratch / f"{i}-{at:09d}.ipc")
        return candidates

    def _check(self, batch: pl.DataFrame) -> int:
        """Refuse what is no impression; returns the batch's candidates."""
        lengths = batch["items"].list.len().fill_null(0)
        bare = (lengths == 0).arg_true()
        if len(bare):
            raise InputError(
                f"impressions.candidates must hold at least 1 item, got impression "
                f"{batch['impression_id'][bare[0]]} with none; remove the row"
            )
        odd = (lengths != batch["labels"].list.len()).arg_true()
        if len(odd):
            raise InputError(
                f"impressions.labels must hold one label a candidate, got impression "
                f"{batch['impression_id'][odd[0]]} with another number; correct the row"
            )
        if batch["items"].list.explode(empty_as_null=False).null_count():
            known = pl.col("candidates").is_in(self.index.item_id.implode())
            shown = self.frame.select("candidates").explode("candidates")
            unknown = shown.filter(~known).head(1).collect(engine="streaming")["candidates"][0]
            raise InputError(
                f"impressions.candidates must be items of the catalogue, got {unknown}; "
                "add the item or drop the candidate"
            )
        label = batch["labels"].list.explode(empty_as_null=False)
        if label.null_count() or not label.is_between(0, 1).all():
            raise InputError("impressions.labels must be 0 or 1, got another value; map it in the source")
        return int(lengths.sum())

    def parts(self) -> Iterator[Part]:
        """The stretches of time, one after another."""
        for i in range(len(self.edges) + 1):
            files = sorted(self.scratch.glob(f"{i}-*.ipc"))
            keys = ["timestamp_s", "impression_id", "user"]
            frame = pl.scan_ipc(files).sort(keys, maintain_order=True).collect(engine="streaming")
            probability = frame["probabilities"].explode().to_numpy() if self.has_truth else None
            yield Part(
                frame["impression_id"],
                frame["user"].to_numpy().astype(np.int32),
                frame["timestamp_s"].to_numpy(),
                frame["items"].list.len().to_numpy().astype(np.int64),
                frame["items"].explode().to_numpy().astype(np.int32),
                frame["labels"].explode().to_numpy().astype(np.int8),
                probability,
                None,
            )


class Drawn:
    """Impressions made of baskets, with negatives; unlike logged ones they are held in memory.

    Args:
        settings: how to draw.
        directory: with the arrays of the events.
        n_items: size of the catalogue.
    """

    def __init__(self, settings: Negatives, directory: Path, n_items: int) -> None:
        item, moment = np.load(directory / "event_item.npy"), np.load(directory / "event_time.npy")
        user = np.repeat(
            np.arange(len(np.load(directory / "user_start.npy")) - 1, dtype=np.int32),
            np.diff(np.load(directory / "user_start.npy")),
        )
        owner, when, offsets, candidates, label, self.given_up = negatives.sample(
            settings, user, item, moment, n_items
        )
        self.log_rate = None
        if not settings.exclude_seen:
            pool = Pool(settings.by, settings.window_s, item, moment)
            self.log_rate = negatives.log_rate(settings, pool, owner, when, offsets, candidates, label)
        order = np.argsort(when, kind="stable")
        length = np.diff(offsets)[order]
        start = np.r_[0, np.cumsum(length)]
        gather = np.repeat(offsets[:-1][order] - start[:-1], length) + np.arange(start[-1])
        self.owner, self.when, self.start = owner[order].astype(np.int32), when[order], start
        self.item, self.label = candidates[gather], label[gather]
        if self.log_rate is not None:
            self.log_rate = self.log_rate[gather]
        self.has_rates = self.log_rate is not None
        self.count, self.candidates, self.has_truth = len(order), int(start[-1]), False
        self.first_s = int(self.when[0])
        self.edges = np.unique(self.when[PART_ROWS::PART_ROWS])
        self.edges = self.edges[self.edges > self.first_s]

    def sweep(self, n_items: int, directory: Path) -> Sweep:
        """The events, for popularity."""
        sweep = Sweep(self.edges, self.first_s, n_items, directory / "scratch")
        sweep.add(np.load(directory / "event_time.npy"), np.load(directory / "event_item.npy"))
        return sweep

    def parts(self) -> Iterator[Part]:
        """The stretches of time, one after another."""
        ends = np.r_[0, np.searchsorted(self.when, self.edges), self.count]
        for low, high in pairwise(ends):
            here = slice(self.start[low], self.start[high])
            yield Part(
                pl.Series("impression_id", [f"S{i}" for i in range(low, high)]),
                self.owner[low:high],
                self.when[low:high],
                np.diff(self.start[low : high + 1]),
                self.item[here],
                self.label[here],
                None,
                None if self.log_rate is None else self.log_rate[here],
            )


def write(source: Logged | Drawn, candidates: int, sweep: Sweep, directory: Path, engine: Engine) -> Counts:
    """Write every array of impressions and candidates but `history_end`.

    Args:
        source: where the impressions come from.
        candidates: how many there are.
        sweep: the events, for popularity.
        directory: of the arrays.
        engine: where popularity is counted.
    """
    n_items = len(sweep.count)
    never = np.iinfo(np.int64).max
    first_shown = np.full(n_items, never)
    columns: dict[str, tuple[type[np.generic], int]] = {
        "impression_user": (np.int32, source.count),
        "impression_time": (np.int64, source.count),
        "candidate_start": (np.int64, source.count + 1),
        "candidate_item": (np.int32, candidates),
        "candidate_label": (np.int8, candidates),
        "candidate_popularity": (np.int32, candidates),
    }
    if source.has_truth:
        columns["candidate_probability"] = (np.float64, candidates)
    if source.has_rates:
        columns["candidate_log_rate"] = (np.float32, candidates)
    ids = directory / "scratch" / "ids"
    ids.mkdir()
    done = positives = last_s = 0
    with ExitStack() as stack:
        out = {k: stack.enter_context(Column(directory / f"{k}.npy", *c)) for k, c in columns.items()}
        out["candidate_start"].add(np.zeros(1))

        def stretches() -> Iterator[tuple[Array, ...]]:
            """Write what a stretch of time holds, and hand on what its popularity is counted from."""
            nonlocal done, positives, last_s
            numbers = bar(range(len(source.edges) + 1), "impressions")
            for at, part in zip(numbers, source.parts(), strict=True):
                out["impression_user"].add(part.user)
                out["impression_time"].add(part.time)
                out["candidate_start"].add(done + np.cumsum(part.length))
                out["candidate_item"].add(part.item)
                out["candidate_label"].add(part.label)
                if part.probability is not None:
                    out["candidate_probability"].add(part.probability)
                if part.log_rate is not None:
                    out["candidate_log_rate"].add(part.log_rate)
                new = first_shown[part.item] == never
                np.minimum.at(first_shown, part.item[new], np.repeat(part.time, part.length)[new])
                part.ids.to_frame("impression_id").write_ipc(ids / f"{at:06d}.ipc")
                done, positives = done + len(part.item), positives + int(part.label.sum(dtype=np.int64))
                last_s = int(part.time[-1])
                yield *sweep.stretch(at), part.time, part.length, part.item

        for count in engine(shards.popularity, stretches()):
            out["candidate_popularity"].add(count)
    pl.scan_ipc(ids / "*.ipc").sink_parquet(directory / "impressions.parquet")
    return Counts(source.count, done, positives, first_shown, last_s)


def refuse_missing_times(name: str, missing: int) -> None:
    """Raise the InputError when a moment is null."""
    if missing:
        raise InputError(
            f"{name}.timestamp_s must be known for every row, got {missing} without; remove the rows"
        )

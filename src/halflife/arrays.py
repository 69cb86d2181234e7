"""Tables to arrays, out of core: integers in order, histories as ranges, and the proof that none looks ahead.

Events are dealt to files by user, each file is sorted in memory and appended; impressions are dealt to files
by time (impressions.py). Memory holds a few million rows, the ids, and twenty bytes an impression.
"""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from halflife import item_vectors, quality, shards, tables
from halflife.engines import Engine, local
from halflife.errors import InputError
from halflife.impressions import Counts, Drawn, Index, Logged, Sweep, write
from halflife.negatives import Negatives
from halflife.progress import bar
from halflife.spill import Buckets, Column
from halflife.tables import Tables
from halflife.users import counted

Array = NDArray[Any]

STRANGERS = "events of items that are not in the catalogue"
UNKNOWN = "unknown"  # what a missing category or kind is called
LATEST_S = 10**11  # the year 5138: a later publication is in milliseconds
BATCH_ROWS = 200_000  # events that are indexed together
READ_ROWS = 20_000  # events that are read in one piece; some dozen at a time
BUCKET_ROWS = 2_000_000  # events that are sorted together
MOST_BUCKETS = 1_000  # files; a log with more events has larger buckets
EVENT = np.dtype([("user", np.int32), ("item", np.int32), ("time", np.int64), ("kind", np.int16)])


class Written(NamedTuple):
    """What `_write_log` wrote, and what it left out.

    Args:
        users, events: how many.
        kinds: of the events, in the order of their codes.
        vectors: what `item_vectors.write` says of the items' own.
        counts: of the impressions.
        first_event: of every item, in seconds; the largest int64 where it has none.
        dropped: rows by the reason they were left out for.
        found: whatever looks wrong.
    """

    users: int
    events: int
    kinds: list[str]
    vectors: dict[str, int] | None
    counts: Counts
    first_event: Array
    dropped: dict[str, int]
    found: list[quality.Finding]


def build(log: Tables, settings: Negatives | None, directory: Path, engine: Engine = local) -> None:
    """Write the Store of a log into an empty directory.

    Args:
        log: what a source read.
        settings: how to draw negatives; needed when the log has no impressions.
        directory: where the arrays go.
        engine: where its shards are worked; changes no byte.

    Raises:
        InputError: for a log that breaks the contract of Tables or is empty.
    """
    started = time.perf_counter()
    scratch = directory / "scratch"
    scratch.mkdir()
    items = _items(log)
    categories = _words(
        items["category"].fill_null(UNKNOWN).unique().sort().to_list(), "items.category", np.int32
    )
    written = _write_log(log, settings, items, directory, engine)
    _write_histories(directory, engine)
    np.save(directory / "item_born.npy", _born(items["published_s"], log, written))
    code = items.select(pl.col("category").fill_null(UNKNOWN).cast(pl.Enum(categories)).to_physical())
    np.save(directory / "item_category.npy", code.to_series().to_numpy().astype(np.int32))
    items.write_parquet(directory / "items.parquet")
    shutil.rmtree(scratch)
    truth = {k: v for k, v in (log.truth or {}).items() if k != "probabilities"}
    about = {
        "fingerprint": _fingerprint(items, written.kinds, directory),
        "has_click_times": log.has_click_times,
        "has_impressions": log.has_impressions,
        "has_dwell": log.has_dwell,
        "note": log.note,
        "pseudonymous": log.pseudonymous,
        "planted": truth or None,
        "bayes_auc": _bayes_auc(directory / "candidate_probability.npy"),
        "users": written.users,
        "items": len(items),
        "vectors": written.vectors,
        "events": written.events,
        "kinds": written.kinds,
        "categories": categories,
        "impressions": written.counts.impressions,
        "candidates": written.counts.candidates,
        "positives": written.counts.positives,
        "dropped": written.dropped,
        "quality": written.found,
        "leakage": {"histories_checked": written.counts.impressions, "future_events_found": 0},
        "build_s": round(time.perf_counter() - started, 3),
    }
    (directory / "store.json").write_text(json.dumps(about, indent=2))


def _write_log(
    log: Tables, settings: Negatives | None, items: pl.DataFrame, directory: Path, engine: Engine
) -> Written:
    """Write the arrays of events, impressions and item vectors; the index of ids is gone when it returns.

    Args:
        log, settings, directory, engine: as of `build`.
        items: the catalogue by id.
    """
    scratch = directory / "scratch"
    events, users, found = counted(log, scratch)
    users.select("user_id").write_parquet(directory / "users.parquet")
    index, per_user = Index(items["item_id"], users["user_id"]), users["events"].to_numpy()
    del users  # as large as the index, which has the ids too
    found += quality.texts(items)
    n_events = int(per_user.sum())
    if log.impressions is None and settings is None:
        raise InputError(
            "data.negatives must be set for a log without impressions, got null; keep the yaml's block"
        )
    if log.impressions is None and settings is not None and settings.by == "in_view":
        raise InputError(
            "data.negatives.by must be popularity, alive or uniform for a log without impressions, got "
            "in_view; choose one of them, since nobody knows what was shown beside what was clicked"
        )
    vectors, left_out = item_vectors.write(log, items["item_id"], directory)
    logged = None if log.impressions is None else Logged(log, index, scratch)
    found += [] if logged is None else logged.found
    dropped = log.dropped | left_out | {f.what: f.rows for f in found if not f.kept}
    sweep = None if logged is None else Sweep(logged.edges, logged.first_s, len(items), scratch)
    dealt, kinds, per_user = _deal(events, index, per_user, sweep, scratch)
    kept = int(per_user.sum())
    if kept < n_events:
        dropped[STRANGERS] = n_events - kept
        unknown = events.filter(index.item("item_id").is_null())
        found.append(quality.Finding(STRANGERS, n_events - kept, quality.example(unknown), kept=False))
    if kept == 0:
        raise InputError(
            f"events.item_id must be items of the catalogue, got none that is among {n_events} events; "
            "give events and items the same ids"
        )
    first_event, twice, (user, item, second) = _write_events(
        dealt, per_user, kinds, len(items), directory, engine
    )
    if twice:
        shown = f"user {index.users.categories[user]}, item {items['item_id'][item]}, second {second}"
        found.append(quality.Finding("events that repeat another in every column", twice, shown, kept=True))
    if logged is not None and sweep is not None:
        counts = write(logged, logged.deal(), sweep, directory, engine)
    elif settings is not None:
        drawn = Drawn(settings, directory, len(items))
        if drawn.given_up:
            dropped["negatives that could not be drawn"] = drawn.given_up
        counts = write(drawn, drawn.candidates, drawn.sweep(len(items), directory), directory, engine)
    else:
        raise AssertionError("a log has impressions, or settings to draw them")
    return Written(len(per_user), kept, sorted(kinds), vectors, counts, first_event, dropped, found)


def _items(log: Tables) -> pl.DataFrame:
    """The catalogue by id, each id once."""
    items = tables.check_columns("items", log.items, tables.ITEM_COLUMNS).collect(engine="streaming")
    items = items.sort("item_id")
    if items["item_id"].is_duplicated().any():
        twice = items.filter(items["item_id"].is_duplicated())["item_id"][0]
        raise InputError(f"items.item_id must be unique, got {twice} twice; keep one row an item")
    latest = items["published_s"].max()
    if isinstance(latest, int) and latest > LATEST_S:
        raise InputError(
            f"items.published_s must be Unix time (seconds), got {latest}; divide the column by 1000"
        )
    return items


def _deal(
    events: pl.LazyFrame, index: Index, per_user: Array, sweep: Sweep | None, scratch: Path
) -> tuple[Buckets, list[str], Array]:
    """Put every event of a known item with those of users beside its own.

    Returns:
        The events by stretch of users, the kinds in the order they came, and each user's events.
    """
    edges = _stretches(per_user)
    dealt = Buckets(scratch / "events", EVENT, len(edges) - 1)
    stretch = np.repeat(np.arange(len(edges) - 1), np.diff(edges)).astype(np.uint16)
    indexed = events.select(
        "timestamp_s",
        pl.col("kind").fill_null(UNKNOWN),
        user=index.user("user_id"),
        item=index.item("item_id"),
    )
    kinds: list[str] = []
    kept = np.zeros(len(per_user), np.int64)
    with pl.Config(streaming_chunk_size=READ_ROWS):
        for batch in indexed.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming"):
            known = batch.filter(pl.col("item").is_not_null())
            kinds = _words(kinds + sorted(set(batch["kind"].unique()) - set(kinds)), "events.kind", np.int16)
            rows = np.empty(len(known), EVENT)
            rows["user"], rows["item"] = known["user"].to_numpy(), known["item"].to_numpy()
            rows["time"] = known["timestamp_s"].to_numpy()
            rows["kind"] = known["kind"].cast(pl.Enum(kinds)).to_physical().to_numpy()
            dealt.add(stretch[rows["user"]], rows)
            np.add.at(kept, rows["user"], 1)
            if sweep is not None:
                sweep.add(rows["time"], rows["item"])
    return dealt, kinds, kept


def _stretches(per_user: Array) -> Array:
    """Where to cut the users, so that each stretch has about `BUCKET_ROWS` events; users are never split."""
    total = np.cumsum(per_user)
    count = int(np.clip(-(-total[-1] // BUCKET_ROWS), 1, MOST_BUCKETS))
    inner = np.searchsorted(total, total[-1] * np.arange(1, count) / count, side="right")
    return np.unique(np.r_[0, inner, len(per_user)])


def _write_events(
    dealt: Buckets, per_user: Array, kinds: list[str], n_items: int, directory: Path, engine: Engine
) -> tuple[Array, int, list[int]]:
    """Sort the events of each stretch by user, time, item and kind, and append them.

    Returns:
        The first event of every item in seconds, the largest int64 where it has none; how many events repeat
        the one before, and user, item and second of the first of them.
    """
    np.save(directory / "user_start.npy", np.r_[0, np.cumsum(per_user)].astype(np.int64))
    code = np.argsort(np.argsort(kinds)).astype(np.int16)  # from the order they came to that of the alphabet
    first = np.full(n_items, np.iinfo(np.int64).max)
    n, twice, example = int(per_user.sum()), 0, [0, 0, 0]
    with (
        Column(directory / "event_item.npy", np.int32, n) as item,
        Column(directory / "event_time.npy", np.int64, n) as moment,
        Column(directory / "event_kind.npy", np.int16, n) as kind,
    ):
        stretches = ((dealt.take(at), code) for at in bar(range(len(dealt.paths)), "events"))
        for rows, again in engine(shards.events, stretches):
            np.minimum.at(first, rows["item"], rows["time"])
            if twice == 0 and len(again):
                example = [int(rows[again[0]][name]) for name in ("user", "item", "time")]
            twice += len(again)
            item.add(rows["item"])
            moment.add(rows["time"])
            kind.add(rows["kind"])
    return first, twice, example


def _write_histories(directory: Path, engine: Engine) -> None:
    """Write the end and the length of every history, proved on what is on disk not to look ahead."""
    start = np.load(directory / "user_start.npy")
    who, when = np.load(directory / "impression_user.npy"), np.load(directory / "impression_time.npy")
    moment = np.load(directory / "event_time.npy", mmap_mode="r")
    by_user = np.argsort(who, kind="stable")
    edges = _stretches(np.diff(start))
    ends = np.searchsorted(who, edges, sorter=by_user)

    def stretch(at: int) -> tuple[Array, ...]:
        low, high = edges[at], edges[at + 1]
        rows = by_user[ends[at] : ends[at + 1]]
        # read, not mapped: pages of a mapped file would count as this process's memory
        past = np.fromfile(
            directory / "event_time.npy",
            np.int64,
            start[high] - start[low],
            offset=moment.offset + 8 * start[low],
        )
        return start[low : high + 1] - start[low], past, who[rows] - low, when[rows]

    found, length = np.empty(len(who), np.int64), np.empty(len(who), np.int32)
    stretches = (stretch(at) for at in bar(range(len(edges) - 1), "histories"))
    for at, end in enumerate(engine(shards.history_ends, stretches)):
        rows = by_user[ends[at] : ends[at + 1]]
        found[rows] = start[edges[at]] + end
        length[rows] = found[rows] - start[who[rows]]
    np.save(directory / "history_end.npy", found)
    np.save(directory / "past_clicks.npy", length)


def _words(words: list[str], name: str, dtype: type[np.integer[Any]]) -> list[str]:
    """The words, when there are no more than codes of this type."""
    most = np.iinfo(dtype).max
    if len(words) > most:
        raise InputError(
            f"{name} must hold at most {most} different words (count), got {len(words)}; give fewer"
        )
    return words


def _born(published_s: pl.Series, log: Tables, written: Written) -> Array:
    """When each item appeared, in seconds: its publication, or where the log does not say, when it is first
    seen: at its first event, or in the first logged impression that shows it. Times of events that are only
    an order do not count. An item that is never seen was born with the log's last impression.
    """
    never = np.iinfo(np.int64).max
    counts, seen = written.counts, written.first_event
    if not log.has_click_times:
        seen = np.full(len(seen), never)
    if log.has_impressions:  # a negative that was drawn shows nothing of when its item appeared
        seen = np.minimum(seen, counts.first_shown)
    seen = np.where(seen == never, counts.last_s, seen)
    return np.where(published_s.is_null().to_numpy(), seen, published_s.fill_null(0).to_numpy())


def _fingerprint(items: pl.DataFrame, kinds: list[str], directory: Path) -> str:
    """Of everything that the arrays hold."""
    content = hashlib.sha256(items.write_csv().encode() + json.dumps(kinds).encode())
    for path in sorted(directory.glob("*.npy")):
        content.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                content.update(chunk)
    return content.hexdigest()[:16]


def _bayes_auc(path: Path) -> float | None:
    """AUC of the true probability in expectation over clicks: the best that any model can reach on this log.

    E[AUC] ≈ Σ_ij p_i (1 − p_j) [p_i > p_j] / Σ_ij p_i (1 − p_j), half credit on ties.
    """
    if not path.exists():
        return None
    probability = np.load(path)
    _, inverse = np.unique(np.round(probability, 12), return_inverse=True)
    p = np.bincount(inverse, probability)
    q = np.bincount(inverse, 1 - probability)
    below = np.cumsum(q) - q
    return float((p * (below + q / 2)).sum() / (p.sum() * q.sum()))

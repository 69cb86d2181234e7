"""Tables to arrays: integers in order, histories as ranges, and the proof that none looks ahead."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from halflife import negatives, tables
from halflife.errors import InputError
from halflife.negatives import Negatives
from halflife.tables import Tables

Array = NDArray[Any]

UNKNOWN = "unknown"  # what a missing category or kind is called
LATEST_S = 10**11  # the year 5138: a later publication is in milliseconds


def build(log: Tables, settings: Negatives | None, directory: Path) -> None:
    """Write the Store of a log into an empty directory.

    Args:
        log: what a source read.
        settings: how to draw negatives; needed when the log has no impressions.
        directory: where the arrays go.

    Raises:
        InputError: for a log that breaks the contract of Tables or is empty.
    """
    started = time.perf_counter()
    items = tables.check_columns("items", log.items, tables.ITEM_COLUMNS).collect(engine="streaming")
    items = items.sort("item_id")
    if items["item_id"].is_duplicated().any():
        twice = items.filter(items["item_id"].is_duplicated())["item_id"][0]
        raise InputError(f"items.item_id must be unique, got {twice} twice; keep one row an item")
    item_index = items.select("item_id").with_row_index("item").lazy()

    events = tables.check_columns("events", log.events, tables.EVENT_COLUMNS).with_row_index("order")
    n_events = events.select(pl.len()).collect(engine="streaming").item()
    if n_events == 0:
        raise InputError("the log must hold at least 1 event, got 0; loosen the filters of the data config")
    users = events.select("user_id")
    if log.impressions is not None:
        impressions = tables.check_columns("impressions", log.impressions, tables.IMPRESSION_COLUMNS)
        users = pl.concat([users, impressions.select("user_id")])
    user_frame = users.unique().sort("user_id").collect(engine="streaming")
    user_index = user_frame.with_row_index("user").lazy()
    kinds = _names(events.select(word="kind"), "events.kind", np.int16)
    sorted_events = (
        events.join(item_index, on="item_id")
        .join(user_index, on="user_id")
        .select("user", "item", "timestamp_s", "order", kind=_code("kind", kinds))
        .sort("user", "timestamp_s", "order")
        .collect(engine="streaming")
    )
    dropped = dict(log.dropped)
    if len(sorted_events) < n_events:
        dropped["events of items that are not in the catalogue"] = n_events - len(sorted_events)
    if len(sorted_events) == 0:
        raise InputError(
            f"events.item_id must be items of the catalogue, got none that is among {n_events} events; "
            "give events and items the same ids"
        )
    _refuse_missing_times("events", sorted_events)
    user = sorted_events["user"].cast(pl.Int32).to_numpy()
    item = sorted_events["item"].cast(pl.Int32).to_numpy()
    moment = sorted_events["timestamp_s"].to_numpy()
    if log.has_click_times:
        tables.check_times("events", int(moment.min()), int(moment.max()))
    categories = _names(items.lazy().select(word="category"), "items.category", np.int32)
    arrays: dict[str, Array] = {
        "event_item": item,
        "event_time": moment,
        "event_kind": sorted_events["kind"].to_numpy().astype(np.int16),
        "user_start": np.searchsorted(user, np.arange(len(user_frame) + 1)).astype(np.int64),
        "item_category": items.select(_code("category", categories)).to_series().to_numpy().astype(np.int32),
    }
    del sorted_events

    if log.impressions is not None:
        ids = _logged_impressions(impressions, item_index, user_index, log.truth, arrays)
    elif settings is not None:
        ids = _sampled_impressions(settings, user, item, moment, len(items), arrays, dropped)
    else:
        raise InputError(
            "data.negatives must be set for a log without impressions, got null; keep the yaml's block"
        )
    _histories(user, item, moment, len(items), arrays)
    arrays["item_born"] = _born(items["published_s"], log.has_click_times, log.has_impressions, arrays)
    checked = _prove_no_leak(arrays)

    items.write_parquet(directory / "items.parquet")
    user_frame.write_parquet(directory / "users.parquet")
    pl.DataFrame({"impression_id": ids}).write_parquet(directory / "impressions.parquet")
    content = hashlib.sha256(items.write_csv().encode() + json.dumps(kinds).encode())
    for name, array in sorted(arrays.items()):
        np.save(directory / f"{name}.npy", array)
        content.update(name.encode() + np.ascontiguousarray(array).tobytes())
    truth = {k: v for k, v in (log.truth or {}).items() if k != "probabilities"}
    about = {
        "fingerprint": content.hexdigest()[:16],
        "has_click_times": log.has_click_times,
        "has_impressions": log.has_impressions,
        "has_dwell": log.has_dwell,
        "note": log.note,
        "planted": truth or None,
        "bayes_auc": _bayes_auc(arrays),
        "users": len(user_frame),
        "items": len(items),
        "events": len(item),
        "kinds": kinds,
        "categories": categories,
        "impressions": len(ids),
        "candidates": len(arrays["candidate_item"]),
        "positives": int(arrays["candidate_label"].sum()),
        "dropped": dropped,
        "leakage": {"histories_checked": checked, "future_events_found": 0},
        "build_s": round(time.perf_counter() - started, 3),
    }
    (directory / "store.json").write_text(json.dumps(about, indent=2))


def _names(words: pl.LazyFrame, name: str, dtype: type[np.integer[Any]]) -> list[str]:
    """The distinct words of the column `word`, sorted: a word's code is its place. Null is `unknown`."""
    distinct = words.select(pl.col("word").fill_null(UNKNOWN)).unique().collect(engine="streaming")
    most = np.iinfo(dtype).max
    if len(distinct) > most:
        raise InputError(
            f"{name} must hold at most {most} different words (count), got {len(distinct)}; give fewer"
        )
    return sorted(distinct["word"].to_list())


def _code(column: str, names: list[str]) -> pl.Expr:
    """The place of each word of a column among the names."""
    return pl.col(column).fill_null(UNKNOWN).cast(pl.Enum(names)).to_physical()


def _born(
    published_s: pl.Series, has_click_times: bool, has_impressions: bool, arrays: dict[str, Array]
) -> Array:
    """When each item appeared, in seconds: its publication, or where the log does not say, when it is first
    seen: at its first event, or in the first logged impression that shows it. Times of events that are only
    an order do not count. An item that is never seen was born with the log's last impression.
    """
    when = arrays["impression_time"]
    never = np.iinfo(np.int64).max
    seen = np.full(len(published_s), never)
    if has_click_times:
        np.minimum.at(seen, arrays["event_item"], arrays["event_time"])
    if has_impressions:  # a negative that was drawn shows nothing of when its item appeared
        np.minimum.at(seen, arrays["candidate_item"], np.repeat(when, np.diff(arrays["candidate_start"])))
    latest = published_s.max()
    if isinstance(latest, int) and latest > LATEST_S:
        raise InputError(
            f"items.published_s must be Unix time (seconds), got {latest}; divide the column by 1000"
        )
    seen[seen == never] = when[-1]
    return np.where(published_s.is_null().to_numpy(), seen, published_s.fill_null(0).to_numpy())


def _refuse_missing_times(name: str, frame: pl.DataFrame) -> None:
    """Raise the InputError when a moment is null."""
    missing = frame["timestamp_s"].null_count()
    if missing:
        raise InputError(
            f"{name}.timestamp_s must be known for every row, got {missing} without; remove the rows"
        )


def _logged_impressions(
    impressions: pl.LazyFrame,
    item_index: pl.LazyFrame,
    user_index: pl.LazyFrame,
    truth: dict[str, Any] | None,
    arrays: dict[str, Array],
) -> pl.Series:
    """Candidates and labels as the log has them; adds their arrays, returns the impression ids."""
    if truth and "probabilities" in truth:
        impressions = impressions.join(truth["probabilities"].lazy(), on="impression_id", how="left")
    frame = (
        impressions.join(user_index, on="user_id")
        .sort("timestamp_s", "impression_id")
        .collect(engine="streaming")
    )
    if len(frame) == 0:
        raise InputError("the log must hold at least 1 impression, got 0; check the files of data.root")
    _refuse_missing_times("impressions", frame)
    moment = frame["timestamp_s"].to_numpy()
    tables.check_times("impressions", int(moment[0]), int(moment[-1]))
    lengths = frame["candidates"].list.len().fill_null(0)
    bare = (lengths == 0).arg_true()
    if len(bare):
        raise InputError(
            f"impressions.candidates must hold at least 1 item, got impression "
            f"{frame['impression_id'][bare[0]]} with none; remove the row"
        )
    odd = (lengths != frame["labels"].list.len()).arg_true()
    if len(odd):
        raise InputError(
            f"impressions.labels must hold one label a candidate, got impression "
            f"{frame['impression_id'][odd[0]]} with another number; correct the row"
        )
    candidates = frame.select(item_id="candidates").explode("item_id", empty_as_null=False).lazy()
    indexed = candidates.join(item_index, on="item_id", how="left", maintain_order="left").collect()
    unknown = indexed["item"].is_null().arg_true()
    if len(unknown):
        raise InputError(
            f"impressions.candidates must be items of the catalogue, got {indexed['item_id'][unknown[0]]}; "
            "add the item or drop the candidate"
        )
    label = frame["labels"].explode(empty_as_null=False).to_numpy()
    if not np.isin(label, (0, 1)).all():
        raise InputError("impressions.labels must be 0 or 1, got another value; map it in the source")
    arrays["impression_user"] = frame["user"].cast(pl.Int32).to_numpy()
    arrays["impression_time"] = moment
    arrays["candidate_start"] = np.r_[0, np.cumsum(lengths.to_numpy().astype(np.int64))]
    arrays["candidate_item"] = indexed["item"].cast(pl.Int32).to_numpy()
    arrays["candidate_label"] = label.astype(np.int8)
    if "probabilities" in frame.columns:
        arrays["candidate_probability"] = frame["probabilities"].explode(empty_as_null=False).to_numpy()
    return frame["impression_id"]


def _sampled_impressions(
    settings: Negatives,
    user: Array,
    item: Array,
    moment: Array,
    n_items: int,
    arrays: dict[str, Array],
    dropped: dict[str, int],
) -> pl.Series:
    """One impression a basket, with negatives; adds their arrays, returns the impression ids."""
    owner, when, offsets, candidates, label, given_up = negatives.sample(
        settings, user, item, moment, n_items
    )
    order = np.argsort(when, kind="stable")
    lengths = np.diff(offsets)[order]
    start = np.r_[0, np.cumsum(lengths)]
    gather = np.repeat(offsets[:-1][order] - start[:-1], lengths) + np.arange(start[-1])
    arrays["impression_user"] = owner[order].astype(np.int32)
    arrays["impression_time"] = when[order]
    arrays["candidate_start"] = start.astype(np.int64)
    arrays["candidate_item"] = candidates[gather].astype(np.int32)
    arrays["candidate_label"] = label[gather].astype(np.int8)
    if given_up:
        dropped["negatives that could not be drawn"] = given_up
    return pl.Series("impression_id", [f"S{i}" for i in range(len(order))])


def _keys(group: Array, moment: Array, first: int, span: int) -> Array:
    """(group, time) as one sortable int64."""
    return np.asarray(group.astype(np.int64) * span + (moment - first))


def _histories(user: Array, item: Array, moment: Array, n_items: int, arrays: dict[str, Array]) -> None:
    """Add the end of every history and the popularity of every candidate, both strictly before it."""
    when = arrays["impression_time"]
    first = int(min(moment.min(), when.min()))
    span = int(max(moment.max(), when.max())) - first + 2
    wanted = _keys(arrays["impression_user"], when, first, span)
    arrays["history_end"] = np.searchsorted(_keys(user, moment, first, span), wanted).astype(np.int64)

    by_item = np.sort(_keys(item, moment, first, span))
    start = np.searchsorted(by_item, np.arange(n_items, dtype=np.int64) * span)
    shown = arrays["candidate_item"]
    shown_when = np.repeat(when, np.diff(arrays["candidate_start"]))
    before = np.searchsorted(by_item, _keys(shown, shown_when, first, span))
    arrays["candidate_popularity"] = (before - start[shown]).astype(np.int32)


def _prove_no_leak(arrays: dict[str, Array]) -> int:
    """Check on the data itself that no history holds an event of its impression's own second or later.

    Returns:
        How many histories were checked.

    Raises:
        AssertionError: a defect of the build; never the user's doing.
    """
    end, who, when = arrays["history_end"], arrays["impression_user"], arrays["impression_time"]
    low, high = arrays["user_start"][who], arrays["user_start"][who + 1]
    inside = (low <= end) & (end <= high)
    last = arrays["event_time"][np.maximum(end - 1, 0)]
    after = arrays["event_time"][np.minimum(end, len(arrays["event_time"]) - 1)]
    past = (end == low) | (last < when)
    whole = (end == high) | (after >= when)
    if not (inside & past & whole).all():
        raise AssertionError("a history holds an event that is not strictly before its impression")
    return len(end)


def _bayes_auc(arrays: dict[str, Array]) -> float | None:
    """AUC of the true probability in expectation over clicks: the best that any model can reach on this log.

    E[AUC] ≈ Σ_ij p_i (1 − p_j) [p_i > p_j] / Σ_ij p_i (1 − p_j), half credit on ties.
    """
    if "candidate_probability" not in arrays:
        return None
    _, inverse = np.unique(np.round(arrays["candidate_probability"], 12), return_inverse=True)
    p = np.bincount(inverse, arrays["candidate_probability"])
    q = np.bincount(inverse, 1 - arrays["candidate_probability"])
    below = np.cumsum(q) - q
    return float((p * (below + q / 2)).sum() / (p.sum() * q.sum()))

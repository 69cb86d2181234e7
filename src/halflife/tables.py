"""Tables: the one shape every log is read into, and its checks."""

import time
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from halflife.errors import InputError

ITEM_COLUMNS = {"item_id": pl.String, "text": pl.String, "category": pl.String, "published_s": pl.Int64}
EVENT_COLUMNS = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp_s": pl.Int64,
    "kind": pl.String,
    "value": pl.Float32,
}
IMPRESSION_COLUMNS = {
    "impression_id": pl.String,
    "user_id": pl.String,
    "timestamp_s": pl.Int64,
    "candidates": pl.List(pl.String),
    "labels": pl.List(pl.Int8),
}

DAY_S = 86_400


@dataclass(frozen=True)
class Tables:
    """A log as three frames, eager or lazy, and what it really holds.

    Args:
        items: `item_id, text, category, published_s` (null where the log does not say when it appeared).
        events: `user_id, item_id, timestamp_s, kind, value`: past clicks, views, buys, ratings. A log whose
            histories have an order but no times gives any increasing `timestamp_s` that lies before its
            impressions, and says `has_click_times=False`.
        impressions: `impression_id, user_id, timestamp_s, candidates, labels` (1 clicked), or None where the
            log has none: the Store then makes one impression per user and moment, with sampled negatives.
        has_click_times: whether an age in days can be computed for the events of a history.
        has_dwell: whether `value` is a dwell time in seconds.
        truth: what a simulator knows and a log never does: planted parameters, and per impression the true
            probabilities (`impression_id, probabilities`) under `probabilities`.
        dropped: rows left out by the reader, by reason, for the data card.
        note: what every output of a run says of this log, such as that its times are reconstructed.
        pseudonymous: whether user ids have been replaced by keyed hashes.
        vectors: `item_id, vector` (a list of numbers, of one length in all), of images, sound, graphs or
            another model; None where the log has none. An id may be an entity's.
        entities: `item_id, entity_id`: what items are about, where the log says; several rows an item.
    """

    items: pl.LazyFrame | pl.DataFrame
    events: pl.LazyFrame | pl.DataFrame
    impressions: pl.LazyFrame | pl.DataFrame | None
    has_click_times: bool
    has_dwell: bool = False
    truth: dict[str, Any] | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    note: str | None = None
    pseudonymous: bool = False
    vectors: pl.LazyFrame | pl.DataFrame | None = None
    entities: pl.LazyFrame | pl.DataFrame | None = None

    @property
    def has_impressions(self) -> bool:
        """Whether candidates and labels were logged, rather than sampled."""
        return self.impressions is not None


def check_columns(name: str, frame: pl.LazyFrame | pl.DataFrame, columns: dict[str, Any]) -> pl.LazyFrame:
    """Select and cast the contract's columns of one frame; a missing one is an error that names it.

    A label too large for its type becomes null here; the Store refuses it like any that is not 0 or 1.

    Raises:
        InputError: when a column is missing, or holds dates or words in place of numbers.
    """
    lazy = frame.lazy()
    have = lazy.collect_schema()
    missing = [c for c in columns if c not in have and c != "published_s"]
    if missing:
        raise InputError(
            f"{name} must have the columns {', '.join(columns)}, got {', '.join(have)}; "
            f"add {', '.join(missing)}"
        )
    for name_of, dtype in columns.items():
        found = have.get(name_of, pl.Null())
        # a date would turn into days since 1970, silently
        if dtype.is_numeric() and not found.is_numeric() and found != pl.Null:
            raise InputError(
                f"{name}.{name_of} must be numbers ({dtype()}), got {found}; convert the column in the source"
            )
    if "published_s" in columns and "published_s" not in have:
        lazy = lazy.with_columns(published_s=pl.lit(None, dtype=pl.Int64))
    return lazy.select(pl.col(c).cast(dtype, strict=c != "labels") for c, dtype in columns.items())


def check_times(name: str, first_s: int, last_s: int) -> None:
    """Refuse times that cannot be Unix seconds of the past.

    Args:
        name: the table, for the message.
        first_s, last_s: the smallest and largest `timestamp_s`.

    Raises:
        InputError: for milliseconds, microseconds, the future, or times before 1970.
    """
    tomorrow = int(time.time()) + DAY_S
    if last_s > tomorrow:
        for unit, factor in (
            ("milliseconds", 1_000),
            ("microseconds", 1_000_000),
            ("nanoseconds", 1_000_000_000),
        ):
            if first_s // factor > 0 and last_s // factor <= tomorrow and first_s > 10**8 * factor:
                raise InputError(
                    f"{name}.timestamp_s must be Unix time (seconds), got {last_s}, which are {unit}; "
                    f"divide the column by {factor}"
                )
        raise InputError(
            f"{name}.timestamp_s must lie in the past (Unix seconds), got {last_s}; remove the rows from the "
            "future or correct their unit"
        )
    if first_s < 0:
        raise InputError(
            f"{name}.timestamp_s must be at least 0 (Unix seconds), got {first_s}; remove or correct the rows"
        )

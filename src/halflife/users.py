"""The users of a log, counted out of core."""

import shutil
from pathlib import Path

import polars as pl

from halflife import quality, tables
from halflife.errors import InputError
from halflife.impressions import refuse_missing_times
from halflife.progress import bar
from halflife.tables import Tables

AT_ONCE = 2_000_000  # rows that are counted in one go
USER_PARTS = 64  # of a log with more rows: the rows of a user are in one, on disk


def counted(log: Tables, scratch: Path) -> tuple[pl.LazyFrame, pl.DataFrame, list[quality.Finding]]:
    """Every user by id, with how many events they have: the one pass that also checks what the events are.

    Args:
        log: as it was read.
        scratch: a folder for rows on the way, removed again.

    Raises:
        InputError: for columns that are missing, times that are missing or out of range, and no events.

    Returns:
        The events that can be true, the users, and what was found.
    """
    events = tables.check_columns("events", log.events, tables.EVENT_COLUMNS)
    shown = None
    if log.impressions is not None:
        shown = tables.check_columns("impressions", log.impressions, tables.IMPRESSION_COLUMNS)
    rules = quality.suspects(log.has_click_times)
    users = _per_user(events, shown, rules, scratch)
    counts = {name: int(users[name].sum()) for name in rules}
    events, found = quality.sift(events, counts, int(users["events"].sum()), rules)
    if found:
        users = _per_user(events, shown, rules, scratch)
    refuse_missing_times("events", int(users["missing"].sum()))
    if log.has_click_times:
        first_s, last_s = users.select(pl.col("first_s").min(), pl.col("last_s").max()).row(0)
        tables.check_times("events", first_s, last_s)
        found += quality.crowds(users)
    return events, users.select("user_id", "events").sort("user_id"), found


def _per_user(
    events: pl.LazyFrame,
    shown: pl.LazyFrame | None,
    rules: dict[str, tuple[str, pl.Expr]],
    scratch: Path,
) -> pl.DataFrame:
    """Events of each user: how many, from when to when, and how many each rule holds for.

    Args:
        events: of the log.
        shown: its impressions; who has them and no event is a user too.
        rules: from `quality.suspects`.
        scratch: for a log whose rows are too many to be counted at once: a user's rows lie anywhere in it,
            so that Polars would hold nearly all of them.
    """
    rows = events.select(
        "user_id",
        "timestamp_s",
        events=pl.lit(1, pl.Int64),
        missing=pl.col("timestamp_s").is_null(),
        **{name: rule for name, (_, rule) in rules.items()},
    )
    if shown is not None:
        rows = pl.concat([rows, shown.select("user_id", events=pl.lit(0, pl.Int64))], how="diagonal")
    parts, place = [rows], scratch / "users"
    if rows.head(AT_ONCE + 1).select(pl.len()).collect(engine="streaming").item() > AT_ONCE:
        dealt = rows.with_columns(part=pl.col("user_id").hash() % USER_PARTS)
        by_part = pl.PartitionBy(place, key="part", include_key=False)
        dealt.sink_ipc(by_part, mkdir=True, compression="lz4", engine="streaming")
        parts = [pl.scan_ipc(part) for part in sorted(place.iterdir())]
    users = pl.concat(
        part.group_by("user_id")
        .agg(
            pl.col("events", "missing", *rules).sum(),
            first_s=pl.col("timestamp_s").min(),
            last_s=pl.col("timestamp_s").max(),
        )
        .collect(engine="streaming")
        for part in bar(parts, "users")
    )
    if place.exists():
        shutil.rmtree(place)
    if users["events"].sum() == 0:
        raise InputError("the log must hold at least 1 event, got 0; loosen the filters of the data config")
    return users

"""What looks wrong in a log: how many rows, one of them as an example, and whether they were left out.

A slip is rare among good rows: where a tenth of the rows or more look so, that is how the log is, and none of
them is left out. What may be true is kept and told.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl
from polars import selectors

from halflife.errors import InputError
from halflife.tables import DAY_S

OLDEST_S = 631_152_000  # 1990-01-01: an earlier click is a wrong date
RARE = 0.1  # of the rows
MANY, FASTEST = 1_000, 1.0  # events of a user, and events a second over their whole span, that nobody makes
MOJIBAKE = r"\x{FFFD}|Ã[\x{80}-\x{BF}]|â€|Â[\x{A0}-\x{BF}]"  # UTF-8 that was read as Latin-1 or Windows-1252


class Finding(NamedTuple):
    """Rows that look wrong.

    Args:
        what: the rows, in words.
        rows: how many.
        example: one of them.
        kept: whether they are in the Store all the same.
    """

    what: str
    rows: int
    example: str
    kept: bool


def suspects(timed: bool) -> dict[str, tuple[str, pl.Expr]]:
    """Rows of events that cannot be true: a name to count them by, the words, and when a row is one.

    Args:
        timed: whether the events have times, rather than an order alone.
    """
    found = {"refund": ("events of a negative value, such as refunds", pl.col("value") < 0)}
    if timed:
        found |= impossible_times("events")
    return {name: (what, bad.fill_null(False)) for name, (what, bad) in found.items()}


def impossible_times(table: str) -> dict[str, tuple[str, pl.Expr]]:
    """The same for moments, of a table of that name."""
    at, tomorrow = pl.col("timestamp_s"), int(time.time()) + DAY_S
    in_milliseconds = (at // 1000).is_between(OLDEST_S, tomorrow)
    return {
        "early": (f"{table} before 1990", at < OLDEST_S),
        "milliseconds": (f"{table} in milliseconds among seconds", in_milliseconds),
        "late": (f"{table} in the future", (at > tomorrow) & ~in_milliseconds),
    }


def sift(
    frame: pl.LazyFrame, counts: Mapping[str, int], rows: int, rules: Mapping[str, tuple[str, pl.Expr]]
) -> tuple[pl.LazyFrame, list[Finding]]:
    """Leave out the rows that cannot be true, where they are rare.

    Args:
        frame: with all rows.
        counts: of each rule, how many rows it holds for.
        rows: how many there are.
        rules: from `suspects` or `impossible_times`.

    Returns:
        the frame without them, and what was found.
    """
    found, bad = [], []
    for name, (what, rule) in rules.items():
        if 0 < counts[name] < RARE * rows:
            found.append(Finding(what, counts[name], example(frame.filter(rule)), kept=False))
            bad.append(rule.fill_null(False))
    return (frame.filter(~pl.any_horizontal(bad)) if bad else frame), found


def crowds(users: pl.DataFrame) -> list[Finding]:
    """Users who act faster than a person can.

    Args:
        users: `user_id, events, first_s, last_s`.
    """
    rate = pl.col("events") / (pl.col("last_s") - pl.col("first_s") + 1)
    fast = users.filter((pl.col("events") >= MANY) & (rate > FASTEST)).sort("events", "user_id")
    if len(fast) == 0:
        return []
    row = fast.row(-1, named=True)
    shown = f"user {row['user_id']}: {row['events']:,} events in {row['last_s'] - row['first_s'] + 1:,} s"
    return [
        Finding("events of users who act more than once a second", int(fast["events"].sum()), shown, True)
    ]


def texts(items: pl.DataFrame) -> list[Finding]:
    """Items without text, and those whose text was garbled by a wrong encoding."""
    text = pl.col("text").fill_null("").str.strip_chars()
    found = []
    for what, bad in (
        ("items without text", text.str.len_bytes() == 0),
        ("items whose text has encoding errors", text.str.contains(MOJIBAKE)),
    ):
        some = items.filter(bad)
        if len(some):
            found.append(Finding(what, len(some), example(some.select("item_id", "text").lazy()), kept=True))
    return found


def example(frame: pl.LazyFrame) -> str:
    """A row in one short line: the least, since rows come in any order."""
    row = frame.sort(~selectors.nested()).head(1).collect(engine="streaming").row(0, named=True)
    words = (f"{k} {str(v)[:60]}" for k, v in row.items() if v is not None)
    return ", ".join(" ".join(word.split()) for word in words)


def stop(found: list[list[Any]]) -> None:
    """Raise the InputError for `data.checks=strict` where anything was found.

    Args:
        found: findings as `store.json` has them.
    """
    if found:
        named = "; ".join(f"{rows:,} {what} ({shown})" for what, rows, shown, _ in found)
        raise InputError(
            f"the log must hold nothing that looks wrong under data.checks=strict, got {named}; correct it, "
            "or set data.checks=report, which leaves out what cannot be true and keeps the rest"
        )

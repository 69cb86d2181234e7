"""The contract of a log: its columns and its unit of time."""

import datetime
import time
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife.tables import (
    DAY_S,
    EVENT_COLUMNS,
    IMPRESSION_COLUMNS,
    ITEM_COLUMNS,
    Tables,
    check_columns,
    check_times,
)
from tests.refusals import refusal

Y2024 = 1_704_067_200


def refused(call: Any, *given: Any, **settings: Any) -> str:
    return refusal(lambda: call(*given, **settings))


def events(**changes: Any) -> pl.DataFrame:
    columns = {"user_id": ["u"], "item_id": ["a"], "timestamp_s": [Y2024], "kind": ["click"], "value": [1.0]}
    return pl.DataFrame(columns | changes)


# --- columns


@pytest.mark.parametrize("missing", list(EVENT_COLUMNS))
def test_a_missing_column_is_named_beside_those_found(missing: str) -> None:
    message = refused(check_columns, "events", events().drop(missing), EVENT_COLUMNS)
    assert message.startswith("events must have the columns user_id, item_id, timestamp_s, kind, value, got ")
    assert message.endswith(f"; add {missing}")


def test_every_missing_column_is_named_at_once() -> None:
    message = refused(check_columns, "events", events().drop("kind", "value"), EVENT_COLUMNS)
    assert message.endswith("; add kind, value")


def test_items_may_leave_out_when_they_appeared() -> None:
    items = pl.DataFrame({"item_id": ["a"], "text": ["A"], "category": ["x"]})
    assert check_columns("items", items, ITEM_COLUMNS).collect().row(0) == ("a", "A", "x", None)


def test_columns_are_cast_ordered_and_others_left_out() -> None:
    frame = events(user_id=[7], timestamp_s=pl.Series([Y2024], dtype=pl.UInt32), extra=[0]).select(
        "extra", "value", "kind", "timestamp_s", "item_id", "user_id"
    )
    got = check_columns("events", frame.lazy(), EVENT_COLUMNS).collect()
    assert dict(got.schema) == EVENT_COLUMNS
    assert got.row(0) == ("7", "a", Y2024, "click", 1.0)


@pytest.mark.parametrize(
    "moments", [["2024-01-01"], [datetime.date(2024, 1, 1)], [datetime.datetime(2024, 1, 1)]]
)
def test_dates_and_words_in_place_of_seconds_are_refused(moments: list[Any]) -> None:
    # a date would be cast to days since 1970 and every age would be wrong, silently
    message = refused(check_columns, "events", events(timestamp_s=moments), EVENT_COLUMNS)
    assert message.startswith("events.timestamp_s must be numbers (Int64), got ")


def test_lists_of_labels_are_cast() -> None:
    frame = pl.DataFrame(
        {
            "impression_id": [1],
            "user_id": ["u"],
            "timestamp_s": [Y2024],
            "candidates": [["a", "b"]],
            "labels": [[0, 1]],
        }
    )
    got = check_columns("impressions", frame, IMPRESSION_COLUMNS).collect()
    assert dict(got.schema) == IMPRESSION_COLUMNS


def test_a_log_has_impressions_when_it_has_the_frame() -> None:
    frame = events()
    assert not Tables(frame, frame, None, True).has_impressions
    assert Tables(frame, frame, frame, True).has_impressions


# --- times


@pytest.mark.parametrize(
    ("unit", "factor"), [("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)]
)
def test_a_finer_unit_is_recognised_and_the_division_offered(unit: str, factor: int) -> None:
    message = refused(check_times, "events", Y2024 * factor, (Y2024 + DAY_S) * factor)
    assert message == (
        f"events.timestamp_s must be Unix time (seconds), got {(Y2024 + DAY_S) * factor}, which are {unit}; "
        f"divide the column by {factor}"
    )


def test_the_future_is_refused() -> None:
    later = int(time.time()) + 30 * DAY_S
    message = refused(check_times, "impressions", Y2024, later)
    assert message.startswith(
        f"impressions.timestamp_s must lie in the past (Unix seconds), got {later}; remove"
    )


def test_times_before_1970_are_refused() -> None:
    message = refused(check_times, "events", -5, Y2024)
    assert message.startswith("events.timestamp_s must be at least 0 (Unix seconds), got -5; remove")


@given(first=st.integers(0, Y2024), last=st.integers(0, Y2024))
def test_seconds_of_the_past_pass(first: int, last: int) -> None:
    check_times("events", min(first, last), max(first, last))


def test_a_clock_that_runs_some_hours_ahead_is_let_pass() -> None:
    check_times("events", Y2024, int(time.time()) + DAY_S // 2)

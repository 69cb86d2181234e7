"""A shard's work against the plain way, and the proof that no history looks ahead."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife import shards
from halflife.arrays import EVENT
from halflife.impressions import SEEN

ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(-2, 4), st.integers(0, 2)), max_size=30
)


@given(rows=ROWS, code=st.permutations(range(3)))
def test_events_are_sorted_by_every_column_with_the_codes_of_the_alphabet(
    rows: list[tuple[int, int, int, int]], code: list[int]
) -> None:
    found, again = shards.events(np.array(rows, EVENT), np.array(code, np.int16))
    want = sorted((u, t, i, code[k]) for u, i, t, k in rows)
    assert [tuple(int(row[n]) for n in ("user", "time", "item", "kind")) for row in found] == want
    assert again.tolist() == [n for n in range(1, len(want)) if want[n] == want[n - 1]]


@given(rows=ROWS, shown=st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 5)), min_size=1, max_size=12))
def test_a_history_ends_before_the_first_event_of_its_own_second(
    rows: list[tuple[int, int, int, int]], shown: list[tuple[int, int]]
) -> None:
    events = sorted((u, t) for u, _, t, _ in rows)
    start = np.searchsorted([u for u, _ in events], range(5))
    past = np.array([t for _, t in events], np.int64)
    who, now = np.array(shown).T
    end = shards.history_ends(start, past, who, now)
    assert end.tolist() == [sum(event < (user, moment) for event in events) for user, moment in shown]


@given(
    rows=ROWS,
    before=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    shown=st.lists(
        st.tuples(st.integers(-3, 5), st.lists(st.integers(0, 3), min_size=1, max_size=4)), max_size=12
    ),
    window=st.integers(1, 6),
)
def test_popularity_counts_what_was_strictly_before_and_leaves_its_input_alone(
    rows: list[tuple[int, int, int, int]], before: list[int], shown: list[tuple[int, list[int]]], window: int
) -> None:
    shown.sort(key=lambda row: row[0])
    seen, count = np.array([(t, i) for _, i, t, _ in rows], SEEN), np.array(before)
    now, length = np.array([t for t, _ in shown], np.int64), np.array([len(c) for _, c in shown], np.int64)
    candidate = np.array([c for _, row in shown for c in row], np.int32)
    count.flags.writeable = seen.flags.writeable = False  # as they come out of Ray's object store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "WINDOW", window)
        found = shards.popularity(count, seen, now, length, candidate)
    want = [
        before[item] + sum(i == item and t < moment for _, i, t, _ in rows)
        for moment, row in shown
        for item in row
    ]
    assert found.tolist() == want


def test_a_leak_would_be_caught_by_the_build_itself() -> None:
    arrays = {
        "history_end": np.array([2]),
        "impression_user": np.array([0]),
        "impression_time": np.array([5]),
        "user_start": np.array([0, 2]),
        "event_time": np.array([4, 5]),
    }
    with pytest.raises(AssertionError, match="not strictly before"):
        shards._prove_no_leak(arrays)
    assert shards._prove_no_leak(arrays | {"history_end": np.array([1])}) == 1
    with pytest.raises(AssertionError):  # nor may one be cut short
        shards._prove_no_leak(arrays | {"history_end": np.array([0])})

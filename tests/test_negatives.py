"""Sampled negatives are fair: alive at the moment, no click of the same second, drawn as the settings say."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife.errors import InputError
from halflife.negatives import Negatives, baskets, sample
from halflife.tables import DAY_S

DEFAULTS = {
    "per_positive": 2,
    "by": "popularity",
    "window_days": 10.0,
    "exclude_seen": False,
    "max_positives": 3,
    "seed": 0,
}
BY = pytest.mark.parametrize("by", ["popularity", "uniform"])
SEEN = pytest.mark.parametrize("exclude_seen", [False, True])
EVENT = st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 9))  # user, day, item
LOG = st.lists(EVENT, min_size=1, max_size=60)
MANY_ITEMS = 10


@dataclass(frozen=True)
class Shown:
    """One sampled impression, as plain Python."""

    user: int
    time: int
    positives: list[int]
    negatives: list[int]


def log_of(events: list[tuple[int, int, int]]) -> tuple[Any, Any, Any]:
    """User, item and time arrays, sorted as the Store sorts them; a stable sort keeps ties in their order."""
    rows = sorted(((u, d * DAY_S, i) for u, d, i in events), key=lambda row: row[:2])
    user, time, item = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return user.astype(np.int32), item.astype(np.int32), time


def drawn(
    user: Any, item: Any, time: Any, n_items: int = MANY_ITEMS, **changes: Any
) -> tuple[list[Shown], int]:
    given = Negatives(**(DEFAULTS | changes))
    who, when, offsets, candidates, label, given_up = sample(given, user, item, time, n_items)
    assert len(candidates) == len(label) == offsets[-1]
    shown = []
    for r in range(len(who)):
        here = slice(offsets[r], offsets[r + 1])
        clicked = candidates[here][label[here] == 1].tolist()
        shown.append(Shown(int(who[r]), int(when[r]), clicked, candidates[here][label[here] == 0].tolist()))
    return shown, given_up


# --- baskets


@given(events=LOG, most=st.integers(1, 5))
def test_a_basket_is_one_user_and_second_split_when_too_large(
    events: list[tuple[int, int, int]], most: int
) -> None:
    user, _, time = log_of(events)
    impression, first = baskets(user, time, most)
    expected: list[int] = []
    size: Counter[int] = Counter()
    for r in range(len(user)):
        same = r > 0 and (user[r], time[r]) == (user[r - 1], time[r - 1]) and size[expected[-1]] < most
        expected.append(expected[-1] if same else (expected[-1] + 1 if r else 0))
        size[expected[-1]] += 1
    assert impression.tolist() == expected
    assert first.tolist() == [expected.index(i) for i in range(expected[-1] + 1)]


# --- against brute force


@BY
@SEEN
@settings(max_examples=60, deadline=None)
@given(
    events=LOG, most=st.integers(1, 4), per=st.integers(1, 4), window=st.sampled_from([0.5, 1.0, 4.0, 99.0])
)
def test_every_impression_is_what_the_settings_say(
    by: str, exclude_seen: bool, events: list[tuple[int, int, int]], most: int, per: int, window: float
) -> None:
    user, item, time = log_of(events)
    log = list(zip(user.tolist(), time.tolist(), item.tolist(), strict=True))
    shown, given_up = drawn(
        user,
        item,
        time,
        by=by,
        exclude_seen=exclude_seen,
        max_positives=most,
        per_positive=per,
        window_days=window,
    )
    positives: dict[tuple[int, int], list[int]] = {}
    missing = 0
    for one in shown:
        basket = {i for u, t, i in log if (u, t) == (one.user, one.time)}
        positives.setdefault((one.user, one.time), []).extend(one.positives)
        assert 1 <= len(one.positives) <= most
        assert set(one.positives) <= basket
        # no click of the same second, no item twice, none that had not been there strictly before
        assert not set(one.negatives) & basket
        assert len(set(one.negatives)) == len(one.negatives) <= per * len(one.positives)
        low = one.time - int(window * DAY_S) if by == "popularity" else -1
        before = [i for _, t, i in log if low <= t < one.time]
        pool = before if by == "popularity" else sorted(set(before))
        assert set(one.negatives) <= set(pool)
        allowed = set(pool) - basket
        if exclude_seen:
            seen = {i for u, t, i in log if u == one.user and t < one.time}
            assert not set(one.negatives) & seen
            allowed -= seen
        missing += per * len(one.positives) - len(one.negatives)
        if 2 * sum(i in allowed for i in pool) > len(pool):
            assert one.negatives, "at even odds or better, twenty draws find one"
    assert given_up == missing
    assert {key: sorted(got) for key, got in positives.items()} == {
        (u, t): sorted({i for v, s, i in log if (v, s) == (u, t)}) for u, t, _ in log
    }


def test_another_part_of_a_split_basket_gives_no_negatives() -> None:
    # 40 items were bought in one second, by four impressions of 10; the only other item is number 40
    user = np.array([0] * 41 + [1] * 40, np.int32)
    item = np.array([*range(41), *range(40)], np.int32)
    time = np.array([*range(41), *[100] * 40], np.int64)
    shown, _ = drawn(user, item, time, n_items=41, per_positive=1, max_positives=10)
    parts = [one for one in shown if one.time == 100]
    assert [len(one.positives) for one in parts] == [10] * 4
    assert [one.negatives for one in parts] == [[40]] * 4


def test_an_item_named_twice_in_a_second_is_one_positive_even_where_the_basket_is_split() -> None:
    user, item, time = np.zeros(6, np.int32), np.array([0, 1, 2, 0, 1, 2], np.int32), np.full(6, 50)
    shown, _ = drawn(user, item, time, max_positives=2)
    assert [one.positives for one in shown] in ([[0, 1], [2]], [[1, 0], [2]])


# --- how often


def ample_log(seed: int, readers: int = 400) -> tuple[Any, Any, Any]:
    """Twenty items with known counts on day 0, and then one click of item 20 by each of many readers."""
    counts = np.arange(1, 21) ** 2
    item = np.random.default_rng(seed).permutation(np.repeat(np.arange(20), counts))
    user = np.r_[np.zeros(len(item), np.int64), np.arange(1, readers + 1)]
    time = np.r_[np.arange(len(item)), np.full(readers, DAY_S)]
    return user.astype(np.int32), np.r_[item, np.full(readers, 20)].astype(np.int32), time


def test_where_the_pool_is_ample_every_positive_has_its_number() -> None:
    shown, _ = drawn(*ample_log(0), n_items=21, per_positive=4)
    assert {len(one.negatives) for one in shown if one.time == DAY_S} == {4}


def chi_square(seed: int, by: str, expected: Any) -> float:
    shown, _ = drawn(*ample_log(seed), n_items=21, per_positive=1, by=by, window_days=2.0, seed=seed)
    got = np.bincount([i for one in shown if one.time == DAY_S for i in one.negatives], minlength=21)
    assert got[20] == 0
    assert got.sum() == 400
    return float(((got[:20] - expected) ** 2 / expected).sum())


def test_popularity_draws_in_proportion_to_events_in_the_window() -> None:
    expected = 400 * np.arange(1, 21) ** 2 / (np.arange(1, 21) ** 2).sum()
    statistic = np.mean([chi_square(seed, "popularity", expected) for seed in range(10)])
    assert statistic == pytest.approx(19, abs=6)  # mean of χ² with 19 degrees of freedom over 10 draws, ± 3 σ


def test_uniform_draws_every_item_alike() -> None:
    statistic = np.mean([chi_square(seed, "uniform", np.full(20, 20.0)) for seed in range(10)])
    assert statistic == pytest.approx(19, abs=6)
    assert chi_square(0, "popularity", np.full(20, 20.0)) > 100  # the test can tell the two apart


def test_popularity_forgets_what_lies_before_the_window() -> None:
    user, item = np.array([0, 0, 1, 2], np.int32), np.array([0, 0, 1, 2], np.int32)
    time = np.array([0, 1, 9 * DAY_S, 10 * DAY_S])
    assert drawn(user, item, time, window_days=2.0, per_positive=1)[0][-1].negatives == [1]
    assert set(drawn(user, item, time, window_days=11.0, per_positive=2)[0][-1].negatives) == {0, 1}


# --- the draw


@BY
def test_the_same_seed_draws_the_same_and_another_does_not(by: str) -> None:
    log = ample_log(0)
    first = sample(Negatives(**(DEFAULTS | {"by": by})), *log, 21)
    again = sample(Negatives(**(DEFAULTS | {"by": by})), *log, 21)
    other = sample(Negatives(**(DEFAULTS | {"by": by, "seed": 1})), *log, 21)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[3], other[3])


def test_the_place_of_a_candidate_says_nothing_about_its_label() -> None:
    log = ample_log(0)
    _, when, offsets, _, label, _ = sample(Negatives(**(DEFAULTS | {"per_positive": 3})), *log, 21)
    rows = np.flatnonzero(when == DAY_S)
    by_place = np.array([label[offsets[r] : offsets[r + 1]] for r in rows]).mean(0)
    assert by_place == pytest.approx(np.full(4, 0.25), abs=4 * np.sqrt(0.25 * 0.75 / 400))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("per_positive", 0),
        ("window_days", 0.0),
        ("max_positives", 0),
        ("by", "popular"),
        ("seed", -1),
        ("per_positive", 2.5),
        ("max_positives", "10"),
        ("seed", 1.5),
        ("exclude_seen", "maybe"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^data\.negatives\.{name} must be .*, got {value}; "):
        Negatives(**(DEFAULTS | {name: value}))

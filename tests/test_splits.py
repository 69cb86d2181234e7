"""Splits: cut by the clock, sliding, or each user's last; what leaks says so."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife.errors import InputError
from halflife.splits import LEAKS, split_of

DAY = 86_400
START = 1_573_689_600  # 2019-11-14T00:00Z


def rows(time: Any, user: Any = None, **settings: Any) -> dict[str, list[int]]:
    time = np.asarray(time, np.int64)
    user = np.zeros(len(time), np.int32) if user is None else np.asarray(user, np.int32)
    found = split_of({"val": 0.2, "test": 0.2} | settings).rows(time, user)
    return {name: part.tolist() for name, part in found.items()}


def test_dates_are_where_a_part_begins_in_utc() -> None:
    found = rows(START + DAY * np.arange(5), val="2019-11-16", test="2019-11-17T12:00")
    assert found == {"train": [0, 1], "val": [2, 3], "test": [4]}


def test_durations_end_with_the_log_and_windows_slide_back_by_the_length_of_test() -> None:
    time = START + DAY * np.arange(10)
    found = [rows(time, val="1d", test="2d", train="3d", window=window) for window in (0, 1, 2)]
    assert found[0] == {"train": [4, 5, 6], "val": [7], "test": [8, 9]}
    assert found[1] == {"train": [2, 3, 4], "val": [5], "test": [6, 7]}
    assert found[2] == {"train": [0, 1, 2], "val": [3], "test": [4, 5]}


@given(
    st.lists(st.integers(0, 12), min_size=3, max_size=40),
    st.sampled_from(
        [{"val": 0.2, "test": 0.3}, {"val": "3m", "test": "2m"}, {"val": "3m", "test": "2m", "window": 1}]
    ),
)
def test_cut_by_the_clock_no_second_is_split_and_the_past_comes_first(
    minutes: list[int], settings: Any
) -> None:
    time = np.sort(60 * np.array(minutes))
    try:
        found = rows(time, **settings)
    except InputError as error:
        if " must leave every part at least 1 impression" in str(error):
            return
        raise
    ends = [(time[part].min(), time[part].max()) for part in found.values()]
    assert ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]


shares = st.floats(0.05, 0.45)


@given(moments=st.lists(st.integers(0, 40), max_size=60).map(sorted), val=shares, test=shares)
def test_a_split_by_fractions_is_by_time_or_refused_for_an_empty_part(
    moments: list[int], val: float, test: float
) -> None:
    at = np.array(moments, np.int64) + START
    try:
        found = rows(at, val=val, test=test)
    except InputError:
        cut = [at[min(round(len(at) * f), len(at) - 1)] if moments else 0 for f in (1 - val - test, 1 - test)]
        assert not (moments and at[0] < cut[0] < cut[1]), "every part had an impression"
        return
    train, middle, newest = (at[found[part]] for part in ("train", "val", "test"))
    # strictly: a moment that lay on both sides of a cut would be equal here
    assert train.max() < middle.min()
    assert middle.max() < newest.min()


@given(n=st.integers(20, 300), val=shares, test=shares)
def test_without_ties_the_parts_have_their_shares(n: int, val: float, test: float) -> None:
    found = rows(np.arange(n), val=val, test=test)
    assert abs(len(found["test"]) - n * test) <= 1
    assert abs(len(found["val"]) - n * val) <= 1.5


def test_impressions_of_the_second_at_a_cut_all_go_to_the_newer_part() -> None:
    found = rows([0, 1, 2, 3, 3, 3, 3, 4, 5, 6], val=0.4, test=0.2)
    assert (found["val"][0], found["test"][0]) == (3, 8)


@pytest.mark.parametrize(
    ("at", "part"),
    [([5] * 10, "train=0 of 10"), ([0, 1, 2, 2, 2, 2], "val=0 of 6"), ([], "train=0 of 0")],
)
def test_a_part_that_would_be_empty_is_named(at: list[int], part: str) -> None:
    with pytest.raises(InputError, match=f"got {part}; give another cut-off or a longer log"):
        rows(at, val=1 / 3, test=1 / 3)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=3, max_size=40))
def test_leave_last_out_takes_the_last_two_moments_of_each_user_of_three_or_more(
    shown: list[tuple[int, int]],
) -> None:
    shown = sorted(shown)  # several of one user in one second are a basket
    moments = {u: sorted({when for when, who in shown if who == u}) for _, u in shown}
    often = {u: when for u, when in moments.items() if len(when) >= 3}
    time, user = zip(*shown, strict=True)
    if not often:
        with pytest.raises(InputError, match="val=0"):
            rows(time, user, by="last")
        return
    found = rows(time, user, by="last")
    for part, place in (("test", -1), ("val", -2)):
        held = {(when[place], u) for u, when in often.items()}
        assert found[part] == [row for row, each in enumerate(shown) if each in held]
    assert sorted(row for part in found.values() for row in part) == list(range(len(shown)))


def test_every_name_of_a_split_that_leaks_says_so() -> None:
    assert split_of({"val": 0.1, "test": 0.1, "by": "last"}).name == LEAKS
    assert split_of({"val": 0.1, "test": 0.1, "by": "last"}).leaks
    plain = split_of({"val": 0.1, "test": 0.1})
    assert (plain.name, plain.leaks) == ("val 0.1, test 0.1", False)
    assert split_of({"val": "1d", "test": "2d", "train": "3d", "window": 1}).name == (
        "val 1d, test 2d, train 3d, window 1"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"by": "random"}, "data.split.by must be one of time, last, got random"),
        ({"val": "1d"}, "data.split.val must be of the same kind as data.split.test"),
        ({"val": "soon", "test": "1d"}, "data.split.val must be a fraction, a duration or a date, got soon"),
        ({"val": True}, "data.split.val must be a fraction, a duration or a date, got true"),
        ({"val": 0.0}, "data.split.val must be a number above 0"),
        ({"val": 0.6, "test": 0.6}, "data.split.val + data.split.test must be"),
        ({"window": 1}, "data.split.window must be 0 unless val and test are durations, got 1"),
        ({"train": "2019-11-14"}, "data.split.train must be a duration or null"),
        ({"by": "last", "train": "30d"}, "data.split.train must be null with data.split.by=last"),
        (
            {"by": "last", "val": "1d", "test": "1d", "window": 2},
            "data.split.window must be 0 with data.split.by=last, which cuts at no time, got 2; leave it out",
        ),
        ({"vall": 0.1}, "data.split.vall must be a key of it"),
        ({"val": "2019-11-16", "test": "2019-11-15"}, "data.split.val must begin before data.split.test"),
        (
            {"val": "2029-11-16", "test": "2029-11-17"},
            "data.split must leave every part at least 1 impression",
        ),
        ({"val": "90d", "test": "9d"}, "data.split must leave every part at least 1 impression, got train=0"),
    ],
)
def test_a_split_that_will_not_do_ends_in_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        rows(START + DAY * np.arange(5), **settings)
    assert str(caught.value).startswith(
        said.replace("data.split must be given", "data.split.test must be given")
    )

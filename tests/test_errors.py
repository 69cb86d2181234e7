"""Bad input ends in one sentence that names the setting, the rule, the value and the way out."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife.errors import InputError, choice, near, number

BOUND = st.integers(-1000, 1000)


@given(value=st.floats(-1e6, 1e6) | st.integers(-(10**6), 10**6), low=BOUND, high=BOUND)
def test_a_number_is_returned_exactly_when_it_lies_in_its_range(value: float, low: int, high: int) -> None:
    try:
        got = number("x", value, "days", at_least=low, at_most=high)
    except InputError:
        assert not low <= value <= high
    else:
        assert low <= value <= high
        assert isinstance(got, float)
        assert got == value


def test_a_bound_that_is_above_excludes_itself_and_at_least_does_not() -> None:
    with pytest.raises(InputError):
        number("x", 0, "days", above=0)
    assert number("x", 0, "days", at_least=0) == 0.0
    assert number("x", 2, "days", at_most=2) == 2.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "5", None, [1], 1j])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        number("model.lr", value, "rate")
    assert str(caught.value) == (
        f"model.lr must be a number that is finite (rate), got {value}; give a number that is finite"
    )


def test_both_bounds_and_a_hint_are_said() -> None:
    with pytest.raises(InputError) as caught:
        number("x.share", 2, "fraction", above=0, at_most=0.8, hint="give a smaller share")
    assert str(caught.value) == (
        "x.share must be a number above 0 and at most 0.8 (fraction), got 2; give a smaller share"
    )


def test_a_choice_is_returned_or_refused_with_the_nearest_names() -> None:
    assert choice("data.age", "rank", ["days", "rank"]) == "rank"
    with pytest.raises(InputError) as caught:
        choice("data.age", "ranks", ["days", "rank"])
    assert str(caught.value) == "data.age must be one of days, rank, got ranks; did you mean rank?"
    with pytest.raises(InputError, match=r"got None; choose one of days, rank$"):
        choice("data.age", None, ["days", "rank"])


def test_several_near_names_are_all_offered_and_none_twice() -> None:
    assert near("gau", ["auc", "gauc", "gauc", "gauc_user"]) in {
        "did you mean gauc or auc?",
        "did you mean gauc?",
    }
    assert near("x", []) == "choose one of "


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)  # so that a library's caller may catch what it expects

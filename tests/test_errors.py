"""Bad input ends in one sentence that names the setting, the rule, the value and the way out."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife.errors import InputError, choice, flag, listed, meant, near, number, shown, text, whole

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
        f"model.lr must be a number that is finite (rate), got {shown(value)}; give a number that is finite"
    )


@given(value=st.floats(allow_nan=True) | st.integers(), low=BOUND, high=BOUND)
def test_a_whole_number_is_returned_exactly_when_it_is_one_in_its_range(
    value: float, low: int, high: int
) -> None:
    if math.isfinite(value) and value == int(value) and low <= value <= high:
        got = whole("data.batch_size", value, "impressions", at_least=low, at_most=high)
        assert type(got) is int
        assert got == value
    else:
        with pytest.raises(InputError, match=rf"; give {low} to {high}$"):
            whole("data.batch_size", value, "impressions", at_least=low, at_most=high)


@pytest.mark.parametrize("value", [2.5, math.nan, math.inf, True, "2", None, [2], 1j])
def test_what_is_no_whole_number_is_refused(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        whole("data.max_history", value, "clicks", at_least=1)
    sentence = f"data.max_history must be a whole number (clicks), got {shown(value)}; give 1 or more"
    assert str(caught.value) == sentence


def test_a_value_is_shown_as_the_user_typed_it() -> None:
    assert [shown(v) for v in (None, "", True, False, 0, 1, 0.5, "abc")] == [
        "null", "nothing", "true", "false", "0", "1", "0.5", "abc",
    ]  # fmt: skip


def test_flags_words_and_lists_are_returned_or_refused() -> None:
    assert flag("x", False) is False
    assert text("ckpt", "a.ckpt", "a file") == "a.ckpt"
    assert listed("data.files", ("a", "b"), "globs") == ["a", "b"]
    for wrong in (0, 1, "yes", None):
        with pytest.raises(InputError, match=r"^x must be true or false, got "):
            flag("x", wrong)
    for nothing in (None, "", 3, ["a"]):
        with pytest.raises(InputError, match=r"^ckpt must be a file, got "):
            text("ckpt", nothing, "a file")
    for lone in ("a.csv", None, 3):
        with pytest.raises(InputError, match=r"^data\.files must be a list of globs, got "):
            listed("data.files", lone, "globs")


def test_choices_that_a_sentence_has_listed_are_not_listed_again() -> None:
    assert meant("rnak", ["days", "rank"]) == "did you mean rank?"
    assert meant(None, ["days", "rank"]) == "choose one of them"


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
    with pytest.raises(InputError, match=r"got null; choose one of them$"):
        choice("data.age", None, ["days", "rank"])


def test_several_near_names_are_all_offered_and_none_twice() -> None:
    assert near("gau", ["auc", "gauc", "gauc", "gauc_user"]) in {
        "did you mean gauc or auc?",
        "did you mean gauc?",
    }
    assert near("x", []) == "choose one of "


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)  # so that a library's caller may catch what it expects

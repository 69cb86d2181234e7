"""Spaces in Hydra's syntax: what they become, and what is refused."""

from typing import Any

import optuna
import pytest

from halflife.errors import InputError
from hydra_plugins.halflife_sweeper._space import (
    Choice,
    Fixed,
    Range,
    described,
    examples,
    read_space,
    suggest,
)


def only(text: str) -> Any:
    (node,) = read_space({}, [text], None)
    return node


def test_an_interval_is_a_range_with_both_ends() -> None:
    assert only("a=interval(1,5)") == Range("a", 1.0, 5.0, whole=False)
    assert only("a=int(interval(1,5))") == Range("a", 1, 5, whole=True)
    assert only("a=tag(log,interval(1e-4,1e-1))") == Range("a", 1e-4, 0.1, whole=False, log=True)
    assert only("a=tag(log,int(interval(1,64)))") == Range("a", 1, 64, whole=True, log=True)


def test_a_range_ends_before_its_stop_as_hydra_and_python_say() -> None:
    assert only("a=range(1,10,2)") == Range("a", 1, 9, whole=True, step=2)
    assert only("a=range(3)") == Range("a", 0, 2, whole=True, step=1)
    assert only("a=range(5,0,-2)") == Range("a", 1, 5, whole=True, step=2)
    assert only("a=range(0,1,0.25)") == Range("a", 0.0, 0.75, whole=False, step=0.25)
    assert only("a=range(0,1,0.25)").grid() == [0.0, 0.25, 0.5, 0.75]


def test_choices_keep_their_types_and_what_hydra_writes_for_them() -> None:
    node = only("a=choice(1,b,true,1.5,[1,2],'x y')")
    assert node.values == [1, "b", True, 1.5, "[1, 2]", "x y"]
    assert node.texts == ["1", "b", "True", "1.5", "[1,2]", r"x\ y"]
    for i, text in enumerate(node.texts):
        assert suggest([node], optuna.trial.FixedTrial({"a": node.values[i]})) == [f"a={text}"]


PARAMS = {
    "lr": "tag(log, interval(0.001, 1))",
    "decay": {"exponential": {}, "power": {"alpha": "interval(0.5, 2)", "learn": False}, "none": None},
}


def test_what_stands_under_a_choice_is_searched_with_it_alone() -> None:
    nodes = read_space(PARAMS, ["seed=3"], None)
    picked = suggest(nodes, optuna.trial.FixedTrial({"lr": 0.1, "decay": "power", "alpha": 1.5}))
    assert picked == ["seed=3", "lr=0.1", "decay=power", "alpha=1.5", "learn=false"]
    assert suggest(nodes, optuna.trial.FixedTrial({"lr": 0.1, "decay": "none"})) == [
        "seed=3",
        "lr=0.1",
        "decay=none",
    ]
    assert list(examples(nodes)) == [
        ["seed=3", "lr=0.001", "decay=exponential"],
        ["seed=3", "lr=0.001", "decay=power", "alpha=0.5", "learn=false"],
        ["seed=3", "lr=0.001", "decay=none"],
    ]


def test_the_command_line_takes_the_place_of_a_key_wherever_it_stands() -> None:
    fixed = read_space(PARAMS, ["decay=power", "lr=0.1"], None)
    assert fixed == [
        Fixed("lr", "lr=0.1"),
        Fixed("decay", "decay=power"),
        Range("alpha", 0.5, 2.0, whole=False),
        Fixed("learn", "learn=false"),
    ]
    fewer = read_space(PARAMS, ["decay=power,none"], None)[1]
    assert isinstance(fewer, Choice)
    assert fewer.texts == ["power", "none"]
    assert len(fewer.below[0]) == 2
    deep = read_space(PARAMS, ["alpha=interval(1,2)"], None)[1]
    assert isinstance(deep, Choice)
    assert deep.below[1][0] == Range("alpha", 1.0, 2.0, whole=False)


def test_a_space_is_described_by_what_is_searched_alone() -> None:
    assert described(read_space(PARAMS, ["seed=3", "decay=power"], None)) == {
        "lr": [0.001, 1.0, None, "log"],
        "alpha": [0.5, 2.0, None, "linear"],
    }


@pytest.mark.parametrize(
    ("params", "words", "sentence"),
    [
        ({}, [], "hydra.sweeper.params must hold something to search, got nothing"),
        ({}, ["a=3"], "hydra.sweeper.params must hold something to search, got nothing"),
        (
            {},
            ["a=interval(5,-5)"],
            "a must be an interval from a smaller to a larger number, got 5.0 to -5.0",
        ),
        ({}, ["a=interval(1,1)"], "a must be an interval from a smaller to a larger number"),
        ({}, ["a=tag(log,interval(0,5))"], "a must be above 0 on a log scale, got an interval from 0.0"),
        ({}, ["a=range(5,1)"], "a must be a range that holds a number, got 5 to 1 in steps of 1"),
        ({}, ["a=range(1,5,0)"], "a must be a range that holds a number"),
        ({}, ["a=choice(1,1)"], "a must be a choice of different values, got 1 twice"),
        (
            {},
            ["a=tag(fast,interval(0,1))"],
            "a must be tagged log on an interval or not at all, got the tag fast",
        ),
        (
            {},
            ["a=tag(log,choice(1,2))"],
            "a must be tagged log on an interval or not at all, got the tag log",
        ),
        ({"a": {}}, [], "a must be a choice of at least one value, got none"),
        ({"a": "interval(0,"}, [], "a must be a value or a sweep in Hydra's syntax, got interval(0,"),
        (
            {"a": {"x": {"c": "interval(0,1)"}, "y": {"c": "interval(0,2)"}}},
            [],
            "c must be searched alike wherever it stands",
        ),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(
    params: dict[str, Any], words: list[str], sentence: str
) -> None:
    with pytest.raises(InputError) as error:
        read_space(params, words, None)
    assert str(error.value).startswith(sentence)
    assert "; " in str(error.value)

"""What looks wrong in a log is counted, with an example; what cannot be true is left out, or stops it."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife import quality
from halflife.arrays import build
from halflife.build import table
from halflife.card import describe
from halflife.card_page import page
from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.quality import MANY
from halflife.store import Store
from halflife.tables import DAY_S, Tables

START = 1_700_000_000
GOOD = [(f"u{i % 7}", f"i{i % 5}", START + 60 * i, 1.0) for i in range(100)]
NAN_TEXT = "naÃ¯ve cafÃ© â€“ menu"

Event = tuple[str, str, int, float]


def log_of(events: list[Event], texts: dict[str, str | None] | None = None) -> Tables:
    words = {f"i{i}": f"item {i}" for i in range(5)} | (texts or {})
    return Tables(
        items=pl.DataFrame({"item_id": list(words), "text": list(words.values())}).with_columns(
            category=pl.lit("c")
        ),
        events=pl.DataFrame(
            events, schema=["user_id", "item_id", "timestamp_s", "value"], orient="row"
        ).with_columns(kind=pl.lit("click")),
        impressions=pl.DataFrame(
            {
                "impression_id": [str(i) for i in range(40)],
                "user_id": [f"u{i % 7}" for i in range(40)],
                "timestamp_s": [START + DAY_S + i for i in range(40)],
                "candidates": [["i0", "i1"]] * 40,
                "labels": [[1, 0]] * 40,
            }
        ),
        has_click_times=True,
    )


def found_in(log: Tables) -> tuple[dict[str, tuple[int, str, bool]], Store]:
    """Findings by what they are, and the Store they were found for."""
    with tempfile.TemporaryDirectory() as folder:
        build(log, None, Path(folder))
        store = Store(Path(folder))
        findings = store.about["quality"]
    return {what: (rows, example, kept) for what, rows, example, kept in findings}, store


WRONG: dict[str, tuple[list[Event], dict[str, str | None], str, str, bool]] = {
    "two dates of 1956": (
        [("u1", "i2", -433_000_000, 1.0), ("u1", "i2", -432_000_000, 1.0)],
        {},
        "events before 1990",
        "user_id u1, item_id i2, timestamp_s -433000000",
        False,
    ),
    "a time that is 0": ([("u1", "i2", 0, 1.0)], {}, "events before 1990", "timestamp_s 0", False),
    "the far future": ([("u3", "i1", 4_102_444_800, 1.0)], {}, "events in the future", "4102444800", False),
    "milliseconds": (
        [("u3", "i1", START * 1000, 1.0)],
        {},
        "events in milliseconds among seconds",
        str(START * 1000),
        False,
    ),
    "a refund": (
        [("u3", "i1", START, -2.0)],
        {},
        "events of a negative value, such as refunds",
        "-2.0",
        False,
    ),
    "an unknown item": (
        [("u3", "gone", START, 1.0)],
        {},
        "events of items that are not in the catalogue",
        "item_id gone",
        False,
    ),
    "a row twice": (
        [GOOD[3]],
        {},
        "events that repeat another in every column",
        f"user u3, item i3, second {START + 180}",
        True,
    ),
    "a robot": (
        [("robot", f"i{i % 5}", START + i // 9, 1.0) for i in range(MANY)],
        {},
        "events of users who act more than once a second",
        f"user robot: {MANY:,} events in 112 s",
        True,
    ),
    "no text": ([], {"i7": None, "i8": "  "}, "items without text", "item_id i7", True),
    "encoding errors": (
        [],
        {"i7": NAN_TEXT, "i8": "caf\ufffd"},
        "items whose text has encoding errors",
        f"item_id i7, text {NAN_TEXT}",
        True,
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_looks_wrong_is_counted_with_an_example_and_kept_or_left_out(case: str) -> None:
    extra, texts, what, example, kept = WRONG[case]
    found, store = found_in(log_of([*GOOD, *extra], texts))
    expected = len(texts) or len(extra)
    if case == "a robot":  # which also clicks one item several times in a second
        found.pop("events that repeat another in every column")
    assert set(found) == {what}
    assert found[what][0] == expected
    assert example in found[what][1]
    assert found[what][2] == kept
    assert store.about["events"] == 100 + (len(extra) if kept else 0)
    assert store.about["dropped"] == ({} if kept else {what: expected})


def test_a_good_log_has_no_findings_and_good_words_of_other_languages_are_none() -> None:
    texts: dict[str, str | None] = {
        "i7": "Ärger über Größe",
        "i8": "Âge d'or",
        "i9": "São João à noite",
        "i6": "日本",
    }
    assert found_in(log_of(GOOD, texts))[0] == {}


def test_what_is_common_is_how_the_log_is() -> None:
    rated: list[Event] = [(u, i, t, -1.0 if t % 240 else 1.0) for u, i, t, _ in GOOD]
    found, store = found_in(log_of(rated))
    assert found == {}
    assert store.about["events"] == 100
    with pytest.raises(InputError, match="which are milliseconds"):
        found_in(log_of([(u, i, t * 1000, v) for u, i, t, v in GOOD]))


def test_impressions_at_impossible_times_are_left_out() -> None:
    log = log_of(GOOD)
    first = pl.int_range(pl.len()) == 0
    moved = log.impressions.lazy().with_columns(  # type: ignore[union-attr]
        timestamp_s=pl.when(first).then(5).otherwise("timestamp_s")
    )
    found, store = found_in(replace(log, impressions=moved))
    assert set(found) == {"impressions before 1990"}
    assert (store.about["impressions"], store.about["dropped"]) == (39, {"impressions before 1990": 1})


SLIPS = st.lists(
    st.sampled_from(["early", "late", "milli", "refund", "ghost"]) | st.just("good"), min_size=0, max_size=8
)


@settings(max_examples=10)
@given(slips=SLIPS)
def test_counts_add_up_and_only_good_rows_are_left(slips: list[str]) -> None:
    tomorrow = int(time.time()) + 30 * DAY_S
    row = {
        "early": ("u1", "i1", 100, 1.0),
        "late": ("u1", "i1", tomorrow, 1.0),
        "milli": ("u1", "i1", START * 1000, 1.0),
        "refund": ("u1", "i1", START, -1.0),
        "ghost": ("u1", "gone", START, 1.0),
        "good": ("u1", "i1", START + 7, 1.0),
    }
    _, store = found_in(log_of([*GOOD, *(row[slip] for slip in slips)]))
    assert store.about["events"] + sum(store.about["dropped"].values()) == 100 + len(slips)
    assert store.about["events"] == 100 + slips.count("good")


def read(files: list[Path], log: Tables) -> Tables:
    return log


def test_strict_stops_with_every_finding_in_a_sentence_and_report_tells_the_card(
    make_log: Callable[..., DataModule], tmp_path: Path
) -> None:
    log = log_of([*GOOD, GOOD[0], ("u1", "i2", 0, 1.0)], {"i7": "<b>\ufffd"})
    given: dict[str, Any] = {"cache_dir": str(tmp_path), "min_history": 0}

    def data(checks: str) -> DataModule:
        made = make_log(checks=checks, **given)
        made.source = partial(read, log=log)
        return made

    card = describe(data("report"), None, 32)
    assert [f["rows"] for f in card["quality"]] == [1, 1, 1]
    assert "What looks wrong" in page(card)
    assert "<b>\ufffd" not in page(card)
    assert len(table(card).rows) > 20
    for _ in range(2):  # also where the Store is there already
        with pytest.raises(InputError) as caught:
            _ = data("strict").store
        message = str(caught.value)
        assert message.startswith(
            "the log must hold nothing that looks wrong under data.checks=strict, got 1 "
        )
        for part in ("events before 1990", "repeat another", "encoding errors", "; correct it, or set"):
            assert part in message
    log = log_of(GOOD)
    assert data("strict").store.about["quality"] == []
    with pytest.raises(InputError, match=r"^data\.checks must be one of report, strict, got lenient"):
        make_log(checks="lenient")


def test_an_example_is_the_same_whatever_order_the_rows_come_in() -> None:
    rows = pl.DataFrame(
        {"user_id": "u", "item_id": "ghost", "kind": ["click", "buy"], "shown": [["a"], ["b"]]}
    )
    said = {quality.example(frame.lazy()) for frame in (rows, rows.reverse())}
    assert len(said) == 1
    assert "kind buy" in said.pop()

"""A Store says what the log says, of the past only, and is built once, whole or not at all."""

import importlib.util
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife import pretrained, store
from halflife.arrays import build
from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.negatives import Negatives
from halflife.sources import online_retail
from halflife.store import Store, open_or_build
from halflife.tables import Tables
from tests.refusals import refusal

ITEMS = ["c", "a", "d", "b", "e"]  # not in the Store's order, so that an index mixed up shows
GHOST = "z"  # in no catalogue
START = 1_700_000_000

EventRow = tuple[str, str, int]  # user, item, second
ImpressionRow = tuple[str, str, int, list[str], list[int]]  # id, user, second, candidates, labels

MOMENT = st.integers(0, 8).map(lambda s: START + s)  # few seconds, so that ties are common
USER = st.sampled_from(["u", "v", "w"])
EVENTS = st.lists(st.tuples(USER, st.sampled_from([*ITEMS, GHOST]), MOMENT), min_size=1, max_size=30)
SHOWN = st.lists(st.tuples(st.sampled_from(ITEMS), st.integers(0, 1)), min_size=1, max_size=4)
IMPRESSIONS = st.lists(st.tuples(st.sampled_from(["u", "v", "x"]), MOMENT, SHOWN), min_size=1, max_size=10)


def log_of(
    events: list[EventRow], impressions: list[ImpressionRow] | None, items: list[str] = ITEMS, **changes: Any
) -> Tables:
    """A log of a few rows in the contract's shape."""
    user, item, moment = [list(column) for column in zip(*events, strict=True)] if events else ([], [], [])
    event_frame = pl.DataFrame(
        {"user_id": user, "item_id": item, "timestamp_s": moment},
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp_s": pl.Int64},
    ).with_columns(kind=pl.lit("click"), value=pl.lit(1.0))
    shown = None
    if impressions is not None:
        schema = {
            "impression_id": pl.String,
            "user_id": pl.String,
            "timestamp_s": pl.Int64,
            "candidates": pl.List(pl.String),
            "labels": pl.List(pl.Int8),
        }
        shown = pl.DataFrame(impressions, schema=schema, orient="row")
    article_frame = pl.DataFrame({"item_id": items, "text": [f"text of {i}" for i in items]}).with_columns(
        category=pl.lit("news")
    )
    given: dict[str, Any] = {"has_click_times": True} | changes
    return Tables(article_frame, event_frame, shown, **given)


def wide_label(label: int | None) -> Tables:
    """A log of one impression whose label no Int8 holds, as a source of one's own may give it."""
    log = log_of(PAST, [("1", "u", START, ["a"], [1])])
    assert isinstance(log.impressions, pl.DataFrame)
    return replace(
        log, impressions=log.impressions.with_columns(labels=pl.Series([[label]], dtype=pl.List(pl.Int64)))
    )


def built(log: Tables, directory: Path, negatives: Negatives | None = None) -> Store:
    directory.mkdir(exist_ok=True)
    build(log, negatives, directory)
    return Store(directory)


def refused(log: Tables, directory: Path) -> str:
    return refusal(lambda: built(log, directory))


def history(s: Store, row: int) -> list[tuple[str, int]]:
    """(item id, second) of an impression's past, as the Store has it."""
    here = slice(int(s.user_start[s.impression_user[row]]), int(s.history_end[row]))
    names = s.items["item_id"].to_list()
    return [(names[i], int(t)) for i, t in zip(s.event_item[here], s.event_time[here], strict=True)]


def candidates(s: Store, row: int) -> slice:
    return slice(int(s.candidate_start[row]), int(s.candidate_start[row + 1]))


PAST: list[EventRow] = [
    ("u", "a", START),
    ("u", "b", START + 5),
    ("v", "a", START + 5),
    ("u", "c", START + 9),
]
NOW: list[ImpressionRow] = [
    ("1", "u", START + 9, ["a", "e"], [1, 0]),
    ("2", "v", START + 9, ["b"], [0]),
    ("3", "x", START + 10, ["a", "b", "c"], [0, 0, 1]),
]


# --- against brute force


@settings(max_examples=40)
@given(events=EVENTS, shown=IMPRESSIONS, timed=st.booleans())
def test_a_store_is_what_a_loop_over_the_log_finds(events: Any, shown: Any, timed: bool) -> None:
    known = [e for e in events if e[1] != GHOST]
    if not known:
        return
    impressions = [
        (f"{i:02}", user, moment, [c for c, _ in row], [y for _, y in row])
        for i, (user, moment, row) in enumerate(shown)
    ]
    with tempfile.TemporaryDirectory() as folder:
        s = built(log_of(events, impressions, has_click_times=timed), Path(folder))
        names, people = s.items["item_id"].to_list(), s.users["user_id"].to_list()
        assert names == sorted(ITEMS)
        assert people == sorted({e[0] for e in events} | {i[1] for i in impressions})

        expected = sorted(impressions, key=lambda i: (i[2], i[0]))
        assert s.impression_ids.to_list() == [i[0] for i in expected]
        for row, (_, user, moment, items, labels) in enumerate(expected):
            assert (people[s.impression_user[row]], int(s.impression_time[row])) == (user, moment)
            # strictly before, oldest first, by item within a second
            past = [
                (i, t) for u, i, t in sorted(known, key=lambda e: (e[2], e[1])) if u == user and t < moment
            ]
            assert history(s, row) == past
            here = candidates(s, row)
            assert [names[i] for i in s.candidate_item[here]] == items
            assert s.candidate_label[here].tolist() == labels
            assert s.candidate_popularity[here].tolist() == [
                sum(1 for _, i, t in known if i == item and t < moment) for item in items
            ]
        assert (s.about["events"], s.about["impressions"]) == (len(known), len(expected))
        assert s.about["positives"] == sum(sum(i[4]) for i in expected)
        assert s.about["leakage"] == {"histories_checked": len(expected), "future_events_found": 0}
        ghosts = len(events) - len(known)
        key = "events of items that are not in the catalogue"
        assert s.about["dropped"] == ({key: ghosts} if ghosts else {})


@settings(max_examples=40)
@given(events=EVENTS, seed=st.integers(0, 3))
def test_sampled_impressions_are_the_baskets_in_the_order_of_time(events: Any, seed: int) -> None:
    known = [e for e in events if e[1] != GHOST]
    if not known:
        return
    fair = Negatives(
        per_positive=2, by="popularity", window_days=1.0, exclude_seen=False, max_positives=2, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        s = built(log_of(events, None), Path(folder), fair)
        names, people = s.items["item_id"].to_list(), s.users["user_id"].to_list()
        assert not s.about["has_impressions"]
        assert (np.diff(s.impression_time) >= 0).all()
        clicked = []
        for row in range(len(s.impression_time)):
            user, moment = people[s.impression_user[row]], int(s.impression_time[row])
            assert all(t < moment for _, t in history(s, row))
            assert len(history(s, row)) == sum(u == user and t < moment for u, _, t in known)
            here = candidates(s, row)
            for item, label in zip(s.candidate_item[here], s.candidate_label[here], strict=True):
                if label:
                    clicked.append((user, names[item], moment))
                else:
                    assert (user, names[item], moment) not in known
        assert sorted(clicked) == sorted(set(known))


NAMES = st.sampled_from(["click", "buy", "view", "unknown", None])
PUBLISHED = st.lists(st.none() | st.integers(-5, 12).map(lambda s: START + s), min_size=5, max_size=5)


@settings(max_examples=40)
@given(
    events=EVENTS,
    shown=IMPRESSIONS,
    timed=st.booleans(),
    published=PUBLISHED,
    categories=st.lists(NAMES, min_size=5, max_size=5),
    data=st.data(),
)
def test_kinds_categories_and_births_are_what_a_loop_over_the_log_finds(
    events: Any, shown: Any, timed: bool, published: Any, categories: Any, data: st.DataObject
) -> None:
    events = [*events, ("u", "a", START)]
    kinds = data.draw(st.lists(NAMES, min_size=len(events), max_size=len(events)))
    impressions = [
        (f"{i:02}", user, moment, [c for c, _ in row], [y for _, y in row])
        for i, (user, moment, row) in enumerate(shown)
    ]
    log = log_of(events, impressions, has_click_times=timed)
    columns = {
        "published_s": pl.Series(published, dtype=pl.Int64),
        "category": pl.Series(categories, dtype=pl.String),
    }
    log = replace(
        log,
        items=log.items.lazy().with_columns(**columns),
        events=log.events.lazy().with_columns(kind=pl.Series(kinds, dtype=pl.String)),
    )
    with tempfile.TemporaryDirectory() as folder:
        s = built(log, Path(folder))
        people, names = s.users["user_id"].to_list(), s.items["item_id"].to_list()
        assert s.event_kind.dtype == np.int16
        assert s.about["kinds"] == sorted({k or "unknown" for k in kinds})
        for n, user in enumerate(people):
            own = [
                (t, i, k or "unknown")
                for (u, i, t), k in zip(events, kinds, strict=True)
                if u == user and i != GHOST
            ]
            here = slice(int(s.user_start[n]), int(s.user_start[n + 1]))
            expected = [k for _, _, k in sorted(own)]
            assert [s.about["kinds"][k] for k in s.event_kind[here]] == expected

        given = {i: (p, c or "unknown") for i, p, c in zip(ITEMS, published, categories, strict=True)}
        assert [s.about["categories"][c] for c in s.item_category] == [given[i][1] for i in names]
        assert s.about["categories"] == sorted({c for _, c in given.values()})
        for item, born in zip(names, s.item_born.tolist(), strict=True):
            seen = [t for _, _, t, row, _ in impressions if item in row]
            seen += [t for _, i, t in events if i == item and timed]
            never = max(t for _, _, t, _, _ in impressions)
            first = given[item][0]
            assert born == (first if first is not None else min(seen, default=never))


def test_a_drawn_negative_does_not_say_when_its_item_appeared(tmp_path: Path) -> None:
    events = [("u", "a", START), ("v", "a", START + 3), ("u", "b", START + 5), ("v", "b", START + 7)]
    fair = Negatives(
        per_positive=2, by="uniform", window_days=1.0, exclude_seen=False, max_positives=2, seed=0
    )
    s = built(log_of(events, None), tmp_path, fair)
    born = dict(zip(s.items["item_id"].to_list(), s.item_born.tolist(), strict=True))
    assert (born["a"], born["b"]) == (START, START + 5)


def test_publications_in_milliseconds_are_refused(tmp_path: Path) -> None:
    log = log_of(PAST, NOW)
    log = replace(log, items=log.items.lazy().with_columns(published_s=pl.lit(START * 1000)))
    assert refused(log, tmp_path / "store") == (
        f"items.published_s must be Unix time (seconds), got {START * 1000}; divide the column by 1000"
    )


def test_more_kinds_than_codes_are_refused(tmp_path: Path) -> None:
    many = 2**15
    log = log_of([("u", "a", START)] * many, NOW)
    log = replace(log, events=log.events.lazy().with_columns(kind=pl.int_range(many).cast(pl.String)))
    said = refused(log, tmp_path / "store")
    assert said.startswith(f"events.kind must hold at most {many - 1} different words (count), got {many};")


def test_times_near_the_ends_of_32_bits_are_kept_to_the_second(tmp_path: Path) -> None:
    late = 1_752_345_678  # float32 would round it by up to 64 s
    s = built(log_of([("u", "a", late - 1), ("u", "b", late)], [("1", "u", late, ["a"], [1])]), tmp_path)
    assert history(s, 0) == [("a", late - 1)]
    assert s.event_time.dtype == s.impression_time.dtype == np.int64


def test_the_best_auc_of_the_newsroom_is_that_of_its_probabilities(small_log: DataModule) -> None:
    s = small_log.store
    p = np.round(np.asarray(s.candidate_probability), 12)
    above = np.sign(p[:, None] - p[None, :]) / 2 + 0.5
    weight = p[:, None] * (1 - p)[None, :]
    assert s.has_truth
    assert s.about["bayes_auc"] == pytest.approx((weight * above).sum() / weight.sum(), rel=1e-9)


def test_a_log_that_knows_no_truth_says_so(tmp_path: Path) -> None:
    s = built(log_of(PAST, NOW), tmp_path)
    assert not s.has_truth
    assert s.about["bayes_auc"] is None
    with pytest.raises(AttributeError):
        _ = s.candidate_probability


# --- what a log may not be


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (log_of(PAST, NOW, ["a", "b", "c", "e", "a"]), "items.item_id must be unique, got a twice"),
        (log_of([], NOW), "the log must hold at least 1 event, got 0"),
        (log_of(PAST, []), "the log must hold at least 1 impression, got 0"),
        (log_of([("u", GHOST, START)], NOW), "got none that is among 1 events"),
        (log_of(PAST, [("1", "u", START, ["a", GHOST], [1, 0])]), f"items of the catalogue, got {GHOST}"),
        (log_of(PAST, [("7", "u", START, ["a"], [1, 0])]), "one label a candidate, got impression 7"),
        (log_of(PAST, [("7", "u", START, [], [])]), "at least 1 item, got impression 7 with none"),
        (log_of(PAST, [("1", "u", START, ["a"], [2])]), "impressions.labels must be 0 or 1"),
        (wide_label(300), "impressions.labels must be 0 or 1"),
        (wide_label(None), "impressions.labels must be 0 or 1"),
        (log_of(PAST, [("1", "u", None, ["a"], [1])]), "impressions.timestamp_s must be known"),
        (log_of([*PAST, ("u", "a", None)], NOW), "events.timestamp_s must be known for every row, got 1"),
        (log_of([("u", "a", START * 1000)], NOW), "which are milliseconds"),
        (log_of(PAST, [("1", "u", START * 1000, ["a"], [1])]), "impressions.timestamp_s must be Unix time"),
        (log_of(PAST, None), "data.negatives must be set for a log without impressions, got null"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_log_that_breaks_the_contract_ends_in_one_sentence(log: Tables, said: str, tmp_path: Path) -> None:
    assert said in refused(log, tmp_path / "store")
    assert not (tmp_path / "store" / "store.json").exists()


def test_clicks_without_times_need_no_calendar(tmp_path: Path) -> None:
    s = built(log_of([("u", "a", -3), ("u", "b", -2)], NOW, has_click_times=False), tmp_path)
    assert history(s, 0) == [("a", -3), ("b", -2)]


# --- kept on disk


def read(files: list[Path], shift: int = 0) -> Tables:
    """A source of this test, which reads its seconds from files where it is given some."""
    extra = sum(int(f.read_text()) for f in files)
    return log_of([(u, i, t + shift + extra) for u, i, t in PAST], NOW)


def read_too(files: list[Path]) -> Tables:
    return log_of(PAST[:1], NOW)


def no_build(files: list[Path]) -> Tables:
    raise AssertionError("the Store should have been there")


FAIR = Negatives(per_positive=1, by="uniform", window_days=1.0, exclude_seen=False, max_positives=9, seed=0)


def test_a_build_is_the_same_twice_and_its_fingerprint_follows_the_content(tmp_path: Path) -> None:
    bought = log_of(PAST, NOW)
    bought = replace(bought, events=bought.events.lazy().with_columns(kind=pl.lit("buy")))
    first, again, other, third = (
        built(log, tmp_path / name)
        for name, log in (
            ("1", log_of(PAST, NOW)),
            ("2", log_of(PAST, NOW)),
            ("3", log_of([*PAST[:-1], ("u", "d", START + 9)], NOW)),
            ("4", bought),
        )
    )
    assert first.about["fingerprint"] == again.about["fingerprint"]
    assert len({s.about["fingerprint"] for s in (first, other, third)}) == 3
    for file in (tmp_path / "1").glob("*.npy"):
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()


def test_the_order_of_the_rows_in_the_log_changes_nothing(tmp_path: Path) -> None:
    past = [*PAST, ("u", "c", START + 5), ("u", "a", START + 5)]
    first, turned = (
        built(log_of(past, NOW), tmp_path / "1"),
        built(log_of(past[::-1], NOW[::-1]), tmp_path / "2"),
    )
    assert first.about["fingerprint"] == turned.about["fingerprint"]


def test_a_reader_without_an_order_gives_the_same_log_every_time(tmp_path: Path) -> None:
    rows = "\n".join(
        f"{1000 + i // 40},{10000 + i % 40},thing,1,2011-01-0{1 + i // 400} 10:00:00,5.0,{i // 40 % 9},UK"
        for i in range(1600)
    )
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
    (tmp_path / "online_retail.csv").write_text(f"{header}\n{rows}\n")
    source = partial(online_retail.read, goods_code=r"^\d{5}[A-Z]{0,2}$")
    found = {
        built(source([tmp_path / "online_retail.csv"]), tmp_path / str(i), FAIR).about["fingerprint"]
        for i in range(5)
    }
    assert len(found) == 1


def test_a_store_is_reused_untouched(tmp_path: Path) -> None:
    first = open_or_build(partial(read), [], None, tmp_path)
    stamps = {p.name: p.stat().st_mtime_ns for p in [first.directory, *first.directory.iterdir()]}
    second = open_or_build(partial(read), [], None, tmp_path)
    assert second.directory == first.directory
    assert {p.name: p.stat().st_mtime_ns for p in [second.directory, *second.directory.iterdir()]} == stamps
    assert len(list((tmp_path / "stores").glob("*/store.json"))) == 1


def test_whatever_matters_makes_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "log.csv"
    file.write_text("0")

    def place(
        source: Any = read, files: list[Path] | None = None, fair: Negatives | None = None, **keywords: int
    ) -> Path:
        return open_or_build(partial(source, **keywords), files or [], fair, tmp_path).directory

    places = [place(), place(shift=1), place(shift=2), place(read_too), place(fair=FAIR), place(files=[file])]
    file.write_text("1")  # same size; a later time of change
    places.append(place(files=[file]))
    file.write_text("10")
    places.append(place(files=[file]))
    moved = tmp_path / "moved.csv"
    file.rename(moved)
    places.append(place(files=[moved]))
    code = tmp_path / "store.py"
    code.write_text("new = 'code of the build'")
    monkeypatch.setattr(store, "CODE", [*store.CODE, code])
    places.append(place())
    code.write_text("new = 'code of the build, changed'")
    places.append(place())
    assert len(set(places)) == len(places)
    assert place() == places[-1]


def test_a_change_in_the_code_of_a_source_makes_another_store(tmp_path: Path) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    text = "from halflife.tables import Tables\ndef read(files, log):\n    return Tables(**log)\n"
    log = log_of(PAST, NOW)
    frames = {
        "items": log.items,
        "events": log.events,
        "impressions": log.impressions,
        "has_click_times": True,
    }

    def place() -> Path:
        spec = importlib.util.spec_from_file_location("mine", folder / "mine.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return open_or_build(partial(module.read, log=frames), [], None, tmp_path).directory

    (folder / "mine.py").write_text(text)
    first = place()
    assert place() == first
    (folder / "mine.py").write_text(text + "# a change\n")
    second = place()
    (folder / "helper.py").write_text("WORDS = 3\n")  # what the source may import from beside it
    assert len({first, second, place()}) == 3


# --- a build that is killed, or runs twice at once


def left_over(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "stores").iterdir() if p.suffix != ".lock")


def test_a_build_that_fails_leaves_nothing_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = np.save

    def full_disk(file: Path, array: Any) -> None:
        if Path(file).name == "history_end.npy":  # some arrays are already written by then
            raise KeyboardInterrupt
        real(file, array)

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(KeyboardInterrupt):
        open_or_build(partial(read), [], None, tmp_path)
    assert left_over(tmp_path) == []
    monkeypatch.undo()
    assert open_or_build(partial(read), [], None, tmp_path).about["impressions"] == 3


def test_a_source_that_raises_midway_leaves_nothing(tmp_path: Path) -> None:
    def fails(files: list[Path]) -> Tables:
        # a lazy frame, so that the error comes from the middle of the build
        log = read(files)
        bad = log.events.lazy().with_columns(timestamp_s=pl.col("user_id").cast(pl.Int64))
        return Tables(log.items, bad, log.impressions, True)

    with pytest.raises(pl.exceptions.PolarsError):
        open_or_build(partial(fails), [], None, tmp_path)
    assert left_over(tmp_path) == []


def test_what_a_killed_build_left_behind_is_cleared_away(tmp_path: Path) -> None:
    place = open_or_build(partial(read), [], None, tmp_path).directory
    whole = {p.name: p.read_bytes() for p in place.glob("*.npy")}
    leavings = place.with_name(place.name + ".tmp")
    place.rename(leavings)
    (leavings / "event_item.npy").write_bytes(b"cut short")
    (leavings / "junk.npy").write_bytes(b"junk")
    again = open_or_build(partial(read), [], None, tmp_path)
    assert again.directory == place
    assert {p.name: p.read_bytes() for p in place.glob("*.npy")} == whole
    assert left_over(tmp_path) == [place.name]


RACER = """
import sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import race_source
from halflife.store import open_or_build
cache = Path(sys.argv[2])
(cache / f"ready-{sys.argv[3]}").touch()
while not (cache / "go").exists():
    time.sleep(0.01)
s = open_or_build(partial(race_source.read, folder=str(cache)), [], None, cache)
print(s.directory, s.about["fingerprint"])
"""

RACE_SOURCE = """
import os, time
from pathlib import Path
import polars as pl
from halflife.tables import Tables
def read(files, folder):
    (Path(folder) / f"built-by-{os.getpid()}").touch()
    if (Path(folder) / "die").exists():
        os.kill(os.getpid(), 9)
    time.sleep(0.3)
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp_s": [5],
                           "kind": ["c"], "value": [1.0]})
    shown = pl.DataFrame({"impression_id": ["1"], "user_id": ["u"], "timestamp_s": [9],
                          "candidates": [["a"]], "labels": [[1]]})
    items = pl.DataFrame({"item_id": ["a"], "text": ["A"], "category": ["x"]})
    return Tables(items, events, shown, True)
"""


def test_two_processes_at_once_build_one_store_and_a_killed_one_does_not_block_it(tmp_path: Path) -> None:
    (tmp_path / "race_source.py").write_text(RACE_SOURCE)

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", RACER, str(tmp_path), str(tmp_path), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    racers = [start(name) for name in "ab"]
    for name in "ab":
        deadline = time.monotonic() + 60
        while not (tmp_path / f"ready-{name}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    (tmp_path / "go").touch()
    said = [racer.communicate(timeout=60) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert len(list(tmp_path.glob("built-by-*"))) == 1
    [place] = left_over(tmp_path)

    # killed while it held the lock and its temporary folder
    Store(tmp_path / "stores" / place).directory.rename(tmp_path / "away")
    (tmp_path / "die").touch()
    killed = start("c")
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert left_over(tmp_path) == [f"{place}.tmp"]
    (tmp_path / "die").unlink()
    last = start("d")
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert out == said[0][0]
    assert left_over(tmp_path) == [place]


# --- the folder


@pytest.mark.parametrize("below", [".", "deeper/down"])
def test_a_cache_that_cannot_be_written_is_refused(below: str, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.write_text("")  # refused to root too, unlike a folder without the right to write
    with pytest.raises(InputError) as caught:
        open_or_build(partial(read), [], None, file / below)
    assert str(caught.value).startswith("data.cache_dir must be a directory that can be written, got ")
    assert str(caught.value).endswith("; give another one or free some space")


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, array: Any) -> None:
        raise OSError("4096 requested and 0 written")  # as numpy says it, without errno

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"\(4096 requested and 0 written\); give another one or free some"):
        open_or_build(partial(read), [], None, tmp_path)
    assert left_over(tmp_path) == []


def test_a_file_of_the_log_that_cannot_be_read_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def gone(files: list[Path]) -> Tables:
        Path("/no/such/log.csv").read_text()
        return read(files)

    with pytest.raises(FileNotFoundError, match=r"log\.csv"):
        open_or_build(partial(gone), [], None, tmp_path)


# --- in memory


def test_a_pickled_store_maps_its_files_again_and_carries_no_arrays(small_log: DataModule) -> None:
    s = small_log.store
    expected = {
        name: np.asarray(getattr(s, name)) for name in ("event_item", "history_end", "candidate_item")
    }
    text = pickle.dumps(s)
    assert len(text) < 1000
    back = pickle.loads(text)
    for name, array in expected.items():
        assert isinstance(getattr(back, name), np.memmap)
        np.testing.assert_array_equal(getattr(back, name), array)
    assert back.about == s.about
    assert back.items.equals(s.items)


def test_arrays_are_mapped_once_and_cannot_be_written(small_log: DataModule) -> None:
    s = small_log.store
    assert s.event_time is s.event_time
    with pytest.raises(ValueError, match="read-only"):
        s.event_time[0] = 0
    with pytest.raises(AttributeError):
        _ = s.no_such_array


def test_what_the_build_wrote_down_is_there_to_read(small_log: DataModule) -> None:
    s = small_log.store
    assert json.loads((s.directory / "store.json").read_text()) == s.about
    assert s.n_items == len(s.items) == 48
    assert s.about["planted"]["half_life_days"] == 5.0
    assert "probabilities" not in s.about["planted"]


# --- tokens


def test_the_catalogue_is_tokenised_once_and_kept(
    make_log: Callable[..., DataModule], tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s = make_log(cache_dir=str(tmp_path)).store
    ids, start = s.tokens(str(tiny_bert), 16)
    alone = pretrained.tokenize(tiny_bert, s.items["text"].to_list(), 16)
    assert start[0] == 0
    assert start[-1] == len(ids)
    assert [ids[a:b].tolist() for a, b in pairwise(start)] == alone
    monkeypatch.setattr(pretrained, "tokenize", no_build)
    assert s.tokens(str(tiny_bert), 16)[0].tolist() == ids.tolist()


def test_longer_texts_are_cut_and_another_length_is_another_entry(
    make_log: Callable[..., DataModule], tiny_bert: Path, tmp_path: Path
) -> None:
    s = make_log(cache_dir=str(tmp_path)).store
    for most in (3, 5, 40):
        ids, start = s.tokens(str(tiny_bert), most)
        assert np.diff(start).max() <= most
        assert set(ids[start[:-1]]) == {2}  # [CLS]
        assert set(ids[start[1:] - 1]) == {3}  # [SEP], also behind a text that was cut
    assert len(list(s.directory.glob("tokens-*/ids.npy"))) == 3

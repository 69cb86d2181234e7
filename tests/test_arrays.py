"""Out of core: the same bytes wherever files, batches and windows are cut, and no look ahead."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife import arrays, impressions, shards, users
from halflife.negatives import Negatives
from halflife.store import Store
from halflife.tables import Tables

START = 1_700_000_000
USERS, ITEMS = [f"u{i}" for i in range(9)], [f"i{i}" for i in range(7)]
KINDS = ["click", "buy", "view"]
FAIR = Negatives(
    per_positive=2, by="popularity", window_days=1.0, exclude_seen=False, max_positives=2, seed=3
)
MOMENT = st.integers(0, 12).map(lambda s: START + s)  # few seconds, so that ties fall on every cut
EVENT = st.tuples(st.sampled_from(USERS), st.sampled_from([*ITEMS, "ghost"]), MOMENT, st.sampled_from(KINDS))
SHOWN = st.lists(st.tuples(st.sampled_from(ITEMS), st.integers(0, 1)), min_size=1, max_size=4)
SIZES = st.fixed_dictionaries(
    {
        "AT_ONCE": st.integers(1, 9),
        "BATCH_ROWS": st.integers(1, 7),
        "BUCKET_ROWS": st.integers(1, 9),
        "MOST_BUCKETS": st.integers(1, 6),
        "PART_ROWS": st.integers(1, 5),
        "WINDOW": st.integers(1, 6),
    }
)


@st.composite
def logs(draw: st.DrawFn, logged: bool) -> Tables:
    """A log with many ties in time, users without events and events of unknown items."""
    events = [*draw(st.lists(EVENT, max_size=40)), ("u0", "i0", START, "click")]
    rows = draw(st.lists(st.tuples(st.sampled_from([*USERS, "new"]), MOMENT, SHOWN), min_size=1, max_size=12))
    shown = [
        (f"{i:03}", u, t, [c for c, _ in row], [y for _, y in row]) for i, (u, t, row) in enumerate(rows)
    ]
    schema: dict[str, Any] = {
        "impression_id": pl.String,
        "user_id": pl.String,
        "timestamp_s": pl.Int64,
        "candidates": pl.List(pl.String),
        "labels": pl.List(pl.Int8),
    }
    return Tables(
        items=pl.DataFrame({"item_id": ITEMS}).with_columns(text=pl.lit("t"), category=pl.lit("c")),
        events=pl.DataFrame(
            events,
            schema={"user_id": pl.String, "item_id": pl.String, "timestamp_s": pl.Int64, "kind": pl.String},
            orient="row",
        ).with_columns(value=pl.lit(1.0)),
        impressions=pl.DataFrame(shown, schema=schema, orient="row") if logged else None,
        has_click_times=True,
    )


@contextmanager
def sized(sizes: dict[str, int]) -> Iterator[None]:
    """Builds inside cut their work into pieces of these sizes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            patch.setattr(
                next(m for m in (arrays, users, impressions, shards) if hasattr(m, name)), name, size
            )
        yield


def bytes_of(log: Tables) -> dict[str, Any]:
    """Every array of a Store by its name, as its bytes, and what the build wrote down."""
    with tempfile.TemporaryDirectory() as folder:
        arrays.build(log, FAIR, Path(folder))
        about = json.loads((Path(folder) / "store.json").read_text())
        ids = pl.read_parquet(Path(folder) / "impressions.parquet")["impression_id"].to_list()
        found = {p.name: p.read_bytes() for p in Path(folder).glob("*.npy")}
        assert not (Path(folder) / "scratch").exists()
    return found | {"ids": ids, "about": {k: v for k, v in about.items() if k != "build_s"}}


@pytest.mark.parametrize("logged", [True, False], ids=["logged", "drawn"])
@settings(max_examples=8)
@given(data=st.data())
def test_a_store_has_the_same_bytes_wherever_its_build_is_cut(logged: bool, data: st.DataObject) -> None:
    log, sizes = data.draw(logs(logged)), data.draw(SIZES)
    whole = bytes_of(log)
    with sized(sizes):
        assert bytes_of(log) == whole


@pytest.mark.parametrize("logged", [True, False], ids=["logged", "drawn"])
@settings(max_examples=8)
@given(data=st.data())
def test_across_its_cuts_no_history_holds_the_future_and_counts_add_up(
    logged: bool, data: st.DataObject
) -> None:
    log, sizes = data.draw(logs(logged)), data.draw(SIZES)
    known = log.events.lazy().filter(pl.col("item_id") != "ghost").collect()
    events = list(known.select("user_id", "item_id", "timestamp_s").rows())
    with tempfile.TemporaryDirectory() as folder, sized(sizes):
        arrays.build(log, FAIR, Path(folder))
        s = Store(Path(folder))
        people, names = s.users["user_id"].to_list(), s.items["item_id"].to_list()
        assert len(s.event_item) == s.user_start[-1] == s.about["events"] == len(events)
        assert s.about["dropped"].get("events of items that are not in the catalogue", 0) == len(
            log.events.lazy().collect()
        ) - len(events)
        assert len(s.candidate_item) == s.candidate_start[-1] == s.about["candidates"]
        assert int(s.candidate_label.sum()) == s.about["positives"]
        assert (np.diff(s.impression_time) >= 0).all()
        for row, (who, now, end) in enumerate(
            zip(s.impression_user, s.impression_time, s.history_end, strict=True)
        ):
            here = slice(int(s.user_start[who]), int(end))
            past = [(names[i], int(t)) for i, t in zip(s.event_item[here], s.event_time[here], strict=True)]
            mine = [(i, t) for u, i, t in events if u == people[who] and t < now]
            assert past == sorted(mine, key=lambda e: (e[1], e[0]))  # by item within a second
            shown = slice(int(s.candidate_start[row]), int(s.candidate_start[row + 1]))
            for item, count in zip(s.candidate_item[shown], s.candidate_popularity[shown], strict=True):
                assert count == sum(i == names[item] and t < now for _, i, t in events)


@settings(max_examples=6)
@given(log=logs(True), sizes=SIZES, seed=st.integers(0, 9))
def test_the_order_of_a_logs_rows_changes_no_byte(log: Tables, sizes: dict[str, int], seed: int) -> None:
    whole = bytes_of(log)
    events, shown = log.events.lazy().collect(), log.impressions
    assert shown is not None
    turned = replace(
        log,
        items=log.items.lazy().reverse(),
        events=events.sample(fraction=1.0, shuffle=True, seed=seed),
        impressions=shown.lazy().reverse(),
    )
    with sized(sizes):
        assert bytes_of(turned) == whole


def test_ties_in_time_are_settled_by_item_and_a_click_of_the_same_second_is_no_past() -> None:
    log = Tables(
        items=pl.DataFrame({"item_id": ITEMS}).with_columns(text=pl.lit("t"), category=pl.lit("c")),
        events=pl.DataFrame(
            {"user_id": "u", "item_id": ["i3", "i1", "i2", "i1", "i0"], "timestamp_s": START, "kind": "k"}
        ).with_columns(value=pl.lit(1.0)),
        impressions=pl.DataFrame(
            {
                "impression_id": ["b", "a", "c"],
                "user_id": "u",
                "timestamp_s": [START + 1, START + 1, START],
                "candidates": [["i0"], ["i1"], ["i2"]],
                "labels": [[0], [1], [0]],
            }
        ),
        has_click_times=True,
    )
    tiny = {"AT_ONCE": 2, "BATCH_ROWS": 3, "BUCKET_ROWS": 2, "PART_ROWS": 1, "WINDOW": 2}
    with tempfile.TemporaryDirectory() as folder, sized(tiny):
        arrays.build(log, None, Path(folder))
        s = Store(Path(folder))
        assert s.impression_ids.to_list() == ["c", "a", "b"]  # by time, then by id
        assert s.history_end.tolist() == [0, 5, 5]
        assert [s.items["item_id"][int(i)] for i in s.event_item] == ["i0", "i1", "i1", "i2", "i3"]


def test_ids_that_repeat_within_a_second_do_not_make_a_build_depend_on_its_cuts() -> None:
    rows = [("same", USERS[i % 9], START + 5, [ITEMS[i % 7]], [i % 2]) for i in range(40)]
    shown = pl.DataFrame(
        rows, schema=["impression_id", "user_id", "timestamp_s", "candidates", "labels"], orient="row"
    ).with_columns(pl.col("labels").cast(pl.List(pl.Int8)))
    log = Tables(
        items=pl.DataFrame({"item_id": ITEMS}).with_columns(text=pl.lit("t"), category=pl.lit("c")),
        events=pl.DataFrame({"user_id": USERS, "item_id": "i0", "timestamp_s": START}).with_columns(
            kind=pl.lit("k"), value=pl.lit(1.0)
        ),
        impressions=shown,
        has_click_times=True,
    )
    whole = bytes_of(log)
    with sized({"PART_ROWS": 3}):
        assert bytes_of(log) == whole
    assert bytes_of(replace(log, impressions=shown.lazy())) == whole

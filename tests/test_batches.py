"""A batch says of its impressions what the Store says, each item once; the loader shows every row once."""

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife.arrays import build
from halflife.batches import PAD_AGE, Batch, Impressions
from halflife.datamodule import DataModule
from halflife.store import Store
from halflife.tables import DAY_S, Tables

START = 1_706_745_600  # 2024-02-01: where float32 counts seconds in steps of 128

Make = Callable[..., DataModule]
ROW = st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 40 * DAY_S))  # user, item, second
LOG = st.lists(ROW, max_size=25) | st.lists(ROW, min_size=12, max_size=25)
ASKED = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 40 * DAY_S), st.lists(st.integers(0, 5), min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=8,
)


def kind_of(user: int, item: int, second: int) -> str:
    """What a click was, as a rule of this test says; a log holds no such rule."""
    return ["buy", "view", "play"][(user + item + second) % 3]


def tables_of(events: list[Any], asked: list[Any], items: int = 6, has_click_times: bool = True) -> Tables:
    return Tables(
        items=pl.DataFrame(
            {"item_id": [f"i{n}" for n in range(items)], "text": [f"item {n}" for n in range(items)]}
        ).with_columns(category=pl.Series([f"c{n % 4}" for n in range(items)])),
        events=pl.DataFrame(
            {
                "user_id": [f"u{u}" for u, _, _ in events],
                "item_id": [f"i{i}" for _, i, _ in events],
                "timestamp_s": [START + t for _, _, t in events],
            }
        ).with_columns(kind=pl.Series([kind_of(*e) for e in events], dtype=pl.String), value=pl.lit(1.0)),
        impressions=pl.DataFrame(
            {
                "impression_id": [f"{n:03}" for n in range(len(asked))],
                "user_id": [f"u{u}" for u, _, _ in asked],
                "timestamp_s": [START + t for _, t, _ in asked],
                "candidates": [[f"i{c}" for c in shown] for _, _, shown in asked],
                "labels": [[int(n % 2 == 0) for n in range(len(shown))] for _, _, shown in asked],
            },
            schema_overrides={"candidates": pl.List(pl.String), "labels": pl.List(pl.Int8)},
        ),
        has_click_times=has_click_times,
    )


def store_of(events: list[Any], asked: list[Any], folder: Path) -> Store:
    build(tables_of(events, asked), None, folder)
    return Store(folder)


def real(batch: Batch, row: int) -> tuple[list[int], list[float], list[int], list[float]]:
    """What a batch holds of one impression behind its masks: history, ages, candidates, labels."""
    seen, shown = batch.history_mask[row], batch.candidate_mask[row]
    return (
        batch.item[batch.history[row][seen]].tolist(),
        batch.age[row][seen].tolist(),
        batch.item[batch.candidates[row][shown]].tolist(),
        batch.label[row][shown].tolist(),
    )


def same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch)]
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


# --- a batch


@settings(max_examples=40)
@given(
    events=LOG,
    asked=ASKED,
    most=st.integers(1, 6),
    age=st.sampled_from(["days", "rank"]),
    data=st.data(),
)
def test_a_batch_is_what_a_loop_over_its_impressions_makes(
    events: list[Any], asked: list[Any], most: int, age: str, data: st.DataObject
) -> None:
    events = [*events, (9, 0, 0)]  # a log has at least one event
    with tempfile.TemporaryDirectory() as folder:
        store = store_of(events, asked, Path(folder))
        rows = data.draw(st.permutations(range(len(asked))))[: data.draw(st.integers(1, len(asked)))]
        batch = Impressions(store, most, age, None)[np.array(rows)]
        ordered = sorted(asked, key=lambda a: a[1])  # as the Store keeps them; the ids follow the given order
        people = store.users["user_id"].to_list()
        seen = [(t, [i]) for _, i, t in events] + [(t, shown) for _, t, shown in asked]

        assert len(batch) == len(rows)
        assert batch.impression.tolist() == list(rows)
        assert (batch.tokens, batch.token_length) == (None, None)
        distinct: set[int] = set()
        longest = 0
        for place, row in enumerate(rows):
            user, now, shown = ordered[row]
            clicks = [(t, i, kind_of(u, i, t)) for u, i, t in events if u == user and t < now]
            clicks = sorted(clicks, key=lambda e: e[0])[-most:]
            past = [(t, i) for t, i, _ in clicks]
            history, ages, candidates, labels = real(batch, place)
            assert history == [i for _, i in past]
            if age == "days":
                # big integers: exact seconds, one division, one rounding to float32
                assert ages == [float(np.float32((now - t) / DAY_S)) for t, _ in past]
            else:
                assert ages == [float(len(past) - 1 - n) for n in range(len(past))]
            assert candidates == shown
            assert labels == [float(n % 2 == 0) for n in range(len(shown))]
            assert people[batch.user[place]] == f"u{user}"
            kinds = [store.about["kinds"][k] for k in batch.kind[place][batch.history_mask[place]]]
            assert kinds == [k for _, _, k in clicks]
            assert batch.past_clicks[place] == sum(u == user and t < now for u, _, t in events)
            first_seen = {c: min(t for t, s in seen if c in s) for c in shown}
            assert batch.candidate_age[place][batch.candidate_mask[place]].tolist() == [
                float(np.float32(max(now - first_seen[c], 0) / DAY_S)) for c in shown
            ]
            distinct |= {*history, *shown}
            longest = max(longest, len(past))
        # each item once, and none that nobody asked for
        assert batch.item.tolist() == sorted(distinct)
        assert [store.about["categories"][c] for c in batch.category] == [f"c{i % 4}" for i in batch.item]
        assert batch.history.shape[1] == max(1, longest)
        assert batch.candidates.shape[1] == max(len(ordered[r][2]) for r in rows)


def test_padding_is_behind_masks_and_harmless(tmp_path: Path) -> None:
    asked = [(0, 100, [1, 2, 3]), (1, 200, [4]), (2, 300, [0, 5])]
    store = store_of([(0, 0, 10), (0, 1, 20), (1, 2, 30)], asked, tmp_path)
    batch = Impressions(store, 9, "days", None)[np.arange(3)]
    assert batch.history_mask.tolist() == [[True, True], [True, False], [False, False]]
    assert batch.candidate_mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert (batch.age[~batch.history_mask] == PAD_AGE).all()
    assert (batch.kind[~batch.history_mask] == 0).all()
    assert (batch.candidate_age[~batch.candidate_mask] == 0).all()
    assert (batch.label[~batch.candidate_mask] == 0).all()
    assert torch.isfinite(batch.age**2).all()
    for places in (batch.history, batch.candidates):  # a padded place may be looked up, then masked
        assert 0 <= places.min() <= places.max() < len(batch.item)


def test_readers_without_any_click_make_a_batch_of_their_own(tmp_path: Path) -> None:
    # the newest user's range lies behind the last event
    store = store_of([(0, 0, 500)], [(0, 100, [1]), (4, 900, [2, 3])], tmp_path)
    batch = Impressions(store, 9, "days", None)[np.arange(2)]
    assert not batch.history_mask.any()
    assert batch.history.shape == (2, 1)
    assert batch.item.tolist() == [1, 2, 3]


@settings(max_examples=30)
@given(ages_s=st.lists(st.integers(1, 40 * 366 * DAY_S), min_size=1, max_size=8))
def test_ages_are_right_to_the_second(ages_s: list[int]) -> None:
    now = 1_735_689_599 - START  # the last second of 2024
    with tempfile.TemporaryDirectory() as folder:
        store = store_of([(0, 0, now - a) for a in ages_s], [(0, now, [1])], Path(folder))
        batch = Impressions(store, 99, "days", None)[np.array([0])]
    seconds = batch.age[0].double() * DAY_S
    expected = torch.tensor(sorted(ages_s, reverse=True), dtype=torch.float64)
    # half a unit in the last place of float32: under a second up to 97 days, where subtracting float32
    # seconds would be off by a minute
    assert ((seconds - expected).abs() <= expected * 2.0**-24 * 1.0001).all()


@pytest.mark.parametrize("age", ["days", "rank"])
def test_a_candidate_is_as_old_as_its_publication_and_never_younger_than_new(
    tmp_path: Path, age: str
) -> None:
    now = 1_735_689_599 - START  # seconds that float32 cannot hold
    log = tables_of([(0, 0, now - 7)], [(0, now, [1, 2, 3, 4])])
    born = [None, now - 1, now + 5 * DAY_S, now - 40 * 366 * DAY_S, None, None]
    published = pl.Series([None if b is None else START + b for b in born], dtype=pl.Int64)
    build(replace(log, items=log.items.lazy().with_columns(published_s=published)), None, tmp_path)
    batch = Impressions(Store(tmp_path), 9, age, None)[np.array([0])]
    # in days in either case; not yet published: new; never seen before: new
    assert batch.candidate_age.tolist() == [[pytest.approx(1 / DAY_S), 0.0, 40 * 366, 0.0]]
    assert batch.candidate_age.dtype == torch.float32


def test_the_oldest_clicks_are_those_cut(tmp_path: Path) -> None:
    store = store_of([(0, n % 6, n) for n in range(12)], [(0, 500, [0])], tmp_path)
    for most in (1, 5, 12, 50):
        batch = Impressions(store, most, "rank", None)[np.array([0])]
        kept = min(most, 12)
        assert real(batch, 0)[0] == [n % 6 for n in range(12 - kept, 12)]
        assert batch.age.tolist() == [[float(kept - 1 - n) for n in range(kept)]]
        assert batch.past_clicks.tolist() == [12]  # those cut are counted


def test_tokens_are_the_catalogues_tokens_of_its_items(small_log: DataModule, tiny_bert: Path) -> None:
    ids, start = small_log.store.tokens(str(tiny_bert), 16)
    small_log.tokens = ids, start
    rows = small_log.rows("test")[[3, 30, 17]]
    batch = small_log.impressions()[rows]
    assert batch.tokens is not None
    assert batch.token_length is not None
    assert batch.tokens.dtype == batch.token_length.dtype == torch.int64
    for item, got in zip(batch.item.tolist(), batch.tokens.split(batch.token_length.tolist()), strict=True):
        assert got.tolist() == ids[start[item] : start[item + 1]].tolist()
    assert same(small_log.impressions(with_tokens=False)[rows], _without_tokens(batch))


def _without_tokens(batch: Batch) -> Batch:
    return Batch(
        **{f.name: getattr(batch, f.name) for f in fields(Batch)} | {"tokens": None, "token_length": None}
    )


def test_a_batch_moves_whole_whether_or_not_it_has_tokens(small_log: DataModule, tiny_bert: Path) -> None:
    rows = small_log.rows("val")[:4]
    for _ in range(2):
        batch = small_log.impressions()[rows]
        assert same(batch.to("cpu"), batch)
        moved = batch.to("meta")
        assert {
            getattr(moved, f.name).device.type for f in fields(Batch) if getattr(moved, f.name) is not None
        } == {"meta"}
        small_log.tokens = small_log.store.tokens(str(tiny_bert), 16)


def test_a_pickled_batch_is_the_same_and_holds_one_tensor(small_log: DataModule, tiny_bert: Path) -> None:
    for rows in (small_log.rows("val")[:5], small_log.rows("val")[:1]):
        for rate in (None, torch.tensor(-0.5)):
            batch = replace(small_log.impressions()[rows], log_rate=rate)
            back = pickle.loads(pickle.dumps(batch))
            assert same(back, batch)
            for f in fields(Batch):
                one, other = getattr(batch, f.name), getattr(back, f.name)
                assert (one is None) == (other is None)
                assert one is None or (one.dtype, one.shape) == (other.dtype, other.shape)
            assert len({getattr(back, n).untyped_storage().data_ptr() for n in ("item", "age", "label")}) == 1
        small_log.tokens = small_log.store.tokens(str(tiny_bert), 16)

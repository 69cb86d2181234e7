"""A batch says of its impressions what the Store says, each item once; the loader shows every row once."""

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife.arrays import build
from halflife.batches import PAD_AGE, Batch, DataModule, Impressions
from halflife.errors import InputError
from halflife.negatives import Negatives
from halflife.ranges import runs
from halflife.sampler import BatchRows
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


# --- rows

COUNTS = st.tuples(st.integers(1, 90), st.integers(1, 12), st.integers(1, 4))  # rows, batch size, processes


def samplers(n: int, size: int, world: int, train: bool, seed: int = 0, epoch: int = 0) -> list[BatchRows]:
    lengths = np.random.default_rng(n).integers(0, 20, 100 + n).__getitem__ if train else None
    made = [BatchRows(np.arange(100, 100 + n), lengths, size, seed, rank, world) for rank in range(world)]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


def listed(sampler: BatchRows) -> list[list[int]]:
    return [part.tolist() for part in sampler]


@given(counts=COUNTS, epoch=st.integers(0, 5))
def test_a_lone_process_trains_on_every_row_once_an_epoch(counts: tuple[int, int, int], epoch: int) -> None:
    n, size, _ = counts
    [sampler] = samplers(n, size, 1, train=True, epoch=epoch)
    parts = listed(sampler)
    assert sorted(row for part in parts for row in part) == list(range(100, 100 + n))
    assert max(len(part) for part in parts) <= size
    assert len(sampler) == len(parts) == -(-n // size)


@given(counts=COUNTS)
def test_processes_train_on_different_rows_and_as_many_batches(counts: tuple[int, int, int]) -> None:
    n, size, world = counts
    every = samplers(n, size, world, train=True)
    if -(-n // size) < world:
        with pytest.raises(InputError, match=r"^data\.batch_size must leave each of \d processes a batch"):
            listed(every[0])
        return
    parts = [listed(sampler) for sampler in every]
    rows = [row for mine in parts for part in mine for row in part]
    assert len(set(rows)) == len(rows)
    assert {len(mine) for mine in parts} == {len(every[0])}  # else a process would wait for ever
    assert n - len(rows) <= (world - 1) * size


@given(counts=COUNTS)
def test_processes_evaluate_every_row_exactly_once(counts: tuple[int, int, int]) -> None:
    n, size, world = counts
    every = samplers(n, size, world, train=False)
    parts = [listed(sampler) for sampler in every]
    assert sorted(row for mine in parts for part in mine for row in part) == list(range(100, 100 + n))
    assert [len(sampler) for sampler in every] == [len(mine) for mine in parts]
    # else the others would wait for the one without; but for fewer rows than processes
    assert min(len(mine) for mine in parts) >= (n >= world)


def test_evaluation_keeps_the_order_of_time() -> None:
    [sampler] = samplers(25, 10, 1, train=False)
    assert listed(sampler) == [list(range(100, 110)), list(range(110, 120)), list(range(120, 125))]


def test_batches_follow_from_seed_and_epoch_alone() -> None:
    def parts(**given: int) -> list[list[int]]:
        return listed(samplers(90, 4, 1, train=True, **given)[0])

    assert parts(seed=1, epoch=2) == parts(seed=1, epoch=2)
    assert parts(seed=1, epoch=2) != parts(seed=1, epoch=3)
    assert parts(seed=1, epoch=2) != parts(seed=2, epoch=2)
    [sampler] = samplers(90, 4, 1, train=True, seed=1, epoch=1)
    listed(sampler)
    sampler.set_epoch(2)  # however many epochs went before
    assert listed(sampler) == parts(seed=1, epoch=2)


@given(counts=COUNTS, skip=st.integers(0, 30))
def test_a_resumed_epoch_goes_on_behind_what_it_had_and_only_once(
    counts: tuple[int, int, int], skip: int
) -> None:
    n, size, _ = counts
    [whole], [resumed] = (samplers(n, size, 1, train=True, epoch=3) for _ in range(2))
    resumed.skip = skip
    assert listed(resumed) == listed(whole)[skip:]
    assert listed(resumed) == listed(whole)


@given(n=st.integers(1, 300), seed=st.integers(0, 20), times=st.integers(3, 12), epoch=st.integers(0, 3))
def test_a_token_budget_is_never_exceeded_and_every_epoch_has_as_many_batches(
    n: int, seed: int, times: int, epoch: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens, lengths = rng.integers(1, 500, n), rng.integers(0, 20, n)
    budget = times * int(tokens.max())
    sampler = BatchRows(np.arange(n), lengths.__getitem__, 8, seed, tokens=tokens, batch_tokens=budget)
    sampler.set_epoch(epoch)
    parts = list(sampler)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert len(parts) == len(sampler)
    assert all(0 < tokens[part].sum() <= budget for part in parts)


def test_a_token_budget_counts_what_histories_and_candidates_hold(
    small_log: DataModule, tiny_bert: Path
) -> None:
    small_log.tokens = small_log.store.tokens(str(tiny_bert), 16)
    dataset, rows = small_log.impressions(), small_log.rows("train")[:40]
    expected = []
    for row in rows:
        batch = dataset[np.array([row])]
        places = torch.cat([batch.history[batch.history_mask], batch.candidates[batch.candidate_mask]])
        expected.append(int(batch.token_length[places].sum()))
    assert dataset.token_counts(rows).tolist() == expected


def test_a_token_budget_that_will_not_do_is_refused(
    make_log: Callable[..., DataModule], tiny_bert: Path
) -> None:
    with pytest.raises(InputError, match=r"^data\.batch_tokens must be null where training reads no tokens"):
        make_log(batch_tokens=5000).train_dataloader()
    log = make_log(batch_tokens=5)
    log.tokens = log.store.tokens(str(tiny_bert), 16)
    with pytest.raises(
        InputError, match=r"^data\.batch_tokens must be a whole number .*, got 5; give \d+ or more"
    ):
        log.train_dataloader()
    log = make_log(batch_tokens=2000)
    log.tokens = log.store.tokens(str(tiny_bert), 16)
    sizes = {len(batch) for batch in log.train_dataloader()}
    assert len(sizes) > 1


def test_a_batch_holds_histories_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(0, 50, 4000)
    parts = [lengths[part] for part in BatchRows(np.arange(4000), lengths.__getitem__, 32, seed=0)]
    padded, random = np.mean([p.max() for p in parts]), np.mean([p.max() for p in lengths.reshape(-1, 32)])
    assert padded < lengths.mean() + 3
    assert random > lengths.mean() + 20


@given(counts=COUNTS, most=st.integers(1, 6), epoch=st.integers(0, 3))
def test_runs_stay_side_by_side_and_every_row_is_seen_once(
    counts: tuple[int, int, int], most: int, epoch: int
) -> None:
    n, size, _ = counts
    reader = np.random.default_rng(n).integers(0, 8, n)
    # rows in the order of time: histories grow
    sampler = BatchRows(np.arange(100, 100 + n), np.asarray, size, 0, runs=runs(reader, most))
    sampler.set_epoch(epoch)
    order = np.concatenate(list(sampler.batches())) - 100
    assert sorted(order) == list(range(n))
    place, start = runs(reader, most)
    whole = [place[a:b].tolist() for a, b in pairwise(start)]
    assert all(len(set(reader[run])) == 1 and len(run) <= most and run == sorted(run) for run in whole)
    if size >= n:  # one batch: nothing is cut
        at = {row: i for i, row in enumerate(order)}
        assert all(
            [at[row] for row in run] == list(range(at[run[0]], at[run[0]] + len(run))) for run in whole
        )


def test_runs_of_one_row_change_nothing() -> None:
    lengths = np.random.default_rng(0).integers(0, 20, 90)
    one = runs(np.random.default_rng(1).integers(0, 8, 90), 1)
    ours, plain = (BatchRows(np.arange(90), lengths.__getitem__, 8, seed=3, runs=r) for r in (one, None))
    assert listed(ours) == listed(plain)


# --- the data module


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert " must " in message
    assert ", got " in message
    assert "; " in message
    return message


def drain(data: DataModule, split: str) -> list[Batch]:
    return list(getattr(data, f"{split}_dataloader")())


def test_the_splits_share_nothing_and_follow_the_clock(small_log: DataModule) -> None:
    when = small_log.store.impression_time
    parts = [small_log.rows(split) for split in ("train", "val", "test")]
    assert when[parts[0]].max() < when[parts[1]].min()
    assert when[parts[1]].max() < when[parts[2]].min()


def test_the_loaders_give_every_row_of_their_split_once(small_log: DataModule) -> None:
    for split in ("train", "val", "test"):
        rows = [row for batch in drain(small_log, split) for row in batch.impression.tolist()]
        assert sorted(rows) == small_log.rows(split).tolist()
        assert split == "train" or rows == sorted(rows)


def test_loader_processes_give_the_batches_of_none(make_log: Make, tiny_bert: Path) -> None:
    alone, helped = make_log(), make_log(num_workers=2)
    for data in (alone, helped):
        data.tokens = data.store.tokens(str(tiny_bert), 16)
    for split in ("train", "val"):
        expected, got = drain(alone, split), drain(helped, split)
        assert len(expected) == len(got) > 2
        assert all(same(a, b) for a, b in zip(expected, got, strict=True))
        assert (got[0].tokens is not None) == (split == "train")  # evaluation looks its vectors up


@pytest.mark.parametrize("least", [0, 1, 8])
def test_impressions_with_fewer_past_clicks_are_left_out_of_every_split(make_log: Make, least: int) -> None:
    data = make_log(min_history=least, max_history=5)
    store = data.store
    length = store.history_end - store.user_start[store.impression_user]
    every = np.concatenate([data.rows(split) for split in ("train", "val", "test")])
    assert every.tolist() == np.flatnonzero(length >= least).tolist()
    short = min(b.history_mask.sum(1).min().item() for b in drain(data, "test"))
    assert short == min(5, length[data.rows("test")].min())


def test_a_min_history_that_nobody_has_is_refused(make_log: Make) -> None:
    message = refused(lambda: make_log(min_history=10_000).rows("val"))
    assert message.startswith("data.split must leave val at least 1 impression with 10000 past clicks, got 0")


def test_a_sample_is_spread_over_its_split(small_log: DataModule) -> None:
    rows = small_log.rows("train")
    parts = [b.impression.numpy() for b in small_log.sample("train", candidates=200)]
    got = np.sort(np.concatenate(parts))
    assert len(set(got)) == 51  # 4 candidates each
    assert set(got) <= set(rows)
    assert np.diff(np.searchsorted(rows, got)).max() <= len(rows) / 50 + 1
    lengths = small_log.impressions().lengths(np.concatenate(parts))
    assert (np.diff(lengths) >= 0).all()
    whole = np.concatenate([b.impression.numpy() for b in small_log.sample("train")])
    assert sorted(whole) == rows.tolist()


def test_where_an_epoch_stands_is_kept_and_taken_up(make_log: Make) -> None:
    whole, resumed = make_log(), make_log()
    assert whole.state_dict() == {"epoch": 0, "batches": 0}
    resumed.load_state_dict({"epoch": 2, "batches": 3})
    assert resumed.state_dict() == {"epoch": 2, "batches": 3}
    loader = whole.train_dataloader()
    loader.sampler.set_epoch(2)
    expected, got = list(loader)[3:], drain(resumed, "train")
    assert len(expected) == len(got)
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))
    # evaluation knows no resuming
    assert sum(len(b) for b in drain(resumed, "val")) == len(resumed.rows("val"))


def read_files(files: list[Path]) -> Tables:
    events = [(n % 4, n % 6, n * DAY_S // 4) for n in range(60)]
    asked = [(n % 4, n * DAY_S // 4 + 5, [n % 6, (n + 1) % 6]) for n in range(60)]
    return tables_of(events, asked, has_click_times=files[0].read_text() == "times")


@pytest.fixture
def of_files(make_log: Make, tmp_path: Path) -> Make:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "events.csv").write_text("times")
    (tmp_path / "log" / "items.csv").write_text("")
    given = {"root": str(tmp_path / "log"), "files": ["events.csv", "items.csv"], "cache_dir": str(tmp_path)}

    def make(**changes: Any) -> DataModule:
        data = make_log(**(given | changes))
        data.source = partial(read_files)
        return data

    return make


def test_a_log_of_files_is_found_below_its_root(of_files: Make) -> None:
    assert len(of_files().rows("train")) > 0
    assert len(of_files(files=["*.csv"]).rows("train")) > 0


def test_a_missing_root_is_refused(of_files: Make, tmp_path: Path) -> None:
    nowhere, file = tmp_path / "nowhere", tmp_path / "log" / "items.csv"
    for root, got in (
        (None, "null; give its path"),
        (nowhere, f"{nowhere}, which does not exist; correct the path"),
        (file, f"{file}, which is a file; correct the path"),
    ):
        message = refused(lambda root=root: of_files(root=root and str(root)).store)
        assert message == f"data.root must be the folder of the log's files, got {got}"


def test_a_missing_file_is_named(of_files: Make, tmp_path: Path) -> None:
    (tmp_path / "log" / "items.csv").unlink()
    message = refused(lambda: of_files().store)
    assert message.startswith(
        f"data.root must hold items.csv, got {tmp_path / 'log'} without it; put it there"
    )
    (tmp_path / "log" / "items.csv").mkdir()  # a folder of that name is no file
    assert refused(lambda: of_files().store) == message
    assert "must hold **/*.tsv" in refused(lambda: of_files(files=["**/*.tsv"]).store)


def test_days_on_a_log_without_click_times_are_refused_and_ranks_offered(
    of_files: Make, tmp_path: Path
) -> None:
    (tmp_path / "log" / "events.csv").write_text("order only")
    message = refused(lambda: of_files(age="days").rows("train"))
    assert message.startswith("data.age must be rank for a log without click times, got days")
    assert "data.age=rank" in message
    data = of_files(age="rank")
    assert data.unit == "rank"
    batch = drain(data, "test")[0]
    assert batch.age[batch.history_mask].unique().tolist() == list(range(batch.history.shape[1]))


def test_a_log_without_impressions_is_sampled(make_log: Make, tmp_path: Path) -> None:
    def bare(files: list[Path]) -> Tables:
        log = tables_of([(n % 4, n % 6, n * DAY_S // 4) for n in range(60)], [(0, 0, [0])])
        return Tables(log.items, log.events, None, True)

    fair = Negatives(
        per_positive=1, by="popularity", window_days=30, exclude_seen=False, max_positives=5, seed=1
    )
    data = make_log(cache_dir=str(tmp_path), negatives=fair)
    data.source = partial(bare)
    batch = drain(data, "test")[0]
    assert (batch.label.sum(1) == 1).all()
    assert (batch.candidate_mask.sum(1) == 2).all()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"age": "weeks"}, "data.age"),
        ({"split": {"val": 0.0, "test": 0.1}}, "data.split.val"),
        ({"split": {"val": 0.1, "test": 0.9}}, "data.split.test"),
        ({"split": {"val": 0.6, "test": 0.6}}, r"data.split.val \+ data.split.test"),
        ({"max_history": 0}, "data.max_history"),
        ({"min_history": -1}, "data.min_history"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"eval_batch_size": 0}, "data.eval_batch_size"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"seed": -1}, "seed"),
        ({"max_history": 2.5}, "data.max_history"),
        ({"batch_size": "8"}, "data.batch_size"),
        ({"num_workers": 1000}, "data.num_workers"),
        ({"split": 0.1}, "data.split"),
        ({"files": "a.csv"}, "data.files"),
        ({"files": None}, "data.files"),
        ({"cache_dir": None}, "data.cache_dir"),
        ({"cache_dir": ""}, "data.cache_dir"),
        ({"root": "/log"}, "data.root"),
    ],
)
def test_settings_out_of_range_are_refused(make_log: Make, changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} must be "):
        make_log(**changes)

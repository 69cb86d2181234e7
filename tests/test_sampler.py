"""Which rows make a batch: every row once, by length, in runs, within a budget; from seed and epoch alone."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.ranges import runs
from halflife.sampler import BatchRows

Make = Callable[..., DataModule]

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

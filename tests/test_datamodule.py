"""The one DataModule: splits by the clock, every row once, and what it refuses."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halflife.batches import Batch
from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.negatives import Negatives
from halflife.tables import DAY_S, Tables
from tests.refusals import refusal
from tests.test_batches import same, tables_of

START = 1_706_745_600  # 2024-02-01: where float32 counts seconds in steps of 128

Make = Callable[..., DataModule]


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


def test_a_min_history_that_nobody_has_is_refusal(make_log: Make) -> None:
    message = refusal(lambda: make_log(min_history=10_000).rows("val"))
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


def test_a_missing_root_is_refusal(of_files: Make, tmp_path: Path) -> None:
    nowhere, file = tmp_path / "nowhere", tmp_path / "log" / "items.csv"
    for root, got in (
        (None, "null; give its path"),
        (nowhere, f"{nowhere}, which does not exist; correct the path"),
        (file, f"{file}, which is a file; correct the path"),
    ):
        message = refusal(lambda root=root: of_files(root=root and str(root)).store)
        assert message == f"data.root must be the folder of the log's files, got {got}"


def test_a_missing_file_is_named(of_files: Make, tmp_path: Path) -> None:
    (tmp_path / "log" / "items.csv").unlink()
    message = refusal(lambda: of_files().store)
    assert message.startswith(
        f"data.root must hold items.csv, got {tmp_path / 'log'} without it; put it there"
    )
    (tmp_path / "log" / "items.csv").mkdir()  # a folder of that name is no file
    assert refusal(lambda: of_files().store) == message
    assert "must hold **/*.tsv" in refusal(lambda: of_files(files=["**/*.tsv"]).store)


def test_days_on_a_log_without_click_times_are_refused_and_ranks_offered(
    of_files: Make, tmp_path: Path
) -> None:
    (tmp_path / "log" / "events.csv").write_text("order only")
    message = refusal(lambda: of_files(age="days").rows("train"))
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
def test_settings_out_of_range_are_refusal(make_log: Make, changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} must be "):
        make_log(**changes)

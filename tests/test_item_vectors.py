"""Item vectors on their way: from rows by id into the Store, and each distinct item's into the Batch."""

import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife import item_vectors
from halflife.arrays import build
from halflife.batches import Impressions
from halflife.build import table
from halflife.card import describe
from halflife.card_page import page
from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.pseudonyms import VARIABLE
from halflife.sources import synthetic
from halflife.store import Store
from halflife.tables import Tables
from tests.refusals import refusal

START = 1_700_000_000
ITEMS = ["c", "a", "d", "b", "e"]  # not in the Store's order, so that an index mixed up shows
NUMBER = st.floats(width=32, allow_nan=False, allow_infinity=False)

Make = Callable[..., DataModule]


def log_of(vectors: dict[str, list[float]] | pl.DataFrame | None, **changes: Any) -> Tables:
    """A log of ten clicks whose items have these vectors."""
    if isinstance(vectors, dict):
        frame = pl.DataFrame({"item_id": list(vectors)}, schema={"item_id": pl.String})
        vectors = frame.with_columns(vector=pl.Series(list(vectors.values()), dtype=pl.List(pl.Float64)))
    events = pl.DataFrame(
        {"user_id": ["u", "v"] * 5, "item_id": ITEMS * 2, "timestamp_s": range(START, START + 10)}
    )
    shown = pl.DataFrame(
        {"user_id": ["u", "v", "u"], "impression_id": ["1", "2", "3"]}
        | {"timestamp_s": [START + 4, START + 8, START + 20]}
        | {"candidates": [["a", "b"], ["d"], ["e", "c", "a"]], "labels": [[1, 0], [1], [0, 0, 1]]}
    )
    given = {
        "items": pl.DataFrame({"item_id": ITEMS, "text": "text", "category": "x"}),
        "events": events.with_columns(kind=pl.lit("click"), value=pl.lit(1.0)),
        "impressions": shown,
        "has_click_times": True,
        "vectors": vectors,
    }
    return Tables(**(given | changes))


def built(log: Tables, folder: Path) -> Store:
    build(log, None, folder)
    return Store(folder)


def refused(log: Tables, folder: Path) -> str:
    return refusal(lambda: build(log, None, folder))


@settings(max_examples=40)
@given(
    rows=st.dictionaries(
        st.sampled_from([*ITEMS, "stranger", "other"]), st.lists(NUMBER, min_size=3, max_size=3), min_size=1
    ).filter(lambda rows: set(rows) & set(ITEMS)),
    cells=st.sampled_from([1, 7, item_vectors.CELLS]),
    asked=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
)
def test_each_distinct_item_of_a_batch_has_the_vector_of_its_row(
    rows: dict[str, list[float]], cells: int, asked: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(item_vectors, "CELLS", cells)  # however the stream is cut
        store = built(log_of(rows), Path(folder))
        batch = Impressions(store, 50, "days", None)[np.array(asked)]
        assert batch.item_vectors is not None
        assert batch.item_vector_mask is not None
        assert batch.item_vectors.shape == (len(batch.item), 3)
        for item, vector, real in zip(batch.item, batch.item_vectors, batch.item_vector_mask, strict=True):
            name = store.items["item_id"][int(item)]
            assert bool(real) == (name in rows)
            np.testing.assert_array_equal(vector.numpy(), np.float32(rows.get(name, [0, 0, 0])))
        assert store.about["vectors"] == {"dimension": 3, "items": len(set(rows) & set(ITEMS))}
        strangers = len(set(rows) - set(ITEMS))
        assert store.about["dropped"].get(item_vectors.STRANGERS, 0) == strangers


def test_the_store_maps_vectors_as_float32(tmp_path: Path) -> None:
    store = built(log_of({"a": [0.1, 2]}), tmp_path)
    assert isinstance(store.item_vector, np.memmap)
    assert (store.item_vector.dtype, store.item_vector.shape) == (np.float32, (5, 2))
    assert store.item_vector_mask.tolist() == [True, False, False, False, False]


def test_a_log_without_vectors_has_none_in_store_batch_and_card(small_log: DataModule) -> None:
    batch = small_log.impressions()[small_log.rows("test")[:4]]
    assert (batch.item_vectors, batch.item_vector_mask) == (None, None)
    assert not small_log.store.has_vectors
    assert not list(small_log.store.directory.glob("item_vector*"))
    assert "vectors" not in describe(small_log, None, 8)


@pytest.mark.parametrize("cells", [1, 4, item_vectors.CELLS])
def test_an_item_has_the_mean_of_its_entities(
    cells: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_vectors, "CELLS", cells)
    links = {"a": ["Q1", "Q2", "Q2"], "b": ["Q2"], "c": ["Q9"], "d": ["Q3", "Q9"], "gone": ["Q1"]}
    entities = pl.DataFrame({"item_id": list(links), "entity_id": list(links.values())}).explode("entity_id")
    rows = {"Q1": [1.0, 0.0], "Q2": [0.0, 3.0], "Q3": [5.0, 5.0], "Q4": [9.0, 9.0], "e": [7.0, 7.0]}
    store = built(log_of(rows, entities=entities), tmp_path)
    assert store.item_vector.tolist() == [[0.5, 1.5], [0, 3], [0, 0], [5, 5], [7, 7]]
    assert store.item_vector_mask.tolist() == [True, True, False, True, True]
    assert store.about["dropped"] == {item_vectors.STRANGERS: 1}  # Q4, which no item is about


def test_of_an_id_that_comes_twice_the_first_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = pl.DataFrame({"item_id": ["a", "b", "a", "a"], "vector": [[1.0], [2.0], [3.0], [4.0]]})
    for cells in (1, item_vectors.CELLS):
        monkeypatch.setattr(item_vectors, "CELLS", cells)
        (tmp_path / str(cells)).mkdir()
        store = built(log_of(twice), tmp_path / str(cells))
        assert store.item_vector[:2].tolist() == [[1], [2]]
        assert store.about["dropped"] == {item_vectors.AGAIN: 2}


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        ({}, "data.vectors must hold at least 1 vector, got none"),
        ({"a": []}, "data.vectors must hold at least 1 vector, got none"),
        ({"a": [1.0, 2], "b": [1.0]}, "data.vectors must hold 2 numbers a row, got 1 for b"),
        ({"a": [1.0, 2], "b": [1.0, float("nan")]}, "must hold finite numbers, got another value for b"),
        ({"a": [1.0, 2], "b": [float("inf"), 1.0]}, "must hold finite numbers, got another value for b"),
        ({"y": [1.0], "z": [2.0]}, "got none among 2 ids, such as y beside the item a"),
    ],
)
def test_vectors_that_will_not_do_are_refused(vectors: Any, words: str, tmp_path: Path) -> None:
    assert words in refused(log_of(vectors), tmp_path)


def test_vectors_are_looked_at_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n, width, seen = 5_000, 16, []
    checked = item_vectors._checked

    def noted(batch: pl.DataFrame, width: int) -> Any:
        seen.append(len(batch))
        return checked(batch, width)

    monkeypatch.setattr(item_vectors, "CELLS", 1_000 * width)
    monkeypatch.setattr(item_vectors, "_checked", noted)
    names, given = [f"i{i}" for i in range(n)], np.arange(n * width, dtype=np.float32).reshape(n, width)
    file = tmp_path / "v.parquet"
    pl.DataFrame({"item_id": names, "vector": pl.Series(given)}).write_parquet(file, row_group_size=500)
    log = replace(log_of(None), vectors=pl.scan_parquet(file))
    about, _ = item_vectors.write(log, pl.Series(names), tmp_path)
    assert about == {"dimension": width, "items": n}
    assert sum(seen) == n
    assert max(seen) <= 1_000
    assert np.array_equal(np.load(tmp_path / "item_vector.npy"), given)


# --- from data.vectors


@pytest.fixture(scope="module")
def given_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of every second item of the newsroom, and of one that it has not."""
    file = tmp_path_factory.mktemp("given") / "v.csv"
    rows = [f"N{i:05d},{i},{i / 3}\n" for i in range(0, 48, 2)]
    file.write_text("".join([*rows, "N99999,1,2\n"]))
    return file


def test_a_log_takes_the_vectors_of_a_file(make_log: Make, given_file: Path) -> None:
    data = make_log(vectors=str(given_file))
    batch = next(iter(data.train_dataloader()))
    assert batch.item_vectors is not None
    assert batch.item_vector_mask is not None
    names = [int(name[1:]) for name in data.store.items["item_id"]]
    number = torch.tensor(names, dtype=torch.float32)[batch.item]
    even = number % 2 == 0
    assert torch.equal(batch.item_vector_mask, even)
    assert 0 < even.sum() < len(even)
    want = torch.stack([number, number / 3], 1) * even[:, None]
    torch.testing.assert_close(batch.item_vectors, want)


def test_vectors_survive_the_way_from_a_worker(make_log: Make, given_file: Path) -> None:
    found = [next(iter(make_log(vectors=str(given_file), num_workers=n).val_dataloader())) for n in (0, 1)]
    assert torch.equal(found[0].item_vectors, found[1].item_vectors)  # type: ignore[arg-type]
    assert torch.equal(found[0].item_vector_mask, found[1].item_vector_mask)  # type: ignore[arg-type]


def test_the_vectors_are_a_part_of_the_stores_key_and_fingerprint(make_log: Make, tmp_path: Path) -> None:
    file = tmp_path / "v.csv"
    rows = [f"N{i:05d},{i + 1}\n" for i in range(48)]
    file.write_text("".join(rows))
    plain, first = make_log().store, make_log(vectors=str(file)).store
    assert make_log(vectors=str(file)).store.directory == first.directory
    file.write_text("".join([*rows[:-1], "N00047,7.25\n"]))
    second = make_log(vectors=str(file)).store
    stores = [plain, first, second]
    assert len({s.directory for s in stores}) == 3
    assert len({s.about["fingerprint"] for s in stores}) == 3
    for name in ("event_item", "history_end", "candidate_item", "item_born"):
        assert all(np.array_equal(getattr(plain, name), getattr(s, name)) for s in stores[1:])


def test_the_card_says_how_many_items_have_one(make_log: Make, given_file: Path) -> None:
    from rich.console import Console

    found = describe(make_log(vectors=str(given_file)), None, 8)
    assert found["vectors"] == {"dimension": 2, "items": 24, "share": 0.5}
    assert found["dropped"][item_vectors.STRANGERS] == 1
    assert json.loads(json.dumps(found))["vectors"]["share"] == 0.5
    assert "of items with a vector of 2" in page(found)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table(found))
    text = console.export_text()
    assert "items with a vector" in text
    assert "50.0%" in text
    assert f"left out: {item_vectors.STRANGERS}" in text


def test_pseudonyms_leave_the_vectors_alone(
    make_log: Make, given_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "a key of these tests alone")
    hidden = make_log(vectors=str(given_file), pseudonymize=True).store
    plain = make_log(vectors=str(given_file)).store
    assert np.array_equal(hidden.item_vector, plain.item_vector)


def with_own(files: list[Path], **settings: Any) -> Tables:
    log = synthetic.read(files, **settings)
    return replace(log, vectors=pl.DataFrame({"item_id": ["N00000"], "vector": [[1.0]]}))


def test_two_sorts_of_vectors_are_refused(make_log: Make, given_file: Path, newsroom: dict[str, Any]) -> None:
    data = make_log(vectors=str(given_file))
    data.source = partial(with_own, **newsroom)
    with pytest.raises(InputError, match=r"^data\.vectors must be null where data\.source\.items\.vector"):
        _ = data.store

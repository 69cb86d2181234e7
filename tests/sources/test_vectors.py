"""Files of item vectors: every layout reads alike, and what is wrong is named by file and row."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife.errors import InputError
from halflife.sources import vectors
from halflife.tables import Tables

WANT = [("a", [1.0, -2.5]), ("b", [0.25, 4.0])]
FLAT = pl.DataFrame({"id": ["a", "b"], "x": [1.0, 0.25], "y": [-2.5, 4.0]})
LISTS = pl.DataFrame({"id": ["a", "b"], "v": [[1.0, -2.5], [0.25, 4.0]]})
TEXTS = {
    "headed.csv": "item_id,x,y\na,1,-2.5\nb,0.25,4\n",
    "bare.csv": "a,1,-2.5\nb,0.25,4\n",
    "numbered.csv": ",0,1\na,1,-2.5\nb,0.25,4\n",
    "semicolons.txt": "id;x;y\r\na;1;-2.5\r\nb;0.25;4e0\r\n",
    "publishers.vec": "a\t1.0\t-2.5\t\nb\t0.25\t4\t\n",
    "word2vec.vec": "2 2\na 1 -2.5\nb 0.25 4\n",
    "pandas.csv": 'id,v\na,"[1, -2.5]"\nb,"[0.25, 4]"\n',
    "numpy.csv": "id,v\na,[1.  -2.5]\nb,[0.25 4.]\n",
    "blank.tsv": "\na\t1\t-2.5\n\nb\t0.25\t4\n",
    "mark.csv": "\ufeffid,x,y\na,1,-2.5\nb,0.25,4\n",
    "lines.jsonl": '{"id": "a", "v": [1, -2.5]}\n\n{"id": "b", "v": [0.25, 4]}\n',
}
BAD = [
    ("short.csv", "a,1,2\nb,3\n", "vector in .*short.csv line 2 must hold 2 finite numbers"),
    ("long.csv", "id,x,y\na,1,2\nb,3,4,5\n", "line 3 must hold 2 finite numbers"),
    ("bare.csv", "a,1,2\nb\n", "must hold an id and numbers a line"),
    ("bare2.csv", "a,1,2\nb,3,4\nc\n", "line 3 must hold 2 finite numbers"),
    ("word.csv", "a,1,2\nb,3,x\n", r"line 2 must hold 2 finite numbers, as many as the first, got .*'x'"),
    ("nan.csv", "a,1,2\nb,3,nan\n", "line 2 must hold 2 finite numbers"),
    ("inf.csv", "a,1,2\nb,3,-inf\n", "line 2 must hold 2 finite numbers"),
    ("huge.csv", "a,1,2\nb,3,1e39\n", "line 2 must hold 2 finite numbers"),  # none in float32
    ("twice.csv", "a,1,2\nb,3,4\na,5,6\n", "item_id in .*twice.csv line 3 must be listed once, got 'a'"),
    ("noid.csv", "a,1,2\n,3,4\n", "line 2 must be filled in, got nothing; correct the row"),
    ("cut.csv", "a,1,2\nb,3,4", "line 2 must end in a line break"),
    ("empty.csv", "", "must hold rows, got an empty file"),
    ("header.csv", "id,x\n", "must have at least 1 row"),
    ("comma.csv", "a;0,5;1\nb;0,5;1\n", "line 1 must hold 2 finite numbers"),
    ("bytes.csv", b"a,1\nb,2\n\xff,3\n", "line 3 must be UTF-8 text, got the byte 0xff"),
    ("cut.csv.gz", gzip.compress(b"a,1\nb,2\n" * 200)[:-12], "must be a complete gzip file"),
    ("array.jsonl", "[1, 2]\n", 'must hold objects such as {"item_id"'),
    ("more.jsonl", '{"id": "a", "title": "x", "v": [1]}\n', 'must hold objects such as {"item_id"'),
    ("short.jsonl", '{"id": "a", "v": [1, 2]}\n{"id": "b", "v": [1]}\n', "v in .* line 2 must hold 2 finite"),
    ("none.jsonl", '{"id": "a", "v": []}\n', "must hold at least 1 vector of numbers, got none"),
    ("text.parquet", "nothing of the kind", "must be a whole Parquet file"),
    ("words.parquet", FLAT.with_columns(x=pl.lit("t")), r"must have the column of ids first, .*x \(String\)"),
    ("ids.parquet", FLAT.select("id"), "must have the column of ids first"),
    ("gap.parquet", FLAT.with_columns(y=pl.Series([1.0, None])), "y in .* row 2 must be a finite number"),
    ("inf.parquet", FLAT.with_columns(y=pl.Series([1.0, np.inf])), "y in .* row 2 must be a finite number"),
    ("gap2.parquet", LISTS.with_columns(v=pl.Series([[1.0, 2], [3.0, None]])), "v in .* row 2 must hold 2"),
    ("vectors.npz", "x", r"data\.vectors must name a file that ends in .*, got vectors\.npz; save it as"),
]


def saved(folder: Path, name: str, content: str | bytes | pl.DataFrame) -> Path:
    file = folder / name
    if isinstance(content, pl.DataFrame):
        content.write_parquet(file)
    else:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize("name", TEXTS)
def test_text_reads_the_same_in_every_layout(name: str, tmp_path: Path) -> None:
    found = vectors.read([saved(tmp_path, name, TEXTS[name])]).collect()
    assert found.schema == {"item_id": pl.String, "vector": pl.List(pl.Float32)}
    assert found.rows() == WANT


@pytest.mark.parametrize(
    "frame",
    [
        FLAT,
        LISTS,
        LISTS.with_columns(v=pl.col("v").cast(pl.Array(pl.Float32, 2))),
        FLAT.with_columns(pl.col("x", "y").cast(pl.Float32)),
    ],
    ids=["columns", "lists", "arrays", "float32"],
)
def test_parquet_reads_the_same_in_every_layout(frame: pl.DataFrame, tmp_path: Path) -> None:
    assert vectors.read([saved(tmp_path, "v.parquet", frame)]).collect().rows() == WANT


def test_numbers_as_ids_are_those_of_the_log(tmp_path: Path) -> None:
    frame = LISTS.with_columns(id=pl.Series([17850.0, 3.0]))
    found = vectors.read([saved(tmp_path, "v.parquet", frame)]).collect()
    assert found["item_id"].to_list() == ["17850", "3"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_text_may_be_compressed(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    ending = "gz" if pack is gzip.compress else "zst"
    file = saved(tmp_path, f"v.csv.{ending}", pack(TEXTS["headed.csv"].encode()))
    assert vectors.read([file]).collect().rows() == WANT


def test_a_row_that_says_nothing_is_an_item_without_a_vector(tmp_path: Path) -> None:
    empty = [
        saved(tmp_path, "a.parquet", LISTS.vstack(pl.DataFrame({"id": ["c"], "v": [None]}, LISTS.schema))),
        saved(tmp_path, "b.parquet", LISTS.vstack(pl.DataFrame({"id": ["c"], "v": [[]]}, LISTS.schema))),
        saved(tmp_path, "c.parquet", FLAT.vstack(pl.DataFrame([["c"], [None], [None]], FLAT.schema))),
        saved(tmp_path, "d.jsonl", TEXTS["lines.jsonl"] + '{"id": "c", "v": null}\n'),
    ]
    for file in empty:
        assert vectors.read([file]).collect().rows() == WANT


def test_files_may_differ_in_layout_but_not_in_dimension(tmp_path: Path) -> None:
    files = [saved(tmp_path, "a.csv", TEXTS["bare.csv"]), saved(tmp_path, "b.parquet", LISTS)]
    assert vectors.read(files).collect().rows() == [*WANT, *WANT]
    files.append(saved(tmp_path, "c.csv", "z,1,2,3\n"))
    with pytest.raises(InputError, match=r"c\.csv line 1 must hold 2 finite numbers, as many as the first"):
        vectors.read(files)


@pytest.mark.parametrize(("name", "content", "words"), BAD, ids=[b[0] for b in BAD])
def test_what_is_wrong_is_one_sentence(
    name: str, content: Any, words: str, tmp_path: Path, refused: Any
) -> None:
    file = saved(tmp_path, name, content)
    message = refused(lambda: vectors.read([file]))
    assert re.search(words, message), message


@settings(max_examples=30)
@given(
    rows=st.dictionaries(
        st.text("abcQ19-", min_size=1, max_size=5),
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    )
)
def test_every_number_survives_every_format(rows: dict[str, list[float]], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("v")
    frame = pl.DataFrame({"id": list(rows), "v": list(rows.values())})
    flat = frame.select("id", *(pl.col("v").list.get(i).alias(f"v{i}") for i in range(3)))
    files = [
        saved(folder, "a.parquet", frame),
        saved(folder, "b.parquet", flat),
        saved(folder, "c.csv", flat.write_csv()),
        saved(folder, "d.tsv", flat.write_csv(separator="\t", include_header=False)),
        saved(folder, "e.jsonl", "".join(json.dumps({"id": k, "v": v}) + "\n" for k, v in rows.items())),
    ]
    for file in files:
        found = dict(vectors.read([file]).collect().rows())
        assert list(found) == list(rows)
        for name, vector in rows.items():
            np.testing.assert_array_equal(np.float32(found[name]), np.float32(vector))


# --- which files


def test_files_are_found_below_the_root_by_path_or_glob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("train", "dev [1]"):
        (tmp_path / folder).mkdir()
        saved(tmp_path / folder, "entity_embedding.vec", "a\t1\n")
    train, dev = tmp_path / "train/entity_embedding.vec", tmp_path / "dev [1]/entity_embedding.vec"
    root = str(tmp_path)
    assert vectors.located("train/entity_embedding.vec", root) == [train]
    assert vectors.located("dev [1]/entity_embedding.vec", root) == [dev]
    assert vectors.located("**/*.vec", root) == [dev, train]
    assert vectors.located([str(train), "**/*.vec"], root) == [train, dev]
    assert vectors.located(str(train), "/elsewhere") == [train]
    monkeypatch.chdir(tmp_path)
    assert [p.absolute() for p in vectors.located("train/entity_embedding.vec", None)] == [train]


@pytest.mark.parametrize("given", ["absent.parquet", "*.none", ["absent.csv"], [], "", 3])
def test_a_name_that_is_no_file_is_refused(given: Any, tmp_path: Path, refused: Any) -> None:
    assert refused(lambda: vectors.located(given, str(tmp_path))).startswith("data.vectors must be a ")


# --- columns of data=table


EVENTS = "user_id,item_id,timestamp_s\n" + "".join(
    f"u{i % 2},{'ab'[i % 2]},{1_600_000_000 + i}\n" for i in range(4)
)


def table_of(
    read: Callable[..., Tables], folder: Path, items: pl.DataFrame | str, vector: Any, **more: Any
) -> Tables:
    name = "items.parquet" if isinstance(items, pl.DataFrame) else more.pop("name", "items.csv")
    files = [saved(folder, "events.csv", EVENTS), saved(folder, name, items)]
    mapping = {"files": "items.*", "item_id": "id", "vector": vector}
    return read("table", files, {"events": {"files": "events.csv"}, "items": mapping, **more})


@pytest.mark.parametrize(
    ("items", "vector", "name"),
    [
        (LISTS.with_columns(t=pl.lit("x")), "v", ""),
        (FLAT.with_columns(t=pl.lit("x")), ["x", "y"], ""),
        (FLAT.with_columns(t=pl.lit("x")).write_csv(), ["x", "y"], "items.csv"),
        ('id;v;t\na;"[1, -2.5]";x\nb;"[0.25, 4]";x\n', "v", "items.csv"),
        (TEXTS["lines.jsonl"], "v", "items.jsonl"),
    ],
    ids=["lists", "columns", "csv columns", "csv lists", "json"],
)
def test_a_table_names_the_columns_of_its_vectors(
    items: Any, vector: Any, name: str, tmp_path: Path, read: Callable[..., Tables]
) -> None:
    tables = table_of(read, tmp_path, items, vector, **({"name": name} if name else {}))
    assert tables.vectors is not None
    assert tables.vectors.lazy().collect().rows() == WANT
    assert tables.items.lazy().collect()["item_id"].to_list() == ["a", "b"]


def test_a_table_without_the_mapping_has_no_vectors(tmp_path: Path, read: Callable[..., Tables]) -> None:
    assert table_of(read, tmp_path, LISTS, None).vectors is None


def test_a_bad_vector_of_a_table_is_named_or_its_row_dropped(
    tmp_path: Path, read: Callable[..., Tables], refused: Any
) -> None:
    bad = LISTS.with_columns(v=pl.Series([[1.0, -2.5], [0.25]]))
    assert "v in" in refused(lambda: table_of(read, tmp_path, bad, "v"))
    tables = table_of(read, tmp_path, bad, "v", bad_rows="drop")
    assert tables.vectors is not None
    assert tables.vectors.lazy().collect().rows() == WANT[:1]
    assert tables.dropped == {"rows of items: v must hold 2 finite numbers, as many as the first": 1}


def test_vectors_in_the_rows_of_events_are_refused(
    tmp_path: Path, read: Callable[..., Tables], refused: Any
) -> None:
    file = saved(tmp_path, "events.csv", EVENTS)
    settings = {"events": {"files": "events.csv"}, "items": {"vector": "x"}}
    message = refused(lambda: read("table", [file], settings))
    assert message.startswith("data.source.items.vector must be null where items have neither files nor sql")

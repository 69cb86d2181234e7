"""data=table: every format, mapping and time, on small files; and the whole way into a Store."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from backports import zstd
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from halflife.sources import queries, table, templates

FIRST = 1_609_459_200  # 2021-01-01 00:00 UTC
EVENTS = [
    {"who": "u1", "what": "a", "when": FIRST, "stars": 4.5},
    {"who": "u1", "what": "b", "when": FIRST + 60, "stars": 2.0},
    {"who": "u2", "what": "a", "when": FIRST + 3600, "stars": 5.0},
]
ITEMS = [
    {"sku": "a", "name": "Lamp, small", "brand": "Lux", "kind": "light"},
    {"sku": "b", "name": 'A "big" chair', "brand": None, "kind": None},
]
MAP: dict[str, Any] = {
    "events": {"files": "events.*", "user_id": "who", "item_id": "what", "timestamp_s": "when"},
    "items": {"files": "items.*", "item_id": "sku", "text": "{name}. {brand}", "category": "kind"},
}
WANT = {
    "events": [
        ("u1", "a", FIRST, "click", 1.0),
        ("u1", "b", FIRST + 60, "click", 1.0),
        ("u2", "a", FIRST + 3600, "click", 1.0),
    ],
    "items": [("a", "Lamp, small. Lux", "light", None), ("b", 'A "big" chair', "unknown", None)],
    "impressions": [],
}


def write(folder: Path, name: str, data: list[dict[str, Any]]) -> Path:
    """The rows in the format that the name's ending says."""
    frame, file = pl.DataFrame(data, infer_schema_length=None), folder / name
    kind = name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    marks = {"csv": ",", "tsv": "\t", "psv": "|", "txt": ";"}
    if kind in marks:
        body = frame.write_csv(separator=marks[kind]).encode()
    elif kind == "jsonl":
        body = "".join(json.dumps(row) + "\n" for row in data).encode()
    else:
        frame.write_parquet(file)
        return file
    ending = name.rpartition(".")[2]
    file.write_bytes({"gz": gzip.compress, "zst": zstd.compress}.get(ending, bytes)(body))
    return file


def both(folder: Path, ending: str) -> list[Path]:
    return [write(folder, f"events.{ending}", EVENTS), write(folder, f"items.{ending}", ITEMS)]


@pytest.mark.parametrize(
    "ending",
    ["csv", "tsv", "psv", "txt", "csv.gz", "csv.zst", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"],
)
def test_a_log_reads_the_same_in_every_format(ending, tmp_path, read, rows):
    assert rows(read("table", both(tmp_path, ending), MAP)) == WANT


def test_tables_may_be_of_different_formats_in_many_files_and_folders(tmp_path, read, rows):
    (tmp_path / "events").mkdir()
    files = [
        write(tmp_path / "events", "monday.csv", EVENTS[:1]),
        write(tmp_path / "events", "tuesday.jsonl.gz", EVENTS[1:2]),
        write(tmp_path / "events", "wednesday.parquet", EVENTS[2:]),
        write(tmp_path, "items.csv", ITEMS),
    ]
    for pattern in ("events", "events/*", ["monday.csv", "tuesday.*", "wednesday.parquet"]):
        settings = MAP | {"events": MAP["events"] | {"files": pattern}}
        assert rows(read("table", files, settings)) == WANT


def test_a_file_without_header_is_told_its_columns(tmp_path, read, rows):
    file = write(tmp_path, "events.csv", EVENTS)
    file.write_text(file.read_text().split("\n", 1)[1])
    settings = MAP | {"events": MAP["events"] | {"header": ["who", "what", "when", "stars"]}}
    assert rows(read("table", [file, write(tmp_path, "items.csv", ITEMS)], settings)) == WANT


def test_a_dot_leads_into_nested_json_and_lists_become_text(tmp_path, read, rows):
    lines = [
        {"u": {"id": 7}, "i": {"id": "a"}, "at": FIRST, "extra": [1]},
        {"at": FIRST, "u": {"id": 8}, "i": {"id": "a"}},
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(json.dumps(x) for x in lines) + "\n\n")
    pl.DataFrame({"sku": ["a"], "tags": [["x", "y"]]}).write_parquet(tmp_path / "items.parquet")
    got = rows(
        read(
            "table",
            sorted(tmp_path.iterdir()),
            {
                "events": {
                    "files": "events.jsonl",
                    "user_id": "u.id",
                    "item_id": "i.id",
                    "timestamp_s": "at",
                },
                "items": {"files": "items.parquet", "item_id": "sku", "text": "{tags}", "category": "tags"},
            },
        )
    )
    assert [(user, item) for user, item, *_ in got["events"]] == [("7", "a"), ("8", "a")]
    assert got["items"] == [("a", "x, y", "x", None)]


def test_explicit_feedback_keeps_the_values_from_the_least_up(tmp_path, read, rows):
    settings = MAP | {"events": MAP["events"] | {"value": "stars", "min_value": 4.0}}
    tables = read("table", both(tmp_path, "csv"), settings)
    assert [(u, i, v) for u, i, _, _, v in rows(tables)["events"]] == [("u1", "a", 4.5), ("u2", "a", 5.0)]
    assert tables.dropped == {table.LOW_VALUE: 1}


def test_the_catalogue_may_stand_in_the_rows_of_the_events(tmp_path, read, rows):
    wide = [e | {"name": f"Name of {e['what']}", "kind": "k"} for e in EVENTS]
    wide[2]["name"] = "renamed later"
    settings = {"events": MAP["events"], "items": {"text": "{name}", "category": "kind"}}
    got = rows(read("table", [write(tmp_path, "events.csv", wide)], settings))
    assert got["items"] == [("a", "Name of a", "k", None), ("b", "Name of b", "k", None)]
    got = rows(read("table", [tmp_path / "events.csv"], {"events": MAP["events"]}))
    assert got["items"] == [("a", "a", "unknown", None), ("b", "b", "unknown", None)]


def test_ids_that_a_null_beside_them_made_floats_meet_those_that_are_whole(tmp_path, read, rows):
    frame = pl.DataFrame({"who": [17850.0, 2.0], "what": [1, 2], "when": [FIRST, FIRST]})
    frame.write_parquet(tmp_path / "events.parquet")
    got = rows(read("table", [tmp_path / "events.parquet"], {"events": MAP["events"]}))
    assert [e[:2] for e in got["events"]] == [("17850", "1"), ("2", "2")]


# --- impressions

SHOWN = [
    {"at": FIRST + 10, "who": "u1", "what": "b", "hit": 0},
    {"at": FIRST + 10, "who": "u1", "what": "a", "hit": 1},
    {"at": FIRST + 20, "who": "u2", "what": "a", "hit": 0},
]
ROW_EACH = {"files": "shown.*", "user_id": "who", "timestamp_s": "at", "item_id": "what", "label": "hit"}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_rows_of_candidates_become_impressions_and_what_was_clicked_the_events(ending, tmp_path, read, rows):
    got = rows(read("table", [write(tmp_path, f"shown.{ending}", SHOWN)], {"impressions": ROW_EACH}))
    assert got["impressions"] == [
        (f"u1@{FIRST + 10}", "u1", FIRST + 10, ["a", "b"], [1, 0]),
        (f"u2@{FIRST + 20}", "u2", FIRST + 20, ["a"], [0]),
    ]
    assert got["events"] == [("u1", "a", FIRST + 10, "click", 1.0)]
    assert [item for item, *_ in got["items"]] == ["a", "b"]


def test_labels_may_be_true_and_false_and_impressions_have_ids_of_their_own(tmp_path, read, rows):
    data = [row | {"id": n, "hit": bool(row["hit"])} for row, n in zip(SHOWN, (1, 2, 2), strict=True)]
    data[1]["who"] = "u2"
    got = rows(
        read(
            "table",
            [write(tmp_path, "shown.csv", data)],
            {"impressions": ROW_EACH | {"impression_id": "id"}},
        )
    )
    assert got["impressions"] == [
        ("1", "u1", FIRST + 10, ["b"], [0]),
        ("2", "u2", FIRST + 10, ["a", "a"], [0, 1]),
    ]


LISTS = {"files": "shown.*", "user_id": "who", "timestamp_s": "at", "candidates": "shown"}


@pytest.mark.parametrize("answers", [{"labels": "labels"}, {"clicked": "hits"}])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_rows_of_impressions_hold_lists_or_their_writing(ending, answers, tmp_path, read, rows):
    data: list[dict[str, Any]] = [
        {"who": "u1", "at": FIRST, "shown": ["a", "b", "c"], "labels": [0, 0, 1], "hits": ["c"]},
        {"who": "u1", "at": FIRST + 5, "shown": ["a"], "labels": [0], "hits": []},
    ]
    if ending == "csv":
        data = [{k: str(v) if isinstance(v, list) else v for k, v in row.items()} for row in data]
    settings = {"impressions": LISTS | answers, "list_separator": ","}
    got = rows(read("table", [write(tmp_path, f"shown.{ending}", data)], settings))
    assert [row[1:] for row in got["impressions"]] == [
        ("u1", FIRST, ["a", "b", "c"], [0, 0, 1]),
        ("u1", FIRST + 5, ["a"], [0]),
    ]
    assert got["events"] == [("u1", "c", FIRST, "click", 1.0)]


# --- times


@pytest.mark.parametrize(
    ("written", "settings"),
    [
        ("1609459200", {}),
        ("1609459200000", {}),
        ("1609459200000000", {}),
        ("1609459200000000000", {}),
        ("1609459200.75", {}),
        ("1.6094592e9", {}),
        (" 1609459200 ", {}),
        ("2021-01-01", {}),
        ("2021-01-01 00:00", {}),
        ("2021-01-01T00:00:00.250", {}),
        ("2021-01-01T00:00:00Z", {}),
        ("2021-01-01T02:00:00+02:00", {}),
        ("2021-01-01 01:00:00", {"time_zone": "Europe/Oslo"}),
        ("01/01/2021 00:00", {"time": "%d/%m/%Y %H:%M"}),
        ("20210101", {"time": "%Y%m%d"}),
        ("1609459200", {"time": "s"}),
        ("1609459200000", {"time": "ms"}),
    ],
)
def test_a_moment_is_the_same_second_however_it_is_written(written, settings, tmp_path, read, rows):
    (tmp_path / "events.csv").write_text(f"who,what,when\nu,a,{written}\n")
    got = rows(read("table", [tmp_path / "events.csv"], {"events": MAP["events"]} | settings))
    assert got["events"] == [("u", "a", FIRST, "click", 1.0)]


@pytest.mark.parametrize(
    "moment",
    [
        pl.Series([FIRST], dtype=pl.Int64),
        pl.Series([FIRST * 1000.0]),
        pl.Series([FIRST * 1000]).cast(pl.Datetime("ms")),
        pl.Series([FIRST * 1_000_000]).cast(pl.Datetime("us", "Asia/Tokyo")),
        pl.Series(["2021-01-01"]).str.to_date(),
    ],
)
def test_typed_times_need_no_declaration(moment, tmp_path, read, rows):
    pl.DataFrame({"who": ["u"], "what": ["a"], "when": moment}).write_parquet(tmp_path / "events.parquet")
    got = rows(read("table", [tmp_path / "events.parquet"], {"events": MAP["events"]}))
    assert got["events"] == [("u", "a", FIRST, "click", 1.0)]


def test_an_hour_that_the_spring_change_skips_is_of_the_clock_before_it(tmp_path, read, rows):
    (tmp_path / "events.csv").write_text("who,what,when\nu,a,2021-03-28 02:30:00\nu,b,2021-03-28 03:30:00\n")
    settings = {"events": MAP["events"], "time_zone": "Europe/Oslo"}
    times = [t for _, _, t, *_ in rows(read("table", [tmp_path / "events.csv"], settings))["events"]]
    assert times == [1_616_895_000, 1_616_895_000]  # 01:30 UTC


@given(st.lists(st.integers(10**8, FIRST), min_size=1, max_size=20), st.sampled_from(["s", "ms", "us", "ns"]))
def test_numbers_of_any_unit_come_back_as_the_seconds_they_were(tmp_path_factory, moments, unit):
    from halflife.sources import times

    values = pl.Series([m * times.UNITS[unit] for m in moments])
    found = times.detect("at", "log", values)
    assert found == unit
    expression = times.seconds("at", values.dtype, found, "UTC")
    assert pl.DataFrame({"at": values}).select(expression).to_series().to_list() == moments


# --- dropping


def test_bad_rows_are_left_out_and_counted_when_asked(tmp_path, read, rows):
    bad = [
        {"who": "", "what": "a", "when": FIRST, "stars": 1.0},
        {"who": "u", "what": "a", "when": -5, "stars": 1.0},
    ]
    files = [write(tmp_path, "events.csv", [*EVENTS, *bad]), write(tmp_path, "items.csv", ITEMS)]
    tables = read("table", files, MAP | {"bad_rows": "drop"})
    assert rows(tables) == WANT
    assert tables.dropped == {
        "rows of events: who must be filled in": 1,
        "rows of events: when must lie between 1970 and today": 1,
    }


# --- queries


def test_a_query_of_duckdb_reads_files_itself(tmp_path, read, rows):
    both(tmp_path, "parquet")
    settings = {
        "events": MAP["events"]
        | {"files": None, "sql": f"SELECT * FROM read_parquet('{tmp_path}/events.parquet');"},
        "items": MAP["items"]
        | {"files": None, "sql": f"SELECT * FROM '{tmp_path}/items.parquet' ORDER BY sku"},
    }
    assert rows(read("table", [], settings)) == WANT


def test_a_query_runs_in_a_database_file_of_the_log(tmp_path, read, rows):
    import duckdb

    both(tmp_path, "parquet")
    with duckdb.connect(str(tmp_path / "shop.duckdb")) as connection:
        connection.execute(f"CREATE TABLE log AS SELECT * FROM '{tmp_path}/events.parquet'")
        connection.execute(f"CREATE TABLE goods AS SELECT * FROM '{tmp_path}/items.parquet'")
    settings = {
        "database": "shop.duckdb",
        "events": MAP["events"]
        | {"files": None, "sql": 'SELECT who, what, to_timestamp("when") AS "when" FROM log'},
        "items": MAP["items"] | {"files": None, "sql": "SELECT * FROM goods"},
    }
    assert rows(read("table", [tmp_path / "shop.duckdb"], settings)) == WANT


@pytest.mark.skipif("HALFLIFE_POSTGRES" not in os.environ, reason="no server is named by HALFLIFE_POSTGRES")
def test_a_query_of_postgresql_streams_its_rows(read, rows, refused):
    values = ", ".join(f"('{e['who']}', '{e['what']}', to_timestamp({e['when']}))" for e in EVENTS)
    sql = f'SELECT * FROM (VALUES {values}) AS log (who, what, "when")'
    settings = {"database": os.environ["HALFLIFE_POSTGRES"]}
    got = rows(read("table", [], settings | {"events": MAP["events"] | {"files": None, "sql": sql}}))
    assert got["events"] == WANT["events"]
    halfway = {"files": None, "sql": "SELECT 1 / (5000 - i) AS who FROM generate_series(1, 9999) AS i"}
    message = refused(lambda: read("table", [], settings | {"events": MAP["events"] | halfway}))
    assert "data.source.events.sql must run to its end" in message
    assert "division by zero" in message


def test_a_missing_package_is_named_with_the_extra(monkeypatch, refused):
    import sys

    monkeypatch.setitem(sys.modules, "duckdb", None)
    message = refused(lambda: queries.run("data.source.events.sql", "SELECT 1", None, []))
    assert "duckdb, got none; run pip install 'halflife-rec[sql]'" in message


# --- templates


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{title}", "A title"),
        ("query: {title}", "query: A title"),
        ("{title}. {empty} ({year})", "A title (1999)"),
        ("{empty}. {title}", "A title"),
        ("{empty}{missing}", ""),
        ("{body:3}", "one two three"),
        ("{japanese:3}", "日本語"),
        ("{{{title}}}!", "{A title}!"),
    ],
)
def test_a_template_leaves_out_what_is_empty_with_what_stands_before_it(template, text):
    frame = pl.DataFrame(
        {
            "title": ["A  title "],
            "empty": [" "],
            "missing": pl.Series([None], dtype=pl.String),
            "year": ["1999"],
            "body": ["one two\nthree four"],
            "japanese": ["日本語のニュース"],
        }
    )
    assert frame.select(templates.fill("text", template)).item() == text


# --- the whole way


def test_a_log_goes_all_the_way_into_batches(tmp_path, read):
    from .conftest import composed

    n = 60
    events = [
        {"who": f"u{i % 5}", "what": f"i{i * 7 % 11}", "when": FIRST + i * 3600, "stars": 1.0}
        for i in range(n)
    ]
    items = [{"sku": f"i{k}", "name": f"Item {k}", "brand": None, "kind": "k"} for k in range(11)]
    (tmp_path / "log").mkdir()
    write(tmp_path / "log", "events.csv", events)
    write(tmp_path / "log", "items.jsonl", items)
    cfg = OmegaConf.merge(
        OmegaConf.create({"cache_dir": str(tmp_path / "cache"), "seed": 1}),
        {"data": OmegaConf.to_container(composed("table"), resolve=False)},
        {
            "data": {
                "root": str(tmp_path / "log"),
                "source": MAP,
                "batch_size": 8,
                "split": {"val": 0.2, "test": 0.2},
            }
        },
    )
    data = instantiate(cfg.data)
    assert data.store.about["events"] == n
    assert data.store.about["has_click_times"]
    assert not data.store.about["has_impressions"]
    batch = next(iter(data.train_dataloader()))
    assert batch.label.sum() == len(batch)
    assert set(data.store.items["text"]) == {f"Item {k}" for k in range(11)}

"""Malformed logs of data=table: each is refused in a sentence that names the place and a remedy."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from backports import zstd

HEADER = "who,what,when\n"
GOOD = "".join(f"u{i},i{i % 3},{1_609_459_200 + i}\n" for i in range(50))
MAP: dict[str, Any] = {"files": "log.*", "user_id": "who", "item_id": "what", "timestamp_s": "when"}


def line(number: int, text: str) -> bytes:
    """A good file but for one line, counted from 1."""
    lines = (HEADER + GOOD).splitlines()
    lines[number - 1] = text
    return ("\n".join(lines) + "\n").encode()


def json_line(number: int, text: str) -> bytes:
    rows = [json.dumps({"who": f"u{i}", "what": "a", "when": 1_609_459_200 + i}) for i in range(50)]
    rows[number - 1] = text
    return ("\n".join(rows) + "\n").encode()


def parquet(**columns: Any) -> Callable[[Path], None]:
    data = {"who": ["u", "v"], "what": ["a", "b"], "when": [1_609_459_200, 1_609_459_201]} | columns
    return lambda file: pl.DataFrame(data).write_parquet(file)


def cut_parquet(file: Path) -> None:
    parquet()(file)
    file.write_bytes(file.read_bytes()[:-20])


LONG = gzip.compress((HEADER + GOOD * 5000).encode())
FIX = "data.source.bad_rows=drop"

FILES: dict[str, tuple[str, bytes | Callable[[Path], None], dict[str, Any], list[str]]] = {
    # files as a whole
    "empty file": ("log.csv", b"", {}, ["log.csv", "empty file"]),
    "header alone": ("log.csv", HEADER.encode(), {}, ["log.csv", "at least 1 row"]),
    "empty JSON Lines": ("log.jsonl", b"\n \n", {}, ["log.jsonl", "at least 1 row"]),
    "folder in place of a file": ("log.csv", lambda f: f.mkdir(), {}, ["log.csv", "got a folder"]),
    "folder in place of Parquet": ("log.parquet", lambda f: f.mkdir(), {}, ["log.parquet", "got a folder"]),
    "missing file": ("log.csv", lambda f: None, {}, ["log.csv", "no such file"]),
    "unknown ending": ("log.xlsx", b"PK", {}, ["log.xlsx", "must end in .csv", "rename"]),
    "gzip cut short": ("log.csv.gz", LONG[: len(LONG) // 2], {}, ["ends early after line ", "download"]),
    "gzip damaged": ("log.csv.gz", LONG[:500] + b"\0\0\0\0" + LONG[504:], {}, ["undamaged gzip", "line "]),
    "zstd cut short": (
        "log.csv.zst",
        zstd.compress((HEADER + GOOD).encode())[:-9],
        {},
        ["complete zstd file"],
    ),
    "gzip that is none": (
        "log.csv.gz",
        (HEADER + GOOD).encode(),
        {"events": {"user_id": "x"}},
        ["log.csv.gz"],
    ),
    "JSON gzip cut short": (
        "log.jsonl.gz",
        gzip.compress(json_line(1, "{}") * 9000)[:5000],
        {},
        ["complete gzip file", "ends early after line "],
    ),
    "Parquet cut short": ("log.parquet", cut_parquet, {}, ["whole Parquet file", "download"]),
    "Parquet that is text": ("log.parquet", b"who,what,when\n", {}, ["whole Parquet file"]),
    "UTF-16": ("log.csv", (HEADER + GOOD).encode("utf-16"), {}, ["got UTF-16", "iconv -f UTF-16"]),
    "Latin-1": (
        "log.csv",
        line(7, "u,caf\xe9,1609459200").decode().encode("latin-1"),
        {},
        ["line 7", "0xe9"],
    ),
    "encodings mixed": (
        "log.csv",
        (HEADER + "ü,a,1609459200\n").encode() + "ü,a,1609459200\n".encode("cp1252"),
        {},
        ["log.csv line 3", "UTF-8", "0xfc"],
    ),
    "stops inside a line": ("log.csv", (HEADER + GOOD).encode()[:-3], {}, ["log.csv line 51", "cut off"]),
    "JSON array": ("log.json", b'[{"who": 1}]\n', {}, ["log.json", "got an array", "jq -c"]),
    # columns
    "wrong separator": (
        "log.csv",
        (HEADER + GOOD).replace(",", ";").encode(),
        {"separator": "tab"},
        ["must have the columns who, what, when", "who;what;when", "add who, what, when"],
    ),
    "separator of two characters": (
        "log.csv",
        (HEADER + GOOD).replace(",", "::").encode(),
        {"separator": "::"},
        ["data.source.separator", "got ::"],
    ),
    "missing column": ("log.csv", line(1, "user,what,when"), {}, ["columns who", "got user, what, when"]),
    "column twice": ("log.csv", line(1, "who,what,when,who"), {}, ["log.csv", "got who twice"]),
    "missing column of Parquet": (
        "log.parquet",
        parquet(),
        {"events": {"user_id": "whom"}},
        ["did you mean who?"],
    ),
    "missing field of JSON": (
        "log.jsonl",
        json_line(1, '{"who": "u"}'),
        {"events": {"user_id": "whom"}},
        ["must have the field whom", "did you mean who?"],
    ),
    "header for a file of other width": (
        "log.csv",
        GOOD.encode(),
        {"events": {"header": ["who", "what", "when", "stars"]}},
        ["log.csv line 1", "4 fields", "got 3"],
    ),
    # lines
    "short line": ("log.csv", line(7, "u,a"), {}, ["log.csv line 7", "3 fields", "got 2"]),
    "long line": ("log.csv", line(7, "u,a,1609459200,x"), {}, ["log.csv line 7", "3 fields", "got 4"]),
    "open quote": ("log.csv", line(7, 'u,"a,1609459200'), {}, ["log.csv line 7", "quotes closed"]),
    "NUL in an id": ("log.csv", line(7, "u\0v,a,1609459200"), {}, ["who in", "line 7", "NUL bytes", FIX]),
    "a line of 10 MB": (
        "log.csv",
        line(7, f"{'x' * 10_000_000},a,1609459200"),
        {},
        ["who in", "log.csv line 7", "at most 1000 bytes", "xxx…"],
    ),
    "a JSON line of 10 MB": (
        "log.jsonl",
        json_line(7, json.dumps({"who": "x" * 10_000_000, "what": "a", "when": 1_609_459_200})),
        {},
        ["who in", "log.jsonl line 7", "at most 1000 bytes"],
    ),
    "empty user": ("log.csv", line(7, ",a,1609459200"), {}, ["who in", "line 7", "filled in", "got nothing"]),
    "empty item behind a BOM": (
        "log.csv",
        b"\xef\xbb\xbf" + line(7, "u,,1609459200"),
        {},
        ["what in", "line 7"],
    ),
    "null user of Parquet": ("log.parquet", parquet(who=["u", None]), {}, ["who in", "log.parquet row 2"]),
    "broken JSON": ("log.jsonl", json_line(7, '{"who": "u", '), {}, ["log.jsonl line 7", "JSON object"]),
    "JSON that is no object": ("log.jsonl", json_line(7, "[1, 2]"), {}, ["log.jsonl line 7", "'[1, 2]'"]),
    "two JSON objects on a line": (
        "log.jsonl",
        json_line(7, "{} {}"),
        {},
        ["log.jsonl line 7", "Extra data"],
    ),
    # times
    "no time": ("log.csv", line(7, "u,a,soon"), {}, ["when in", "line 7", "Unix seconds", "'soon'", FIX]),
    "empty time": ("log.csv", line(7, "u,a,"), {}, ["when in", "line 7", "got nothing"]),
    "negative time": ("log.csv", line(7, "u,a,-5"), {}, ["line 7", "between 1970 and today", "'-5'"]),
    "time of the far future": ("log.csv", line(7, "u,a,4102444800"), {}, ["line 7", "'4102444800'"]),
    "milliseconds among seconds": (
        "log.csv",
        line(7, "u,a,1609459200000"),
        {},
        ["line 7", "be in seconds, as other rows are", "'1609459200000'"],
    ),
    "seconds declared, milliseconds given": (
        "log.csv",
        (HEADER + "u,a,1609459200000\n").encode(),
        {"time": "s"},
        ["line 2", "be in seconds"],
    ),
    "two dates of 1956 among good ones": (
        "log.csv",
        (
            HEADER + "".join(f"u,a,20{y}-03-01\n" for y in range(10, 24)) + "u,a,1956-03-01\nu,b,1956-04-01\n"
        ).encode(),
        {},
        ["when in", "line 16", "between 1970 and today", "'1956-03-01'", FIX],
    ),
    "a day that there is not": (
        "log.csv",
        (HEADER + "u,a,2021-02-28\nu,a,2021-02-30\n").encode(),
        {},
        ["line 3", "a time such as 2021-03-01", "'2021-02-30'"],
    ),
    "days and months that could be either": (
        "log.csv",
        (HEADER + "u,a,03/04/2021\n").encode(),
        {},
        ["when in", "log.csv", "'03/04/2021'", "data.source.time='%d/%m/%Y %H:%M'"],
    ),
    "two forms of dates": (
        "log.csv",
        (HEADER + "u,a,2021-03-01 10:05:00\nu,a,2021-03-01 10:05:00\nu,a,01.03.2021\n").encode(),
        {},
        ["line 4", "'01.03.2021'"],
    ),
    "a counter in place of a time": (
        "log.csv",
        (HEADER + "u,a,1\nu,b,2\n").encode(),
        {},
        ["got 1", "data.source.time=s"],
    ),
    "times alone missing": (
        "log.csv",
        (HEADER + "u,a,\nu,b,\n").encode(),
        {},
        ["when in", "empty values alone"],
    ),
    # values and settings
    "a rating in words": (
        "log.csv",
        b"who,what,when,stars\nu,a,1609459200,five\n",
        {"events": {"value": "stars"}},
        ["stars in", "line 2", "be a number", "'five'"],
    ),
    "min_value without value": (
        "log.csv",
        (HEADER + GOOD).encode(),
        {"events": {"min_value": 4}},
        ["min_value"],
    ),
    "a pattern that matches nothing": (
        "log.csv",
        (HEADER + GOOD).encode(),
        {"events": {"files": "clicks.csv"}},
        ["data.source.events.files", "got clicks.csv beside log.csv"],
    ),
    "unknown zone": (
        "log.csv",
        (HEADER + GOOD).encode(),
        {"time_zone": "Mars"},
        ["data.source.time_zone", "Mars"],
    ),
    "unknown unit": ("log.csv", (HEADER + GOOD).encode(), {"time": "hours"}, ["data.source.time", "hours"]),
    "files and a query": ("log.csv", (HEADER + GOOD).encode(), {"events": {"sql": "SELECT 1"}}, ["got both"]),
    "neither events nor impressions": ("log.csv", b"x\n", {"events": {"files": None}}, ["got neither"]),
    "a template without a column": (
        "log.csv",
        line(1, HEADER.strip()),
        {"items": {"text": "title"}},
        ["in braces"],
    ),
    "a template with an open brace": (
        "log.csv",
        line(1, HEADER.strip()),
        {"items": {"text": "{a"}},
        ["'{title}"],
    ),
    "a template with an unknown column": (
        "log.csv",
        line(1, HEADER.strip()),
        {"items": {"text": "{title}"}},
        ["must have the columns who, what, when, title"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_malformed_log_is_refused_in_a_sentence_that_names_it(case, tmp_path, read, refused):
    name, content, settings, parts = FILES[case]
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content(file)
    settings = settings | {"events": MAP | settings.get("events", {})}
    message = refused(lambda: read("table", [file], settings))
    for part in parts:
        assert part in message


CATALOGUE = "sku,name\na,A\nb,B\n"


@pytest.mark.parametrize(
    ("items", "settings", "parts"),
    [
        (CATALOGUE + "a,Again\n", {}, ["sku in", "goods.csv line 4", "listed once", "keep one of its rows"]),
        (CATALOGUE + ",None\n", {}, ["sku in", "goods.csv line 4", "filled in"]),
        ("sku,name,born\na,A,soon\n", {"published_s": "born"}, ["born in", "goods.csv", "'soon'"]),
        (
            "sku,name,born\na,A,2021-01-01\nb,B,2190-01-01\n",
            {"published_s": "born"},
            ["line 3", "between 1970"],
        ),
    ],
)
def test_a_malformed_catalogue_is_refused(items, settings, parts, tmp_path, read, refused):
    (tmp_path / "log.csv").write_text(HEADER + GOOD)
    (tmp_path / "goods.csv").write_text(items)
    catalogue = {"files": "goods.csv", "item_id": "sku", "text": "{name}"} | settings
    message = refused(lambda: read("table", sorted(tmp_path.iterdir()), {"events": MAP, "items": catalogue}))
    for part in parts:
        assert part in message


ROW_EACH = {"files": "log.*", "user_id": "who", "timestamp_s": "when", "item_id": "what", "label": "hit"}
LISTS = {"files": "log.*", "user_id": "who", "timestamp_s": "when", "candidates": "shown", "labels": "hits"}


@pytest.mark.parametrize(
    ("content", "settings", "parts"),
    [
        ("who,what,when,hit\nu,a,1609459200,2\n", ROW_EACH, ["hit in", "line 2", "be 0 or 1", "'2'"]),
        ("who,what,when,hit\nu,a,1609459200,yes\n", ROW_EACH, ["hit in", "line 2", "'yes'"]),
        (
            "who,what,when,hit,id\nu,a,1609459200,1,7\nv,a,1609459200,1,7\n",
            ROW_EACH | {"impression_id": "id"},
            ["id in data.source.impressions", "got 7 of u and of v"],
        ),
        ("who,when,shown,hits\nu,1609459200,,\n", LISTS, ["shown in", "line 2", "at least 1 item"]),
        (
            "who,when,shown,hits\nu,1609459200,a b,1\n",
            LISTS,
            ["hits in", "line 2", "one label for each of shown"],
        ),
        ("who,when,shown,hits\nu,1609459200,a b,1 3\n", LISTS, ["hits in", "line 2", "0 or 1"]),
        (
            "who,when,shown,hits\nu,1609459200,a b,c\n",
            LISTS | {"labels": None, "clicked": "hits"},
            ["hits in", "line 2", "be among shown", "'c'"],
        ),
        (
            "who,when,shown,hits\nu,1609459200,a,1\n",
            LISTS | {"labels": None},
            ["labels and clicked", "neither"],
        ),
        (
            "who,when,shown,hits,id\nu,1609459200,a,1,7\nu,1609459201,a,1,7\n",
            LISTS | {"impression_id": "id"},
            ["id in", "line 3", "used once"],
        ),
    ],
)
def test_malformed_impressions_are_refused(content, settings, parts, tmp_path, read, refused):
    (tmp_path / "log.csv").write_text(content)
    message = refused(lambda: read("table", [tmp_path / "log.csv"], {"impressions": settings}))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("sql", "database", "parts"),
    [
        ("SELEC 1", None, ["data.source.events.sql must run to its end", "Parser Error"]),
        ("SELECT * FROM nowhere", None, ["nowhere"]),
        (
            "SELECT (CASE WHEN i = 90000 THEN 'x' ELSE '1' END)::INT AS who FROM range(99999) t(i)",
            None,
            ["Could not"],
        ),
        (
            "SELECT 'u' AS who, 'a' AS what",
            None,
            ["the result of data.source.events.sql", "columns who, what, when"],
        ),
        ("SELECT 'u' AS who, 'a' AS what, 'soon' AS \"when\"", None, ["when in the result of", "'soon'"]),
        (
            "SELECT 'u' AS who, 'a' AS what, 9 AS \"when\" LIMIT 0",
            None,
            ["the result of", "at least 1 row", "correct the query"],
        ),
        ("SELECT 1", "shop.duckdb", ["data.source.database", "shop.duckdb", "is no file"]),
        ("SELECT 1", "postgresql://me:secret@host/shop", ["must hold no password", "PGPASSWORD"]),
        ("SELECT 1", "postgresql://me@/shop?host=/nowhere", ["data.source.events.sql", "/nowhere"]),
    ],
)
def test_a_query_that_fails_at_its_start_or_half_way_is_refused(sql, database, parts, read, refused):
    events = MAP | {"files": None, "sql": sql}
    message = refused(lambda: read("table", [], {"events": events, "database": database}))
    for part in parts:
        assert part in message
    assert "secret" not in message

"""Online Retail: small files in the publisher's layout, and the real log where it is at hand."""

import gzip
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from halflife.sources import online_retail
from halflife.tables import EVENT_COLUMNS, ITEM_COLUMNS, check_columns
from tests.refusals import refusal

SHARED = Path(os.environ.get("HALFLIFE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
REAL = SHARED / "online-retail"

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
ROWS = """536365,85123A,WHITE HANGING HEART T-LIGHT HOLDER,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom
536365,85123a,WHITE HANGING HEART T-LIGHT HOLDER,2,2010-12-01 08:26:00,2.55,17850,United Kingdom
536365,71053,"RECORD  FRAME 7"" SINGLE SIZE ",6,2010-12-01 08:26:00,3.39,17850.0,United Kingdom
536365,POST,POSTAGE,1,2010-12-01 08:26:00,18.0,17850.0,United Kingdom
C536366,71053,WHITE METAL LANTERN,-1,2010-12-01 09:00:00,3.39,17850.0,United Kingdom
536367,71053,WHITE METAL LANTERN,0,2010-12-01 09:00:00,3.39,17850.0,United Kingdom
536368,22139,damaged?,5,2010-12-01 10:00:00,0.0,,United Kingdom
536369,gift_0001_40,Dotcomgiftshop Gift Voucher £40.00,1,2010-12-20 10:14:00,34.04,12345.0,United Kingdom
"""


def write(
    folder: Path, rows: str = ROWS, name: str = "online_retail_2010Q4.csv", header: str = HEADER
) -> Path:
    data = (header + rows).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder / name


def row(**changes: str) -> str:
    fields = dict(zip(HEADER.strip().split(","), ROWS.splitlines()[0].split(","), strict=True)) | changes
    return ",".join(fields.values()) + "\n"


def events(*files: Path, **settings: str) -> list[tuple]:
    tables = online_retail.read(list(files), **settings)
    return sorted(check_columns("events", tables.events, EVENT_COLUMNS).collect().rows())


def texts(*files: Path) -> dict[str, str]:
    tables = online_retail.read(list(files))
    items = check_columns("items", tables.items, ITEM_COLUMNS).collect()
    assert items["category"].unique().to_list() == ["unknown"]
    return dict(items.select("item_id", "text").rows())


def refused(file: Path, *parts: str, **settings: str) -> None:
    message = refusal(lambda: online_retail.read([file], **settings))
    for part in parts:
        assert part in message


def utc(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp())  # type: ignore[arg-type]


def test_rows_of_a_customer_item_and_minute_are_one_purchase(tmp_path):
    when = utc(2010, 12, 1, 8, 26)
    assert events(write(tmp_path)) == [
        ("17850", "71053", when, "purchase", 6.0),
        ("17850", "85123A", when, "purchase", 8.0),
    ]


def test_what_is_left_out_is_counted_once_by_its_reason(tmp_path):
    tables = online_retail.read([write(tmp_path)])
    assert tables.dropped == {
        online_retail.NO_CUSTOMER: 1,
        online_retail.CANCELLED: 2,
        online_retail.NO_GOODS: 2,
        online_retail.MERGED: 1,
    }
    assert tables.has_click_times
    assert not tables.has_impressions


def test_gzipped_quarters_are_one_log(tmp_path):
    whole = events(write(tmp_path))
    lines = ROWS.splitlines(keepends=True)
    first = write(tmp_path, "".join(lines[:1]), "online_retail_2010Q4.csv.gz")
    second = write(tmp_path, "".join(lines[1:]), "online_retail_2011Q1.csv.gz")
    assert events(second, first) == whole


def test_another_rule_for_goods_keeps_other_codes(tmp_path):
    assert {e[1] for e in events(write(tmp_path), goods_code="^(POST|71053)$")} == {"POST", "71053"}


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ("2011-01-10 12:00:00", (2011, 1, 10, 12, 0)),
        ("2011-07-01 12:00:30", (2011, 7, 1, 11, 0)),
        ("2011-03-27 00:59:00", (2011, 3, 27, 0, 59)),
        ("2011-03-27 01:30:00", (2011, 3, 27, 1, 30)),  # skipped by the clock
        ("2011-03-27 02:00:00", (2011, 3, 27, 1, 0)),
        ("2011-10-30 01:30:00", (2011, 10, 30, 0, 30)),  # happened twice
        ("2011-10-30 02:00:00", (2011, 10, 30, 2, 0)),
    ],
)
def test_london_time_becomes_unix_seconds(tmp_path, local, expected):
    (event,) = events(write(tmp_path, row(InvoiceDate=local)))
    assert event[2] == utc(*expected)


def test_the_most_frequent_description_of_a_sold_item_is_its_text(tmp_path):
    rows = (
        row(Description="KEEP CALM WALL ART ")
        + row(Description="KEEP  CALM WALL ART", StockCode="85123a")
        + row(Description="WALL ART KEEP CALM")
        + row(Description="check", CustomerID="") * 9
        + row(Description="") * 9
    )
    assert texts(write(tmp_path, rows)) == {"85123A": "Keep Calm Wall Art"}


def test_equal_descriptions_go_by_alphabet_and_none_by_the_code(tmp_path):
    rows = row(Description="ZINC") + row(Description="AMBER") + row(Description="", StockCode="10002")
    assert texts(write(tmp_path, rows)) == {"85123A": "Amber", "10002": "Item 10002"}


def test_an_apostrophe_keeps_its_small_letter(tmp_path):
    rows = row(Description="CHILDREN'S I'M DON'T T-LIGHT 5'S")
    assert texts(write(tmp_path, rows)) == {"85123A": "Children's I'm Don't T-Light 5's"}


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (row(Quantity="six"), ["Quantity in", "online_retail_2010Q4.csv line 3", "'six'"]),
        (row(InvoiceDate="2010-13-01 08:26:00"), ["InvoiceDate in", "line 3", "'2010-13-01 08:26:00'"]),
        (row(InvoiceDate="12/1/2010 8:26"), ["InvoiceDate in", "line 3", "'12/1/2010 8:26'"]),
        (row(CustomerID="17850.5"), ["CustomerID in", "line 3", "'17850.5'"]),
        (row(InvoiceNo=""), ["InvoiceNo in", "line 3", "got nothing"]),
        ("536365,85123A,HEART\n", ["online_retail_2010Q4.csv line 3", "8 fields", "got 3"]),
        (row(Description="AIRLINE LOUNGE,METAL SIGN"), ["line 3", "8 fields", "got 9"]),
        (row(Description='"OPEN'), ["line 3", "quotes closed"]),
    ],
)
def test_a_bad_line_is_named_with_file_line_and_value(tmp_path, line, parts):
    refused(write(tmp_path, row() + line + row()), *parts)


def test_a_missing_column_is_named_beside_those_found(tmp_path):
    file = write(tmp_path, header=HEADER.replace("CustomerID", "Customer ID"))
    refused(file, "online_retail_2010Q4.csv", "Customer ID, Country", "add CustomerID")


def test_empty_broken_and_foreign_files_are_refused(tmp_path):
    refused(write(tmp_path, "", header=""), "empty file")
    refused(write(tmp_path, ""), "header alone")
    whole = write(tmp_path, row() * 20_000, "online_retail_2011Q1.csv.gz")
    whole.write_bytes(whole.read_bytes()[:-20])
    refused(whole, "online_retail_2011Q1.csv.gz", "ends early after line ")
    latin = write(tmp_path)
    latin.write_bytes((HEADER + ROWS).encode("latin-1"))
    refused(latin, "line 9", "UTF-8", "0xa3")
    folder = tmp_path / "online_retail_x.csv"
    folder.mkdir()
    refused(folder, "got a folder")
    refused(tmp_path / "other.csv", "data.files", "other.csv")


@pytest.mark.parametrize("pattern", ["(", r"^(?!POST)"])
def test_a_goods_code_that_is_no_pattern_is_refused(tmp_path, pattern):
    refused(write(tmp_path), "data.source.goods_code", repr(pattern), goods_code=pattern)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real log is not at {REAL}")
def test_the_real_log_has_the_published_counts():
    tables = online_retail.read(sorted(REAL.glob("online_retail_*.csv.gz")))
    rows = check_columns("events", tables.events, EVENT_COLUMNS).collect()
    items = check_columns("items", tables.items, ITEM_COLUMNS).collect()
    assert rows.height + sum(tables.dropped.values()) == 541_909
    assert tables.dropped[online_retail.NO_CUSTOMER] == 135_080
    assert tables.dropped[online_retail.CANCELLED] == 8_905  # of 9,288: the others have no customer
    assert tables.dropped[online_retail.NO_GOODS] == 1_554
    assert rows["user_id"].n_unique() == 4_335
    assert set(rows["item_id"]) == set(items["item_id"])
    assert items["item_id"].is_unique().all()
    assert rows["value"].min() > 0
    assert rows["timestamp_s"].min() == utc(2010, 12, 1, 8, 26)
    assert rows["timestamp_s"].max() == utc(2011, 12, 9, 12, 50)
    assert not rows.select("user_id", "item_id", "timestamp_s").is_duplicated().any()

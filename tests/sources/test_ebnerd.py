"""EB-NeRD: a small bundle in the publisher's layout and types."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from halflife.sources import ebnerd

DAY = datetime(2023, 5, 18, 7)
ARTICLES = {
    "article_id": pl.Int32,
    "title": pl.String,
    "subtitle": pl.String,
    "last_modified_time": pl.Datetime("us"),
    "premium": pl.Boolean,
    "body": pl.String,
    "published_time": pl.Datetime("us"),
    "image_ids": pl.List(pl.Int64),
    "category": pl.Int16,
    "category_str": pl.String,
}
BEHAVIORS = {
    "impression_id": pl.UInt32,
    "article_id": pl.Int32,
    "impression_time": pl.Datetime("us"),
    "read_time": pl.Float32,
    "scroll_percentage": pl.Float32,
    "device_type": pl.Int8,
    "article_ids_inview": pl.List(pl.Int32),
    "article_ids_clicked": pl.List(pl.Int32),
    "user_id": pl.UInt32,
    "session_id": pl.UInt32,
}
HISTORY = {
    "user_id": pl.UInt32,
    "impression_time_fixed": pl.List(pl.Datetime("us")),
    "scroll_percentage_fixed": pl.List(pl.Float32),
    "article_id_fixed": pl.List(pl.Int32),
    "read_time_fixed": pl.List(pl.Float32),
}


def at(day: int, hour: int, second: int = 0) -> datetime:
    return datetime(2023, 5, day, hour, 0, second)


def seconds(day: int, hour: int, second: int = 0) -> int:
    return int((at(day, hour, second) - datetime(1970, 1, 1)).total_seconds())


def write(folder: Path) -> list[Path]:
    """Two splits; user 1 is in both, user 2 in train alone."""
    articles = [
        [i, f"Title {i}", "Sub" if i == 1 else "", None, False, "Body", at(1, 0), None, 142, "sport"]
        for i in (1, 2, 3, 4)
    ]
    shown = {
        "train": [
            [10, None, at(18, 8), 14.0, None, 1, [3, 1, 2], [3], 1, 5],
            [11, 9, at(19, 8), 14.0, 50.0, 2, [2, 99], [2], 2, 6],
        ],
        "validation": [[10, None, at(25, 8), 3.0, None, 1, [4, 1], [4], 1, 7]],
    }
    past = {
        "train": [
            [1, [at(2, 9), at(3, 9)], [1.0, None], [1, 2], [8.0, 0.0]],
            [2, [at(4, 9)], [None], [77], [2.0]],
        ],
        # the click of impression 10, as its own file times it: 9 seconds later
        "validation": [[1, [at(3, 9), at(18, 8, 9)], [None, 3.0], [2, 3], [0.0, 21.0]]],
    }
    folder.mkdir(exist_ok=True)
    pl.DataFrame(articles, schema=ARTICLES, orient="row").write_parquet(folder / "articles.parquet")
    for split in ("train", "validation"):
        (folder / split).mkdir(exist_ok=True)
        pl.DataFrame(shown[split], schema=BEHAVIORS, orient="row").write_parquet(
            folder / split / "behaviors.parquet"
        )
        pl.DataFrame(past[split], schema=HISTORY, orient="row").write_parquet(
            folder / split / "history.parquet"
        )
    return sorted(folder.rglob("*.parquet"))


def test_a_bundle_gives_its_impressions_and_each_click_once(tmp_path, read, rows):
    tables = read("ebnerd", write(tmp_path))
    got = rows(tables)
    assert got["impressions"] == [
        ("train-10", "1", seconds(18, 8), ["1", "2", "3"], [0, 0, 1]),
        ("train-11", "2", seconds(19, 8), ["2"], [1]),
        ("validation-10", "1", seconds(25, 8), ["1", "4"], [0, 1]),
    ]
    assert got["events"] == [
        ("1", "1", seconds(2, 9), "click", 8.0),
        ("1", "2", seconds(3, 9), "click", 0.0),
        ("1", "3", seconds(18, 8, 9), "click", 21.0),
        ("1", "4", seconds(25, 8), "click", None),
        ("2", "2", seconds(19, 8), "click", None),
    ]
    assert tables.has_click_times
    assert tables.has_dwell
    assert tables.dropped == {ebnerd.UNKNOWN_CLICKS: 1, ebnerd.UNKNOWN_SHOWN: 1}


def test_the_text_follows_the_template(tmp_path, read, rows):
    files = write(tmp_path)
    got = {i: (text, category, when) for i, text, category, when in rows(read("ebnerd", files))["items"]}
    assert got["1"] == ("Title 1. Sub", "sport", seconds(1, 0))
    assert got["2"][0] == "Title 2"
    assert rows(read("ebnerd", files, {"text": "{category_str}: {body}"}))["items"][0][1] == "sport: Body"


def test_what_is_missing_or_unpublished_is_refused(tmp_path, read, refused):
    files = write(tmp_path)
    assert "got no articles.parquet" in refused(lambda: read("ebnerd", files[1:]))
    lone = [f for f in files if f != tmp_path / "validation" / "history.parquet"]
    assert f"{tmp_path / 'validation'} must hold" in refused(lambda: read("ebnerd", lone))
    assert "did you mean subtitle" in refused(lambda: read("ebnerd", files, {"text": "{subtitel}"}))
    file = tmp_path / "validation" / "behaviors.parquet"
    whole = pl.read_parquet(file)
    whole.drop("article_ids_clicked").write_parquet(file)
    assert "validation/behaviors.parquet must have the columns" in refused(lambda: read("ebnerd", files))
    empty = pl.lit(None, dtype=pl.List(pl.Int32))
    whole.with_columns(article_ids_clicked=empty).write_parquet(file)
    message = refused(lambda: read("ebnerd", files))
    assert "article_ids_clicked in" in message
    assert "validation/behaviors.parquet row 1" in message
    assert "leave the test set out" in message


def test_a_history_with_fewer_times_than_clicks_is_refused(tmp_path, read, refused):
    files = write(tmp_path)
    file = tmp_path / "train" / "history.parquet"
    pl.read_parquet(file).with_columns(pl.col("impression_time_fixed").list.head(1)).write_parquet(file)
    message = refused(lambda: read("ebnerd", files))
    assert "impression_time_fixed in" in message
    assert "train/history.parquet row 1" in message


@pytest.mark.parametrize("cut", [9, 500])
def test_a_file_cut_short_is_refused(cut, tmp_path, read, refused):
    files = write(tmp_path)
    files[0].write_bytes(files[0].read_bytes()[:-cut])
    assert "articles.parquet must be a whole Parquet file" in refused(lambda: read("ebnerd", files))

"""Adressa: what readers of a Norwegian regional newspaper read, and for how long."""

import re
from pathlib import Path

import polars as pl

from halflife.errors import InputError
from halflife.sources import templates
from halflife.sources.rows import Rows, scan_json_lines
from halflife.sources.text_files import Rule
from halflife.tables import Tables

NO_ARTICLE = "page views of no article (front page, sections)"
NO_TITLE = "page views of articles without a title"

_FIELDS = ["userId", "id", "time", "activeTime", "title", "category1", "publishtime"]


def read(files: list[Path], text: str) -> Tables:
    """Adressa, one week or three months: a file a day, one JSON object a page view.

    The log holds the second of every page view and, mostly, the seconds a page was active. It holds no
    impressions: negatives are sampled. An article's title, category and publication stand in its page views,
    its body only in a separate, signed-for content archive.

    Args:
        files: the paths; those named by a day such as 20170101 (with .json, .gz or neither) are read.
        text: template over title and category.

    Returns:
        Lazy tables. An event's value is the active seconds, null where not logged; an article's title is the
        first that the log shows.

    Raises:
        InputError: for a malformed file, named with its line.

    Licence: for research, by the terms of reclab.idi.ntnu.no/dataset; no redistribution.
    Source: Gulla et al., The Adressa Dataset for News Recommendation (WI 2017).
    """
    days = sorted(f for f in files if re.fullmatch(r"\d{8}(\.jsonl?)?(\.gz|\.zst)?", f.name))
    if not days:
        got = ", ".join(f.name for f in files[:10]) or "no files"
        raise InputError(
            f"data.files must hold files named by a day such as 20170101, got {got}; point data.root at the "
            "unpacked one_week or three_month folder"
        )
    views = pl.concat([_views(file) for file in days])
    article, title = pl.col("item_id").str.len_bytes() > 0, pl.col("title").str.len_bytes() > 0
    counts = views.select(
        none=(~article.fill_null(False)).sum(),
        bare=(article.fill_null(False) & ~title.fill_null(False)).sum(),
    ).collect(engine="streaming")
    read_ = views.filter(article & title)
    names = ["title", "category"]
    items = read_.select(
        "item_id",
        text=templates.fill("data.source.text", text, names),
        category=pl.when(pl.col("category").str.len_bytes() > 0)
        .then("category")
        .otherwise(pl.lit("unknown")),
        published_s="published_s",
    )
    return Tables(
        items=items.unique("item_id", keep="first", maintain_order=True),
        events=read_.select("user_id", "item_id", "timestamp_s", kind=pl.lit("view"), value="active_s"),
        impressions=None,
        has_click_times=True,
        has_dwell=True,
        dropped={NO_ARTICLE: counts["none"].item(), NO_TITLE: counts["bare"].item()},
    )


def _views(file: Path) -> pl.LazyFrame:
    """Every page view of a day."""
    rows: Rows = scan_json_lines(file, _FIELDS, [])
    seconds = pl.col("time").cast(pl.Int64, strict=False)
    active = pl.col("activeTime").cast(pl.Float32, strict=False)
    published = pl.col("publishtime").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", strict=False, time_unit="ms")
    rows.check(
        [
            Rule("userId", pl.col("userId").str.len_bytes() > 0, "be filled in"),
            Rule("time", seconds >= 0, "be a whole number of at least 0 (Unix seconds)"),
            Rule("activeTime", pl.col("activeTime").is_null() | (active >= 0), "be a number (seconds)"),
            Rule(
                "publishtime",
                pl.col("publishtime").is_null() | published.is_not_null(),
                "be a time such as 2017-01-01T10:05:00.000Z",
            ),
        ]
    )
    return rows.frame.select(
        user_id="userId",
        item_id="id",
        timestamp_s=seconds,
        active_s=active,
        title="title",
        category=pl.col("category1").str.split("|").list.first(),
        published_s=published.dt.epoch("s").cast(pl.Int64),
    )

"""EB-NeRD: which Danish news a reader was shown and clicked, and when they had clicked before."""

from pathlib import Path

import polars as pl

from halflife.errors import InputError
from halflife.sources import templates
from halflife.sources.mapping import binary
from halflife.sources.rows import Rows, scan_parquet
from halflife.sources.text_files import AGAIN, Rule
from halflife.tables import Tables

UNKNOWN_CLICKS = "clicks on articles not in articles.parquet"
UNKNOWN_SHOWN = "candidates not in articles.parquet"

_ARTICLES = ["article_id", "title", "subtitle", "body", "category_str", "published_time"]
_BEHAVIORS = ["impression_id", "impression_time", "article_ids_inview", "article_ids_clicked", "user_id"]
_HISTORY = ["user_id", "impression_time_fixed", "article_id_fixed", "read_time_fixed"]
_DO = f"{AGAIN}, or leave the test set out of data.files"


def read(files: list[Path], text: str) -> Tables:
    """EB-NeRD demo, small or large: articles.parquet, then behaviors.parquet and history.parquet a split.

    The log holds real impressions with their second, candidates in view, and a history of three weeks before
    each split with the second and the reading time of every click: `has_click_times` is True. Clicks within a
    split's own week are in no history file; they are the clicked candidates of its impressions, and join the
    events here, so that a history goes on to grow through the week. Of a user whom a later split's history
    covers too, only those after its end join, since the two files time one click some seconds apart. Times
    are as the publisher wrote them, without a zone, and taken as UTC.

    Args:
        files: the paths; those of the three names are read, others are left alone.
        text: template over title, subtitle, body and category_str.

    Returns:
        Lazy tables. An event's value is the reading time of a click of the history files, null where it is
        not known; an impression's id carries the name of its split. Clicks that a later split's history
        repeats are one event.

    Raises:
        InputError: for a file that is missing, damaged or without its columns, and for the test set, whose
            clicks are not published.

    Licence: EB-NeRD terms, research only, by registration at recsys.eb.dk.
    Source: Kruse et al., EB-NeRD: A Large-Scale Dataset for News Recommendation (RecSys Challenge 2024).
    """
    paths = _sorted(files)
    items = _items(paths["articles.parquet"][0], text)
    behaviors = [_behaviors(file) for file in paths["behaviors.parquet"]]
    shown = pl.concat(
        [
            rows.frame.select(
                (_name(file, len(behaviors) > 1) + pl.col("impression_id").cast(pl.String)).alias(
                    "impression_id"
                ),
                pl.col("user_id").cast(pl.String),
                timestamp_s=pl.col("impression_time").dt.epoch("s").cast(pl.Int64),
                inview=pl.col("article_ids_inview").cast(pl.List(pl.String)),
                clicked=pl.col("article_ids_clicked").cast(pl.List(pl.String)),
            )
            for file, rows in zip(paths["behaviors.parquet"], behaviors, strict=True)
        ]
    )
    known = items.select("item_id").collect(engine="streaming")["item_id"]
    in_catalogue = pl.element().filter(pl.element().is_in(known.implode()))
    inview, clicked = pl.col("inview").list.eval(in_catalogue), pl.col("clicked").list.eval(in_catalogue)
    lost = shown.select((pl.col("inview").list.len() - inview.list.len()).sum()).collect(engine="streaming")
    events = _events(paths["history.parquet"], shown)
    unknown = events.join(items.select("item_id"), on="item_id", how="anti").select(pl.len())
    return Tables(
        items=items,
        events=events.join(items.select("item_id"), on="item_id", how="semi"),
        impressions=shown.filter(inview.list.len() > 0).select(
            "impression_id", "user_id", "timestamp_s", *binary(inview, clicked)
        ),
        has_click_times=True,
        has_dwell=True,
        dropped={
            UNKNOWN_CLICKS: unknown.collect(engine="streaming").item(),
            UNKNOWN_SHOWN: int(lost.item()),
        },
    )


def _sorted(files: list[Path]) -> dict[str, list[Path]]:
    """The files of each name; one catalogue, and as many histories as behaviours, folder by folder."""
    names = ("articles.parquet", "behaviors.parquet", "history.parquet")
    found = {name: sorted(f for f in files if f.name == name) for name in names}
    for name, paths in found.items():
        if not paths:
            got = ", ".join(str(f) for f in files) or "no files"
            raise InputError(
                f"data.files must hold {', '.join(names)}, got no {name} among {got}; point data.root at the "
                "unpacked bundle"
            )
    if len(found["articles.parquet"]) > 1:
        first, second = found["articles.parquet"][:2]
        raise InputError(
            f"data.files must hold one articles.parquet, got {first} and {second}; name one bundle of EB-NeRD"
        )
    behaviors = {f.parent for f in found["behaviors.parquet"]}
    lone = behaviors.symmetric_difference(f.parent for f in found["history.parquet"])
    if lone:
        raise InputError(
            f"{min(lone)} must hold behaviors.parquet and history.parquet, got one of them; add the other"
        )
    return found


def _items(file: Path, text: str) -> pl.LazyFrame:
    """The catalogue."""
    article = pl.col("article_id")
    rows = scan_parquet(file, _ARTICLES)
    rows.check(
        [
            Rule("article_id", article.is_not_null(), "be filled in", AGAIN),
            Rule("article_id", article.is_first_distinct(), "be listed once", AGAIN),
        ]
    )
    return rows.frame.select(
        item_id=article.cast(pl.String),
        text=templates.fill("data.source.text", text, ["title", "subtitle", "body", "category_str"]),
        category=pl.col("category_str").replace("", None).fill_null("unknown"),
        published_s=pl.col("published_time").dt.epoch("s").cast(pl.Int64),
    )


def _behaviors(file: Path) -> Rows:
    """The checked impressions of one split."""
    rows = scan_parquet(file, _BEHAVIORS)
    clicked = pl.col("article_ids_clicked")
    rows.check(
        [
            Rule("impression_id", pl.col("impression_id").is_not_null(), "be filled in", AGAIN),
            Rule("user_id", pl.col("user_id").is_not_null(), "be filled in", AGAIN),
            Rule("impression_time", pl.col("impression_time").is_not_null(), "be filled in", AGAIN),
            Rule("article_ids_clicked", clicked.is_not_null(), "be known", _DO),
        ]
    )
    return rows


def _name(file: Path, several: bool) -> pl.Expr:
    """What an impression's id begins with: its split, where there are several."""
    return pl.lit(f"{file.parent.name}-" if several else "")


def _events(histories: list[Path], shown: pl.LazyFrame) -> pl.LazyFrame:
    """Clicks of the history files, each once, and behind the end of a user's those in the impressions."""
    parts = []
    for file in histories:
        rows = scan_parquet(file, _HISTORY)
        items, times = pl.col("article_id_fixed"), pl.col("impression_time_fixed")
        same = items.list.len() == times.list.len()
        rows.check(
            [
                Rule("user_id", pl.col("user_id").is_not_null(), "be filled in", AGAIN),
                Rule("impression_time_fixed", same, "hold one time for each click", AGAIN),
            ]
        )
        parts.append(
            rows.frame.select(
                pl.col("user_id").cast(pl.String),
                item_id=items.cast(pl.List(pl.String)),
                timestamp_s=times.list.eval(pl.element().dt.epoch("s").cast(pl.Int64)),
                value=pl.col("read_time_fixed").cast(pl.List(pl.Float32)),
            ).explode("item_id", "timestamp_s", "value", empty_as_null=False)
        )
    # 21 days before each split overlap: what two of them hold is one click
    past = pl.concat(parts).group_by("user_id", "item_id", "timestamp_s").agg(pl.col("value").max())
    ends = past.group_by("user_id").agg(end=pl.col("timestamp_s").max()).collect(engine="streaming")
    clicks = (
        shown.select("user_id", "timestamp_s", item_id="clicked")
        .explode("item_id", empty_as_null=False)
        .join(ends.lazy(), on="user_id", how="left")
        .filter(pl.col("timestamp_s") > pl.col("end").fill_null(0))
    )
    columns = ["user_id", "item_id", "timestamp_s", "value"]
    clicks = clicks.with_columns(value=pl.lit(None, dtype=pl.Float32)).select(columns)
    return pl.concat([past.select(columns), clicks]).with_columns(kind=pl.lit("click"))

"""MIND: which news a reader was shown and clicked, and what they had clicked before."""

import os
from pathlib import Path
from typing import NamedTuple

import polars as pl

from halflife.errors import InputError, choice
from halflife.sources import templates
from halflife.sources.impressions import clicks_of
from halflife.sources.text_files import Rule, filled, scan_tsv
from halflife.tables import Tables

UNKNOWN_CLICKS = "history clicks on news not in news.tsv"
OTHER_HISTORIES = "later histories of a user whose history changes within a file"
NO_SECOND = "history clicks without a second between two impressions of their user"
UNTIMED_CLICKS = "history clicks without a time"
RECONSTRUCTED = (
    "Click times are reconstructed: a click has its impression's time; those before the week are left out."
)

_NEWS = [
    "news_id",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "abstract_entities",
]
_BEHAVIORS = ["impression_id", "user_id", "time", "history", "impressions"]


class _Folder(NamedTuple):
    """One folder of the publisher's: its checked log, and the time of its first impression."""

    name: str
    log: pl.LazyFrame
    first_s: int


def read(files: list[Path], text: str = "{title}", click_times: str = "absent") -> Tables:
    """MIND: the impressions of one or more folders (train, dev), each a news.tsv and a behaviors.tsv.

    The log holds real impressions with their second, taken as UTC, and a history of clicks before them that
    has an order but no times: `has_click_times` is False, and the `timestamp_s` of a history click encodes
    its order alone. A folder's history of a user is the one at their first impression there, since a later
    one may look ahead of earlier impressions. Where it begins with the one before, only what is new is added;
    where it does not, the whole of it is, so that cutting to the newest keeps the right clicks. What is added
    is placed one second a click, its newest just before the first impression of the folder, over all users;
    but behind the user's own impressions before the one it was logged with, so that none of them sees it. The
    oldest for which no second is left there are left out and counted.

    The popularity of a candidate counts these clicks from the folder's first impression on, and none of the
    impressions'. The publisher's were made in the weeks before. In a log of this layout whose histories grow
    within a file, those of readers who come late count too early there; no history looks ahead.

    Args:
        files: the paths; those named news.tsv and behaviors.tsv are read, paired by folder, others are left
            alone.
        text: template over title, abstract, category and subcategory.
        click_times: `absent`, as above; or `reconstructed`: the events are what was clicked in the
            impressions, each at its impression's time, and what the histories hold is left out, since nothing
            times it. Ages are then in days, of clicks at most a week or two old, and every output says so.

    Returns:
        Items of all folders (where the text is empty, the abstract, category or id), the Wikidata entities of
        their titles and abstracts, history events, and lazy impressions, whose id carries the folder's name
        when there are several. Items and histories are held in memory (one row an item or user), impressions
        are streamed.

    Raises:
        InputError: for a malformed file, a label missing or other than 0 and 1, or a candidate that no
            news.tsv lists, named with its line; for a folder that has one of the two files.

    Licence: Microsoft Research License Terms, research only.
    Source: Wu et al., MIND: A Large-scale Dataset for News Recommendation (ACL 2020).
    """
    timed = choice("data.source.click_times", click_times, ["absent", "reconstructed"]) == "reconstructed"
    paths = _pair(files)
    items = (
        pl.concat([_news(news, text) for news, _ in paths.values()])
        .unique("item_id", keep="first", maintain_order=True)
        .collect()
    )
    entities = pl.concat([_entities(news) for news, _ in paths.values()])
    folders = [_folder(name, behaviors, items["item_id"]) for name, (_, behaviors) in paths.items()]
    folders.sort(key=lambda folder: folder.first_s)
    histories = [_histories(folder) for folder in folders]
    blocks = _place(folders, histories)
    clicks = _clicks(blocks)
    impressions = pl.concat([_impressions(folder, prefix=len(folders) > 1) for folder in folders])
    if timed:
        return Tables(
            items=items,
            events=clicks_of(impressions),
            impressions=impressions,
            has_click_times=True,
            dropped={UNTIMED_CLICKS: blocks.select(pl.col("count").sum()).item()},
            note=RECONSTRUCTED,
            entities=entities,
        )
    unknown = clicks.join(items.lazy(), on="item_id", how="anti").select(pl.len())
    return Tables(
        items=items,
        events=clicks.join(items.lazy(), on="item_id", how="semi"),
        impressions=impressions,
        has_click_times=False,
        dropped={
            UNKNOWN_CLICKS: unknown.collect(engine="streaming").item(),
            NO_SECOND: blocks.select((pl.col("count") - pl.col("end") + pl.col("start")).sum()).item(),
            OTHER_HISTORIES: sum(int(history["others"].sum()) for history in histories),
        },
        entities=entities,
    )


def _pair(files: list[Path]) -> dict[str, tuple[Path, Path]]:
    """Folder name -> its news.tsv and behaviors.tsv; names are relative to what all folders share."""
    parents = sorted({file.parent for file in files if file.name in ("news.tsv", "behaviors.tsv")})
    if not parents:
        got = ", ".join(str(file) for file in files) or "no files"
        raise InputError(f"data.files must hold news.tsv and behaviors.tsv, got {got}; correct data.files")
    for parent in parents:
        for name in ("news.tsv", "behaviors.tsv"):
            if parent / name not in files:
                raise InputError(
                    f"{parent} must hold news.tsv and behaviors.tsv, got no {name}; "
                    "add the file or leave the folder out of data.files"
                )
    # Only one folder, or one inside another: its own name is all there is to go by.
    shared = os.path.commonpath([parent.parent for parent in parents])
    return {
        os.path.relpath(parent, shared): (parent / "news.tsv", parent / "behaviors.tsv") for parent in parents
    }


def _news(file: Path, template: str) -> pl.LazyFrame:
    """The items of one folder."""
    rows = scan_tsv(file, _NEWS, [filled("news_id")])
    filled_in = templates.fill("data.source.text", template, ["title", "abstract", "category", "subcategory"])
    others = pl.col("abstract", "category", "news_id").str.strip_chars().replace("", None)
    text = pl.coalesce(filled_in.replace("", None), others)
    return rows.select(
        item_id="news_id",
        text=text,
        category=pl.col("category").replace("", "unknown"),
        published_s=pl.lit(None, dtype=pl.Int64),
    )


def _entities(file: Path) -> pl.LazyFrame:
    """What the items of one folder are about, by the ids that entity_embedding.vec has."""
    named = pl.concat_str("title_entities", "abstract_entities").str.extract_all(r'"WikidataId": *"[^"]+"')
    return (
        scan_tsv(file, _NEWS, [])
        .select(item_id="news_id", entity_id=named.list.eval(pl.element().str.extract(r'"([^"]+)"$')))
        .explode("entity_id", empty_as_null=False)
    )


def _folder(name: str, file: Path, known: pl.Series) -> _Folder:
    """The checked log of one folder."""
    time = pl.col("time").str.to_datetime("%m/%d/%Y %I:%M:%S %p", time_unit="ms", strict=False)
    known_ids = set(known)
    shown = pl.col("impressions")
    ids = shown.str.replace_all(r"-[^-\s]+( |$)", "$1").str.split(" ")
    all_known = ids.list.eval(pl.element().is_in(known.implode())).list.all()
    rules = [
        filled("impression_id"),
        Rule("impression_id", pl.col("impression_id").is_first_distinct(), "be used once", "remove the line"),
        filled("user_id"),
        Rule("time", time.is_not_null(), "be a time such as 11/11/2019 9:05:58 AM"),
        filled("impressions"),
        Rule(
            "impressions",
            shown.str.contains(r"^\S+-[^-\s]+( \S+-[^-\s]+)*$"),
            "be news ids with labels such as N1-0 N2-1",
            "labels are missing in this file, as they are in MIND's test folder: use train and dev",
            lambda text: next((word for word in text.split(" ") if "-" not in word), text),
        ),
        Rule(
            "impressions",
            shown.str.contains(r"^\S+-[01]( \S+-[01])*$"),
            "have the labels 0 and 1",
            pick=lambda text: next((word for word in text.split(" ") if word[-2:] not in ("-0", "-1")), text),
        ),
        Rule(
            "impressions",
            all_known,
            "be ids that a news.tsv lists",
            "add the news.tsv that lists it to data.files or remove the line",
            lambda text: next((w for w in text.split(" ") if w.rpartition("-")[0] not in known_ids), text),
        ),
    ]
    log = scan_tsv(file, _BEHAVIORS, rules).with_columns(timestamp_s=time.dt.epoch("s").cast(pl.Int64))
    first_s: int = log.select(pl.col("timestamp_s").min()).collect(engine="streaming").item()
    return _Folder(name, log, first_s)


def _impressions(folder: _Folder, prefix: bool) -> pl.LazyFrame:
    """What was shown, and what of it was clicked."""
    shown = pl.col("impressions").str.split(" ")
    name = pl.lit(f"{folder.name}-" if prefix else "")
    return folder.log.select(
        (name + pl.col("impression_id")).alias("impression_id"),
        "user_id",
        "timestamp_s",
        candidates=shown.list.eval(pl.element().str.head(-2)),
        labels=shown.list.eval(pl.element().str.tail(1).cast(pl.Int8)),
    )


def _histories(folder: _Folder) -> pl.DataFrame:
    """`user_id, first_s, history, others`: each user's first impression, the history there, how many others.

    The publisher's are one a user. In a log of this layout whose histories grow, a later one holds clicks
    that earlier impressions must not see.
    """
    length = pl.col("history").str.count_matches(" ", literal=True)
    return (
        folder.log.select(
            "user_id", "timestamp_s", history=pl.col("history").str.replace_all(r"\s+", " ").str.strip_chars()
        )
        .group_by("user_id", "history")
        .agg(pl.col("timestamp_s").min())
        .group_by("user_id")
        .agg(
            pl.col("history").sort_by("timestamp_s", length, "history").first(),
            first_s=pl.col("timestamp_s").min(),
            others=pl.len() - 1,
        )
        .collect(engine="streaming")
    )


def _place(folders: list[_Folder], histories: list[pl.DataFrame]) -> pl.DataFrame:
    """`user_id, clicks, count, start, end`: what each history adds, and its seconds from start to before end.

    A block is seen by the impression it was logged with, at `first_s`, and by those after it, for it ends
    there or before; no earlier one sees it, for it starts no sooner than the latest of them, `last_s`. So
    blocks of a user never overlap, in whatever order the folders' impressions come.
    """
    parts = (h.with_columns(opens_s=pl.lit(f.first_s)) for h, f in zip(histories, folders, strict=True))
    blocks = pl.concat(parts).sort("user_id", "first_s", maintain_order=True)
    now = pl.col("history")
    earlier = pl.when(now != "").then(now).forward_fill().shift(1).over("user_id").fill_null("")
    blocks = blocks.with_columns(earlier=earlier)
    extends = (now == pl.col("earlier")) | now.str.starts_with(pl.col("earlier") + " ")
    added = pl.when(extends).then(now.str.strip_prefix(pl.col("earlier")).str.strip_chars_start(" "))
    blocks = (
        blocks.with_columns(added=added.otherwise(now))
        .filter(pl.col("added") != "")
        .group_by("user_id", "first_s", maintain_order=True)
        .agg(clicks=pl.col("added").str.split(" ").explode(), opens_s=pl.col("opens_s").min())
    )
    last = (
        pl.concat([folder.log.select("user_id", "timestamp_s") for folder in folders])
        .join(blocks.lazy().select("user_id", "first_s"), on="user_id")
        .filter(pl.col("timestamp_s") < pl.col("first_s"))
        .group_by("user_id", "first_s")
        .agg(last_s=pl.col("timestamp_s").max())
        .collect(engine="streaming")
    )
    count = pl.col("clicks").list.len().cast(pl.Int64)
    roomy = pl.max_horizontal("opens_s", pl.col("last_s") + count)  # nothing where there is no last_s
    blocks = blocks.join(last, on=["user_id", "first_s"], how="left").with_columns(
        count=count, end=pl.min_horizontal("first_s", roomy)
    )
    return blocks.with_columns(start=pl.max_horizontal(pl.col("end") - pl.col("count"), "last_s"))


def _clicks(blocks: pl.DataFrame) -> pl.LazyFrame:
    """The events of all histories, the newest of each that have a second of their own."""
    return (
        blocks.lazy()
        .select(
            "user_id",
            item_id=pl.col("clicks").list.tail(pl.col("end") - pl.col("start")),
            timestamp_s=pl.int_ranges("start", "end"),
        )
        .explode("item_id", "timestamp_s")
        .with_columns(kind=pl.lit("history"), value=pl.lit(1.0, dtype=pl.Float32))
    )

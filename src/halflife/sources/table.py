"""Any log: delimited text, JSON Lines, Parquet or an SQL query, mapped onto Tables by names of columns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from halflife.errors import InputError, choice, listed, number, shown
from halflife.sources import templates, times, vectors
from halflife.sources.impressions import Impressions, clicks_of, read_impressions
from halflife.sources.mapping import Log, absent, category, identity, real, word, words
from halflife.sources.rows import Rows
from halflife.sources.text_files import Rule
from halflife.tables import Tables

LOW_VALUE = "events below min_value"


@dataclass(frozen=True)
class Events:
    """Where the events lie, and which of their columns is what; a null means that the log has none.

    Args:
        files: pattern, or list of patterns, of files among `data.files`, or the name of a folder.
        sql: a query in place of files.
        header: names of all columns, for text files without a header.
        user_id, item_id, timestamp_s: names of columns.
        kind: column of the event's kind, such as click or purchase.
        value: column of a number: a rating, a quantity, seconds of dwell.
        min_value: events with a smaller value are left out.
    """

    files: Any
    sql: str | None
    header: list[str] | None
    user_id: str
    item_id: str
    timestamp_s: str
    kind: str | None
    value: str | None
    min_value: float | None


@dataclass(frozen=True)
class Items:
    """Where the catalogue lies; with neither files nor a query, its columns stand in the rows of the events.

    Args:
        files, sql, header: as of Events.
        item_id: name of the column.
        text: template over columns, or null to call an item by its id.
        category: column, or null.
        published_s: column of the time when the item appeared, or null.
        vector: column with lists of numbers, or several columns of numbers: the item's own vector; or null.
    """

    files: Any
    sql: str | None
    header: list[str] | None
    item_id: str
    text: str | None
    category: str | None
    published_s: str | None
    vector: str | list[str] | None = None


def read(
    files: list[Path],
    events: Events,
    items: Items,
    impressions: Impressions,
    database: str | None,
    time: str,
    time_zone: str,
    separator: str,
    list_separator: str,
    bad_rows: str,
) -> Tables:
    """A log of any layout, by the names of its columns.

    With impressions, their candidates and labels are as logged; where there are no events beside them, what
    was clicked in them is the events. Without, the Store draws negatives. An event is implicit feedback: that
    a row is there is what counts; `min_value` makes it explicit (ratings of at least 4 stars).

    Args:
        files: the log's files.
        events, items, impressions: where each table lies, and which column is what.
        database: of queries: a DuckDB file, postgresql://…, or None for DuckDB over files.
        time: how times are written: `detect`, `s`, `ms`, `us`, `ns`, or a strftime format.
        time_zone: of times without an offset.
        separator: between fields of a text file: `detect`, a word, or one character.
        list_separator: between the items of a list that is written as text.
        bad_rows: `stop` at the first bad row, or `drop` and count them. A file that is malformed as a whole
            (cut short, no UTF-8, another number of fields) is always an error.

    Returns:
        Lazy tables, read in a streaming pass each.

    Raises:
        InputError: names file, line or row, column, value and what to do.
    """
    log = Log(
        files,
        database,
        times.check_time(time),
        times.check_zone(time_zone),
        separator,
        list_separator,
        choice("data.source.bad_rows", bad_rows, ["stop", "drop"]) == "drop",
        {},
    )
    shown_rows = None if absent(impressions) else read_impressions(log, impressions)
    if not absent(events):
        event_rows, wide = _events(log, events, items if absent(items) else None)
    elif shown_rows is not None:
        event_rows, wide = clicks_of(shown_rows), None
    else:
        raise InputError(
            "data.source must have events or impressions, got neither; set data.source.events.files"
        )
    if absent(items) and wide is None and items.text is not None:
        raise InputError(
            "data.source.items must have files or sql where no events hold the items' text, got neither; set "
            "data.source.items.files, or data.source.items.text=null to call an item by its id"
        )
    if items.vector is not None and absent(items):
        raise InputError(
            "data.source.items.vector must be null where items have neither files nor sql of their own, got "
            f"{shown(items.vector)}; give data.vectors a file of them"
        )
    own_vectors = None
    if not absent(items):
        catalogue, own_vectors = _items(log, items)
    elif wide is not None:
        catalogue = wide
    else:
        catalogue = _bare(event_rows, shown_rows)
    return Tables(
        items=catalogue,
        events=event_rows,
        impressions=shown_rows,
        has_click_times=True,
        dropped=log.dropped,
        vectors=own_vectors,
    )


def _events(log: Log, of: Events, wide: Items | None) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
    """The events, and the catalogue where it stands in the same rows."""
    columns = [of.user_id, of.item_id, of.timestamp_s, *(c for c in (of.kind, of.value) if c)]
    beside = [] if wide is None else _item_columns(wide)[1:]
    tables = log.open("events", of, [*columns, *beside])
    seconds_of = log.moments(of.timestamp_s, tables)
    least = None if of.min_value is None else number("data.source.events.min_value", of.min_value, "value")
    if least is not None and of.value is None:
        raise InputError(
            "data.source.events.value must name a column for min_value to look at, got null; name it"
        )
    parts, catalogue = [], []
    for rows in tables:
        user, user_rules = identity(of.user_id, rows.schema[of.user_id])
        item, item_rules = identity(of.item_id, rows.schema[of.item_id])
        seconds, time_rules = seconds_of(rows)
        value, value_rules = pl.lit(1.0), []
        if of.value is not None:
            value, rule = real(of.value)
            value_rules = [rule]
        frame = log.keep("events", rows, [*user_rules, *item_rules, *time_rules, *value_rules])
        parts.append(
            frame.select(
                user_id=user,
                item_id=item,
                timestamp_s=seconds,
                kind=pl.lit("click") if of.kind is None else word(of.kind, rows.schema[of.kind]),
                value=value.cast(pl.Float32),
            )
        )
        if wide is not None:
            catalogue.append(_item_frame(wide, frame, rows, item, None))
    frame = pl.concat(parts)
    if least is not None:
        low = frame.filter(pl.col("value") < least).select(pl.len()).collect(engine="streaming").item()
        log.dropped[LOW_VALUE] = low
        frame = frame.filter(pl.col("value") >= least)
    if wide is None:
        return frame, None
    return frame, pl.concat(catalogue).unique("item_id", keep="first", maintain_order=True)


def _item_columns(of: Items) -> list[str]:
    """The columns of the catalogue: its id first."""
    text = [] if of.text is None else templates.columns("data.source.items.text", of.text)
    return [of.item_id, *text, *(c for c in (of.category, of.published_s) if c)]


def _item_frame(
    of: Items, frame: pl.LazyFrame, rows: Rows, item: pl.Expr, published: pl.Expr | None
) -> pl.LazyFrame:
    """The catalogue's columns out of rows that follow the rules."""
    kind = pl.lit("unknown") if of.category is None else category(of.category, rows.schema[of.category])
    published = pl.lit(None, dtype=pl.Int64) if published is None else published
    out = frame.with_columns(__item=item, __kind=kind, __published=published)
    text = pl.col("__item")
    if of.text is not None:  # its columns become words in place, so it comes last
        text = templates.fill("data.source.items.text", of.text)
        named = templates.columns("data.source.items.text", of.text)
        out = out.with_columns(words(c, rows.schema[c]) for c in named)
    return out.select(item_id="__item", text=text, category="__kind", published_s="__published")


def _items(log: Log, of: Items) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
    """The catalogue of its own files or query, and the items' vectors where it has them."""
    name = "data.source.items.vector"
    given = [of.vector] if isinstance(of.vector, str) else of.vector
    own = [] if given is None else listed(name, given, "columns")
    tables = log.open("items", of, [*_item_columns(of), *own], lists=own if len(own) == 1 else [])
    dimension = vectors.dimension_of(tables[0], own) if own else 0
    seconds_of = None if of.published_s is None else log.moments(of.published_s, tables)
    parts, vector_parts = [], []
    for rows in tables:
        item, rules = identity(of.item_id, rows.schema[of.item_id])
        once = Rule(of.item_id, item.is_first_distinct(), "be listed once", "keep one of its rows")
        published = None
        if seconds_of is not None and of.published_s is not None:
            published, time_rules = seconds_of(rows)
            empty = word(of.published_s, rows.schema[of.published_s]).fill_null("") == ""
            rules += [rule._replace(ok=rule.ok | empty) for rule in time_rules]
        vector, vector_rules = vectors.vector_of(rows, own, dimension) if own else (None, [])
        frame = log.keep("items", rows, [*rules, once, *vector_rules])
        parts.append(_item_frame(of, frame, rows, item, published))
        if vector is not None:
            vector_parts.append(frame.select(item_id=item, vector=vector).drop_nulls())
    return pl.concat(parts), pl.concat(vector_parts) if own else None


def _bare(events: pl.LazyFrame, impressions: pl.LazyFrame | None) -> pl.LazyFrame:
    """A catalogue of ids alone, for a log that says nothing of its items."""
    ids = [events.select("item_id")]
    if impressions is not None:
        ids.append(impressions.select(item_id="candidates").explode("item_id", empty_as_null=False))
    return (
        pl.concat(ids)
        .unique()
        .select(
            "item_id",
            text="item_id",
            category=pl.lit("unknown"),
            published_s=pl.lit(None, dtype=pl.Int64),
        )
    )

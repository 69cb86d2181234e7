"""The impressions of `data=table`: one row each, or one row for each candidate."""

from dataclasses import dataclass
from typing import Any

import polars as pl

from halflife.errors import InputError
from halflife.sources.mapping import FIX, Log, binary, identity, ids, label
from halflife.sources.text_files import ROW, Rule


@dataclass(frozen=True)
class Impressions:
    """Where the impressions lie, one row each, or one row for each candidate.

    Args:
        files, sql, header: as of Events.
        impression_id: column; null where an impression is a user at a moment, or a row.
        user_id, timestamp_s: names of columns.
        item_id, label: columns of a log with one row a candidate; the label is 0 or 1.
        candidates: column with the list of items, of a log with one row an impression; null otherwise.
        labels: column with the list of their labels; or
        clicked: column with the list of those clicked.
    """

    files: Any
    sql: str | None
    header: list[str] | None
    impression_id: str | None
    user_id: str
    timestamp_s: str
    item_id: str
    label: str
    candidates: str | None
    labels: str | None
    clicked: str | None


def read_impressions(log: Log, of: Impressions) -> pl.LazyFrame:
    """The impressions, of either layout."""
    if of.candidates is None:
        return _one_row_a_candidate(log, of)
    return _one_row_an_impression(log, of, of.candidates)


def _one_row_a_candidate(log: Log, of: Impressions) -> pl.LazyFrame:
    """Impressions out of rows of one candidate each; candidates come in the order of their ids."""
    columns = [
        of.user_id,
        of.timestamp_s,
        of.item_id,
        of.label,
        *([of.impression_id] if of.impression_id else []),
    ]
    tables = log.open("impressions", of, columns)
    seconds_of = log.moments(of.timestamp_s, tables)
    parts = []
    for rows in tables:
        user, rules = identity(of.user_id, rows.schema[of.user_id])
        item, item_rules = identity(of.item_id, rows.schema[of.item_id])
        seconds, time_rules = seconds_of(rows)
        answer = label(of.label, rows.schema[of.label])
        rules += [*item_rules, *time_rules, Rule(of.label, answer.is_in([0.0, 1.0]), "be 0 or 1", FIX)]
        name = pl.concat_str(user, pl.lit("@"), seconds)
        if of.impression_id is not None:
            name, name_rules = identity(of.impression_id, rows.schema[of.impression_id])
            rules += name_rules
        frame = log.keep("impressions", rows, rules)
        parts.append(
            frame.select(
                impression_id=name,
                user_id=user,
                timestamp_s=seconds,
                item_id=item,
                label=answer.cast(pl.Int8),
            )
        )
    grouped = (
        pl.concat(parts)
        .group_by("impression_id")
        .agg(
            pl.col("user_id").min(),
            pl.col("timestamp_s").min(),
            candidates=pl.col("item_id").sort_by("item_id", "label"),
            labels=pl.col("label").sort_by("item_id", "label"),
            other=pl.col("user_id").max(),
        )
    )
    mixed = grouped.filter(pl.col("user_id") != pl.col("other")).head(1).collect(engine="streaming")
    if len(mixed):
        name, user, other = mixed.select("impression_id", "user_id", "other").row(0)
        raise InputError(
            f"{of.impression_id} in data.source.impressions must be of one user, got {name} of {user} and of "
            f"{other}; name the column that tells impressions apart, or null for a user at a moment"
        )
    return grouped.drop("other")


def _one_row_an_impression(log: Log, of: Impressions, candidates: str) -> pl.LazyFrame:
    """Impressions as logged, with a list of candidates."""
    answer = of.labels if of.labels is not None else of.clicked
    if answer is None or (of.labels is not None and of.clicked is not None):
        raise InputError(
            "data.source.impressions must name one of labels and clicked beside candidates, got "
            f"{'neither' if answer is None else 'both'}; set one of them to null"
        )
    columns = [of.user_id, of.timestamp_s, candidates, answer]
    columns += [of.impression_id] if of.impression_id is not None else []
    tables = log.open("impressions", of, columns, lists=[candidates, answer])
    seconds_of = log.moments(of.timestamp_s, tables)
    parts = []
    for place, rows in enumerate(tables):
        user, rules = identity(of.user_id, rows.schema[of.user_id])
        seconds, time_rules = seconds_of(rows)
        items = ids(candidates, rows.schema[candidates], log.list_separator)
        answers = ids(answer, rows.schema[answer], log.list_separator)
        rules += [*time_rules, Rule(candidates, items.list.len() > 0, "hold at least 1 item", FIX)]
        if of.labels is not None:
            numbers = answers.list.eval(pl.element().cast(pl.Float64, strict=False))
            known = numbers.list.eval(pl.element().is_in([0.0, 1.0]).fill_null(False)).list.all()
            same = numbers.list.len() == items.list.len()
            rules += [
                Rule(answer, same, f"hold one label for each of {candidates}", FIX),
                Rule(answer, known, "hold 0 or 1 alone", FIX),
            ]
            labels = numbers.cast(pl.List(pl.Int8))
        else:
            clicked = answers.fill_null(pl.lit([], dtype=pl.List(pl.String)))
            among = clicked.list.set_difference(items).list.len() == 0
            rules.append(Rule(answer, among, f"be among {candidates}", FIX))
            items, labels = binary(items, clicked)
        name = pl.format(f"{place}-{{}}", pl.col(ROW))
        if of.impression_id is not None:
            name, name_rules = identity(of.impression_id, rows.schema[of.impression_id])
            rules += [*name_rules, Rule(of.impression_id, name.is_first_distinct(), "be used once", FIX)]
        frame = log.keep("impressions", rows, rules)
        parts.append(
            frame.select(
                impression_id=name, user_id=user, timestamp_s=seconds, candidates=items, labels=labels
            )
        )
    return pl.concat(parts)


def clicks_of(impressions: pl.LazyFrame) -> pl.LazyFrame:
    """What was clicked in impressions, as events."""
    return (
        impressions.explode("candidates", "labels")
        .filter(pl.col("labels") == 1)
        .select(
            "user_id",
            "timestamp_s",
            item_id="candidates",
            kind=pl.lit("click"),
            value=pl.lit(1.0, dtype=pl.Float32),
        )
    )

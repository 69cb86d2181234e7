"""Columns by their names → ids, times, numbers and lists, each with the rules of its values."""

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from halflife.errors import InputError, listed, shown
from halflife.sources import queries, times
from halflife.sources.rows import Rows, scan, scan_parquet
from halflife.sources.text_files import Rule
from halflife.tables import DAY_S

LONGEST_ID = 1000  # bytes; a longer one is a line break that went missing
FIX = "correct it, or leave such rows out by data.source.bad_rows=drop"


@dataclass(frozen=True)
class Log:
    """What all three tables share: the files, and how to read them."""

    files: list[Path]
    database: str | None
    time: str
    zone: str
    separator: str
    list_separator: str
    drop: bool
    dropped: dict[str, int]

    def open(self, role: str, of: Any, columns: Sequence[str], lists: Sequence[str] = ()) -> list[Rows]:
        """The rows of each file, or of the query, of one table."""
        columns = list(dict.fromkeys(columns))
        where = f"data.source.{role}"
        if of.sql is not None:
            if of.files is not None:
                raise InputError(f"{where} must have files or sql, got both; set one of them to null")
            target = queries.run(f"{where}.sql", of.sql, self.database, self.files)
            return [scan_parquet(target, columns, f"the result of {where}.sql")]
        header = None if of.header is None else listed(f"{where}.header", of.header, "columns")
        return [
            scan(file, columns, lists, self.separator, header)
            for file in _matching(f"{where}.files", of.files, self.files)
        ]

    def keep(self, role: str, rows: Rows, rules: Sequence[Rule]) -> pl.LazyFrame:
        """The rows that follow the rules; the others are an error, or are dropped and counted."""
        if not self.drop:
            rows.check(rules)
            return rows.frame
        rows.check([])
        broken = [~rule.ok.fill_null(False) for rule in rules]
        reason = pl.coalesce(
            *(pl.when(bad).then(i) for i, bad in enumerate(broken)), pl.lit(None, dtype=pl.Int32)
        )
        for i, n in rows.frame.group_by(reason.alias("i")).len().collect(engine="streaming").rows():
            if i is not None:
                name = f"rows of {role}: {rules[i].column} must {rules[i].must}"
                self.dropped[name] = self.dropped.get(name, 0) + n
        return rows.frame.filter(~pl.any_horizontal(broken))

    def moments(self, column: str, tables: list[Rows]) -> Callable[[Rows], tuple[pl.Expr, list[Rule]]]:
        """How each file's column becomes Unix seconds, and the rules of its values."""
        form = (
            self.time
            if self.time != "detect"
            else times.detect(column, tables[0].name, tables[0].sample(column))
        )
        latest = int(clock.time()) + DAY_S

        def of(rows: Rows) -> tuple[pl.Expr, list[Rule]]:
            dtype = rows.schema[column]
            seconds = times.seconds(column, dtype, form, self.zone)
            same = f"be in {times.name_of(form)}, as other rows are" if form in times.UNITS else ""
            past = "lie between 1970 and today"
            return seconds, [
                Rule(column, times.of_one_unit(column, dtype, form).fill_null(True), same, FIX),
                Rule(column, seconds.is_not_null(), times.described(form), FIX),
                Rule(column, seconds.is_between(0, latest), past, FIX),
            ]

        return of


def absent(of: Any) -> bool:
    """Whether a table is not there."""
    return of.files is None and of.sql is None


def _matching(name: str, patterns: Any, files: list[Path]) -> list[Path]:
    """The files that patterns name, by their path's end or by a folder they lie in."""
    wanted = [patterns] if isinstance(patterns, str) else listed(name, patterns, "patterns")
    found: dict[Path, None] = {}
    for pattern in wanted:
        of = [f for f in files if any(p.match(pattern) for p in (f, *f.parents))] if pattern else []
        if not of:
            got = ", ".join(f.name for f in files[:10]) or "no files"
            raise InputError(
                f"{name} must name files that data.files finds below data.root, got {shown(pattern)} beside "
                f"{got}; correct one of them"
            )
        found |= dict.fromkeys(of)
    return list(found)


def word(column: str, dtype: pl.DataType) -> pl.Expr:
    """An id or name as a string: 17850 also where a spreadsheet or a null beside it made it 17850.0."""
    value = pl.col(column)
    if dtype.is_float():
        whole = value.cast(pl.Int64, strict=False)
        return pl.when(whole == value).then(whole.cast(pl.String)).otherwise(value.cast(pl.String))
    return value.cast(pl.String)


def identity(column: str, dtype: pl.DataType) -> tuple[pl.Expr, list[Rule]]:
    """An id, and its rules."""
    name = word(column, dtype)
    sane = (name.str.len_bytes() <= LONGEST_ID) & ~name.str.contains("\0", literal=True)
    return name, [
        Rule(column, name.str.len_bytes() > 0, "be filled in", FIX),
        Rule(column, sane, f"be an id of at most {LONGEST_ID} bytes without NUL bytes", FIX),
    ]


def real(column: str) -> tuple[pl.Expr, Rule]:
    """A number, and its rule."""
    value = pl.col(column).cast(pl.Float64, strict=False)
    return value, Rule(column, value.is_finite(), "be a number", FIX)


def words(column: str, dtype: pl.DataType) -> pl.Expr:
    """A column as text: a list joined by commas."""
    if isinstance(dtype, pl.List):
        return pl.col(column).cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
    return word(column, dtype).alias(column)


def category(column: str, dtype: pl.DataType) -> pl.Expr:
    """A category: the first of a list; `unknown` where it is empty."""
    name = pl.col(column).list.first().cast(pl.String) if isinstance(dtype, pl.List) else word(column, dtype)
    return pl.when(name.str.len_bytes() > 0).then(name).otherwise(pl.lit("unknown"))


def label(column: str, dtype: pl.DataType) -> pl.Expr:
    """0 or 1 of a label that is written as a number or as true and false."""
    if dtype != pl.String:
        return pl.col(column).cast(pl.Float64, strict=False)
    words = pl.col(column).str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0"})
    return words.cast(pl.Float64, strict=False)


def ids(column: str, dtype: pl.DataType, separator: str) -> pl.Expr:
    """A list of ids, or its writing as text, brackets and quotes or not."""
    if isinstance(dtype, pl.List):
        return pl.col(column).cast(pl.List(pl.String))
    words = pl.col(column).cast(pl.String).str.strip_chars(" []()").str.split(separator)
    words = words.list.eval(pl.element().str.strip_chars(" '\""))
    return words.list.eval(pl.element().filter(pl.element() != ""))


def binary(candidates: pl.Expr, clicked: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Candidates in the order of their ids, and 1 for each of those clicked.

    By id, since in an order of its own the place of a candidate could tell its label.

    >>> frame = pl.DataFrame({"shown": [["b", "a", "c"]], "clicked": [["c"]]})
    >>> frame.select(*binary(pl.col("shown"), pl.col("clicked"))).row(0)
    (['a', 'b', 'c'], [0, 0, 1])
    """
    marked = pl.concat_list(
        candidates.list.set_difference(clicked).list.eval(pl.element() + "-0"),
        candidates.list.set_intersection(clicked).list.eval(pl.element() + "-1"),
    ).list.sort()
    labels = marked.list.eval(pl.element().str.tail(1).cast(pl.Int8))
    return marked.list.eval(pl.element().str.head(-2)).alias("candidates"), labels.alias("labels")

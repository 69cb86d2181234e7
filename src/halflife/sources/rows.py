"""Rows of a table, wherever they lie: delimited text, JSON Lines, Parquet; each file with its own check."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from halflife.errors import InputError, near, shown
from halflife.sources.text_files import AGAIN, ROW, Rule, lines, open_csv, quoted, scan_lines, short

SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
_TEXT = (".csv", ".tsv", ".txt", ".dat", ".data", ".psv", ".item", ".user")
_JSON = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet", ".pq")

Check = Callable[[Sequence[Rule]], None]


class Rows(NamedTuple):
    """The rows of one file or query.

    Args:
        name: what a message calls it.
        frame: ROW (0-based) and the columns asked for; strings where the format has no types.
        schema: the types of the columns.
        check: refuses the first row that breaks a rule, and whatever is malformed.
    """

    name: str
    frame: pl.LazyFrame
    schema: dict[str, pl.DataType]
    check: Check

    def sample(self, column: str, most: int = 1000) -> pl.Series:
        """The first values of a column, at least one."""
        try:
            values = self.frame.select(column).head(most).collect(engine="streaming").to_series()
        except pl.exceptions.ComputeError:
            self.check([])  # names what is malformed
            raise
        if len(values) == 0:
            self.check([])
        return values


def scan(
    file: Path, columns: Sequence[str], lists: Sequence[str], separator: str, header: list[str] | None
) -> Rows:
    """The rows of one file, by the ending of its name; .gz and .zst may follow it.

    Args:
        file: .csv, .tsv, .txt, .dat, .psv; .jsonl, .ndjson, .json; .parquet or .pq.
        columns: those needed; a dot leads into a nested object of JSON Lines (`user.id`).
        lists: those among them that hold lists.
        separator: what stands between fields of a text file, as a word of SEPARATORS, a character, or
            `detect`.
        header: the columns of a text file whose first line is a row already.

    Raises:
        InputError: for a file of another kind, or one that cannot be opened.
    """
    endings = [e.lower() for e in file.suffixes]
    ending = next((e for e in reversed(endings) if e not in (".gz", ".zst")), "")
    if ending in _TEXT:
        return _delimited(file, columns, separator, header)
    if ending in _JSON:
        return scan_json_lines(file, columns, lists)
    if ending in _PARQUET:
        return scan_parquet(file, columns)
    raise InputError(
        f"{file} must end in {', '.join((*_TEXT[:5], *_JSON, *_PARQUET))}, then .gz or .zst or nothing, got "
        f"{file.name}; rename it or correct the setting that names it"
    )


def _delimited(file: Path, columns: Sequence[str], separator: str, header: list[str] | None) -> Rows:
    """A text file with a character between fields."""
    mark = SEPARATORS.get(separator, separator)
    if separator == "detect":
        mark = _separator(file, columns, header)
    elif len(mark.encode()) != 1:
        raise InputError(
            f"data.source.separator must be detect, {', '.join(SEPARATORS)} or one character, got "
            f"{shown(separator)}; give one of them"
        )
    frame, check = open_csv(file, columns, mark, header)
    return Rows(str(file), frame.select(ROW, *columns), dict.fromkeys(columns, pl.String()), check)


def _separator(file: Path, columns: Sequence[str], header: list[str] | None) -> str:
    """The character that cuts the first line into the columns asked for, or else into most fields."""
    first = next(lines(file))
    counts = {mark: first.count(mark) for mark in SEPARATORS.values()}
    if header is not None:
        fit = [mark for mark, count in counts.items() if count + 1 == len(header)]
    else:
        words = {mark: {w.strip().strip('"') for w in first.split(mark)} for mark in counts}
        fit = [mark for mark in counts if set(columns) <= words[mark]]
    return fit[0] if fit else max(counts, key=lambda mark: counts[mark])


def scan_json_lines(file: Path, columns: Sequence[str], lists: Sequence[str]) -> Rows:
    """A file with a JSON object on each line, as strings and lists of strings; empty lines are left out.

    Args:
        file: plain or compressed.
        columns: fields; a dot leads into a nested object.
        lists: those among them that hold lists.

    Raises:
        InputError: for a file that cannot be opened or holds an array.
    """
    first = next(lines(file))
    if first.lstrip()[:1] == "[":
        raise InputError(
            f"{file} must hold one JSON object a line, got an array; write it so (jq -c '.[]' FILE)"
        )
    tree: dict[str, Any] = {}
    for column in columns:
        *way, leaf = column.split(".")
        node = tree
        for step in way:
            node = node.setdefault(step, {})
        node[leaf] = pl.List(pl.String()) if column in lists else pl.String()
    record = pl.col("line").str.json_decode(_struct(tree)).alias("record")
    fields = [_field(column) for column in columns]
    decoded = scan_lines(file).filter(pl.col("line").str.strip_chars() != "").select(ROW, record)
    frame = decoded.select(ROW, *fields)
    schema: dict[str, pl.DataType] = {c: pl.List(pl.String()) if c in lists else pl.String() for c in columns}

    def check(rules: Sequence[Rule]) -> None:
        check_rows(
            str(file),
            frame,
            rules,
            lambda row: f"{file} line {row + 1}",
            lambda: _find_bad_json(file, columns),
        )

    return Rows(str(file), frame, schema, check)


def _struct(tree: Mapping[str, Any]) -> pl.Struct:
    """The type of an object whose leaves are types."""
    return pl.Struct({k: _struct(v) if isinstance(v, dict) else v for k, v in tree.items()})


def _field(column: str) -> pl.Expr:
    """The field of `record` that a dotted name leads to."""
    value = pl.col("record")
    for step in column.split("."):
        value = value.struct.field(step)
    return value.alias(column)


def _find_bad_json(file: Path, columns: Sequence[str]) -> None:
    """Raise the InputError for the first line that is no JSON object; else for a field that no line has."""
    met: dict[str, None] = {}
    for number, text in enumerate(lines(file), start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = str(error).partition(":")[0]
            raise InputError(
                f"{file} line {number} must be a JSON object, got {quoted(text.strip())} ({reason}); "
                f"correct the line or {AGAIN}"
            ) from None
        if not isinstance(record, dict):
            raise InputError(
                f"{file} line {number} must be a JSON object, got {quoted(text.strip())}; correct the line"
            )
        for name, value in record.items():
            met[name] = None
            if isinstance(value, dict):
                met |= dict.fromkeys(f"{name}.{inner}" for inner in value)
    for column in columns:
        if met and column not in met and column.count(".") < 2:
            raise InputError(
                f"{file} must have the field {column}, got {short(', '.join(met), 300)}; {near(column, met)}"
            )


def scan_parquet(file: Path, columns: Sequence[str], name: str | None = None) -> Rows:
    """The rows of one Parquet file, typed as it says.

    Args:
        file: its path.
        columns: those needed.
        name: what messages call it in place of the path, such as a query.

    Raises:
        InputError: for a file that is missing or damaged, or has not these columns.
    """
    if not file.is_file():
        got = "a folder" if file.is_dir() else "no such file"
        raise InputError(f"{file} must be a file, got {got}; point data.root and data.files at the files")
    lazy = pl.scan_parquet(file, glob=False, row_index_name=ROW)
    try:
        have = lazy.collect_schema()
    except (pl.exceptions.ComputeError, OSError) as error:
        raise InputError(
            f"{file} must be a whole Parquet file, got {short(str(error).splitlines()[0])}; {AGAIN}"
        ) from None
    called = name or str(file)
    for column in columns:
        if column not in have:
            raise InputError(
                f"{called} must have the columns {', '.join(columns)}, got "
                f"{short(', '.join(c for c in have if c != ROW), 300)}; {near(column, have)}"
            )
    frame = lazy.select(ROW, *columns)

    def check(rules: Sequence[Rule]) -> None:
        again = AGAIN if name is None else "correct the query"
        check_rows(called, frame, rules, lambda row: f"{called} row {row + 1}", lambda: None, again)

    return Rows(called, frame, {column: have[column] for column in columns}, check)


def check_rows(
    name: str,
    frame: pl.LazyFrame,
    rules: Sequence[Rule],
    place: Callable[[int], str],
    explain: Callable[[], None],
    again: str = AGAIN,
) -> None:
    """Find the first row that breaks a rule, in one streaming pass.

    Args:
        name: the file or query.
        frame: ROW and the columns.
        rules: what every row must be.
        place: where a row (0-based) lies, in words.
        explain: called when the frame cannot be read, or holds a column without any value; raises the
            InputError that says why, if it can.
        again: what to do about a file that is damaged or empty.

    Raises:
        InputError: names the place, the value and what to do.
    """
    firsts = [
        pl.col(ROW).filter(~rule.ok.fill_null(False)).min().alias(f"rule{i}") for i, rule in enumerate(rules)
    ]
    values = pl.all().exclude(ROW).count().name.prefix("n ")
    try:
        row = frame.select(pl.len().alias("rows"), values, *firsts).collect(engine="streaming")
    except (pl.exceptions.ComputeError, OSError) as error:
        explain()
        reason = short(str(error).splitlines()[0])
        raise InputError(f"{name} must be readable, got {reason}; {again}") from None
    found = row.row(0, named=True)
    if found["rows"] == 0:
        raise InputError(f"{name} must have at least 1 row, got none; {again}")
    if 0 in (v for k, v in found.items() if k.startswith("n ")):
        explain()
    broken = [(found[f"rule{i}"], i) for i in range(len(rules)) if found[f"rule{i}"] is not None]
    if broken:
        first, which = min(broken)
        rule = rules[which]
        value = frame.filter(pl.col(ROW) == first).select(rule.column).collect(engine="streaming").item()
        text = "" if value is None else str(value.to_list()) if isinstance(value, pl.Series) else str(value)
        raise InputError(
            f"{rule.column} in {place(first)} must {rule.must}, got {quoted(rule.pick(text))}; {rule.do}"
        )

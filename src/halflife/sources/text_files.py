"""Delimited text files, checked in one streaming pass; what is wrong is named by file and line."""

import csv
import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from halflife.errors import InputError

AGAIN = "download the file again"
_ROW = "__row"
_UNUSED = "\x1f"  # a separator no log uses: the whole line is one field


class Rule(NamedTuple):
    """What every value of a column must be.

    Args:
        column: its name.
        ok: true where the value (a string) is accepted; null counts as false.
        must: the rule in words, the end of "must …".
        do: what the user can do about a bad value.
        pick: cuts the offending part out of a long value, for the message.
    """

    column: str
    ok: pl.Expr
    must: str
    do: str = "correct the line or download the file again"
    pick: Callable[[str], str] = str


def filled(column: str) -> Rule:
    """The rule that a column is never empty."""
    return Rule(column, pl.col(column).str.len_bytes() > 0, "be filled in")


def scan_csv(file: Path, columns: Sequence[str], rules: Sequence[Rule]) -> pl.LazyFrame:
    """A comma-separated file with a header, as a lazy frame of strings (empty fields are "").

    Args:
        file: plain or gzipped.
        columns: those needed, in any order in the file; others are left out.
        rules: checked before the frame is returned, in one streaming pass.

    Raises:
        InputError: names the file, the line (1-based) and what to do, for anything malformed.
    """
    header = next(_records(file, ","))[1]
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(
            f"{file} must have the columns {', '.join(columns)}, got {_short(', '.join(header), 300)}; "
            f"add {', '.join(missing)} or {AGAIN}"
        )
    twice = [column for column in columns if header.count(column) > 1]
    if twice:
        raise InputError(f"{file} must have each column once, got {twice[0]} twice; rename or remove one")
    frame = pl.scan_csv(file, infer_schema=False, empty_string_is_null=False, row_index_name=_ROW, glob=False)
    # Polars fills a short line with empty fields: an empty last field is what such a line cannot avoid.
    short = pl.col(header[-1]).str.len_bytes() == 0
    _check(file, frame, rules, ",", header, short)
    return frame.select(columns)


def scan_tsv(file: Path, columns: Sequence[str], rules: Sequence[Rule]) -> pl.LazyFrame:
    """A tab-separated file without header and without quoting, as a lazy frame of strings.

    Args:
        file: plain or gzipped.
        columns: all of them, in the file's order.
        rules: checked before the frame is returned, in one streaming pass.

    Raises:
        InputError: names the file, the line (1-based) and what to do, for anything malformed.
    """
    next(_records(file, "\t"))
    lines = pl.scan_csv(
        file,
        has_header=False,
        schema={"line": pl.String},
        separator=_UNUSED,
        quote_char=None,
        empty_string_is_null=False,
        row_index_name=_ROW,
        glob=False,
    )
    tabs = len(columns) - 1
    fields = pl.col("line").str.split_exact("\t", tabs).struct.rename_fields(list(columns))
    frame = (
        lines.with_columns(fields.alias("fields"))
        .unnest("fields")
        .with_columns(pl.col(columns).fill_null(""))
    )
    ragged = pl.col("line").str.count_matches("\t", literal=True) != tabs
    _check(file, frame, rules, "\t", columns, ragged)
    return frame.select(columns)


def _check(
    file: Path,
    frame: pl.LazyFrame,
    rules: Sequence[Rule],
    separator: str,
    columns: Sequence[str],
    suspect: pl.Expr,
) -> None:
    """Find the first row that breaks a rule; only then walk the file in Python, to name its line."""
    firsts = [
        pl.col(_ROW).filter(~rule.ok.fill_null(False)).min().alias(f"rule{i}") for i, rule in enumerate(rules)
    ]
    # Every column is touched, or the scan would skip it and with it the check that it is UTF-8.
    touch = pl.max_horizontal(pl.all().exclude(_ROW).str.len_bytes()).max().alias("longest")
    try:
        found = frame.select(pl.len().alias("rows"), suspect.any().alias("suspect"), touch, *firsts)
        row = found.collect(engine="streaming").row(0, named=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        for _ in _checked_records(file, separator, columns):
            pass
        reason = _short(str(error).splitlines()[0])
        raise InputError(f"{file} must be a readable text table, got {reason}; {AGAIN}") from None
    if row["rows"] == 0:
        raise InputError(f"{file} must have at least 1 row, got a header alone; {AGAIN}")
    broken = [(row[f"rule{i}"], i) for i in range(len(rules)) if row[f"rule{i}"] is not None]
    if not broken and not row["suspect"]:
        _check_end(file)
        return
    first, which = min(broken, default=(None, 0))
    for index, (line, fields) in enumerate(_checked_records(file, separator, columns)):
        if index == first:
            rule = rules[which]
            value = rule.pick(fields[list(columns).index(rule.column)])
            raise InputError(
                f"{rule.column} in {file} line {line} must {rule.must}, got {_quoted(value)}; {rule.do}"
            )
    _check_end(file)


def _check_end(file: Path) -> None:
    """Refuse a plain file that stops inside a line: of a timestamp cut short, nothing else would tell.

    Raises:
        InputError: when the last line has no line break. (A gzip file that is cut off says so itself.)
    """
    with file.open("rb") as stream:
        if stream.read(2) == b"\x1f\x8b":
            return
        stream.seek(-1, os.SEEK_END)
        if stream.read() in (b"\n", b"\r"):
            return
        stream.seek(0)
        line = 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 24), b""))
    raise InputError(
        f"{file} line {line} must end in a line break, got the end of the file, as in one that was cut off; "
        f"{AGAIN}, or add the line break if the line is whole"
    )


def _checked_records(file: Path, separator: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record below the header, refusing another number of fields."""
    for index, (line, fields) in enumerate(_records(file, separator)):
        if len(fields) != len(columns):
            raise InputError(
                f"{file} line {line} must have {len(columns)} fields ({', '.join(columns)}), "
                f"got {len(fields)}; correct the line or {AGAIN}"
            )
        if index > 0 or separator == "\t":
            yield line, fields


def _records(file: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Line number (1-based, where the record starts) and fields of every record, the header included."""
    if not file.is_file():
        got = "a folder" if file.is_dir() else "no such file"
        raise InputError(f"{file} must be a file, got {got}; point data.root and data.files at the files")
    lines = _lines(file)
    if separator == "\t":
        for number, text in enumerate(lines, start=1):
            yield number, text.rstrip("\r\n").split("\t")
        return
    reader = csv.reader(lines, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{file} line {start} must have its quotes closed, got {_quoted(str(error))}; "
                f"correct the line or {AGAIN}"
            ) from None
        if fields is None:
            return
        yield start, fields


def _lines(file: Path) -> Iterator[str]:
    """The decoded lines of a plain or gzipped file."""
    done = 0
    try:
        with file.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(file, "rb") if zipped else file.open("rb") as stream:
            for line in stream:
                yield line.decode("utf-8-sig" if done == 0 else "utf-8")
                done += 1
    except EOFError:
        raise InputError(
            f"{file} must be a complete gzip file, got one that ends early after line {done}; {AGAIN}"
        ) from None
    except (zlib.error, gzip.BadGzipFile):
        raise InputError(
            f"{file} must be an undamaged gzip file, got bad data after line {done}; {AGAIN}"
        ) from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{file} line {done + 1} must be UTF-8 text, got the byte 0x{byte:02x}; "
            "convert the file to UTF-8 (iconv -t UTF-8)"
        ) from None
    except OSError as error:
        raise InputError(f"{file} must be readable, got {error.strerror}; give it read permission") from None
    if done == 0:
        raise InputError(f"{file} must hold rows, got an empty file; {AGAIN}")


def _quoted(value: str) -> str:
    """A value as it stands in a message."""
    return repr(_short(value)) if value else "nothing"


def _short(text: str, most: int = 80) -> str:
    """One line of at most this many characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"

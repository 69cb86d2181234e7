"""Delimited text files, checked in one streaming pass; what is wrong is named by file and line."""

import csv
import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from halflife.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

AGAIN = "download the file again"
ROW = "__row"
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
        file: plain, gzipped or, where its name ends so, compressed as .zst.
        columns: those needed, in any order in the file; others are left out.
        rules: checked before the frame is returned, in one streaming pass.

    Raises:
        InputError: names the file, the line (1-based) and what to do, for anything malformed.
    """
    frame, check = open_csv(file, columns)
    check(rules)
    return frame.select(columns)


def open_csv(
    file: Path, columns: Sequence[str], separator: str = ",", header: Sequence[str] | None = None
) -> tuple[pl.LazyFrame, Callable[[Sequence[Rule]], None]]:
    """A file of separated and perhaps quoted fields, unchecked, and the function that checks it by rules.

    Args:
        file: plain, gzipped or, where its name ends so, compressed as .zst.
        columns: those needed, in any order in the file.
        separator: one character.
        header: the names of all columns, in order, for a file whose first line is a row already.

    Returns:
        A lazy frame of strings with ROW and all of the file's columns, and its check.

    Raises:
        InputError: for a file that cannot be opened, or has not these columns.
    """
    form = _Form(separator, quoted=True, headed=header is None)
    first = next(_records(file, form))[1]
    names = first if header is None else list(header)
    if header is not None:
        _check_width(file, 1, first, names)
    missing = [column for column in columns if column not in names]
    if missing:
        raise InputError(
            f"{file} must have the columns {', '.join(columns)}, got {short(', '.join(names), 300)}; "
            f"add {', '.join(missing)} or {AGAIN}"
        )
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        raise InputError(f"{file} must have each column once, got {twice[0]} twice; rename or remove one")
    frame = pl.scan_csv(
        file,
        has_header=form.headed,
        schema=None if form.headed else dict.fromkeys(names, pl.String()),
        separator=separator,
        infer_schema=False,
        empty_string_is_null=False,
        row_index_name=ROW,
        glob=False,
    )
    # Polars fills a short line with empty fields: an empty last field is what such a line cannot avoid.
    bare = pl.col(names[-1]).str.len_bytes() == 0
    return frame, lambda rules: _check(file, frame, rules, form, names, bare)


def scan_lines(file: Path, encoding: str = "utf-8") -> pl.LazyFrame:
    """The lines of a text file as they are, as the columns ROW (0-based) and `line`.

    Args:
        file: plain or compressed.
        encoding: of a file that is not UTF-8; it is then held in memory.

    Raises:
        InputError: for a file that is missing or empty, or whose first line cannot be read.
    """
    next(lines(file, encoding))
    if encoding != "utf-8":
        text = [line.rstrip("\r\n") for line in lines(file, encoding)]
        return pl.LazyFrame({"line": text}).with_row_index(ROW)
    return pl.scan_csv(
        file,
        has_header=False,
        schema={"line": pl.String},
        separator=_UNUSED,
        quote_char=None,
        empty_string_is_null=False,
        row_index_name=ROW,
        glob=False,
    )


def scan_tsv(
    file: Path,
    columns: Sequence[str],
    rules: Sequence[Rule],
    separator: str = "\t",
    encoding: str = "utf-8",
) -> pl.LazyFrame:
    """A tab-separated file without header and without quoting, as a lazy frame of strings.

    Args:
        file: plain or gzipped.
        columns: all of them, in the file's order.
        rules: checked before the frame is returned, in one streaming pass.
        separator: what stands between fields in place of a tab; of any length.
        encoding: of a file that is not UTF-8; it is then held in memory.

    Raises:
        InputError: names the file, the line (1-based) and what to do, for anything malformed.
    """
    between = len(columns) - 1
    fields = pl.col("line").str.split_exact(separator, between).struct.rename_fields(list(columns))
    frame = (
        scan_lines(file, encoding)
        .with_columns(fields.alias("fields"))
        .unnest("fields")
        .with_columns(pl.col(columns).fill_null(""))
    )
    ragged = pl.col("line").str.count_matches(separator, literal=True) != between
    _check(
        file, frame, rules, _Form(separator, quoted=False, headed=False, encoding=encoding), columns, ragged
    )
    return frame.select(columns)


class _Form(NamedTuple):
    """How a file writes its records: what lies between fields, whether they are quoted, and a header."""

    separator: str
    quoted: bool
    headed: bool
    encoding: str = "utf-8"


def _check(
    file: Path,
    frame: pl.LazyFrame,
    rules: Sequence[Rule],
    form: _Form,
    columns: Sequence[str],
    suspect: pl.Expr,
) -> None:
    """Find the first row that breaks a rule; only then walk the file in Python, to name its line."""
    firsts = [
        pl.col(ROW).filter(~rule.ok.fill_null(False)).min().alias(f"rule{i}") for i, rule in enumerate(rules)
    ]
    # Every column is touched, or the scan would skip it and with it the check that it is UTF-8.
    touch = pl.max_horizontal(pl.all().exclude(ROW).str.len_bytes()).max().alias("longest")
    try:
        found = frame.select(pl.len().alias("rows"), suspect.any().alias("suspect"), touch, *firsts)
        row = found.collect(engine="streaming").row(0, named=True)
    except (pl.exceptions.ComputeError, OSError) as error:
        for _ in _checked_records(file, form, columns):
            pass
        reason = short(str(error).splitlines()[0])
        raise InputError(f"{file} must be a readable text table, got {reason}; {AGAIN}") from None
    if row["rows"] == 0:
        raise InputError(f"{file} must have at least 1 row, got a header alone; {AGAIN}")
    broken = [(row[f"rule{i}"], i) for i in range(len(rules)) if row[f"rule{i}"] is not None]
    if not broken and not row["suspect"]:
        check_end(file)
        return
    first, which = min(broken, default=(None, 0))
    for index, (line, fields) in enumerate(_checked_records(file, form, columns)):
        if index == first:
            rule = rules[which]
            value = rule.pick(fields[list(columns).index(rule.column)])
            raise InputError(
                f"{rule.column} in {file} line {line} must {rule.must}, got {quoted(value)}; {rule.do}"
            )
    check_end(file)


def check_end(file: Path) -> None:
    """Refuse a plain file that stops inside a line: of a timestamp cut short, nothing else would tell.

    Raises:
        InputError: when the last line has no line break. (A compressed file that is cut off says so itself.)
    """
    if _compression(file):
        return
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        if stream.read() in (b"\n", b"\r"):
            return
        stream.seek(0)
        line = 1 + sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(1 << 24), b""))
    raise InputError(
        f"{file} line {line} must end in a line break, got the end of the file, as in one that was cut off; "
        f"{AGAIN}, or add the line break if the line is whole"
    )


def _checked_records(file: Path, form: _Form, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record below the header, refusing another number of fields."""
    for index, (line, fields) in enumerate(_records(file, form)):
        _check_width(file, line, fields, columns)
        if index > 0 or not form.headed:
            yield line, fields


def _check_width(file: Path, line: int, fields: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a record of another number of fields; a damaged gzip file shows in its fields first."""
    if len(fields) == len(columns):
        return
    if _compression(file):
        for _ in lines(file):
            pass
    raise InputError(
        f"{file} line {line} must have {len(columns)} fields ({', '.join(columns)}), "
        f"got {len(fields)}; correct the line or {AGAIN}"
    )


def _records(file: Path, form: _Form) -> Iterator[tuple[int, list[str]]]:
    """Line number (1-based, where the record starts) and fields of every record, the header included."""
    if not form.quoted:
        for number, text in enumerate(lines(file, form.encoding), start=1):
            yield number, text.rstrip("\r\n").split(form.separator)
        return
    csv.field_size_limit(sys.maxsize)  # a long text is none of the mistakes that are looked for
    reader = csv.reader(lines(file), delimiter=form.separator, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{file} line {start} must have its quotes closed, got {quoted(str(error))}; "
                f"correct the line or {AGAIN}"
            ) from None
        if fields is None:
            return
        yield start, fields


def lines(file: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The decoded lines of a plain or compressed file, with their line breaks.

    Raises:
        InputError: names file and line, for what cannot be read, is cut short, damaged or not UTF-8.
    """
    if not file.is_file():
        got = "a folder" if file.is_dir() else "no such file"
        raise InputError(f"{file} must be a file, got {got}; point data.root and data.files at the files")
    done = 0
    try:
        kind = _compression(file)
        with closing(_opened(file)) as stream:
            for line in stream:
                yield line.decode("utf-8-sig" if done == 0 and encoding == "utf-8" else encoding)
                done += 1
    except EOFError:
        raise InputError(
            f"{file} must be a complete {kind} file, got one that ends early after line {done}; {AGAIN}"
        ) from None
    except (zlib.error, gzip.BadGzipFile, zstd.ZstdError):
        raise InputError(
            f"{file} must be an undamaged {kind} file, got bad data after line {done}; {AGAIN}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(_not_utf8(file, done + 1, error)) from None
    except OSError as error:
        raise InputError(f"{file} must be readable, got {error.strerror}; give it read permission") from None
    if done == 0:
        raise InputError(f"{file} must hold rows, got an empty file; {AGAIN}")


def _not_utf8(file: Path, line: int, error: UnicodeDecodeError) -> str:
    """The sentence for a byte that is no UTF-8; the first bytes of a file can tell what it is instead."""
    if line == 1 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"{file} must be UTF-8 text, got UTF-16; convert the file to UTF-8 (iconv -f UTF-16 -t UTF-8)"
    byte = error.object[error.start]
    return (
        f"{file} line {line} must be UTF-8 text, got the byte 0x{byte:02x}; "
        "convert the file to UTF-8 (iconv -t UTF-8)"
    )


def _compression(file: Path) -> str:
    """How a file is compressed, by its first bytes: `gzip`, `zstd` or nothing."""
    with file.open("rb") as raw:
        start = raw.read(4)
    return "gzip" if start[:2] == b"\x1f\x8b" else "zstd" if start == b"\x28\xb5\x2f\xfd" else ""


def _opened(file: Path) -> Any:
    """The bytes of a plain or compressed file."""
    kind = _compression(file)
    if kind == "gzip":
        return gzip.open(file, "rb")
    return zstd.open(file, "rb") if kind == "zstd" else file.open("rb")


def quoted(value: str) -> str:
    """A value as it stands in a message."""
    return repr(short(value)) if value else "nothing"


def short(text: str, most: int = 80) -> str:
    """One line of at most this many characters."""
    text = " ".join(text[: 4 * most].split())
    return text if len(text) <= most else text[: most - 1] + "…"

"""Vectors of items out of files: an id and numbers a row, in Parquet, JSON Lines or text."""

import json
from collections.abc import Iterable, Sequence
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from halflife.errors import InputError, listed, shown, text
from halflife.sources.mapping import identity
from halflife.sources.rows import Rows, check_rows, scan_json_lines, scan_parquet
from halflife.sources.text_files import AGAIN, ROW, Rule, check_end, lines, scan_lines, short

FORMATS = (".parquet", ".pq", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".vec")
MARKS = ("\t", ";", "|", ",", " ")  # between fields of a text file; the first that its lines hold
FIX = "correct the row or leave it out"


def located(given: Any, root: str | None) -> list[Path]:
    """The files that `data.vectors` names, in order.

    Args:
        given: a path or glob, or a list of these.
        root: the folder that relative ones are below; None for the working directory.

    Raises:
        InputError: for what is none, or matches no file.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str)
    what = "a file of item vectors"
    wanted = listed("data.vectors", given, "files") if several else [text("data.vectors", given, what)]
    base = Path(root or ".").expanduser()
    found: dict[Path, None] = {}
    for name in wanted:
        path = base / Path(name).expanduser()
        paths = (
            [path] if path.is_file() else sorted(base / p for p in glob(name, root_dir=base, recursive=True))
        )
        files = [p for p in paths if p.is_file()]
        if not files:
            raise InputError(
                f"data.vectors must be a file of item vectors, got {shown(name)}, which is no file; give its "
                "path, whole or below data.root"
            )
        found |= dict.fromkeys(files)
    if not found:
        raise InputError("data.vectors must be a file of item vectors, or null, got none; give its path")
    return list(found)


def read(files: Sequence[Path]) -> pl.LazyFrame:
    """The vectors of items: the first column is the id, what follows is numbers or one list of them.

    Args:
        files: of any of FORMATS, text also compressed; all of one dimension. In a text file the lines hold
            the id and then the numbers, with a header, with word2vec's (rows and dimension) or without.

    Returns:
        `item_id, vector` (float32), lazy; rows without a vector are left out.

    Raises:
        InputError: for a row of another dimension, one that is not of finite numbers, an id twice in a file.
    """
    dimension, parts = None, []
    for file in files:
        rows, columns = _opened(file)
        item, rules = identity(columns[0], rows.schema[columns[0]])
        once = Rule(columns[0], item.is_first_distinct(), "be listed once", "keep one of its rows")
        dimension = dimension or dimension_of(rows, columns[1:])
        vector, vector_rules = vector_of(rows, columns[1:], dimension)
        rows.check([*(rule._replace(do=FIX) for rule in rules), once, *vector_rules])
        parts.append(rows.frame.select(item_id=item, vector=vector).drop_nulls())
    return pl.concat(parts)


def dimension_of(rows: Rows, columns: Sequence[str]) -> int:
    """How many numbers the first vector of a file holds.

    Raises:
        InputError: where there is none.
    """
    length = _numbers(rows, columns).list.len().alias("n")
    try:
        found = rows.frame.select(length).filter(pl.col("n") > 0).head(1).collect(engine="streaming")
    except (pl.exceptions.ComputeError, OSError):
        rows.check([])  # names what is malformed
        raise
    if len(found) == 0:
        rows.check([])
        raise InputError(
            f"{rows.name} must hold at least 1 vector of numbers, got none; name the file and columns that do"
        )
    return int(found.item())


def vector_of(rows: Rows, columns: Sequence[str], dimension: int) -> tuple[pl.Expr, list[Rule]]:
    """The vector of a row, null where it has none, and the rules of its values.

    Args:
        rows: of a file.
        columns: one with lists, or one for each number.
        dimension: how many numbers each has to hold.
    """
    vector = _numbers(rows, columns)
    empty = pl.all_horizontal(_bare(c, rows.schema[c]) for c in columns)
    found = pl.when(~empty).then(vector)
    if len(columns) > 1:
        must = "be a finite number, or be empty with all other columns of the vector"
        numbers = ((c, pl.col(c).cast(pl.Float32, strict=False).is_finite()) for c in columns)
        return found, [Rule(c, empty | ok.fill_null(False), must, FIX) for c, ok in numbers]
    finite = vector.list.eval(pl.element().is_finite().fill_null(False)).list.all()
    must = f"hold {dimension} finite numbers, as many as the first"
    ok = empty | ((vector.list.len() == dimension) & finite).fill_null(False)
    return found, [Rule(columns[0], ok, must, FIX)]


def _numbers(rows: Rows, columns: Sequence[str]) -> pl.Expr:
    """The columns as one list of float32, null where something is no number."""
    if len(columns) > 1:
        return pl.concat_list(pl.col(c).cast(pl.Float32, strict=False) for c in columns)
    column, dtype = pl.col(columns[0]), rows.schema[columns[0]]
    if dtype == pl.String:
        return _written(column).cast(pl.List(pl.Float32), strict=False)
    if isinstance(dtype, pl.List | pl.Array):
        return column.cast(pl.List(pl.Float32), strict=False)
    return pl.concat_list(column.cast(pl.Float32, strict=False))


def _written(list_text: pl.Expr) -> pl.Expr:
    """The numbers of a list as Python, NumPy or JSON write it, still as words."""
    return list_text.str.strip_chars(" \"'[]()").str.replace_all(r"[,;\s]+", " ").str.split(" ")


def _bare(column: str, dtype: pl.DataType) -> pl.Expr:
    """Whether a column says nothing of an item."""
    value = pl.col(column)
    if dtype == pl.String:
        return value.str.strip_chars().fill_null("") == ""
    return value.list.len().fill_null(0) == 0 if isinstance(dtype, pl.List) else value.is_null()


def _opened(file: Path) -> tuple[Rows, list[str]]:
    """The rows of a file, and its columns: the id, then the vector."""
    endings = [e.lower() for e in file.suffixes]
    ending = next((e for e in reversed(endings) if e not in (".gz", ".zst")), "")
    if ending not in FORMATS:
        raise InputError(
            f"data.vectors must name a file that ends in {', '.join(FORMATS)}, got {file.name}; save it as "
            "Parquet (docs/data.md)"
        )
    if ending in (".parquet", ".pq"):
        return _parquet(file)
    return _json(file) if ending in (".jsonl", ".ndjson") else _text(file)


def _parquet(file: Path) -> tuple[Rows, list[str]]:
    """A file with an id, then one list or several numbers."""
    scan_parquet(file, [])  # whether it is whole
    schema = pl.scan_parquet(file, glob=False).collect_schema()
    columns = list(schema)
    rest = columns[1:]
    fits = len(rest) == 1 and isinstance(schema[rest[0]], pl.List | pl.Array)
    if not rest or not (fits or all(schema[c].is_numeric() for c in rest)):
        names = ", ".join(f"{c} ({t})" for c, t in schema.items())
        raise InputError(
            f"{file} must have the column of ids first, then one of lists of numbers, or numbers alone, got "
            f"{short(names, 300)}; leave the other columns out"
        )
    return scan_parquet(file, columns), columns


def _json(file: Path) -> tuple[Rows, list[str]]:
    """A file of objects whose first field is the id and whose second is the list."""
    first = next((line for line in lines(file) if line.strip()), "")
    try:
        record = json.loads(first)
    except ValueError:
        record = None
    if not isinstance(record, dict) or len(record) != 2 or not isinstance([*record.values()][1], list):
        raise InputError(
            f'{file} must hold objects such as {{"item_id": "a", "vector": [0.1, 0.2]}}, one a line, got '
            f"{short(first)!r}; write it so"
        )
    columns = list(record)
    return scan_json_lines(file, columns, columns[1:]), columns


def _text(file: Path) -> tuple[Rows, list[str]]:
    """A text file: an id, a mark, and numbers with the same mark between them, or a list in brackets."""
    first = list(islice((line.strip("\r\n") for line in lines(file) if line.strip()), 2)) or [""]
    mark = next((m for m in MARKS if m in first[-1].rstrip()), None)
    if mark is None:
        raise InputError(
            f"{file} must hold an id and numbers a line, with a tab, semicolon, comma or space between them, "
            f"got {short(first[-1])!r}; {AGAIN}"
        )
    line = pl.col("line").str.strip_chars_end(f"{mark} \r")
    # word2vec's header is how many rows there are, and of how many numbers
    fields = [line.rstrip(f"{mark} ").split(mark) for line in first]
    sizes = len(fields[0]) == 2 and "".join(fields[0]).isdigit()
    size = sizes and fields[0][1] == str(len(fields[-1]) - 1) != "1"
    headed = size or not (fields[0][0] and any(_number(field) for field in fields[0][1:]))
    field = line.str.splitn(mark, 2).struct
    rest = field.field("field_1").str.strip_chars()
    plain = rest.str.split(mark).list.eval(pl.element().str.strip_chars())
    frame = (
        scan_lines(file)
        .filter((pl.col(ROW) >= int(headed)) & (pl.col("line").str.strip_chars() != ""))
        .select(
            ROW,
            item_id=field.field("field_0").str.strip_chars(' "'),
            # a line without numbers is cut short, and not an item without a vector
            vector=pl.when(rest.str.contains(r"\[")).then(_written(rest)).otherwise(plain).fill_null([""]),
        )
    )

    def check(rules: Sequence[Rule]) -> None:
        check_rows(
            str(file),
            frame,
            rules,
            lambda row: f"{file} line {row + 1}",
            lambda: _read_through(file),
        )
        check_end(file)

    schema: dict[str, pl.DataType] = {"item_id": pl.String(), "vector": pl.List(pl.String())}
    return Rows(str(file), frame, schema, check), ["item_id", "vector"]


def _read_through(file: Path) -> None:
    """Raise the InputError for a text file that cannot be read to its end."""
    for _ in lines(file):
        pass


def _number(field: str) -> bool:
    """Whether a field of a text file is a number, or the end of a list of them."""
    try:
        float(field.strip(" \"'[]()"))
    except ValueError:
        return False
    return True

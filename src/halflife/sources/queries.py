"""SQL queries → Parquet files, streamed: DuckDB over files or a database file, PostgreSQL over ADBC."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from halflife.errors import InputError
from halflife.sources.text_files import short

_EXTRA = "pip install 'halflife-rec[sql]'"


def run(name: str, query: str, database: str | None, files: list[Path]) -> Path:
    """Run a query once and return its rows as a Parquet file, which lives as long as the process.

    The rows go through in blocks, so a result may be larger than memory; the temporary directory (TMPDIR)
    must hold it.

    Args:
        name: the setting that holds the query, for messages.
        query: one SELECT.
        database: `postgresql://USER@HOST/NAME`, without a password; the name of a DuckDB file among `files`,
            or its path; None for DuckDB without a database, where the query itself names files
            (`FROM read_parquet('…')`).
        files: the log's files.

    Raises:
        InputError: for a query that fails, at its start or half-way, or a database that cannot be opened.
    """
    duckdb = _module("duckdb")
    place = Path(tempfile.mkdtemp(prefix="halflife-sql-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    target = place / "rows.parquet"
    select = query.strip().rstrip(";")
    copy = f"COPY ({{}}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
    if database is not None and database.startswith(("postgresql://", "postgres://")):
        _postgres(name, select, database, duckdb, copy.format("SELECT * FROM stream"))
        return target
    try:
        with _duckdb(duckdb, database, files) as connection:
            connection.execute(copy.format(select))
    except duckdb.Error as error:
        raise InputError(_failed(name, error)) from None
    return target


def _module(name: str) -> Any:
    """A module of the extra `sql`."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(
            f"data.source with a query must find the package {name.partition('.')[0].replace('_', '-')}, "
            f"got none; run {_EXTRA}"
        ) from None


def _duckdb(duckdb: Any, database: str | None, files: list[Path]) -> Any:
    """A connection to a DuckDB file, which is only read, or to none."""
    if database is None:
        return duckdb.connect()
    found = next((file for file in files if file.name == database), Path(database).expanduser())
    if not found.is_file():
        raise InputError(
            f"data.source.database must be a DuckDB file or postgresql://USER@HOST/NAME, got {database}, "
            "which is no file; correct the path"
        )
    return duckdb.connect(str(found), read_only=True)


def _postgres(name: str, select: str, database: str, duckdb: Any, copy: str) -> None:
    """Stream the rows of PostgreSQL into the Parquet file that `copy` names."""
    if urlsplit(database).password:
        raise InputError(
            "data.source.database must hold no password, got one, and settings are written into every run; "
            "put it into PGPASSWORD or ~/.pgpass"
        )
    driver = _module("adbc_driver_postgresql.dbapi")
    try:
        with driver.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(select)
            stream = cursor.fetch_arrow()  # read by the query below, under this name
            with duckdb.connect() as writer:
                writer.execute(copy)
            del stream
    except (driver.Error, duckdb.Error) as error:
        raise InputError(_failed(name, error)) from None


def _failed(name: str, error: Exception) -> str:
    """The sentence for a query that a database refused or that failed while it ran."""
    reason = short(str(error).partition("\n\n")[0], 200).rstrip(".")
    return f"{name} must run to its end, got {reason}; correct the query or the database"

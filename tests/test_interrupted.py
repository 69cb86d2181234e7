"""A build that meets a full disk or is killed, at every one of its writes: the Stores there stay usable, and
the next build ends with the same bytes."""

import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from halflife import arrays, impressions, spill, users
from halflife.errors import InputError
from halflife.negatives import Negatives
from halflife.store import FULL, Store, open_or_build
from halflife.tables import Tables

FAIR = Negatives(per_positive=2, by="uniform", window_days=1.0, exclude_seen=False, max_positives=3, seed=0)
TINY = ((users, "AT_ONCE", 8), (arrays, "BUCKET_ROWS", 8), (impressions, "PART_ROWS", 6))
WRITES: list[tuple[Any, str]] = [
    (np, "save"),
    (spill.Buckets, "__init__"),
    (spill.Buckets, "add"),
    (spill.Column, "__init__"),
    (spill.Column, "add"),
    (pl.DataFrame, "write_ipc"),
    (pl.DataFrame, "write_parquet"),
    (pl.LazyFrame, "sink_ipc"),
    (pl.LazyFrame, "sink_parquet"),
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "write_text"),
]
"""Whatever a build writes goes through one of these."""


def read(files: list[Path], logged: bool, late: int = 0) -> Tables:
    n = 24
    shown = pl.DataFrame(
        {
            "impression_id": [f"{i:02}" for i in range(n)],
            "user_id": [f"u{i % 5}" for i in range(n)],
            "timestamp_s": [1_700_000_000 + 50 * i for i in range(n)],
            "candidates": [["a", "b"]] * n,
            "labels": [[1, 0]] * n,
        }
    )
    events = pl.DataFrame(
        {
            "user_id": [f"u{i % 5}" for i in range(40)],
            "item_id": ["abcdef"[i % 6] for i in range(40)],
            "timestamp_s": [1_700_000_000 + 31 * i + late for i in range(40)],
        }
    ).with_columns(kind=pl.lit("click"), value=pl.lit(1.0))
    items = pl.DataFrame({"item_id": list("abcdef"), "text": list("ABCDEF")}).with_columns(
        category=pl.lit("c")
    )
    return Tables(items, events, shown if logged else None, True)


@contextmanager
def at_every_write(before: Callable[[int, str], None]) -> Iterator[None]:
    """Call `before(n, name)` before the n-th write of what runs inside, from 0."""
    done = 0

    def counted(real: Any, name: str) -> Any:
        def write(*args: Any, **keywords: Any) -> Any:
            nonlocal done
            done += 1
            before(done - 1, name)
            return real(*args, **keywords)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in WRITES:
            patch.setattr(owner, name, counted(getattr(owner, name), f"{owner.__name__}.{name}"))
        for owner, name, size in TINY:
            patch.setattr(owner, name, size)
        yield


def place_of(logged: bool, cache: Path, late: int = 0) -> Path:
    with at_every_write(lambda n, name: None):
        return open_or_build(partial(read, logged=logged, late=late), [], FAIR, cache).directory


def bytes_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.suffix != ".json"}


def left(cache: Path) -> set[str]:
    return {p.name for p in (cache / "stores").iterdir() if p.suffix != ".lock"}


LOGGED = pytest.mark.parametrize("logged", [True, False], ids=["logged", "drawn"])
STEP = pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 13])  # every write; some


@LOGGED
@STEP
def test_a_disk_that_fills_at_any_write_is_a_sentence_and_leaves_the_other_stores_alone(
    logged: bool, step: int, tmp_path: Path
) -> None:
    source = partial(read, logged=logged, late=7)
    before = place_of(logged, tmp_path)
    kept, want = bytes_of(before), bytes_of(place_of(logged, tmp_path / "elsewhere", late=7))
    writes: list[str] = []
    with at_every_write(lambda n, name: writes.append(name)):
        store = open_or_build(source, [], FAIR, tmp_path)
    assert bytes_of(store.directory) == want
    assert len(writes) > 30
    assert set(writes) >= {
        "numpy.save",
        "Column.add",
        "Buckets.add",
        "DataFrame.write_parquet",
        "Path.rename",
    }
    shutil.rmtree(store.directory)
    for at in [*range(0, len(writes), step), len(writes) - 1]:

        def full(n: int, name: str, at: int = at) -> None:
            if n == at and "parquet" in name:
                raise pl.exceptions.ComputeError("parquet: IO error: No space left on device (os error 28)")
            if n == at:
                raise OSError(errno.ENOSPC, "No space left on device")

        with at_every_write(full), pytest.raises(InputError) as caught:
            open_or_build(source, [], FAIR, tmp_path)
        assert str(caught.value) == (
            f"data.cache_dir must be a directory that can be written, got {tmp_path / 'stores'} "
            "(No space left on device); give another one or free some space"
        )
        assert left(tmp_path) == {before.name}
        assert bytes_of(before) == kept
    assert bytes_of(place_of(logged, tmp_path, late=7)) == want
    assert Store(before).about["events"] == 40


def test_a_disk_that_is_full_raises_from_polars_what_the_store_takes_for_it() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    frame = pl.DataFrame({"a": range(300_000)})
    for write in (frame.write_parquet, frame.lazy().sink_parquet, frame.write_ipc):
        with pytest.raises((OSError, pl.exceptions.ComputeError), match=FULL):
            write("/dev/full")


@LOGGED
@STEP
def test_what_a_kill_at_any_write_would_leave_behind_changes_no_byte_of_the_next_build(
    logged: bool, step: int, tmp_path: Path
) -> None:
    place = place_of(logged, tmp_path)
    name, want = place.name, bytes_of(place)
    shutil.rmtree(place)
    leavings = tmp_path / "stores" / f"{name}.tmp"
    snapshots: list[Path] = []

    def keep(n: int, _: str) -> None:
        if leavings.exists():
            snapshots.append(tmp_path / f"snapshot-{n}")
            shutil.copytree(leavings, snapshots[-1])

    with at_every_write(keep):
        open_or_build(partial(read, logged=logged, late=0), [], FAIR, tmp_path)
    assert len(snapshots) > 30
    for snapshot in snapshots[::step]:
        shutil.rmtree(place)
        snapshot.rename(leavings)
        assert bytes_of(place_of(logged, tmp_path)) == want
        assert left(tmp_path) == {name}


KILLED = """
import os, signal, sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_interrupted as t
def kill(n, name):
    if n == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
with t.at_every_write(kill):
    t.open_or_build(partial(t.read, logged=True, late=0), [], t.FAIR, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_build_killed_at_any_write_is_completed_by_the_next(tmp_path: Path) -> None:
    want, other = bytes_of(place_of(True, tmp_path / "whole")), place_of(True, tmp_path, late=7)
    kept = bytes_of(other)
    for at in range(1000):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path), str(at)]
        ended = subprocess.run(command, capture_output=True, text=True).returncode
        assert ended in (0, -signal.SIGKILL)
        assert bytes_of(other) == kept
        if ended == 0:
            break
        place = place_of(True, tmp_path)
        assert bytes_of(place) == want
        shutil.rmtree(place)
    assert at > 30

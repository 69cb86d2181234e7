"""What the README's data table is printed by: how fast a log becomes a Store, and a Store batches.

The log is of the shape of MIND-large: news, readers, clicks and impressions with their candidates, in the
order of time, in Parquet files that are written a slice at a time, so that a log larger than memory can be
made. Each figure comes from a process of its own, since peak memory is a process's.

    python benchmarks/data.py --json data.json
    python benchmarks/data.py --scales 10 --logs DIR
"""

import argparse
import hashlib
import inspect
import json
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from halflife.progress import bar
from halflife.tables import DAY_S, Tables

Array = NDArray[Any]

START_S = 1_570_752_000  # 2019-10-11T00:00Z, four weeks before the impressions begin
HISTORY_DAYS, IMPRESSION_DAYS = 28, 7
IMPRESSIONS, EVENTS, ITEMS, USERS = 2_200_000, 24_000_000, 160_000, 711_000
CANDIDATES = 37  # a mean; MIND-large has about as many
SLICE = 1_000_000  # rows made at a time
MAX_HISTORY, BATCH = 50, 256
WARM_UP, FEED_S = 20, 6.0  # batches, and seconds of feeding


def write_log(directory: Path, scale: float, seed: int = 1) -> None:
    """A log of the shape of MIND-large, written a slice of time after another.

    Popularity is Zipf's law with exponent 1 over all items; readers differ in how much they read by a gamma
    distribution. What is clicked has nothing to do with what was clicked before: only the work counts here.

    Args:
        directory: empty; gets `items.parquet`, `events-*.parquet`, `impressions-*.parquet`.
        scale: 1 is MIND-large; users, events and impressions grow with it, items do not.
        seed: the same seed gives the same log.
    """
    rng = np.random.default_rng(seed)
    items = pl.DataFrame({"item_id": pl.select(pl.format("N{}", pl.int_range(ITEMS))).to_series()})
    words = np.array(["late", "cup", "final", "win", "old", "town", "market", "traders", "wait", "rain"])
    text = [" ".join(row) for row in words[rng.integers(0, len(words), (ITEMS, 11))]]
    category = pl.Series(rng.integers(0, 18, ITEMS)).cast(pl.String)
    items.with_columns(text=pl.Series(text), category=category).write_parquet(directory / "items.parquet")
    weight = np.cumsum(1.0 / np.arange(1, ITEMS + 1))
    weight /= weight[-1]
    users = int(USERS * scale)
    activity = np.cumsum(rng.gamma(1.0, 1.0, users))
    activity /= activity[-1]

    def user_ids(n: int) -> pl.Series:
        return pl.select(pl.format("U{}", pl.Series(np.searchsorted(activity, rng.random(n))))).to_series()

    def item_ids(n: int) -> pl.Series:
        return pl.select(pl.format("N{}", pl.Series(np.searchsorted(weight, rng.random(n))))).to_series()

    for name, rows, first_day, days in (
        ("events", int(EVENTS * scale), 0, HISTORY_DAYS + IMPRESSION_DAYS),
        ("impressions", int(IMPRESSIONS * scale), HISTORY_DAYS, IMPRESSION_DAYS),
    ):
        size = SLICE if name == "events" else SLICE // 10
        edges = np.linspace(0, rows, -(-rows // size) + 1).astype(np.int64)
        low_s = START_S + first_day * DAY_S
        for at in bar(range(len(edges) - 1), name):
            n = int(edges[at + 1] - edges[at])
            seconds = low_s + (edges[at : at + 2] / rows * days * DAY_S).astype(np.int64)
            frame = pl.DataFrame(
                {"user_id": user_ids(n), "timestamp_s": np.sort(rng.integers(seconds[0], seconds[1], n))}
            )
            if name == "events":
                value = pl.lit(1.0, dtype=pl.Float32)
                frame = frame.with_columns(item_id=item_ids(n), kind=pl.lit("click"), value=value)
            else:
                lengths = np.clip(rng.gamma(0.9, CANDIDATES / 0.9, n), 2, 300).astype(np.int64)
                owner = np.repeat(np.arange(n), lengths)
                clicked = (rng.random(len(owner)) < 1.5 / CANDIDATES).astype(np.int8)
                shown = pl.DataFrame({"owner": owner, "candidates": item_ids(len(owner)), "labels": clicked})
                lists = shown.group_by("owner", maintain_order=True).agg("candidates", "labels")
                ids = pl.format("I{}", pl.int_range(int(edges[at]), int(edges[at + 1])))
                frame = frame.hstack(lists.drop("owner")).with_columns(impression_id=ids)
            frame.write_parquet(directory / f"{name}-{at:05d}.parquet")


def log_of(directory: Path, scale: float) -> Path:
    """The log of this scale, written where it is not there: under a temporary name, then renamed whole.

    Its name holds a hash of the code that writes it, constants included: another log has another name.
    """
    from halflife.store import once

    code = inspect.getsource(write_log) + repr(
        [START_S, HISTORY_DAYS, IMPRESSION_DAYS, IMPRESSIONS, EVENTS, ITEMS, USERS, CANDIDATES, SLICE]
    )
    log = directory / f"log-{scale:g}-{hashlib.sha256(code.encode()).hexdigest()[:8]}"
    once(log, partial(write_log, scale=scale))
    return log


def read(files: list[Path]) -> Tables:
    """The log that `write_log` wrote; never in memory.

    Args:
        files: all of the directory's.
    """
    named = {
        name: [f for f in files if f.name.startswith(name)] for name in ("items", "events", "impressions")
    }
    return Tables(
        items=pl.scan_parquet(named["items"]),
        events=pl.scan_parquet(named["events"]),
        impressions=pl.scan_parquet(named["impressions"]),
        has_click_times=True,
    )


def build(log: Path, cache: Path) -> dict[str, float]:
    """Build the Store of a log."""
    from halflife.store import open_or_build

    started = time.perf_counter()
    store = open_or_build(partial(read), sorted(log.glob("*.parquet")), None, cache)
    seconds = time.perf_counter() - started
    size = sum(f.stat().st_size for f in store.directory.rglob("*") if f.is_file())
    return {"seconds": seconds, "bytes": size, "rows": store.about["events"] + store.about["candidates"]}


def sort(log: Path, cache: Path) -> dict[str, float]:
    """Polars alone: scan the same files, sort events by user and time and impressions by time, write them."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this ends and nothing else
    tables = read(sorted(log.glob("*.parquet")))
    started = time.perf_counter()
    for name, keys in (("events", ["user_id", "timestamp_s"]), ("impressions", ["timestamp_s"])):
        getattr(tables, name).sort(*keys).sink_parquet(cache / f"{name}.parquet")
    return {"seconds": time.perf_counter() - started}


def warm(log: Path, cache: Path) -> dict[str, float]:
    """From a Store that is there to the first training batch of a DataModule, imports left out."""
    from halflife.datamodule import DataModule

    files = sorted(log.glob("*.parquet"))
    started = time.perf_counter()
    data = DataModule(
        source=partial(read),
        root=str(log),
        files=[file.name for file in files],
        cache_dir=str(cache),
        negatives=None,
        split={"val": 0.1, "test": 0.1},
        age="days",
        max_history=MAX_HISTORY,
        min_history=1,
        batch_size=BATCH,
        batch_tokens=None,
        eval_batch_size=BATCH,
        targets_per_history=1,
        num_workers=0,
        seed=1,
    )
    _ = next(iter(data.train_dataloader()))
    return {"seconds": time.perf_counter() - started}


def feed(log: Path, cache: Path, workers: int, order: str) -> dict[str, float]:
    """Batches of the newest fifth of a Store through the loader of a run, for a few seconds."""
    import torch
    from torch.utils.data import DataLoader

    from halflife.batches import Impressions
    from halflife.sampler import BatchRows
    from halflife.store import open_or_build

    torch.set_num_threads(1)
    store = open_or_build(partial(read), sorted(log.glob("*.parquet")), None, cache)
    dataset = Impressions(store, MAX_HISTORY, "days", None)
    n = len(store.impression_time)
    rows = np.arange(n - n // 5, n)
    sampler = BatchRows(rows, dataset.lengths if order == "random" else None, BATCH, seed=1)
    batches = iter(DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=workers))
    for _ in range(WARM_UP):
        next(batches)
    started, before, done = time.perf_counter(), time.process_time(), 0
    for _ in batches:
        done += 1
        if time.perf_counter() - started > FEED_S:
            break
    seconds, cpu = time.perf_counter() - started, time.process_time() - before
    return {"seconds": seconds, "cpu_s": cpu, "batches": done}


def measure(what: str, log: Path, cache: Path, *words: str) -> dict[str, float]:
    """Run one of the above in a process of its own; adds its processor time and the most memory it held.

    Returns:
        What it found; nothing for a sort that ran out of memory.
    """
    command = [sys.executable, __file__, "--measure", what, str(log), str(cache), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if what == "sort" and done.returncode in (-signal.SIGKILL, -signal.SIGABRT):
        return {}
    done.check_returncode()
    return dict(json.loads(done.stdout))


def measured(what: str, log: Path, cache: Path, words: list[str]) -> dict[str, float]:
    """What `measure` runs."""
    if what == "feed":
        found = feed(log, cache, int(words[0]), words[1])
    else:
        found = {"build": build, "sort": sort, "warm": warm}[what](log, cache)
    return {"cpu_s": time.process_time(), "peak_mib": peak_mib()} | found


def peak_mib() -> float:
    """The most memory this process held: VmHWM, for ru_maxrss counts what its parent held before the exec."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def compare(log: Path, scale: float) -> list[dict[str, Any]]:
    """Every row of the table, on one log.

    Rows/s are compared by processor time, which other work on the machine leaves alone, and by the clock.
    """
    rows: list[dict[str, Any]] = []

    def add(what: str, ours: float, target: float, other: float | None = None, least: bool = True) -> None:
        """A row; without `other`, `ours` itself is held against the target."""
        value = ours if other is None else ours / other
        met = value >= target if least else value <= target
        ratio = None if other is None else value
        rows.append(
            {"what": what, "ours": ours, "other": other, "ratio": ratio, "target": target, "met": met}
        )

    with tempfile.TemporaryDirectory(dir=log.parent) as name:
        cache = Path(name)
        sorts, builds = measure("sort", log, cache), measure("build", log, cache)
        n = builds["rows"]
        at = f"scale {scale:g}: "
        if sorts:
            add(at + "build, rows per processor second", n / builds["cpu_s"], 0.5, n / sorts["cpu_s"])
            add(at + "build, rows/s", n / builds["seconds"], 0.5, n / sorts["seconds"])
            add(at + "build, peak memory", builds["peak_mib"], 1, sorts["peak_mib"], least=False)
        else:  # nothing to be held against
            add(at + "build, rows/s; Polars' sort ran out of memory", n / builds["seconds"], 0)
        add(at + "build, peak memory (MiB)", builds["peak_mib"], 2048, least=False)
        add(at + "Store, bytes a row (event or candidate)", builds["bytes"] / n, 32, least=False)
        add(at + "warm start to the first batch (s)", measure("warm", log, cache)["seconds"], 1, least=False)
        for order in ("random", "sequential"):
            for workers in (0, 1, 2):
                fed = measure("feed", log, cache, str(workers), order)
                if workers == 0:
                    add(
                        at + f"impressions per processor second, {order}",
                        fed["batches"] * BATCH / fed["cpu_s"],
                        20_000,
                    )
                add(
                    at + f"impressions/s, {order}, {workers} workers",
                    fed["batches"] * BATCH / fed["seconds"],
                    20_000,
                )
    return rows


def main() -> None:
    """Make the log where it is not there, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--scales", type=float, nargs="+", default=[0.1, 1.0], help="1: as large as MIND-large"
    )
    parser.add_argument(
        "--logs", type=Path, help="where logs are made and kept; a temporary folder if left out"
    )
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        what, log, cache, *words = given.measure
        print(json.dumps(measured(what, Path(log), Path(cache), words)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for scale in given.scales:
            rows += compare(log_of(given.logs or Path(name), scale), scale)
    table = Table("what", "ours", "other", "ratio", "target", "met")
    for row in rows:
        shown = ("" if row[k] is None else f"{row[k]:,.4g}" for k in ("ours", "other", "ratio", "target"))
        table.add_row(row["what"], *shown, "yes" if row["met"] else "no")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

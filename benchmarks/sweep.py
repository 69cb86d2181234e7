"""What a trial of a sweep costs beyond its own run, against the same trials as separate processes.

The trials are those of search=half_life on a small newsroom, with a model of item vectors. The sweep runs
them in one process, where imports and the Store are there already for the second. Of a trial, the run is what
`train.run` takes in there: data, model, fit, test, refit, table. The rest is the sweep's: asking Optuna,
composing, writing down what came of it. The separate runs are `python train.py` with the parameters that the
sweep tried, one after another, which find the same Store on disk.

    python benchmarks/sweep.py --json sweep.json
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from halflife.progress import bar

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "data.source.users=80",
    "data.source.items=48",
    "data.source.days=30",
    "data.batch_size=64",
    "model=id_embedding",
    "logger=none",
    "cache_dir=cache",
]
PARAMETERS = ["decay.half_life_days", "optimizer.head_lr"]
TARGET_S = 1.0


def train(folder: Path, *words: str) -> float:
    """Wall seconds of one `python train.py`."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words, *SMALL],
        cwd=folder,
        env={**os.environ, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"train.py {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - begin


def sweep(folder: Path, trials: int) -> pl.DataFrame:
    """The trials of a sweep, with the seconds from the end of one to the end of the next, and of its run.

    The first one, which imports everything, is left out.
    """
    train(folder, "-m", "search=half_life", f"search.n_trials={trials + 1}", "hydra.sweep.dir=sweep")
    found = pl.read_parquet(folder / "sweep" / "trials.parquet")
    ends = found["datetime_complete"].to_list()
    notes = [json.loads((Path(place) / "trial.json").read_text()) for place in found["run_dir"]]
    return found[1:].with_columns(
        all_s=pl.Series([(b - a).total_seconds() for a, b in pairwise(ends)]),
        run_s=pl.Series([note["seconds"] for note in notes[1:]]),
    )


def row(what: str, ours: list[float], other: list[float], target: float, met: bool) -> dict[str, Any]:
    """A line of the table: medians and ranges, in seconds; the ratio is the other's over ours."""
    return {
        "what": what,
        "ours": statistics.median(ours),
        "other": statistics.median(other),
        "ratio": statistics.median(other) / statistics.median(ours),
        "target": target,
        "met": met,
        "ours_range": [min(ours), max(ours)],
        "other_range": [min(other), max(other)],
    }


def measure(folder: Path, trials: int, processes: int) -> list[dict[str, Any]]:
    """Run the sweep, then as many of its trials again in processes of their own."""
    found = sweep(folder, trials)
    fixed = ["decay.learn=false"]
    separate = [
        train(folder, *fixed, *(f"{key}={found[key][i]!r}" for key in PARAMETERS))
        for i in bar(range(min(trials, processes)), "separate runs")
    ]
    whole, run_s = found["all_s"].to_list(), found["run_s"].to_list()
    beyond = [a - r for a, r in zip(whole, run_s, strict=True)]
    other = [s - r for s, r in zip(separate, run_s, strict=False)]
    return [
        row(
            f"seconds of a trial beyond its run, {trials} trials; a process of its own beyond the same run, "
            f"{len(separate)} processes; at most",
            beyond,
            other,
            TARGET_S,
            statistics.median(beyond) <= TARGET_S,
        ),
        row(
            "seconds of a trial in all; a process of its own; ratio at least",
            whole,
            separate,
            1.0,
            statistics.median(separate) >= statistics.median(whole),
        ),
    ]


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Medians, ranges, and what was asked for."""
    table = Table(title="Sweep")
    for name in ("what", "ours", "other", "ratio", "target", "met"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for r in rows:
        cells = [
            f"{r[k]:.3g}\n({r[f'{k}_range'][0]:.3g} – {r[f'{k}_range'][1]:.3g})" for k in ("ours", "other")
        ]
        table.add_row(r["what"], *cells, f"{r['ratio']:.3g}", f"{r['target']:g}", "yes" if r["met"] else "NO")
    return table


def main() -> None:
    """Measure, print the table, write the rows."""

    def above_zero(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text}")
        return int(text)

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--trials", type=above_zero, default=50, help="of the sweep, behind a first one")
    parser.add_argument("--processes", type=above_zero, default=50, help="of those trials run separately")
    given = parser.parse_args()
    if given.json is not None and not given.json.absolute().parent.is_dir():
        parser.error(f"--json must be a file in a directory that exists, got {given.json}")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.trials, given.processes)
    Console().print(table_of(rows))
    if given.json is not None:
        temporary = given.json.with_name(given.json.name + ".tmp")
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
        temporary.replace(given.json)


if __name__ == "__main__":
    main()

"""What a trial of a sweep costs beyond its training, against the same trials as separate processes.

The trials are those of search=half_life on a small newsroom, with a model of item vectors. The sweep runs
them in this process, where imports and the Store are there already for the second. Of a trial, training is
what is spent inside `Trainer.fit`, `.validate`, `.test` and the refit, and results are what `summary.finish`
makes of them: the bootstrap of the AUC, baselines, pictures, tables. Both are in any run, whoever starts it.
All the rest is counted as overhead: asking Optuna, composing, making data, model and Trainer, writing down
what came of it. The separate runs are `python train.py` with the parameters that the sweep tried, one after
another, which find the same Store on disk. Seconds are of the wall clock, and of the processor beside it,
since the first tell as much of what else a machine is doing.

    python benchmarks/sweep.py --json sweep.json
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import chdir, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
import lightning.pytorch as pl
import numpy as np
import polars
from hydra.core.hydra_config import HydraConfig
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from halflife import estimate, summary
from halflife.cli import CONFIG_DIR
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
CLOCKS = ["wall clock", "processor"]
TARGET_S = 1.0


def now() -> NDArray[np.float64]:
    """Seconds of the wall clock, and of this process on the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def count(owner: Any, name: str, spent: NDArray[np.float64]) -> None:
    """Have every call of a function add its seconds to `spent`."""
    inner = getattr(owner, name)

    def call(*given: Any, **named: Any) -> Any:
        begin = now()
        try:
            return inner(*given, **named)
        finally:
            np.add(spent, now() - begin, out=spent)

    setattr(owner, name, call)


def sweep(folder: Path, trials: int) -> tuple[NDArray[np.float64], NDArray[np.float64], polars.DataFrame]:
    """Seconds from the end of one trial to the end of the next, those of its training and results, and what
    was tried. The first trial, which imports everything, is left out.

    Shape: seconds: (trials, 2), by `CLOCKS`.
    """
    sys.path.insert(0, str(ROOT))
    import train

    spent, ends = np.zeros(2), []
    for owner, name in ((pl.Trainer, "fit"), (pl.Trainer, "validate"), (pl.Trainer, "test")):
        count(owner, name, spent)
    count(estimate, "refit", spent)
    count(summary, "finish", spent)

    def task(cfg: Any) -> Any:
        value = train.run(cfg, Path(HydraConfig.get().runtime.output_dir))
        ends.append(np.stack([now(), spent]))
        return value

    words = ["search=half_life", f"search.n_trials={trials + 1}", "hydra.sweep.dir=sweep"]
    sys.argv = ["train.py", "-m", *words, *SMALL]
    with chdir(folder), (folder / "sweep.txt").open("w") as out, redirect_stdout(out):
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")(task)()
    whole, trained = np.stack([b - a for a, b in pairwise(ends)], axis=1)
    return whole, trained, polars.read_parquet(folder / "sweep" / "trials.parquet")[1:]


def process(folder: Path, *words: str) -> NDArray[np.float64]:
    """Seconds of one `python train.py`."""

    def clocks() -> NDArray[np.float64]:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])

    begin = clocks()
    command = [sys.executable, str(ROOT / "train.py"), *words, *SMALL]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"train.py {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return clocks() - begin


def row(what: str, ours: NDArray[np.float64], other: NDArray[np.float64], target: float) -> dict[str, Any]:
    """A line of the table: medians and ranges, in seconds; the ratio is the other's over ours."""
    mine, theirs = float(np.median(ours)), float(np.median(other))
    return {
        "what": what,
        "ours": mine,
        "other": theirs,
        "ratio": theirs / mine,
        "target": target,
        "met": mine <= target,
        "ours_range": [float(ours.min()), float(ours.max())],
        "other_range": [float(other.min()), float(other.max())],
    }


def measure(folder: Path, trials: int, processes: int) -> list[dict[str, Any]]:
    """Run the sweep, then as many of its trials again in processes of their own."""
    whole, trained, found = sweep(folder, trials)
    separate = np.stack(
        [
            process(folder, "decay.learn=false", *(f"{key}={found[key][i]!r}" for key in PARAMETERS))
            for i in bar(range(min(trials, processes)), "separate runs")
        ]
    )
    ran = f"{trials} trials against {len(separate)} processes"
    rows = []
    for i, clock in enumerate(CLOCKS):
        beyond, apart = (whole - trained)[:, i], separate[:, i] - trained[: len(separate), i]
        rows.append(row(f"overhead of a trial, {clock}, {ran}; at most (s)", beyond, apart, TARGET_S))
    for i, clock in enumerate(CLOCKS):
        most = float(np.median(separate[:, i]))
        rows.append(row(f"a trial in all, {clock}, {ran}; at most (s)", whole[:, i], separate[:, i], most))
    return rows


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Medians, ranges, and what was asked for."""
    table = Table(title="Sweep")
    for name in ("what", "ours", "other", "ratio", "target", "met"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for r in rows:
        cells = [
            f"{r[k]:.3g}\n({r[f'{k}_range'][0]:.3g} – {r[f'{k}_range'][1]:.3g})" for k in ("ours", "other")
        ]
        table.add_row(
            r["what"], *cells, f"{r['ratio']:.3g}", f"{r['target']:.3g}", "yes" if r["met"] else "NO"
        )
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
    out = None if given.json is None else given.json.absolute()
    if out is not None and not out.parent.is_dir():
        parser.error(f"--json must be a file in a directory that exists, got {given.json}")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.trials, given.processes)
    Console().print(table_of(rows))
    if out is not None:
        temporary = out.with_name(out.name + ".tmp")
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
        temporary.replace(out)


if __name__ == "__main__":
    main()

"""The table at the end of a multirun: what varied, and what it reached."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class MultirunTable(Callback):
    """Collects the jobs of a multirun and prints them side by side; those of one setting share a row.

    Jobs of one setting differ in the seed alone; the interval is mean ± t · s / √n over them. The table is
    written to `summary.txt` in the sweep's directory as well.
    """

    def __init__(self) -> None:
        self.jobs: list[tuple[list[str], Path]] = []

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        """Remember where a job ran and with which overrides."""
        hydra = job_return.hydra_cfg.hydra
        self.jobs.append((list(hydra.overrides.task), Path(hydra.runtime.output_dir)))

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Print the table, but after a study, which has one of its own."""
        if "study_name" in (config.hydra.get("sweeper") or {}):
            return
        done = [
            (o, json.loads((d / "metrics.json").read_text()))
            for o, d in self.jobs
            if (d / "metrics.json").exists()
        ]
        if not done:
            return
        from halflife.tracking import write_table

        write_table(Path(config.hydra.sweep.dir) / "summary.txt", [multirun_table(done)])


def multirun_table(done: list[tuple[list[str], dict[str, Any]]]) -> Any:
    """One row for each setting.

    Args:
        done: overrides and metrics of each job.
    """
    import numpy as np
    from rich.table import Table
    from scipy.stats import t

    common = set.intersection(*(set(o) for o, _ in done)) if len(done) > 1 else set()
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for overrides, found in done:
        rows[" ".join(o for o in overrides if o not in common and not o.startswith("seed="))].append(found)
    columns = {"AUC": "test/auc", "gAUC": "test/gauc", "nDCG@10": "test/ndcg@10", "log-loss": "test/logloss"}
    columns |= {
        f"half-life ({u})": f"decay/half_life_{u}"
        for u in ("days", "rank")
        if any(f"decay/half_life_{u}" in f for _, f in done)
    }
    columns["popularity AUC"] = "baseline/popularity/auc"
    table = Table(title=f"Test, {len(done)} runs · {' '.join(sorted(common))}".rstrip(" ·"))
    table.add_column("setting", overflow="fold")
    table.add_column("seeds", justify="right")
    for name in columns:
        table.add_column(name, justify="right")
    for setting, runs in rows.items():
        cells = []
        for key in columns.values():
            values = np.array([r[key] for r in runs if key in r], float)
            if len(values) == 0:
                cells.append("")
            elif len(values) == 1 or (key.startswith("baseline/") and np.ptp(values) == 0):
                cells.append(f"{values[0]:.4g}")  # the baseline of one log is the same with every seed
            else:
                half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
                cells.append(f"{values.mean():.4g} ± {half:.2g}")
        table.add_row(setting or "as given", str(len(runs)), *cells)
    return table

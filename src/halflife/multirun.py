"""What Halflife adds to a multirun: a last table; and to a sweep: a check before it, and its run in W&B."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import ListConfig

from halflife.cli import stop
from halflife.errors import InputError


class MultirunTable(Callback):
    """Prints the jobs of a multirun side by side; those of one setting share a row.

    Jobs of one setting differ in the seed alone; the interval is mean ± t · s / √n over them. What a job
    reached is read from the sweep's directory, whichever process it ran in, and with which overrides from its
    `.hydra`. The table is written to `summary.txt` in the sweep's directory as well.
    """

    def __init__(self) -> None:
        self.before: dict[Path, int] = {}

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Remember what an earlier multirun left in the same directory."""
        self.before = ended(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Print the table; after a study, which has one of its own, only what it cannot know of its logs."""
        sweep_dir = Path(config.hydra.sweep.dir)
        runs = [run for run, when in ended(sweep_dir).items() if self.before.get(run) != when]
        if not runs:
            return
        from halflife.report.run import overrides, read
        from halflife.summary import caveats
        from halflife.tracking import console, write_table

        done = [(overrides(run), read(run, "metrics.json")) for run in runs]
        if not is_study(config):
            write_table(sweep_dir / "summary.txt", [multirun_table(done)])
            return
        for caveat in caveats(found for _, found in done):
            console().print(f"note: {caveat}", markup=False)


class SweepRun(Callback):
    """What the sweeper, which any app can use, does not know: what an objective means, and the logger."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """End a sweep for the worst before its first trial."""
        try:
            check_directions(config)
        except InputError as error:  # Hydra would turn it into a warning, and go on
            stop(str(error))

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Tell W&B of the study, where its trials log there; of several workers the last one does."""
        if is_study(config) and config.get("logger"):
            from halflife.report.sweep_run import log

            log(config.logger, Path(config.hydra.sweep.dir).absolute())


def ended(sweep_dir: Path) -> dict[Path, int]:
    """The runs below a directory that reached their end, in the order of jobs, and when (nanoseconds)."""
    files = [f for f in sweep_dir.rglob("metrics.json") if (f.parent / ".hydra" / "overrides.yaml").is_file()]
    files.sort(key=lambda f: (len(f.parent.name), f.parent.name))
    return {file.parent: file.stat().st_mtime_ns for file in files}


def is_study(config: Any) -> bool:
    """Whether a multirun is one of `hydra/sweeper=halflife`."""
    return "study_name" in (config.hydra.get("sweeper") or {})


def check_directions(config: Any) -> None:
    """Refuse a sweep that would look for the largest loss, or the smallest AUC.

    Args:
        config: of a multirun.

    Raises:
        InputError: when a direction does not fit its objective, or there are not as many of them.
    """
    objective = config.get("objective")
    if not is_study(config) or objective is None:
        return
    objectives = list(objective) if isinstance(objective, ListConfig) else [objective]
    given = config.hydra.sweeper.direction
    directions = list(given) if isinstance(given, ListConfig) else [given]
    best = ["minimize" if str(o).endswith(("loss", "_s")) else "maximize" for o in objectives]
    if directions != best:
        fits = best[0] if len(best) == 1 else f"[{','.join(best)}]"
        shown = ",".join(map(str, directions))
        raise InputError(
            f"hydra.sweeper.direction must be {fits} for objective={','.join(map(str, objectives))}, got "
            f"{shown}; add 'hydra.sweeper.direction={fits}'"
        )


def multirun_table(done: list[tuple[list[str], dict[str, Any]]]) -> Any:
    """One row for each setting.

    Args:
        done: overrides and metrics of each job.
    """
    import numpy as np
    from rich.table import Table
    from scipy.stats import t

    from halflife.summary import caveats

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
    title = f"Test, {len(done)} runs · {' '.join(sorted(common))}".rstrip(" ·")
    table = Table(title=title, caption="\n".join(caveats(found for _, found in done)) or None)
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
            if 0 < len(values) < len(runs):
                cells[-1] += f" ({len(values)} of {len(runs)})"
        table.add_row(setting or "as given", str(len(runs)), *cells)
    return table

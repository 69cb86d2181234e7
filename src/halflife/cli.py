"""The command line's manners: a mistake ends in one sentence and exit code 2, and leaves nothing behind."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from halflife.errors import InputError
from halflife.explain import explain

Task = Callable[[Any, Path], Any]

_HERE = Path(__file__).resolve().parent
CONFIG_DIR = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parents[1] / "conf"
"""The configurations: inside the package when installed, beside `src/` in a checkout."""


def guarded(task: Task, cfg: Any, config: Path) -> Any:
    """Run `task(cfg, run_dir)` under Hydra, and end a mistake before Hydra prints it.

    What the run wrote until then is removed again, but for a run that has saved a checkpoint.

    Args:
        task: a function of configuration and run directory.
        cfg: the configuration.
        config: the primary configuration's file.

    Returns:
        What the task returns.
    """
    from hydra.core.hydra_config import HydraConfig

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    before = {p.name for p in run_dir.iterdir()}
    try:
        return task(cfg, run_dir)
    except Exception as error:
        sentence = explain(error, config, run_dir)
        if sentence is None:
            raise
        if HydraConfig.get().sweeper.get("trial") is not None:  # only this trial of a sweep ends
            raise InputError(sentence) from error
        _tidy(run_dir, before)
        stop(sentence)


def run_app(main: Callable[[], Any], task: Task, config: Path) -> None:
    """Run a Hydra app, and explain what Hydra itself refuses.

    A process that Lightning started for another GPU is told by HALFLIFE_RUN_DIR where its parent runs: it
    takes the configuration from there, so that it has the parent's overrides also inside a multirun, and
    never asks Hydra.

    Args:
        main: the function that `hydra.main` decorated.
        task: the function of configuration and run directory under it.
        config: the primary configuration's file.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and this function prints
    parent = os.environ.get("HALFLIFE_RUN_DIR")
    try:
        if parent is not None and os.environ.get("LOCAL_RANK", "0") != "0":
            from omegaconf import DictConfig, OmegaConf

            cfg = OmegaConf.load(Path(parent) / ".hydra" / "config.yaml")
            if isinstance(cfg, DictConfig):
                task(cfg, Path(parent))
            return
        _check_flags()
        main()
    except Exception as error:
        sentence = explain(error, config)
        if sentence is None:
            raise
        _drop_empty_sweep(error)
        stop(sentence)


def _check_flags() -> None:
    """Raise the InputError for a flag that Hydra does not know, such as --decay=power."""
    from hydra._internal.utils import get_args_parser

    unknown = get_args_parser().parse_known_args()[1]
    if unknown:
        bare = unknown[0].lstrip("-")
        hint = f"write {bare} without dashes" if "=" in bare else "see --help and --hydra-help"
        raise InputError(f"an override must be KEY=VALUE, got the unknown flag {unknown[0]}; {hint}")


def _drop_empty_sweep(error: BaseException) -> None:
    """Remove the sweep directory that Hydra's sweeper made before it found that its jobs do not compose."""
    trace = error.__traceback__
    while trace is not None:
        sweep = trace.tb_frame.f_locals.get("sweep_dir")
        if sweep is not None and (Path(sweep) / "multirun.yaml").exists():
            _tidy(Path(sweep) / "job", set())
        trace = trace.tb_next


def stop(sentence: str) -> NoReturn:
    """Print the sentence and leave with exit code 2."""
    sys.stdout.flush()
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(2)


def _tidy(run_dir: Path, before: set[str]) -> None:
    """Remove what a refused run wrote, then its directory and parents if they are empty.

    A run that has saved a checkpoint was no mistake from the start, and stays.
    """
    notes = {".hydra"}
    if run_dir.is_dir():
        if any((run_dir / "checkpoints").glob("*.ckpt")):
            return
        for path in run_dir.iterdir():
            if path.name not in before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if any(p.name not in notes and p.suffix != ".log" for p in run_dir.iterdir()):
            return
        shutil.rmtree(run_dir)
    for parent in list(run_dir.parents)[:3]:
        if parent == Path.cwd() or not parent.is_dir():
            return
        sweep = parent / "multirun.yaml"
        if [p.name for p in parent.iterdir()] == [sweep.name]:
            sweep.unlink()
        if any(parent.iterdir()):
            return
        parent.rmdir()

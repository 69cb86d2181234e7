"""The command line's manners: a mistake ends in one sentence and exit code 2, and leaves nothing behind."""

import functools
import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from halflife.errors import InputError, near

Task = Callable[[Any, Path], Any]

_HERE = Path(__file__).resolve().parent
CONFIG_DIR = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parents[1] / "conf"
"""The configurations: inside the package when installed, beside `src/` in a checkout."""


def guarded(task: Task) -> Callable[[Any], Any]:
    """Make a Hydra task function of `task(cfg, run_dir)` that ends a mistake before Hydra prints it.

    A run directory that holds nothing but Hydra's own files is removed again.
    """

    @functools.wraps(task)
    def run(cfg: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            return task(cfg, run_dir)
        except Exception as error:
            sentence = explain(error)
            if sentence is None:
                raise
            _tidy(run_dir)
            stop(sentence)

    return run


def run_app(main: Callable[[], Any], task: Task, config: Path) -> None:
    """Run a Hydra app, and explain what Hydra itself refuses.

    A process that Lightning started for another GPU is told by HALFLIFE_RUN_DIR where its parent runs: it
        takes the
    configuration from there, so that it has the parent's overrides also inside a multirun, and never asks
    Hydra.

    Args:
        main: the function that `hydra.main` decorated.
        task: the function of configuration and run directory under it.
        config: the primary configuration's file, to name the near keys.
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
        main()
    except Exception as error:
        sentence = explain(error, config)
        if sentence is None:
            raise
        _drop_empty_sweep(error)
        stop(sentence)


def _drop_empty_sweep(error: BaseException) -> None:
    """Remove the sweep directory that Hydra's sweeper made before it found that its jobs do not compose."""
    trace = error.__traceback__
    while trace is not None:
        sweep = trace.tb_frame.f_locals.get("sweep_dir")
        if sweep is not None and (Path(sweep) / "multirun.yaml").exists():
            _tidy(Path(sweep) / "job")
        trace = trace.tb_next


def stop(sentence: str) -> None:
    """Print the sentence and leave with exit code 2."""
    sys.stdout.flush()
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    raise SystemExit(2)


def _tidy(run_dir: Path) -> None:
    """Remove a run directory in which nothing was written but Hydra's notes, and parents that are now
    empty.
    """
    own = {".hydra"}
    if run_dir.is_dir():
        if any(p.name not in own and p.suffix != ".log" for p in run_dir.iterdir()):
            return
        shutil.rmtree(run_dir)
    for parent in list(run_dir.parents)[:3]:
        if parent == Path.cwd() or not parent.is_dir():
            return
        notes = parent / "multirun.yaml"
        if [p.name for p in parent.iterdir()] == [notes.name]:
            notes.unlink()
        if any(parent.iterdir()):
            return
        parent.rmdir()


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def explain(error: BaseException, config: Path | None = None) -> str | None:
    """The one sentence for a mistake of the user's, or None for a defect of ours."""
    from hydra.errors import (
        ConfigCompositionException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

    for each in _chain(error):
        if isinstance(each, InputError):
            return str(each)
    for each in _chain(error):
        if isinstance(each, MissingMandatoryValue):
            key = getattr(each, "full_key", None) or "a key"
            return f"{key} must be given, got nothing; add {key}=VALUE"
        if isinstance(each, MissingConfigException):
            return _unknown_choice(each)
        if isinstance(each, OverrideParseException):
            return f"an override must be KEY=VALUE, got {each.override}; quote what the shell would split"
        if isinstance(each, InstantiationException):
            return _wrong_arguments(each)
        if isinstance(each, ConfigCompositionException) and config is not None:
            return _unknown_key(each, config)
        if isinstance(each, InterpolationResolutionError | OmegaConfBaseException):
            return f"the configuration must resolve, got: {_first_line(each)}; correct the value"
        if isinstance(each, OSError) and each.filename and "hydra" in _where(each):
            return (
                f"hydra.run.dir must be a directory that can be written, got {each.filename} "
                f"({each.strerror}); "
                "give another one"
            )
    return None


def _first_line(error: BaseException) -> str:
    """What an exception, or what caused it, says first."""
    return next((line for e in _chain(error) for line in str(e).splitlines()), type(error).__name__)


def _where(error: BaseException) -> str:
    """The files of an exception's traceback, to tell Hydra's own trouble from ours."""
    trace, files = error.__traceback__, []
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    own = [f for f in files if "halflife" in Path(f).parts[-2:]]
    return "" if any(f.endswith(("store.py", "tracking.py")) for f in own) else " ".join(files)


def _unknown_choice(error: Any) -> str | None:
    """For `decay=exponentail`."""
    missing, options = error.missing_cfg_file, error.options
    if missing is None:
        first = _first_line(error)
        return f"the configuration must exist, got: {first}; check --config-dir and --config-name"
    group, _, name = str(missing).rpartition("/")
    if not options:
        return f"{group or 'a config group'} must exist, got {missing}; see --help for groups and choices"
    return f"{group} must be one of {', '.join(options)}, got {name}; {near(name, options)}"


def _unknown_key(error: Any, config: Path) -> str:
    """For `decay.half_lif_days=3` and `decoy=exponential`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    found = re.search(r"Could not (?:override|append|delete)[^']*'([^'=]+)", str(error))
    if found is None:
        return f"the configuration must compose, got: {_first_line(error)}; correct the override"
    key = found.group(1).lstrip("+~")
    choices = (a for a in sys.argv[1:] if re.fullmatch(r"[\w/]+(@[\w.]+)?=[\w\[\] ]+", a))
    given = [a for a in choices if not a.startswith(key + "=")]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config.parent), version_base="1.3"):
            try:
                cfg = compose(config.stem, overrides=given)
            except Exception:  # the other overrides may be wrong as well: the plain configuration will do
                cfg = compose(config.stem)
    finally:
        GlobalHydra.instance().clear()
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            keys.append(prefix + str(name))
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    parent = key.rpartition(".")[0]
    beside = [k for k in keys if k.rpartition(".")[0] == parent]
    return f"{key} must be a key of the configuration, got an unknown one; {near(key, beside or keys)}"


def _wrong_arguments(error: Any) -> str | None:
    """For `+decay.foo=1`: a key that the class does not take, or one that is left out."""
    text = " ".join(str(error).split())
    target = re.search(r"'(halflife\.[\w.]+|lightning\.[\w.]+)'", text)
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    missing = re.search(r"missing \d+ required (?:keyword-only |positional )?arguments?: '(\w+)'", text)
    if target is None or (unexpected is None and missing is None):
        return None
    from hydra.utils import get_object

    names = list(inspect.signature(get_object(target.group(1))).parameters)
    if unexpected is not None:
        key = unexpected.group(1)
        return f"{key} must be an argument of {target.group(1)}, got an unknown one; {near(key, names)}"
    assert missing is not None
    return f"{missing.group(1)} must be given to {target.group(1)}, got nothing; add the key to its yaml"

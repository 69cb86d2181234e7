"""What libraries raise for a user's mistake → the one sentence, or None for a defect of ours."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halflife.errors import InputError, meant, near, shown


def explain(error: BaseException, config: Path, run_dir: Path | None = None) -> str | None:
    """The one sentence for a mistake of the user's, or None for a defect of ours.

    Args:
        error: with what caused it.
        config: the primary configuration's file, to name the near keys and choices.
        run_dir: where the run writes, once that is known.
    """
    for each in _chain(error):
        if isinstance(each, InputError):
            return str(each)
    for each in _chain(error):
        sentence = _of_hydra(each, config) or _of_files(each, run_dir) or _of_libraries(each)
        if sentence is not None:
            return sentence
    return None


def _of_hydra(error: BaseException, config: Path) -> str | None:
    """For what Hydra and OmegaConf refuse: overrides, groups, keys, values that do not resolve."""
    from hydra.errors import (
        ConfigCompositionException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
        SearchPathException,
    )
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or "a key"
        return f"{key} must be given, got nothing; add {key}=VALUE"
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, OverrideParseException):
        return f"an override must be KEY=VALUE, got {error.override}; quote what the shell would split"
    if isinstance(error, SearchPathException):
        return f"--config-dir must be a directory, got: {_first_line(error)}; check the path"
    if isinstance(error, InstantiationException):
        return _wrong_arguments(error)
    if isinstance(error, ConfigCompositionException):
        return _ambiguous(error) or _unknown_key(error, config)
    if isinstance(error, OmegaConfBaseException):
        return f"the configuration must resolve, got: {_first_line(error)}; correct the value"
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return _null_choice(config)
    return None


def _of_files(error: BaseException, run_dir: Path | None) -> str | None:
    """For a directory of the run that cannot be made or written."""
    if not isinstance(error, OSError) or not error.filename:
        return None
    inside = run_dir is not None and Path(str(error.filename)).absolute().is_relative_to(run_dir.absolute())
    if not inside and "hydra" not in _raised_by(error):
        return None
    key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
    why = f"{error.filename} ({error.strerror})"
    return f"{key} must be a directory that can be written, got {why}; give another one"


def _of_libraries(error: BaseException) -> str | None:
    """For what Lightning and W&B refuse when they start, and arguments that no part takes."""
    unexpected = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
    by = _raised_by(error)
    # where the call itself failed: by Hydra's partial, or by the run
    if (
        isinstance(error, TypeError)
        and unexpected
        and (by == "hydra" or _frames(error)[-1].endswith(("train.py", "recommender.py")))
    ):
        part, key = unexpected.groups()
        return f"{key} must be an argument of {part}, got an unknown one; leave it out"
    if by == "lightning":
        from lightning.pytorch import Trainer

        keys = inspect.signature(Trainer).parameters
        named = [k for k in re.findall(r"`(?:Trainer\()?(\w+)", str(error)) if k in keys]
        if named:
            return f"trainer.{named[0]} must suit this run, got: {_first_line(error)}; change it"
    if by == "wandb":
        reason = _first_line(error).rstrip(".")
        return f"logger=wandb must reach Weights & Biases, got: {reason}; add logger.offline=true"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _first_line(error: BaseException) -> str:
    """The first sentence of what an exception, or what caused it, says."""
    lines = (line.strip() for e in _chain(error) for line in str(e).splitlines())
    return re.split(r"[.:;]\s|[.:;]$", next(lines, type(error).__name__))[0]


def _frames(error: BaseException) -> list[str]:
    """The files of an exception's traceback, innermost last."""
    trace, files = error.__traceback__, [""]
    while trace is not None:
        files.append(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    return files


def _raised_by(error: BaseException) -> str:
    """The installed package in whose code an exception was raised, or nothing where it was raised in ours."""
    library = str(Path(inspect.getfile(inspect)).parent)
    for file in reversed(_frames(error)):
        if "site-packages" in file:
            return Path(file.rpartition("site-packages")[2]).parts[1]
        if not file.startswith((library, "<")):
            return ""
    return ""


def _unknown_choice(error: Any) -> str:
    """For `decay=exponentail`."""
    missing, options = error.missing_cfg_file, error.options
    if missing is None:
        return (
            f"the configuration must exist, got: {_first_line(error)}; check --config-dir and --config-name"
        )
    group, _, name = str(missing).rpartition("/")
    if not group:
        return (
            f"--config-name must be a yaml of the configuration's folder, got {name}; leave it out for train"
        )
    if not options:
        return f"{group} must be one of its choices, got {shown(name)}; see --help for groups and choices"
    return f"{group} must be one of {', '.join(options)}, got {shown(name)}; {meant(name, options)}"


def _null_choice(config: Path) -> str:
    """For `logger=null`."""
    groups = (re.fullmatch(r"([\w/]+)=(null)?", word) for word in sys.argv[1:])
    group = next((m.group(1) for m in groups if m and (config.parent / m.group(1)).is_dir()), "a group")
    options = sorted(file.stem for file in (config.parent / group).glob("*.yaml"))
    return f"{group} must be one of {', '.join(options)}, got null; {meant('none', options)}"


def _ambiguous(error: Any) -> str | None:
    """For `seed=1,2` without `-m`."""
    found = re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", str(error))
    if found is None:
        return None
    key, value = found.groups()
    return f"{key} must be one value, got {value}; add -m to run each of them, or brackets for a list"


def _unknown_key(error: Any, config: Path) -> str:
    """For `decay.half_lif_days=3`, `decoy=exponential` and `experiment=mine` where there is none."""
    from omegaconf import OmegaConf

    found = re.search(r"Could not (?:override|append|delete)[^']*'([^'=]+)", str(error))
    if found is None:
        return f"the configuration must compose, got: {_first_line(error)}; correct the override"
    key = found.group(1).lstrip("+~")
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            keys.append(prefix + str(name))
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(OmegaConf.to_container(_composed(config, key), resolve=False), "")
    parent = key.rpartition(".")[0]
    beside = [k for k in keys if k.rpartition(".")[0] == parent]
    return f"{key} must be a key of the configuration, got an unknown one; {near(key, beside or keys)}"


def _composed(config: Path, wrong: str) -> Any:
    """The configuration of the command line, but for a key that it has not."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    choices = (a for a in sys.argv[1:] if re.fullmatch(r"[\w/]+(@[\w.]+)?=[\w\[\] ]+", a))
    given = [a for a in choices if not a.startswith(wrong + "=")]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config.parent), version_base="1.3"):
            try:
                return compose(config.stem, given, return_hydra_config=wrong.startswith("hydra."))
            except HydraException:  # the other overrides may be wrong as well: the plain one will do
                return compose(config.stem)
    finally:
        GlobalHydra.instance().clear()


def _wrong_arguments(error: Any) -> str | None:
    """For `+decay.foo=1`, a key left out, a `_target_` that is not there, and what Lightning refuses."""
    text = " ".join(str(error).split())
    where = re.search(r"full_key: ([\w.]+)", text)
    prefix = f"{where.group(1)}." if where else ""
    lost = re.search(r"Error locating target '([^']+)'", text)
    if lost:
        reason = _first_line(error.__cause__) if error.__cause__ else "it is not there"
        return f"{prefix}_target_ must be importable, got {lost.group(1)} ({reason}); correct the name"
    target = re.search(r"'(halflife\.[\w.]+|lightning\.[\w.]+)'", text)
    if target is None:
        return None
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    missing = re.search(r"missing \d+ required (?:keyword-only |positional )?arguments?: '(\w+)'", text)
    if unexpected is not None:
        from hydra.utils import get_object

        key, names = unexpected.group(1), list(inspect.signature(get_object(target.group(1))).parameters)
        return (
            f"{prefix}{key} must be an argument of {target.group(1)}, got an unknown one; {near(key, names)}"
        )
    if missing is not None:
        return f"{prefix}{missing.group(1)} must be given, got nothing; {target.group(1)} needs it"
    if target.group(1).startswith("lightning."):
        reason = _first_line(error.__cause__)
        return f"{prefix.rstrip('.')} must suit {target.group(1)}, got: {reason}; correct it"
    return None

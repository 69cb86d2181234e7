"""The settings of a run that no part of it checks itself: keys, seed, objective, trainer, callbacks."""

import inspect
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

from halflife.errors import InputError, choice, flag, near, number, shown, text, whole

GROUPS = ["data", "model", "decay", "interest", "loss", "metrics", "optimizer", "trainer", "callbacks"]
KEYS = [*GROUPS, "task", "logger", "seed", "objective", "refit", "ckpt", "cache_dir", "search"]
PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]
LARGEST_SEED = 2**32 - 1  # of numpy's generators
NOT_HERE = {
    "fast_dev_run": "add trainer=debug for a few steps of everything",
    "barebones": "add trainer=debug for a few steps of everything",
    "enable_checkpointing": "leave it out, since a run ends with its best checkpoint",
}
"""What Lightning's Trainer takes, but a run cannot end with."""


def check(cfg: Mapping[str, Any]) -> None:
    """Refuse what would otherwise fail after the data was read, or after an epoch, or never be noticed.

    Args:
        cfg: composed from conf/train.yaml.

    Raises:
        InputError: for a key that is unknown or left out, or a value out of range.
    """
    for key in map(str, cfg):
        if key not in KEYS:
            raise InputError(
                f"{key} must be a key of the configuration, got an unknown one; {near(key, KEYS)}"
            )
    for group in GROUPS:
        given = cfg.get(group)
        if not isinstance(given, Mapping) or (group == "decay" and "_target_" not in given):
            raise InputError(f"{group} must be given, got nothing; add {group}=CHOICE, see --help")
    whole("seed", cfg["seed"], "integer", at_least=0, at_most=LARGEST_SEED)
    if not flag("refit", cfg["refit"]) and learns(cfg["decay"]):
        raise InputError(
            "refit must be true where decay learns, since gradient steps alone leave a half-life beside its "
            "minimum, got false; add decay.learn=false, or leave refit out"
        )
    if cfg["ckpt"] is not None:
        text("ckpt", cfg["ckpt"], "a checkpoint file")
    val = [f"val/{metric}" for metric in ["loss", *cfg["metrics"]]]
    known = [*val, *(key.replace("val/", "test/") for key in val)]
    known.append("speed/train_s")
    for objective in objectives(cfg):
        if objective not in known:
            raise InputError(
                f"objective must be a metric of the run, got {shown(objective)}; "
                f"{near(str(objective), known)}"
            )
    check_trainer(cfg["trainer"])
    check_callbacks(cfg["callbacks"], val)


def learns(decay: Mapping[str, Any]) -> bool:
    """Whether anything of a kernel, or of a kernel within it, is learned.

    >>> learns({"half_life_days": 2.0, "learn": False, "candidate": {"learn": True}})
    True
    """
    return any(
        learns(value) if isinstance(value, Mapping) else str(key).startswith("learn") and value
        for key, value in decay.items()
    )


def objectives(cfg: Mapping[str, Any]) -> list[Any]:
    """The metrics that a run returns, one or several."""
    several = isinstance(cfg["objective"], Sequence) and not isinstance(cfg["objective"], str)
    return list(cfg["objective"]) if several else [cfg["objective"]]


def check_read(overrides: list[str], read: list[str], by: str) -> None:
    """Refuse a setting of the command line that the run would not read.

    Args:
        overrides: of this run, as Hydra was given them.
        read: keys that are read; `data.*` is the group and every key below it.
        by: what reads them, for the message.

    Raises:
        InputError: for the first that is not read.

    >>> check_read(["data.age=rank", "decay=power"], ["data.*"], "task=mlm")
    Traceback (most recent call last):
    halflife.errors.InputError: decay must be left out with task=mlm, got power; that reads data.*
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        key = key.partition("@")[0]
        if not any(fnmatch(key, name) or key == name.removesuffix(".*") for name in read):
            raise InputError(
                f"{key} must be left out with {by}, got {shown(value)}; that reads {', '.join(read)}"
            )


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Check the keys of `trainer` whose mistakes Lightning reports late, or with a traceback.

    Raises:
        InputError: for a key that the Trainer does not take, a value out of range, or a GPU not there.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import StrategyRegistry

    takes = set(inspect.signature(Trainer).parameters) - set(NOT_HERE)
    for key in map(str, settings):
        if key not in takes and not key.startswith("_"):
            hint = NOT_HERE.get(key, near(key, takes))
            raise InputError(
                f"trainer.{key} must be a key that Lightning's Trainer takes here, got another; {hint}"
            )
    get = settings.get
    for key, unit in (
        ("max_epochs", "epochs"),
        ("accumulate_grad_batches", "batches"),
        ("log_every_n_steps", "steps"),
    ):
        whole(f"trainer.{key}", get(key), unit, at_least=1)
    if get("max_steps") != -1:
        whole("trainer.max_steps", get("max_steps"), "steps; -1: epochs decide", at_least=1)
    whole("trainer.num_sanity_val_steps", get("num_sanity_val_steps"), "batches", at_least=0)
    if get("gradient_clip_val") is not None:
        number("trainer.gradient_clip_val", get("gradient_clip_val"), "norm", at_least=0)
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "val_check_interval"):
        _share_or_count(f"trainer.{key}", get(key))
    choice("trainer.precision", get("precision"), PRECISIONS)
    if get("precision") == "bf16-mixed" and get("accelerator") == "cpu" and not has_bf16():
        print("trainer.precision=bf16-mixed is slow on this processor, which has no instructions for it")
    if get("deterministic") != "warn":
        flag("trainer.deterministic", get("deterministic"))
    strategies = ["auto", *StrategyRegistry.available_strategies()]
    if get("strategy") not in strategies:
        raise InputError(
            f"trainer.strategy must be a strategy of Lightning's, got {shown(get('strategy'))}; "
            f"{near(str(get('strategy')), strategies)}"
        )
    _check_devices(get("accelerator"), get("devices"))


def has_bf16() -> bool:
    """Whether this processor multiplies in bf16 itself: AVX-512 BF16, AMX or Arm BF16."""
    import torch

    return any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)


def _share_or_count(name: str, value: Any) -> None:
    """Raise the InputError for what is neither null, nor a fraction, nor a number of batches."""
    if isinstance(value, float):
        number(name, value, "fraction of an epoch, or whole number of batches", above=0, at_most=1)
    elif value is not None:
        whole(name, value, "batches, or a fraction of an epoch such as 0.5", at_least=1)


def _check_devices(accelerator: Any, devices: Any) -> None:
    """Raise the InputError for an accelerator that is unknown or not there, or fewer than one process."""
    import torch

    choice("trainer.accelerator", accelerator, ["auto", "cpu", "gpu", "cuda", "mps"])
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["gpu"] = any(there.values())
    if not there.get(accelerator, True):
        raise InputError(
            f"trainer.accelerator must be cpu on a machine where PyTorch finds no GPU, got {accelerator}; "
            "add trainer=cpu"
        )
    if accelerator == "cpu" and devices != "auto":
        whole("trainer.devices", devices, "processes", at_least=1)


def check_callbacks(callbacks: Mapping[str, Any], metrics: list[str]) -> None:
    """Check what callbacks monitor: a metric that is not there would end a run after its first epoch.

    Args:
        callbacks: the group's configuration, by name.
        metrics: keys that a validation logs.

    Raises:
        InputError: for an unknown metric, a mode that keeps the worst, or a checkpoint callback left out.
    """
    if not isinstance(callbacks.get("checkpoint"), Mapping):
        raise InputError(
            "callbacks.checkpoint must be given, got nothing; a run ends with its best checkpoint"
        )
    for name, settings in callbacks.items():
        if not isinstance(settings, Mapping):
            continue
        where = f"callbacks.{name}"
        monitor = settings.get("monitor")
        if monitor is not None and monitor not in metrics:
            raise InputError(
                f"{where}.monitor must be a metric of the run's validation, got {shown(monitor)}; "
                f"{near(str(monitor), metrics)}"
            )
        if "mode" in settings:
            best = "min" if str(monitor).endswith("loss") else "max"
            mode = choice(f"{where}.mode", settings["mode"], ["min", "max"])
            if mode != best:
                raise InputError(
                    f"{where}.mode must be {best} to keep the best {monitor}, got {mode}; "
                    f"add {where}.mode={best}"
                )
        if "patience" in settings:
            whole(f"{where}.patience", settings["patience"], "validations", at_least=0)

"""What W&B, TensorBoard and the CSV file are told of a run: settings, curves, results, checkpoint."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from halflife.errors import InputError, flag, listed

LONGEST = 128  # characters of a name or group that W&B takes
NOT_NAMED = (
    "logger",
    "hydra",
    "search",
    "cache_dir",
    "data.root",
    "ckpt",
)  # overrides that say nothing about a run
AGE = {"days": "decay/age_days", "rank": "decay/age_rank"}


class Wandb(WandbLogger):
    """Lightning's logger of Weights & Biases, and whether it keeps the best checkpoint as an artifact."""

    checkpoint = False


def wandb_logger(
    save_dir: str, project: str, group: str | None, tags: list[str], offline: bool | None, checkpoint: bool
) -> Wandb:
    """Weights & Biases; offline when there is no key, with a line that says where the run lies.

    Args:
        save_dir: the run's directory.
        project, tags: as W&B shows them.
        group: runs to compare; None is the multirun or study that the run is part of.
        offline: None decides by whether a key is found.
        checkpoint: whether the best checkpoint is kept as an artifact.

    Raises:
        InputError: for a value of the wrong kind, or when W&B shall be online and there is no key.
    """
    offline = is_offline(offline)
    logger = Wandb(
        project=project,
        group=group or group_name(),
        tags=listed("logger.tags", tags, "words"),
        mode="offline" if offline else None,
        save_dir=save_dir,
        name=run_name() or Path(save_dir).name,
        job_type="train",
    )
    # Lightning passes it whatever is given, and W&B warns that it has no effect
    del logger._wandb_init["anonymous"]
    logger.checkpoint = flag("logger.checkpoint", checkpoint)
    if offline and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"W&B is offline; `wandb sync {save_dir}/wandb/offline-run-*` uploads this run later")
    return logger


def has_key() -> bool:
    """Whether W&B would find a key."""
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.exists() and "wandb" in netrc.read_text())


def is_offline(offline: bool | None) -> bool:
    """Whether W&B writes to disk alone; None decides by whether a key is found.

    Raises:
        InputError: when it shall be online and there is no key.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    mode, key = os.environ.get("WANDB_MODE"), has_key()
    if offline is None:
        offline = not key and mode != "online"
    if not flag("logger.offline", offline) and not key and mode != "offline":
        raise InputError(
            "logger.offline must be true where W&B finds no key, got false; run `wandb login`, or add "
            "logger.offline=true"
        )
    return offline


def swept() -> list[str] | None:
    """What varies between the runs of a multirun: this run's overrides that its command line did not fix."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    hydra = HydraConfig.get()
    given = Path(hydra.sweep.dir) / "multirun.yaml"
    fixed = OmegaConf.select(OmegaConf.load(given), "hydra.overrides.task") if given.is_file() else []
    return [word for word in hydra.overrides.task if word not in (fixed or [])]


def run_name() -> str:
    """A run's name: in a multirun what varies, else what its command line says; or nothing."""
    words = swept()
    if words is None and HydraConfig.initialized():
        words = list(HydraConfig.get().overrides.task)
    return ",".join(w for w in words or [] if not w.lstrip("+~").startswith(NOT_NAMED))[:LONGEST]


def group_name() -> str | None:
    """The multirun or study that a run is part of; None for a run of its own."""
    return None if swept() is None else group_of(str(HydraConfig.get().sweep.dir))


def group_of(sweep_dir: str) -> str:
    """A sweep's name in W&B: its directory's below `multirun/`.

    >>> group_of("multirun/2026-01-31/12-00-00"), group_of("/scratch/half_life")
    ('2026-01-31/12-00-00', 'half_life')
    """
    place = Path(sweep_dir)
    return (place.name if place.is_absolute() else sweep_dir.removeprefix("multirun/"))[-LONGEST:]


def tensorboard_logger(save_dir: str) -> TensorBoardLogger:
    """TensorBoard event files in the run's directory."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "logger=tensorboard must find the package tensorboard, got none; "
            "pip install 'halflife-rec[tensorboard]'"
        )
    return TensorBoardLogger(save_dir=save_dir, name="tensorboard", version="", default_hp_metric=False)


def flatten(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration under keys with slashes, and each group's choice as `choice/GROUP`.

    W&B takes a dot in a key for a level of nesting, and then neither groups nor filters by it.
    """
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}/")
            else:
                flat[prefix + str(key)] = value

    walk(OmegaConf.to_container(cfg, resolve=True), "")
    if HydraConfig.initialized():
        for group, choice in HydraConfig.get().runtime.choices.items():
            if not group.startswith("hydra"):
                flat[f"choice/{group.rpartition('@')[2].replace('.', '/')}"] = choice
    return flat


@contextmanager
def closing(logger: Logger | None) -> Iterator[None]:
    """End the logger's run behind the block, also when that fails: the next job starts a run of its own."""
    code = 1
    try:
        yield
        code = 0
    except Exception as error:
        code = 0 if type(error).__name__ == "TrialPruned" else 1  # a pruned trial did what it should
        raise
    finally:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=code)
        elif logger is not None:
            logger.finalize("failed" if code else "success")


def log_results(
    trainer: pl.Trainer, found: dict[str, Any], drawn: dict[str, list[float]], figure: Any
) -> None:
    """Tell the run's logger what it ended with.

    Args:
        trainer: after the fit.
        found: what `metrics.json` holds.
        drawn: the fitted weight over age, from `curves.curve`; points over one axis, so that the curves of
            several runs can be laid over each other.
        figure: the same as a picture.
    """
    logger = trainer.logger
    if not isinstance(logger, Logger):
        return
    numbers = {k: v for k, v in found.items() if isinstance(v, int | float)}
    logger.log_metrics(numbers)
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure("decay/curve", figure)
        told = {k: v for k, v in numbers.items() if k.startswith(("test/", "val/", "decay/"))}
        logger.log_hyperparams(logger.hparams, told)
    elif isinstance(logger, Wandb):
        import wandb

        run, age = logger.experiment, AGE[trainer.lightning_module.unit]  # type: ignore[index]
        run.log({"decay/curve": wandb.Image(figure)})
        run.define_metric(age, summary="none")
        run.define_metric("decay/weight", step_metric=age, summary="none")
        for at, weight in zip(drawn["age"][::4], drawn["weight"][::4], strict=True):
            run.log({age: at, "decay/weight": weight})
        run.summary.update(
            {k: found[k] for k in ("data/fingerprint", "data/split", "data/note") if k in found}
        )
        if logger.checkpoint:
            artifact = wandb.Artifact(f"best-{run.id}", type="model", metadata=numbers)
            artifact.add_file(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
            run.log_artifact(artifact, aliases=["best"])

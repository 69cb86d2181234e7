"""A sweep's own run in W&B: its trials as a table, its pictures, and what it found."""

from io import BytesIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from halflife.loggers import group_of, is_offline
from halflife.report.study import pictures
from halflife.report.trials import read


def log(logger: DictConfig | None, sweep_dir: Path) -> None:
    """Log an ended sweep to W&B, in the group of its trials.

    Nothing is logged where its trials log elsewhere, or as long as another worker is at one of them.

    Args:
        logger: the group `logger` of the trials' configuration.
        sweep_dir: with the study in it; where the run lies when W&B is offline.

    Raises:
        InputError: when there is no study, or W&B shall be online and there is no key.
    """
    if not logger or "wandb" not in str(logger.get("_target_")):
        return
    import wandb
    from PIL import Image

    study = read(sweep_dir)
    if "RUNNING" in study.trials["state"]:
        return
    run = wandb.init(
        project=logger.project,
        group=logger.group or group_of(str(sweep_dir)),
        job_type="sweep",
        name=f"sweep {study.name}",
        tags=list(logger.tags),
        dir=sweep_dir,
        mode="offline" if is_offline(logger.offline) else None,
        config={"study": study.name, "parameters": study.parameters, "objectives": study.objectives},
        reinit="create_new",
    )
    try:
        trials = study.trials
        columns: list[str | int] = list(trials.columns)
        table = wandb.Table(columns=columns, data=[list(row) for row in trials.rows()])
        run.log({"sweep/trials": table})
        for picture in pictures(study):
            image = wandb.Image(Image.open(BytesIO(picture.png)), caption=picture.caption)
            run.log({f"sweep/{picture.name}": image})
        run.summary.update(summary(study))
    finally:
        run.finish()


def summary(study: Any) -> dict[str, Any]:
    """How many trials ended how, and the best of them."""
    states = study.trials["state"].value_counts().rows()
    found: dict[str, Any] = {f"trials/{state.lower()}": count for state, count in states}
    if len(study.objectives) == 1 and len(study.finished):
        best = study.finished.row(0, named=True)
        keys = [*study.objectives, *study.parameters]
        found |= {f"best/{key.replace('.', '/')}": best[key] for key in keys if best[key] is not None}
    return found | {f"importance/{k.replace('.', '/')}": v for k, v in study.importance.items()}

"""One run: compose → seed → data, model, trainer → fit → test → return the objective."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from halflife.cli import CONFIG_DIR, guarded, run_app

CONFIG = CONFIG_DIR / "train.yaml"


def run(cfg: DictConfig, run_dir: Path) -> float | list[float]:
    """Train, test, write the run's directory, and return the metric that `objective` names, or several.

    Args:
        cfg: composed from conf/train.yaml.
        run_dir: where everything of this run goes.

    Raises:
        InputError: for any setting or file that will not do, before anything is written.
    """
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from halflife import loggers, settings, summary, tracking
    from halflife.checkpoints import check_checkpoint
    from halflife.estimate import estimate, refit
    from halflife.recommender import build

    tracking.quiet()
    settings.check(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.get("task") is not None:  # another training over the same log, which reads a part of cfg
        return float(instantiate(cfg.task)(cfg, run_dir))

    data = instantiate(cfg.data)
    module = build(cfg, data)
    if cfg.ckpt is not None:
        check_checkpoint(cfg.ckpt, module, data)
    callbacks = instantiate(cfg.callbacks)
    checkpoint = callbacks["checkpoint"] = callbacks["checkpoint"](dirpath=run_dir / "checkpoints")
    speed = tracking.Speed()
    reports = tracking.Reports(settings.objectives(cfg)[0].replace("test/", "val/"))
    logger = instantiate(cfg.logger)(save_dir=str(run_dir)) if cfg.get("logger") else False
    trainer = instantiate(cfg.trainer)(
        callbacks=[*callbacks.values(), speed, reports],
        logger=logger,
        default_root_dir=run_dir,
        enable_progress_bar=tracking.on_terminal(),
    )
    first = trainer.is_global_zero
    if first:
        tracking.print_parameters(module)
    with loggers.closing(trainer.logger), tracking.child_processes(run_dir):
        if trainer.logger:
            trainer.logger.log_hyperparams(loggers.flatten(cfg))
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt, weights_only=False)
        # the best checkpoint, its few scalars refitted, is what is validated, tested and returned
        best = checkpoint.best_model_path
        splits = data.sample("train"), data.sample("val")  # read when they are asked for
        fit = tracking.load_best(best, module, lambda: refit(module, *splits) if cfg.refit else None)
        trainer.validate(module, datamodule=data, verbose=False)
        found = {k: float(v) for k, v in trainer.callback_metrics.items()}
        trainer.test(module, datamodule=data, verbose=False)
        found |= {k: float(v) for k, v in trainer.callback_metrics.items()}
        rows, scores = tracking.gather_predictions(module, run_dir)
        if first:
            fitted = estimate(module, fit)
            found = summary.finish(found, run_dir, module, data.store, rows, scores, fitted, speed)
    values = [float(found[key]) for key in settings.objectives(cfg)]
    return values if len(values) > 1 else values[0]


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | list[float]:
    """Called by Hydra for each run of the command line."""
    return guarded(run, cfg, CONFIG)


if __name__ == "__main__":
    run_app(main, run, CONFIG)

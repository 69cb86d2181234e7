"""One run: compose → seed → data, model, trainer → fit → test → return the objective."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from halflife.cli import guarded, run_app
from halflife.errors import InputError, near, number

CONFIG_DIR = Path(__file__).resolve().parent / "conf"
KEYS = [
    "data",
    "model",
    "decay",
    "interest",
    "loss",
    "metrics",
    "optimizer",
    "trainer",
    "callbacks",
    "logger",
    "seed",
    "objective",
    "ckpt",
    "cache_dir",
]


def run(cfg: DictConfig, run_dir: Path) -> float:
    """Train, test, write the run's directory, and return the metric that `objective` names.

    Args:
        cfg: composed from conf/train.yaml.
        run_dir: where everything of this run goes.

    Raises:
        InputError: for any setting or file that will not do, before anything is written.
    """
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from halflife import summary, tracking
    from halflife.decay.configured import kernels
    from halflife.estimate import estimate, refit
    from halflife.recommender import Recommender, check_checkpoint

    tracking.quiet()
    for key in map(str, cfg):
        if key not in KEYS:
            raise InputError(
                f"{key} must be a key of the configuration, got an unknown one; {near(key, KEYS)}"
            )
    number("seed", cfg.seed, "integer", at_least=0)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)

    data = instantiate(cfg.data)
    known = {"val/loss", "test/loss"} | {f"{stage}/{m}" for stage in ("val", "test") for m in cfg.metrics}
    if cfg.objective not in known:
        raise InputError(
            f"objective must be a metric of the run, got {cfg.objective}; {near(cfg.objective, known)}"
        )
    loss, (decay, candidate_decay) = instantiate(cfg.loss), kernels(cfg.decay)
    data.rows("test")  # the log is built and split before a model is loaded
    for kernel in (decay, candidate_decay):
        kernel.bind(data.store)
    encoder = instantiate(cfg.model)(store=data.store)
    data.tokens = encoder.tokens if encoder.reads_tokens else None
    interest = instantiate(cfg.interest)(dim=encoder.dim)
    module = Recommender(
        encoder,
        decay,
        interest,
        loss,
        instantiate(cfg.metrics),
        **instantiate(cfg.optimizer),
        seed=cfg.seed,
        unit=data.unit,
        impressions=len(data.rows("train")),
        candidate_decay=candidate_decay,
    )
    if cfg.ckpt is not None:
        check_checkpoint(cfg.ckpt, module)
    callbacks = instantiate(cfg.callbacks)
    checkpoint = callbacks["checkpoint"] = callbacks["checkpoint"](dirpath=run_dir / "checkpoints")
    speed = tracking.Speed()
    logger = instantiate(cfg.logger)(save_dir=str(run_dir)) if cfg.get("logger") else False
    trainer = instantiate(cfg.trainer)(
        callbacks=[*callbacks.values(), speed],
        logger=logger,
        default_root_dir=run_dir,
        enable_progress_bar=tracking.on_terminal(),
    )
    first = trainer.is_global_zero
    if first:
        tracking.print_parameters(module)
    if trainer.logger:
        trainer.logger.log_hyperparams(tracking.flatten(cfg))
    with tracking.child_processes(run_dir):
        trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt, weights_only=False)
        # the best checkpoint, its few scalars refitted, is what is validated, tested and returned
        best = checkpoint.best_model_path
        fit = tracking.load_best(best, module, lambda: refit(module, data.sample("train")))
        trainer.validate(module, datamodule=data, verbose=False)
        found = {k: float(v) for k, v in trainer.callback_metrics.items()}
        trainer.test(module, datamodule=data, verbose=False)
        found |= {k: float(v) for k, v in trainer.callback_metrics.items()}
        rows, scores = tracking.gather_predictions(module, run_dir)
    if first:
        fitted = estimate(module, fit)
        found = summary.finish(found, run_dir, module, data.store, rows, scores, fitted, speed)
    tracking.close(trainer.logger)
    return float(found[cfg.objective])


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@guarded
def main(cfg: DictConfig, run_dir: Path) -> float:
    """Called by Hydra for each run of the command line."""
    return run(cfg, run_dir)


if __name__ == "__main__":
    run_app(main, run, CONFIG_DIR / "train.yaml")

"""Recovery: a half-life is planted in simulated logs and fitted again; bias, spread and coverage over seeds.

python -m halflife.recovery kernel=exponential half_life_days=5 impressions=20000 seeds=30 out=DIR
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hydra
import numpy as np
from omegaconf import DictConfig, OmegaConf

from halflife.cli import CONFIG_DIR, guarded, run_app
from halflife.errors import InputError, choice, flag, number, whole
from halflife.sources.newsroom import TOPICS

PLANTABLE = ["exponential", "power", "weibull", "gaussian"]
SD_START = 0.5  # of log half-life between topics; where its estimation starts
PER_READER = 0.43  # impressions a reader and day of the newsroom, in training


def check(cfg: DictConfig) -> None:
    """Refuse settings before the first log is made.

    Raises:
        InputError: for a setting out of range.
    """
    choice("kernel", cfg.kernel, PLANTABLE)
    choice("vectors", cfg.vectors, ["oracle", "frozen", "tuned"])
    choice("control", cfg.control or "null", ["null", "none", "shuffled"])
    choice("composition", cfg.composition, ["sink", "normalised", "sum"])
    if not OmegaConf.is_list(cfg.kernels):
        raise InputError(f"kernels must be a list of kernels, got {cfg.kernels}; write [{cfg.kernels}]")
    for kernel in cfg.kernels:
        choice("kernels", kernel, PLANTABLE)
    number("half_life_days", cfg.half_life_days, "days", above=0)
    number("impressions", cfg.impressions, "impressions", at_least=100)
    number("days", cfg.days, "days", at_least=1)
    number("user_sd", cfg.user_sd, "of the logarithm", at_least=0)
    number("topic_sd", cfg.topic_sd, "of the logarithm", at_least=0)
    flag("by_user", cfg.by_user)
    flag("by_topic", cfg.by_topic)
    whole("seeds", cfg.seeds, "logs", at_least=1)
    whole("first_seed", cfg.first_seed, "integer", at_least=0)
    whole("workers", cfg.workers, "processes", at_least=1)


def settings_of(cfg: DictConfig, seed: int, cache_dir: str) -> DictConfig:
    """The configuration of one log."""
    users = max(2, round(cfg.impressions / (PER_READER * cfg.days)))
    changes: dict[str, Any] = {
        "seed": seed,
        "data": {"source": {"seed": seed, "users": users}, "cache_dir": cache_dir},
    }
    if cfg.topic_sd:
        drawn = np.random.default_rng(seed).normal(math.log(cfg.half_life_days), cfg.topic_sd, len(TOPICS))
        by_topic = dict(zip(TOPICS, np.exp(drawn).tolist(), strict=True))
        changes["data"]["source"]["half_life_days_by_topic"] = by_topic
    if cfg.control == "none":
        changes["data"]["source"]["kernel"] = "none"
    if cfg.control == "shuffled":
        changes["data"]["age"] = "shuffled"
    merged = OmegaConf.merge(cfg, changes)
    merged.decay = kernel_config(cfg.kernel)
    return DictConfig(merged)


def one_log(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Simulate one log, fit it, and say what came out; the work of a process of its own.

    Returns:
        `seed`, `impressions`, `half_life_days`, `low`, `high`, `sd_log_half_life`, `identified`, `how`,
        `gain` (nats over no decay), `aic` of each kernel and the `chosen` one, `user_sd` and `topics` of the
        fits that `by_user` and `by_topic` ask for; or `seed` and `failure`.
    """
    import torch
    from hydra.utils import instantiate

    from halflife.estimate import estimate, fit_likelihood, put
    from halflife.heterogeneity import by_user
    from halflife.likelihood import Likelihood

    torch.set_num_threads(1)
    cfg = OmegaConf.create(settings)
    with tempfile.TemporaryDirectory(prefix="halflife-recovery-") as logs:
        cfg = settings_of(cfg, seed, logs)
        try:
            module, data = trained(cfg)
            likelihood = Likelihood(
                module, data.sample("train", candidates=10**9), module.encoder.catalogue()
            )
            fit = fit_likelihood(likelihood)
            put(module, fit)
            found = estimate(module, fit)
            aic = {cfg.kernel: 2 * (fit.point.value + len(likelihood.names))}
            for name in cfg.kernels:
                if name != cfg.kernel:
                    other = likelihood.with_decay(instantiate(kernel_config(name)))
                    point = other.minimise(fit.point.theta)
                    aic[name] = 2 * (point.value + len(other.names))
            if cfg.by_user:
                spread = by_user(likelihood, fit.point)
                aic[f"{cfg.kernel} by user"] = spread.aic
            topics = None
            if cfg.by_topic:
                topics, aic[f"{cfg.kernel} by topic"] = by_topic(cfg, module, data, likelihood)
        except (InputError, ArithmeticError, RuntimeError) as error:
            return {"seed": seed, "failure": f"{type(error).__name__}: {error}"}
    kept = ("half_life_days", "low", "high", "sd_log_half_life", "identified", "how")
    return {
        "seed": seed,
        "impressions": len(likelihood.user),
        **{k: found.get(k) for k in kept},
        "gain": fit.gain,
        "aic": aic,
        "chosen": min(aic, key=lambda k: aic[k]),
        "user_sd": spread.sd if cfg.by_user else None,
        "topics": topics,
    }


def by_topic(cfg: DictConfig, module: Any, data: Any, likelihood: Any) -> tuple[dict[str, Any], float]:
    """Fit a half-life for every topic, drawn towards the shared one by a spread that is estimated too.

    Returns:
        `sd` of log half-life between topics, the shared `half_life_days`, and `by_topic` the `planted` one,
        the `fitted` one, `low` and `high`; and the AIC, topics counted as far as the log moves them.
    """
    from hydra.utils import instantiate

    from halflife.decay.grouped import Grouped
    from halflife.estimate import estimate, fit_likelihood, put

    inner = kernel_config(cfg.kernel)
    start = inner.pop("half_life_days")
    kernel = Grouped(
        start, inner.pop("learn"), "category", True, SD_START, True, instantiate(inner, _partial_=True)
    )
    kernel.bind(data.store)
    grouped = likelihood.with_decay(kernel)
    fit = fit_likelihood(grouped)
    module.decay = kernel
    put(module, fit)
    found = estimate(module, fit)
    planted = data.store.about["planted"]
    topics = {}
    for topic, fitted in found["half_lives"].items():
        low, high = found.get("half_lives_intervals", {}).get(topic, (None, None))
        own = planted.get("half_lives", {}).get(topic, planted.get("half_life_days"))
        topics[topic] = {"planted": own, "fitted": fitted, "low": low, "high": high}
    return (
        {"sd": kernel.group_sd, "half_life_days": found["half_life_days"], "by_topic": topics},
        2 * (grouped.loss(fit.point.theta) + found["parameters_effective"]),
    )


def kernel_config(name: str) -> DictConfig:
    """A kernel with the shape that the newsroom plants, and a half-life to learn."""
    cfg = DictConfig(OmegaConf.load(CONFIG_DIR / "decay" / f"{name}.yaml"))
    for key in ("learn_shape", "learn_alpha"):
        if key in cfg:
            cfg[key] = False
    return cfg


def trained(cfg: DictConfig) -> tuple[Any, Any]:
    """A Recommender over one log: with the topics themselves for vectors, or with text, after training.

    Returns:
        The module and its DataModule.
    """
    import lightning.pytorch as pl
    from hydra.utils import instantiate

    from halflife.recommender import build
    from halflife.tracking import quiet

    quiet()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    module = build(cfg, data)
    if cfg.vectors != "oracle":
        trainer = instantiate(cfg.trainer)(
            logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0
        )
        trainer.fit(module, train_dataloaders=data.train_dataloader())
    return module.eval(), data


def summarise(rows: list[dict[str, Any]], cfg: DictConfig) -> dict[str, Any]:
    """What the seeds say together.

    bias = exp(mean log ĥ) / h − 1 and sd of log ĥ over the logs that identified a half-life; coverage is the
    share of their intervals that hold h, with Wilson's 95 % interval.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference (JASA 1927).
    """
    good = [r for r in rows if "failure" not in r]
    told = [r for r in good if r["identified"]]
    against = agreement([(cfg.half_life_days, r["half_life_days"], r["low"], r["high"]) for r in told])
    sd = against["sd_log_half_life"]
    return {
        "planted": {
            k: cfg[k]
            for k in ("kernel", "half_life_days", "composition", "control", "user_sd", "topic_sd", "days")
        },
        "vectors": cfg.vectors,
        "seeds": len(rows),
        "impressions": float(np.mean([r["impressions"] for r in good])) if good else None,
        **against,
        "bias_se": sd / math.sqrt(len(told)) if sd is not None else None,
        "stated_sd_log_half_life": float(np.mean([r["sd_log_half_life"] for r in told])) if told else None,
        "coverage_interval": wilson(round(against["coverage"] * len(told)), len(told)) if told else None,
        "not_identified": len(good) - len(told),
        "failures": len(rows) - len(good),
        "chosen_kernel": dict(Counter(r["chosen"] for r in good)),
        "topics": topics_together([r["topics"] for r in good if r["topics"]]),
        "logs": rows,
    }


def agreement(told: list[tuple[float, float, float, float]]) -> dict[str, Any]:
    """Bias, sd of log half-life and coverage of estimates; None where there are none, or one for an sd.

    Args:
        told: planted and fitted half-life, and the interval's ends.
    """
    off = np.array([math.log(fitted / planted) for planted, fitted, _, _ in told])
    held = [low <= planted <= high for planted, _, low, high in told]
    return {
        "bias": math.expm1(float(off.mean())) if told else None,
        "sd_log_half_life": float(off.std(ddof=1)) if len(told) > 1 else None,
        "coverage": sum(held) / len(held) if told else None,
    }


def topics_together(logs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the half-lives of topics say together, over the topics of all logs; None where none were fitted.

    bias, sd and coverage as in `summarise`, each topic beside its own planted half-life; `sd_between` is the
    mean of the estimated spread between topics.
    """
    if not logs:
        return None
    each = [t for log in logs for t in log["by_topic"].values() if t["planted"] is not None]
    told = [t for t in each if t["low"] is not None]
    return {
        "topics": len(each),
        **agreement([(t["planted"], t["fitted"], t["low"], t["high"]) for t in told]),
        "sd_between": float(np.mean([log["sd"] for log in logs])),
        "not_identified": len(each) - len(told),
    }


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> list[float]:
    """Wilson's interval of a share.

    >>> [round(x, 3) for x in wilson(28, 30)]
    [0.787, 0.982]
    """
    middle, half = hits / n + z * z / (2 * n), z * math.sqrt(hits * (n - hits) / n**3 + z * z / (4 * n * n))
    return [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def results(cfg: DictConfig) -> Iterator[dict[str, Any]]:
    """Every log's row, as it is done."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    seeds = range(cfg.first_seed, cfg.first_seed + cfg.seeds)
    if cfg.workers == 1:
        yield from (one_log(plain, seed) for seed in seeds)
        return
    with ProcessPoolExecutor(cfg.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(one_log, plain, seed) for seed in seeds]):
            yield done.result()


def run(cfg: DictConfig, run_dir: Path) -> float:
    """Plant, fit, write `recovery.json` and `recovery.png`, and print the table.

    Returns:
        The absolute bias, or infinity where no log identified a half-life.
    """
    from rich.progress import track

    from halflife.recovery_report import picture, table, topics_picture
    from halflife.tracking import console, on_terminal

    check(cfg)
    rows = list(
        track(results(cfg), total=cfg.seeds, description="logs", disable=not on_terminal(), transient=True)
    )
    failures = {r.get("failure", "") for r in rows}
    if len(failures) == 1 and (same := failures.pop()).startswith("InputError: "):  # a setting, not a log
        raise InputError(same.removeprefix("InputError: "))
    found = summarise(sorted(rows, key=lambda r: r["seed"]), cfg)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recovery.json").write_text(json.dumps(found, indent=2))
    picture(found, run_dir / "recovery.png")
    if found["topics"] is not None:
        topics_picture(found, run_dir / "topics.png")
    console().print(table(found))
    return abs(found["bias"]) if found["bias"] is not None else math.inf


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="recovery")
def main(cfg: DictConfig) -> float:
    """Called by Hydra."""
    return float(guarded(run, cfg, CONFIG_DIR / "recovery.yaml"))


if __name__ == "__main__":
    run_app(main, run, CONFIG_DIR / "recovery.yaml")

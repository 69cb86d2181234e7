"""The grid of recovery: every cell of python -m halflife.recovery that the README's tables are made of.

python experiments/recovery/grid.py DIR [--workers 2] [--only PREFIX]
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from halflife import recovery, recovery_report
from halflife.cli import CONFIG_DIR

KERNELS = ["exponential", "power", "weibull", "gaussian"]
HALF_LIVES = [0.25, 1, 5, 20, 60]


def cells() -> Iterator[tuple[str, list[str]]]:
    """The name of each cell, and its overrides."""
    for n, half_life, kernel in product([1000, 5000, 20000], HALF_LIVES, KERNELS):
        yield f"sink-{n}-{kernel}-{half_life:g}d", [f"impressions={n}", f"kernel={kernel}", days(half_life)]
    for composition, kernel in product(["normalised", "sum"], KERNELS):
        words = ["impressions=5000", f"kernel={kernel}", days(5), f"composition={composition}"]
        yield f"{composition}-5000-{kernel}-5d", words
    # a share of 95 % cannot be seen in 30 logs
    yield "control-none", ["impressions=5000", "control=none", "seeds=200"]
    yield (
        "control-shuffled",
        ["impressions=5000", "control=shuffled", "composition=normalised"],
    )
    yield "readers-alike", ["impressions=5000", "by_user=true"]
    yield "readers-differ", ["impressions=5000", "user_sd=0.8", "by_user=true"]
    for n in (5000, 20000):
        yield f"topics-differ-{n}", [f"impressions={n}", "topic_sd=0.8", "by_topic=true"]
    yield "topics-alike-5000", ["impressions=5000", "by_topic=true"]
    for half_life in HALF_LIVES:
        words = ["impressions=5000", "vectors=frozen", "kernels=[exponential,power]", days(half_life)]
        yield f"frozen-5000-{half_life:g}d", words
    yield "tuned", ["impressions=5000", "vectors=tuned", "kernels=[exponential,power]"]


def days(half_life: float) -> str:
    """The override that plants a half-life."""
    return f"half_life_days={half_life:g}"


def composed(name: str, words: list[str], out: Path) -> DictConfig:
    """The configuration of a cell."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("recovery", overrides=[*words, f"out={out / name}", f"hydra.run.dir={out / name}"])


def main() -> None:
    """Run the cells that are not there yet, all in one pool; a cell is written when it is whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="where each cell's recovery.json and picture go")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--only", nargs="*", default=[""], help="cells whose names begin so")
    given = parser.parse_args()
    waiting = [
        (name, composed(name, words, given.out))
        for name, words in cells()
        if any(name.startswith(o) for o in given.only) and not (given.out / name / "recovery.json").exists()
    ]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in waiting}
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        futures: dict[Future[dict[str, Any]], tuple[str, DictConfig]] = {}
        for name, cfg in waiting:
            recovery.check(cfg)
            plain: Any = OmegaConf.to_container(cfg, resolve=True)
            for seed in range(cfg.first_seed, cfg.first_seed + cfg.seeds):
                futures[pool.submit(recovery.one_log, plain, seed)] = name, cfg
        for done in as_completed(futures):
            name, cfg = futures[done]
            rows[name].append(done.result())
            if len(rows[name]) == cfg.seeds:
                found = recovery.summarise(sorted(rows.pop(name), key=lambda r: int(r["seed"])), cfg)
                (given.out / name).mkdir(parents=True, exist_ok=True)
                (given.out / name / "recovery.json").write_text(json.dumps(found, indent=2))
                recovery_report.picture(found, given.out / name / "recovery.png")
                if found["topics"] is not None:
                    recovery_report.topics_picture(found, given.out / name / "topics.png")
                print(name, {k: v for k, v in found.items() if k not in ("logs", "planted")}, flush=True)


if __name__ == "__main__":
    main()

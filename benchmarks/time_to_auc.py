"""How long fine-tuning takes to the validation AUC that the padded loop reaches, on a log to learn from.

The padded loop of encoding.py trains for so many steps of a batch; its best validation AUC is the mark. Ours
starts from the same weights and trains until it is there: with the same batches, and with the settings that
a user in a hurry takes (`OVERRIDES`: several impressions of a reader from one encoded history, a larger
batch). The learning rates are those of conf/ for all. Clocks stand still while the AUC is taken; every AUC
is of the same impressions, by the same code.

    python benchmarks/time_to_auc.py --json time_to_auc.json
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from encoding import CONF, MAX_HISTORY, PaddedLoop, above_zero
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from rich.table import Table

from halflife import metrics, tracking
from halflife.batches import Batch, Impressions
from halflife.datamodule import DataModule
from halflife.likelihood import Likelihood
from halflife.progress import bar
from halflife.recommender import Recommender, build

# histories up to 50, about 25 long on average, as in encoding.py, but clicks mean something here
LOG = [
    "data.source.users=400",
    "data.source.items=2000",
    "data.source.days=90",
    "data.source.sessions_per_day=0.5",
    f"data.max_history={MAX_HISTORY}",
    "model=bert_full",
    "logger=none",
]
BATCH = 32
SAME = [f"data.batch_size={BATCH}"]
OVERRIDES = ["data.batch_size=256", "data.targets_per_history=8"]
TARGET = 10.0


@dataclass
class Curve:
    """What a way of training reached, and when.

    Args:
        what: the way.
        seconds: of training before each AUC.
        auc: of the validation split.
    """

    what: str
    seconds: list[float] = field(default_factory=list)
    auc: list[float] = field(default_factory=list)

    def reached(self, mark: float) -> float | None:
        """Seconds until the AUC was at the mark; None where it never was."""
        return next((s for s, a in zip(self.seconds, self.auc, strict=True) if a >= mark), None)


def made(*overrides: str) -> tuple[Recommender, DataModule, Callable[..., pl.Trainer]]:
    """A Recommender, its log and its trainer, as train.py makes them."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*LOG, *overrides])
    pl.seed_everything(1, verbose=False)
    data = instantiate(cfg.data)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": tracking.on_terminal()}
    return build(cfg, data), data, partial(instantiate(cfg.trainer), **settings)


@torch.no_grad()
def auc(module: Recommender, data: DataModule) -> float:
    """AUC of the validation split, the catalogue encoded once; leaves the training mode as it was."""
    training = module.training
    module.eval()
    split = Likelihood(module, data.sample("val", candidates=10**9), module.encoder.catalogue())
    score, label, _ = split.scored(split.start)
    module.train(training)
    return float(metrics.auc(score, label))


def padded(steps: int, every: int, *overrides: str) -> Curve:
    """The padded loop, by its batches."""
    module, data, _ = made(*SAME, *overrides)
    assert module.encoder.tokens is not None
    loop = PaddedLoop(module, Impressions(data.store, MAX_HISTORY, data.age, module.encoder.tokens))
    curve = Curve("padded loop", [0.0], [auc(loop.module, data)])
    rows = torch.from_numpy(data.rows("train"))
    order = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))].numpy()
    spent = 0.0
    for step in bar(range(steps), "padded loop"):
        since = time.perf_counter()
        loop.step(order[step * BATCH : (step + 1) * BATCH])
        spent += time.perf_counter() - since
        if (step + 1) % every == 0:
            curve.seconds.append(spent)
            curve.auc.append(auc(loop.module, data))
    return curve


@dataclass(eq=False)
class Until(Callback):
    """Takes the AUC after each step, its clock standing still meanwhile, and ends training at the mark."""

    curve: Curve
    data: DataModule
    mark: float
    at_most_s: float
    spent: float = 0.0
    since: float = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.spent += time.perf_counter() - self.since
        self.curve.seconds.append(self.spent)
        self.curve.auc.append(auc(pl_module, self.data))
        trainer.should_stop = self.curve.auc[-1] >= self.mark or self.spent > self.at_most_s
        self.since = time.perf_counter()


def ours(what: str, mark: float, at_most_s: float, *overrides: str) -> Curve:
    """Train under the real trainer until the validation AUC is at the mark, or the time is over."""
    module, data, trainer = made(*overrides)
    curve = Curve(what, [0.0], [auc(module, data)])
    until = Until(curve, data, mark, at_most_s)
    endless = {"max_epochs": 1000, "min_epochs": 0}  # until the callback ends it, inside an epoch too
    trainer(callbacks=[until], limit_val_batches=0, **endless).fit(module, datamodule=data)
    return curve


def table_of(curves: list[Curve], mark: float) -> Table:
    """When each was at the mark."""
    table = Table(title=f"Seconds of training to a validation AUC of {mark:.4f}, the padded loop's best")
    for name in ("way", "AUC before", "AUC at last", "seconds", "faster", "target", "met"):
        table.add_column(name, justify="left" if name == "way" else "right")
    base = curves[0].reached(mark)
    assert base is not None
    for curve in curves:
        at = curve.reached(mark)
        faster = None if at is None else base / max(at, 1e-9)
        told = ["", "", ""]
        if curve is not curves[0]:
            reached = faster is not None and faster >= TARGET
            told = [
                "not reached" if faster is None else f"{faster:.1f}×",
                f"≥ {TARGET:g}×",
                "yes" if reached else "NO",
            ]
        table.add_row(
            curve.what,
            f"{curve.auc[0]:.4f}",
            f"{curve.auc[-1]:.4f}",
            "" if at is None else f"{at:,.1f}",
            *told,
        )
    return table


def main() -> None:
    """Measure, print the table, write the curves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the curves there")
    parser.add_argument(
        "--steps", type=above_zero, default=12, help=f"of the padded loop, {BATCH} impressions each"
    )
    parser.add_argument("--every", type=above_zero, default=2, help="of its steps between two AUCs")
    given = parser.parse_args()
    if given.json is not None and not given.json.absolute().parent.is_dir():
        parser.error(f"--json must be a file in a directory that exists, got {given.json}")
    if given.steps < given.every:
        parser.error(f"--steps must be at least --every (steps), got {given.steps}")
    tracking.quiet()
    with tempfile.TemporaryDirectory() as folder:
        cache = f"cache_dir={folder}"
        curves = [padded(given.steps, given.every, cache)]
        mark, limit = max(curves[0].auc[1:]), curves[0].seconds[-1]
        for what, words in (("ours, the same batches", SAME), (f"ours, {' '.join(OVERRIDES)}", OVERRIDES)):
            curves.append(ours(what, mark, limit, *words, cache))
    tracking.console().print(table_of(curves, mark))
    if given.json is not None:
        given.json.write_text(
            json.dumps({"mark": mark, "curves": [asdict(c) for c in curves]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()

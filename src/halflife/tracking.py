"""What happens around a run: checkpoints, speed, child processes, predictions, tables."""

import logging
import os
import shutil
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from halflife.batches import Batch
from halflife.estimate import Fit
from halflife.ranges import ranges
from halflife.recommender import Recommender
from hydra_plugins.halflife_sweeper import judge

Array = NDArray[Any]


class Checkpoints(ModelCheckpoint):
    """Best and last checkpoint, which a run resumed into another directory takes along.

    Lightning forgets the best one when the directory changes, and a resumed run would then test another model
    than the run that was never stopped.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = Path(str(self.dirpath))
        best = Path(state_dict.get("best_model_path") or "")
        if best.is_file() and best.parent != here:
            here.mkdir(parents=True, exist_ok=True)
            moved = str(shutil.copy2(best, here / best.name))
            scores = [(moved, s) for p, s in state_dict["best_k_models"].items() if Path(p) == best]
            state_dict = {
                **state_dict,
                "dirpath": str(here),
                "best_model_path": moved,
                "kth_best_model_path": moved,
                "best_k_models": dict(scores),
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)


def load_best(path: str, module: Recommender, refit: Callable[[], Fit | None]) -> Fit | None:
    """Give the module the best checkpoint's weights, refit, and keep the refitted values in that checkpoint.

    Args:
        path: of the best checkpoint.
        module: changed in place.
        refit: moves a few parameters of the module.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    module.load_state_dict({**module.state_dict(), **checkpoint["state_dict"]})
    fit = refit()
    if fit is not None and module.trainer.is_global_zero:
        state = module.state_dict()
        checkpoint["state_dict"] = {n: state[n].cpu() for n in checkpoint["state_dict"]}
        torch.save(checkpoint, path + ".tmp")
        Path(path + ".tmp").replace(path)
    return fit


class Speed(Callback):
    """Counts impressions and tokens of training steps, and the seconds they took; validation is left out."""

    def __init__(self) -> None:
        self.impressions = self.tokens = 0
        self.seconds = 0.0
        self._since = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now
        self.impressions += len(batch) * trainer.world_size
        self.tokens += (0 if batch.tokens is None else len(batch.tokens)) * trainer.world_size

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def metrics(self) -> dict[str, float]:
        """`speed/*`, empty when nothing was trained."""
        if self.seconds == 0:
            return {}
        found = {"speed/train_impressions_per_s": self.impressions / self.seconds}
        found["speed/train_s"] = self.seconds
        return found | ({"speed/train_tokens_per_s": self.tokens / self.seconds} if self.tokens else {})


class Reports(Callback):
    """Tells the study of a sweep the metric after each validation; a trial that is pruned ends there.

    Args:
        metric: of the validation.
    """

    def __init__(self, metric: str) -> None:
        super().__init__()
        self.metric = metric
        self.validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        told = trainer.callback_metrics.get(self.metric)
        if trainer.state.fn != "fit" or trainer.sanity_checking or told is None:
            return
        self.validations += 1
        first = trainer.is_global_zero
        end = judge(float(told), self.validations) if first else None
        end = trainer.strategy.broadcast(end)  # the other processes know of no study
        if end is not None:
            from optuna import TrialPruned

            raise TrialPruned(end) if first else SystemExit


def print_parameters(module: Recommender) -> None:
    """Print which parameters train, and how many."""
    groups: dict[str, list[int]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = ".".join("*" if part.isdigit() else part for part in name.split("."))
            groups[key].append(parameter.numel())
    count = module.trainable()
    share = count["trainable"] / max(1, count["total"])
    table = Table(title=f"{count['trainable']:,} of {count['total']:,} parameters train ({share:.2%})")
    table.add_column("parameter", overflow="fold")
    table.add_column("tensors", justify="right")
    table.add_column("numbers", justify="right")
    for key, sizes in groups.items():
        table.add_row(key, str(len(sizes)), f"{sum(sizes):,}")
    console().print(table)


def on_terminal() -> bool:
    """Whether somebody watches: colour and bars are for a terminal only."""
    return sys.stdout.isatty()


def quiet() -> None:
    """Silence what libraries say about settings that are ours to choose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # PEFT imports it wherever it is installed, and it asks for kernels that no run here reads
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The dirpath has changed.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
        ".*sampler has shuffling enabled.*",
        ".*is_gradient_checkpointing. is deprecated.*",
        ".*past_key_values. is deprecated.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*ModelCheckpoint.*could not find the monitored key.*",
        ".*validation_step.*but have no `val_dataloader`.*",  # recovery looks at nothing on the way
    ):
        warnings.filterwarnings("ignore", message)


@contextmanager
def child_processes(run_dir: Path) -> Iterator[None]:
    """While it lasts, processes that Lightning starts find this run's configuration and directory."""
    names = ("HALFLIFE_RUN_DIR", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")
    before = {name: os.environ.get(name) for name in names}
    os.environ["HALFLIFE_RUN_DIR"] = str(run_dir)
    try:
        yield
    finally:
        # the next job of a multirun starts processes of its own: nothing of these may be left
        if before["LOCAL_RANK"] is None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def console() -> Console:
    """Standard output; plain, and wide enough for a table, where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=110, color_system=None)


def gather_predictions(module: Recommender, run_dir: Path) -> tuple[Array, Array]:
    """All processes' test scores, in row order: rows of the Store, and scores of their candidates on end."""
    rows = np.concatenate(module.predictions["impression"])
    scores = np.concatenate(module.predictions["score"])
    trainer = module.trainer
    if trainer.world_size > 1:
        np.savez(run_dir / f"part-{trainer.global_rank}.npz", rows=rows, scores=scores)
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return rows, scores
        parts = [np.load(run_dir / f"part-{r}.npz") for r in range(trainer.world_size)]
        rows, scores = (np.concatenate([p[k] for p in parts]) for k in ("rows", "scores"))
        for rank in range(trainer.world_size):
            (run_dir / f"part-{rank}.npz").unlink()
    start = trainer.datamodule.store.candidate_start  # type: ignore[attr-defined]
    length = start[rows + 1] - start[rows]
    index, mask = ranges(np.cumsum(length) - length, length)
    order = np.argsort(rows, kind="stable")
    return rows[order], scores[index[order][mask[order]]]


def write_table(path: Path, tables: Iterable[Table]) -> None:
    """Print tables and write the same text, without colour, to a file."""
    with path.open("w") as file:
        plain = Console(file=file, width=110, color_system=None)
        for table in tables:
            plain.print(table)
            console().print(table)

"""What a run leaves behind: loggers, curves, tables, the end-of-run summary."""

import importlib.util
import json
import logging
import os
import resource
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
import polars
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from halflife import metrics
from halflife.batches import Batch, ranges
from halflife.errors import InputError
from halflife.estimate import Fit
from halflife.recommender import Recommender
from halflife.store import Store
from halflife.tables import DAY_S

Array = NDArray[Any]


def wandb_logger(
    save_dir: str, project: str, group: str | None, tags: list[str], offline: bool | None
) -> WandbLogger:
    """Weights & Biases; offline when there is no key, with a line that says where the run lies.

    Args:
        save_dir: the run's directory.
        project, group, tags: as W&B shows them.
        offline: None decides by whether a key is found.
    """
    if offline is None:
        netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        has_key = bool(os.environ.get("WANDB_API_KEY")) or (netrc.exists() and "wandb" in netrc.read_text())
        offline = not has_key and os.environ.get("WANDB_MODE", "offline") != "online"
    os.environ.setdefault("WANDB_SILENT", "true")
    name = Path(save_dir).name
    logger = WandbLogger(
        project=project,
        group=group,
        tags=list(tags),
        offline=offline,
        save_dir=save_dir,
        name=name,
        job_type="train",
    )
    if offline and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"W&B is offline; `wandb sync {save_dir}/wandb/offline-run-*` uploads this run later")
    return logger


def tensorboard_logger(save_dir: str) -> TensorBoardLogger:
    """TensorBoard event files in the run's directory."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "logger=tensorboard must find the package tensorboard, got none; pip install "
            "'halflife-rec[tensorboard]'"
        )
    return TensorBoardLogger(save_dir=save_dir, name="tensorboard", version="")


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
        return found | ({"speed/train_tokens_per_s": self.tokens / self.seconds} if self.tokens else {})


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
    for message in (
        ".*does not have many workers.*",
        ".*logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The dirpath has changed.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
        ".*sampler has shuffling enabled.*",
        ".*is_gradient_checkpointing. is deprecated.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*ModelCheckpoint.*could not find the monitored key.*",
    ):
        warnings.filterwarnings("ignore", message)


def flatten(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration with dotted keys, and each group's choice, as loggers show it."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            else:
                flat[prefix + str(key)] = value

    walk(OmegaConf.to_container(cfg, resolve=True), "")
    if HydraConfig.initialized():
        choices = HydraConfig.get().runtime.choices
        flat |= {group: choice for group, choice in choices.items() if not group.startswith("hydra")}
    return flat


def finish(
    found: dict[str, Any],
    run_dir: Path,
    module: Recommender,
    store: Store,
    rows: Array,
    scores: Array,
    fitted: dict[str, Any],
    speed: Speed,
) -> dict[str, Any]:
    """Write predictions, metrics, decay and their pictures, and print the last table.

    Returns:
        Everything in `metrics.json`.
    """
    frame = predictions_table(store, rows, scores)
    users = np.repeat(store.impression_user[rows], np.diff(store.candidate_start)[rows])
    found = dict(found)
    found |= compare(frame, users)
    found |= {f"params/{k}": v for k, v in module.trainable().items()}
    found |= speed.metrics()
    planted = store.about["planted"]
    key = f"half_life_{fitted['unit']}"
    found |= {
        f"decay/{key}": fitted[key],
        f"decay/{key}_low": fitted["low"],
        f"decay/{key}_high": fitted["high"],
        "decay/planted_half_life_days": planted.get("half_life_days") if planted else None,
        "data/fingerprint": store.about["fingerprint"],
        "data/test_impressions": len(rows),
        "memory/peak_mib": peak_mib(),
    }
    found = {k: v for k, v in found.items() if v is not None and not k.startswith("train/")}
    frame.drop("popularity", "probability", strict=False).write_parquet(run_dir / "predictions.parquet")

    figure = decay_curve(module, fitted, ages(store, rows, fitted["unit"]), planted)
    figure.savefig(run_dir / "decay_curve.png")
    log_figure(module.trainer.logger, "decay/curve", figure)
    write_json(run_dir / "decay.json", fitted)
    if isinstance(module.trainer.logger, Logger):
        module.trainer.logger.log_metrics({k: v for k, v in found.items() if isinstance(v, int | float)})
    write_json(run_dir / "metrics.json", found)
    write_table(run_dir / "summary.txt", [summary(found, fitted, run_dir)])
    return found


def ages(store: Store, rows: Array, unit: str) -> Array:
    """Ages in the histories of at most a thousand rows, evenly spread over them."""
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), 1000)).astype(np.int64)]
    end = store.history_end[some]
    length = end - store.user_start[store.impression_user[some]]
    index, mask = ranges(end - length, length)
    if unit == "rank":
        return (length[:, None] - 1 - np.arange(index.shape[1]))[mask].astype(np.float64)
    index = np.clip(index, 0, len(store.event_time) - 1)
    return np.asarray((store.impression_time[some][:, None] - store.event_time[index])[mask] / DAY_S)


def close(logger: Logger | None) -> None:
    """End the logger's run, so that the next one in this process starts its own."""
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()
    elif logger is not None:
        logger.finalize("success")


@contextmanager
def child_processes(run_dir: Path) -> Iterator[None]:
    """While it lasts, processes that Lightning starts find this run's configuration and directory (see
    cli).
    """
    before = os.environ.get("HALFLIFE_RUN_DIR")
    os.environ["HALFLIFE_RUN_DIR"] = str(run_dir)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HALFLIFE_RUN_DIR"]
        else:
            os.environ["HALFLIFE_RUN_DIR"] = before


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


def predictions_table(store: Store, rows: Array, scores: Array) -> polars.DataFrame:
    """One row a test candidate: impression_id, user_id, item_id, timestamp_s, label, score, popularity, and
    the true probability where it is known."""
    start = store.candidate_start
    length = start[rows + 1] - start[rows]
    index, mask = ranges(start[rows], length)
    place, owner = index[mask], np.repeat(rows, length)
    frame = polars.DataFrame(
        {
            "impression_id": store.impression_ids.gather(owner),
            "user_id": store.users["user_id"].gather(store.impression_user[owner]),
            "item_id": store.items["item_id"].gather(store.candidate_item[place]),
            "timestamp_s": store.impression_time[owner],
            "label": store.candidate_label[place],
            "score": scores,
            "popularity": store.candidate_popularity[place],
        }
    )
    if store.has_truth:
        frame = frame.with_columns(probability=polars.Series(store.candidate_probability[place]))
    return frame


def compare(frame: polars.DataFrame, rows_user: Array) -> dict[str, float]:
    """The same test rows scored by popularity and, where known, by the true probability; and AUC intervals.

    Args:
        frame: from `predictions_table`.
        rows_user: a user number for each row, the clusters of the interval.
    """
    label = torch.from_numpy(frame["label"].to_numpy().astype(np.int64))
    group = torch.from_numpy(frame["impression_id"].rank("dense").to_numpy().astype(np.int64))
    score = torch.from_numpy(frame["score"].to_numpy().copy())
    popularity = torch.from_numpy(frame["popularity"].to_numpy().astype(np.float32))
    user = torch.from_numpy(rows_user.astype(np.int64))
    low, high = metrics.auc_interval(score, label, user)
    found = {
        "test/auc_low": low,
        "test/auc_high": high,
        "baseline/popularity/auc": float(metrics.auc(popularity, label)),
        "baseline/popularity/gauc": float(metrics.grouped_auc(popularity, label, group)),
        "baseline/popularity/mrr": float(metrics.mrr(popularity, label, group)),
        "baseline/popularity/ndcg@5": float(metrics.ndcg(popularity, label, group, 5)),
        "baseline/popularity/ndcg@10": float(metrics.ndcg(popularity, label, group, 10)),
    }
    if "probability" in frame.columns:
        found["data/bayes_auc"] = float(
            metrics.auc(torch.from_numpy(frame["probability"].to_numpy().copy()), label)
        )
    return found


def peak_mib() -> float:
    """Most memory held: of the GPU where one is used, else of the process, in MiB."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def decay_curve(
    module: Recommender, estimate: dict[str, Any], ages: Array, planted: dict[str, Any] | None
) -> Any:
    """Picture of the fitted weight over age, above a histogram of the ages that histories hold.

    Args:
        module: after the fit.
        estimate: from `estimate.estimate`; its interval is shaded.
        ages: a sample of ages in test histories.
        planted: kernel and half-life of a simulated log, drawn beside the fitted one.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    unit = module.unit
    half_life = estimate[f"half_life_{unit}"]
    most = float(np.quantile(ages, 0.98)) if len(ages) else 1.0
    most = min(most, 8 * half_life) if half_life else most
    age = np.linspace(0, max(most, 1e-3), 400)
    with torch.no_grad():
        weight = module.decay(torch.from_numpy(age).float().to(module.device)).exp().cpu().numpy()
    figure, (top, low) = plt.subplots(
        2, 1, sharex=True, figsize=(7, 5), height_ratios=[3, 1], layout="constrained", dpi=120
    )
    top.plot(age, weight, color="tab:blue", label=f"fitted: {estimate['kernel']}")
    if half_life is not None:
        text = f"half-life {half_life:.3g} {unit}"
        if estimate["low"] is not None:
            text += f" [{estimate['low']:.3g}, {estimate['high']:.3g}]"
            top.axvspan(
                estimate["low"], estimate["high"], color="tab:blue", alpha=0.15, lw=0, label="95 % interval"
            )
        top.axvline(half_life, color="tab:blue", lw=1, ls="--", label=text)
    if planted and planted.get("half_life_days") and unit == "days":
        top.axvline(
            planted["half_life_days"],
            color="tab:orange",
            lw=1.5,
            ls=":",
            label=f"planted: {planted['kernel']}, {planted['half_life_days']:g} days",
        )
    top.set(ylabel="weight of a past click", ylim=(0, 1.05), xlim=(0, age[-1]))
    top.legend(frameon=False)
    low.hist(ages[ages <= age[-1]], bins=60, color="0.6")
    low.set(
        xlabel="age of the click (days)" if unit == "days" else "age of the click (newer clicks)",
        ylabel="clicks",
    )
    return figure


def log_figure(logger: Logger | None, name: str, figure: Any) -> None:
    """Show a picture in the logger that the run uses."""
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [figure])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure)


SHOWN = {
    "AUC": "test/auc",
    "gAUC by impression": "test/gauc",
    "gAUC by user": "test/gauc_user",
    "MRR": "test/mrr",
    "nDCG@5": "test/ndcg@5",
    "nDCG@10": "test/ndcg@10",
    "log-loss": "test/logloss",
}


def summary(found: dict[str, Any], estimate: dict[str, Any], run_dir: Path) -> Table:
    """The last table of a run: each figure beside what to compare it with."""
    table = Table(title=f"Test, {found['data/test_impressions']:,} impressions · {run_dir}")
    for column in ("", "this run", "95 % interval", "popularity", "best possible"):
        table.add_column(column, justify="left" if not column else "right")

    def text(key: str) -> str:
        return f"{found[key]:.4f}" if found.get(key) is not None else ""

    for label, key in SHOWN.items():
        if key in found:
            interval = f"{found['test/auc_low']:.4f} – {found['test/auc_high']:.4f}" if label == "AUC" else ""
            best = text("data/bayes_auc") if label == "AUC" else ""
            table.add_row(
                label, text(key), interval, text(key.replace("test/", "baseline/popularity/")), best
            )
    table.add_section()
    unit = estimate["unit"]
    half_life = estimate[f"half_life_{unit}"]
    if half_life is not None:
        interval = (
            f"{estimate['low']:.3g} – {estimate['high']:.3g}"
            if estimate["low"] is not None
            else "not identified"
        )
        if estimate["how"].startswith("fixed"):
            interval = "fixed"
        table.add_row(f"half-life ({unit}), {estimate['kernel']}", f"{half_life:.3g}", interval, "", "")
    if found.get("decay/planted_half_life_days") is not None:
        table.add_row("half-life (days), planted", f"{found['decay/planted_half_life_days']:.3g}", "", "", "")
    table.add_section()
    for label, key in (
        ("train impressions/s", "speed/train_impressions_per_s"),
        ("train tokens/s", "speed/train_tokens_per_s"),
        ("peak memory (MiB)", "memory/peak_mib"),
        ("parameters that train", "params/trainable"),
    ):
        if key in found:
            table.add_row(label, f"{found[key]:,.0f}", "", "", "")
    return table


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    temporary.replace(path)


def write_table(path: Path, tables: Iterable[Table]) -> None:
    """Print tables and write the same text, without colour, to a file."""
    with path.open("w") as file:
        plain = Console(file=file, width=110, color_system=None)
        for table in tables:
            plain.print(table)
            console().print(table)

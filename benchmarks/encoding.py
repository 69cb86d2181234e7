"""What the README's speed table is printed by: training and evaluation against the usual ways, in one run.

The padded loop is what most implementations do, on the same libraries and the same weights: every place of
a history, filled up to `max_history`, and every candidate holds a title of its own, padded to the longest
of the batch, and all of them go through the encoder at every step. It is a plain PyTorch loop without a
trainer. Where speed is measured it takes a few impressions of a batch at a time (their gradients add up to
the batch's), which is faster on a processor; memory is also measured with the batch whole, as it is usually
taken. Ours runs as a user's run does: under the Lightning trainer, with the settings of conf/, batches
collated on the way.

Peak memory is that of a process of its own, imports included. The first batch counts from the start of a
process to the end of its first training step, Store and vectors being there.

    python benchmarks/encoding.py --json encoding.json
"""

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils import clip_grad_norm_

from halflife import pretrained, summary, tracking
from halflife.batches import PAD_AGE, Batch, Impressions
from halflife.datamodule import DataModule
from halflife.decay.configured import kernels
from halflife.encoders.chunks import chunks, rectangle
from halflife.errors import InputError
from halflife.progress import bar
from halflife.recommender import Recommender
from halflife.sources.newsroom import TAILS, TOPICS
from halflife.tables import DAY_S, Tables

Array = NDArray[Any]

CONF = Path(__file__).resolve().parents[1] / "conf"
START_S = 1_704_067_200  # 2024-01-01T00:00Z
MAX_HISTORY = 50
USERS, ITEMS = 2_500, 2_000
IMPRESSIONS_A_USER = 8
SPLIT = {"val": 0.5, "test": 0.1}
TRAIN_IMPRESSIONS = 8_000
PIECE = 8  # impressions that the padded loop encodes together
SAME_LOSS = 1e-3
FROZEN_STEPS = 200  # they take milliseconds each
PAIRS = 2  # fine-tuning steps of ours and of the bare encoder for each repeat: their ratio is close to 1
WARM_UP = 2  # steps until AdamW and the allocator hold what they need


def news(files: list[Path], users: int, items: int, seed: int) -> Tables:
    """A log of the shape of a news site's: histories up to 50 and about 25 long, titles of about 12 words.

    Popularity is Zipf's law with exponent 1, for clicks and for candidates; an impression has one click and
    four negatives. Texts and clicks have nothing to do with each other: only the work counts here.

    Args:
        files: none.
        users, items: how many.
        seed: the same seed gives the same log.
    """
    rng = np.random.default_rng(seed)
    words = [w for topic in TOPICS.values() for phrases in topic for w in phrases] + TAILS
    lengths = np.clip(np.rint(rng.normal(12, 3, items)), 5, 20).astype(int)
    titles = [" ".join(rng.choice(words, n)).split()[:n] for n in lengths]
    item_id = np.array([f"N{i:05d}" for i in range(items)])
    popularity = 1.0 / np.arange(1, items + 1)
    popularity /= popularity.sum()

    clicks = np.clip(rng.gamma(3.0, 9.0, users), 1, 60).astype(int)
    reader = np.repeat(np.arange(users), clicks)
    events = polars.DataFrame(
        {
            "user_id": [f"U{u:05d}" for u in reader],
            "item_id": item_id[rng.choice(items, len(reader), p=popularity)],
            "timestamp_s": START_S + rng.integers(0, 30 * DAY_S, len(reader)),
            "kind": "read",
            "value": np.ones(len(reader), np.float32),
        }
    )
    visitor = np.repeat(np.arange(users), IMPRESSIONS_A_USER)
    shown = np.argsort(rng.gumbel(size=(len(visitor), items)) + np.log(popularity), 1)[:, -5:]
    labels = np.zeros(shown.shape, np.int8)
    labels[np.arange(len(visitor)), rng.integers(0, 5, len(visitor))] = 1
    impressions = polars.DataFrame(
        {
            "impression_id": [f"I{i:06d}" for i in range(len(visitor))],
            "user_id": [f"U{u:05d}" for u in visitor],
            "timestamp_s": START_S + rng.integers(30 * DAY_S, 40 * DAY_S, len(visitor)),
            "candidates": item_id[shown].tolist(),
            "labels": labels.tolist(),
        }
    )
    catalogue = polars.DataFrame(
        {"item_id": item_id, "text": [" ".join(t) for t in titles], "category": "news"}
    )
    return Tables(catalogue, events, impressions, has_click_times=True)


class PaddedLoop:
    """The usual way, with the weights of a Recommender as they are when it is made.

    Args:
        module: whose weights and settings are copied.
        dataset: with tokens.
        backbone: the pretrained model where the module keeps its vectors instead; it then runs without
            gradient.
        piece: impressions that go through the encoder together.
    """

    def __init__(
        self, module: Recommender, dataset: Impressions, backbone: Any = None, piece: int = PIECE
    ) -> None:
        self.dataset, self.piece = dataset, piece
        self.module = copy.deepcopy(module)
        self.encoder: Any = self.module.encoder
        self.frozen = backbone is not None
        self.backbone: Any = backbone if self.frozen else self.encoder.backbone
        self.optimizer = self.module.configure_optimizers()["optimizer"]

    def losses(self, rows: Array) -> Iterator[Tensor]:
        """Loss of each piece of the batch, weighted so that they add up to the batch's."""
        batch = self.dataset[rows]
        assert batch.tokens is not None
        assert batch.token_length is not None
        place = torch.arange(int(batch.token_length.max()))
        start = batch.token_length.cumsum(0) - batch.token_length
        mask = place < batch.token_length.unsqueeze(1)
        ids = batch.tokens[(start.unsqueeze(1) + place).clamp_max(len(batch.tokens) - 1)] * mask
        empty = MAX_HISTORY - batch.history.shape[1]
        history, real = pad(batch.history, (0, empty)), pad(batch.history_mask, (0, empty))
        age = pad(batch.age, (0, empty), value=PAD_AGE)
        slots = torch.cat([history, batch.candidates], 1)
        for piece in torch.arange(len(batch)).split(self.piece):
            flat = slots[piece].flatten()
            vectors = self.encode(ids[flat], mask[flat]).view(len(piece), slots.shape[1], -1)
            past, candidates = vectors[:, :MAX_HISTORY], vectors[:, MAX_HISTORY:]
            log_weight = self.module.decay(age[piece])
            score = self.module.interest(past, log_weight, real[piece], candidates, age[piece])
            shown = batch.candidate_mask[piece]
            share = shown.sum() / batch.candidate_mask.sum()
            yield self.module.loss(score, batch.label[piece], shown) * share

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vector of each padded title."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden = self.backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return self.encoder.head(self.encoder.pooling(hidden, mask))

    def step(self, rows: Array) -> None:
        """Forward, backward, clip, AdamW."""
        self.optimizer.zero_grad()
        for loss in self.losses(rows):
            loss.backward()
        clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, rows: Array) -> float:
        """The batch's loss without dropout, as validation needs it."""
        training = self.backbone.training
        self.module.eval()
        self.backbone.eval()
        total = sum(float(loss) for loss in self.losses(rows))
        self.module.train()
        self.backbone.train(training)
        return total


def bare(backbone: Any, chunk_tokens: int, batch: Batch) -> float:
    """Seconds of the encoder's forward and backward alone, on the distinct items' tokens.

    The padded chunks are laid out beforehand, the same ones that `encoders.chunks.encode` makes; each goes
    forward and back before the next.
    """
    assert batch.tokens is not None
    assert batch.token_length is not None
    laid_out = [
        rectangle(batch.tokens, batch.token_length, chunk)
        for chunk in chunks(batch.token_length, chunk_tokens)
    ]
    backbone.zero_grad()
    begin = time.perf_counter()
    for ids, mask in laid_out:
        backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state.sum().backward()
    return time.perf_counter() - begin


@dataclass(eq=False)
class Beside(Callback):
    """Times our training steps, collating included, and may run something else on each batch in between.

    Args:
        other: runs on a batch and returns its seconds.
        seconds: training ends once the measured steps have taken so long.
    """

    other: Callable[[Batch], float] | None
    seconds: float
    steps: dict[str, list[tuple[int, int, float]]] = field(default_factory=lambda: {"ours": [], "other": []})
    rows: list[Array] = field(default_factory=list)
    since: float = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        tokens = 0 if batch.tokens is None else len(batch.tokens)
        taken = {"ours": time.perf_counter() - self.since}
        if self.other is not None:
            taken["other"] = self.other(batch)
        if batch_idx >= WARM_UP:
            self.rows.append(batch.impression.numpy())
            for name, seconds in taken.items():
                self.steps[name].append((len(batch), tokens, seconds))
            spent = sum(s for steps in self.steps.values() for _, _, s in steps)
            trainer.should_stop = spent > self.seconds
        self.since = time.perf_counter()

    def impressions_per_s(self) -> list[float]:
        """Ours, of each measured step."""
        return [impressions / seconds for impressions, _, seconds in self.steps["ours"]]

    def tokens_per_s(self, name: str) -> list[float]:
        """Ours or the other's, of each measured step."""
        return [tokens / seconds for _, tokens, seconds in self.steps[name]]


@dataclass(frozen=True)
class Row:
    """One line of the table: the rates of each repeat, and the least ratio of their medians."""

    what: str
    ours: list[float]
    other: list[float]
    target: float
    at_most: bool = False

    @property
    def ratio(self) -> float:
        """Median over median."""
        return statistics.median(self.ours) / statistics.median(self.other)

    @property
    def met(self) -> bool:
        """Whether the ratio is what was asked for."""
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def json(self) -> dict[str, Any]:
        """The row as `--json` writes it."""
        return {
            "what": self.what,
            "ours": statistics.median(self.ours),
            "other": statistics.median(self.other),
            "ratio": self.ratio,
            "target": self.target,
            "met": self.met,
            "ours_range": [min(self.ours), max(self.ours)],
            "other_range": [min(self.other), max(self.other)],
        }


class Bench:
    """The log, and what is measured on it.

    Args:
        folder: for the Store and the vectors; thrown away afterwards.
        batch_size: impressions a step.
        repeats: measured steps of each path, behind one that warms up.
        seconds: a path that has run for so long is not repeated again.
    """

    def __init__(self, folder: Path, batch_size: int, repeats: int, seconds: float) -> None:
        self.folder, self.batch_size, self.repeats, self.seconds = folder, batch_size, repeats, seconds
        self.notes: list[str] = []
        self.data = DataModule(
            source=partial(news, users=USERS, items=ITEMS, seed=1),
            root=None,
            files=[],
            cache_dir=str(folder),
            negatives=None,
            split=SPLIT,
            age="days",
            max_history=MAX_HISTORY,
            min_history=1,
            targets_per_history=1,
            batch_size=batch_size,
            batch_tokens=None,
            eval_batch_size=1024,
            num_workers=0,
            seed=1,
        )
        about, rows = self.data.store.about, self.data.rows("train")
        self.notes.append(
            f"{about['items']:,} items, histories up to {MAX_HISTORY} and "
            f"{self.data.impressions().lengths(rows).mean():.0f} on average, 5 candidates; "
            f"{torch.get_num_threads()} threads"
        )

    def module(self, model: str, *overrides: str) -> tuple[Recommender, Callable[..., pl.Trainer]]:
        """A Recommender and a trainer as conf/ makes them, with this model."""
        words = [f"model={model}", "logger=none", f"cache_dir={self.folder}", *overrides]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", words)
        pl.seed_everything(1, verbose=False)
        encoder = instantiate(cfg.model)(store=self.data.store)
        self.data.tokens = encoder.tokens if encoder.reads_tokens else None
        module = Recommender(
            encoder,
            kernels(cfg.decay)[0],
            instantiate(cfg.interest)(dim=encoder.dim),
            instantiate(cfg.loss),
            instantiate(cfg.metrics),
            **instantiate(cfg.optimizer),
            seed=1,
            unit="days",
            impressions=len(self.data.rows("train")),
        )
        settings = {"logger": False, "enable_checkpointing": False, "default_root_dir": self.folder}
        return module, partial(instantiate(cfg.trainer), **settings)

    def loop(self, module: Recommender, backbone: Any = None) -> PaddedLoop:
        """The padded loop with this module's weights, warm, and proven to compute the same loss."""
        loop = PaddedLoop(
            module, Impressions(self.data.store, MAX_HISTORY, "days", module.encoder.tokens), backbone
        )
        rows = self.data.rows("train")[: self.batch_size]
        with torch.no_grad():
            batch = loop.dataset[rows]
            ours = float(module.loss(module.eval()(batch), batch.label, batch.candidate_mask))
            module.train()
        difference = abs(ours - loop.evaluate(rows))
        if not difference <= SAME_LOSS:
            raise AssertionError(f"the padded loop's loss differs by {difference:.2g}, more than {SAME_LOSS}")
        self.notes.append(f"both losses are {ours:.4f} on one batch without dropout, {difference:.0e} apart")
        loop.step(rows[:2])
        return loop

    def fit(
        self, module: Recommender, trainer: Callable[..., pl.Trainer], beside: Beside, steps: int
    ) -> None:
        """Train so many steps with something beside, under the real trainer."""
        watched = tracking.on_terminal()
        trainer(
            callbacks=[beside], limit_train_batches=steps, limit_val_batches=0, enable_progress_bar=watched
        ).fit(module, datamodule=self.data)

    def rates(self, step: Callable[[Array], Any], batches: list[Array], what: str) -> list[float]:
        """Impressions/s of the padded loop on each of these batches, while there is time."""
        found: list[float] = []
        begin = time.perf_counter()
        for rows in bar(batches, what):
            if not found or time.perf_counter() - begin < self.seconds:
                since = time.perf_counter()
                step(rows)
                found.append(len(rows) / (time.perf_counter() - since))
        return found

    def tuned(self) -> Iterator[Row]:
        """Fine-tuning and evaluation of a model of which everything trains."""
        module, trainer = self.module("bert_full")
        loop = self.loop(module)
        encoder: Any = module.encoder
        alone = partial(bare, copy.deepcopy(encoder.backbone), encoder.tokens_together(torch.device("cpu")))
        beside = Beside(alone, self.seconds)
        self.fit(module, trainer, beside, WARM_UP + PAIRS * self.repeats)
        tokens = statistics.mean(t for _, t, _ in beside.steps["ours"])
        self.notes.append(f"a batch holds {tokens:,.0f} tokens of distinct items")
        padded = self.rates(loop.step, beside.rows[: self.repeats], "fine-tune, padded")
        what = f"fine-tuning, batch {self.batch_size}, impressions/s; against the padded loop"
        yield Row(what, beside.impressions_per_s()[: len(padded)], padded, 5)
        what = "fine-tuning, tokens/s of distinct items; against a bare forward and backward"
        yield Row(what, beside.tokens_per_s("ours"), beside.tokens_per_s("other"), 0.9)

        quiet = trainer(enable_progress_bar=False)
        rows = self.data.rows("val")
        ours: list[float] = []
        begin = time.perf_counter()
        while not ours or (len(ours) < self.repeats and time.perf_counter() - begin < self.seconds):
            since = time.perf_counter()
            quiet.validate(module, datamodule=self.data, verbose=False)
            ours.append(len(rows) / (time.perf_counter() - since))
        parts = np.split(rows[: self.repeats * self.batch_size], self.repeats)
        other = self.rates(loop.evaluate, parts, "evaluate, padded")
        what = f"evaluation of {len(rows):,} impressions, impressions/s; against the padded loop"
        yield Row(what, ours, other, 100)

    def frozen(self) -> Iterator[Row]:
        """Training on the vectors of a frozen encoder."""
        module, trainer = self.module("bert_frozen")
        backbone = pretrained.load(pretrained.resolve("bundled")).requires_grad_(False).eval()
        loop = self.loop(module, backbone)
        beside = Beside(None, self.seconds)
        self.fit(module, trainer, beside, FROZEN_STEPS)
        what = f"frozen, batch {self.batch_size}, impressions/s; against the loop that encodes every step"
        padded = self.rates(loop.step, beside.rows[: self.repeats], "frozen, padded")
        yield Row(what, beside.impressions_per_s(), padded, 500)

    def memory(self) -> Iterator[Row]:
        """Peak memory of a process that fine-tunes."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
            tasks = [
                processes.submit(peak_mib, self.folder, self.batch_size, way)
                for way in ([], self.batch_size, ["model.keep_tokens=0"], PIECE)
                for _ in range(self.repeats)
            ]
            found = [task.result() for task in bar(tasks, "peak memory")]
        kept, whole, recomputed, pieces = (
            found[i : i + self.repeats] for i in range(0, len(found), self.repeats)
        )
        what = f"peak memory (MiB), fine-tuning, batch {self.batch_size}"
        yield Row(f"{what}; against the padded loop", kept, whole, 0.25, at_most=True)
        in_pieces = f"; against the padded loop, {PIECE} impressions at a time"
        yield Row(f"{what}, activations recomputed{in_pieces}", recomputed, pieces, 0.25, at_most=True)

    def start(self) -> Row:
        """Seconds from the start of a process to its first training step, against those of its imports."""
        here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import encoding"
        imports = f"{here}; from transformers import AutoModel"
        run = f"{here}; encoding.first_batch({str(self.folder)!r}, {self.batch_size})"
        ours: list[float] = []
        other: list[float] = []
        for _ in bar(range(self.repeats), "first batch"):
            for code, seconds in ((run, ours), (imports, other)):
                since = time.perf_counter()
                subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - since)
        what = "first batch after start (s), frozen, warm Store and cache; against imports alone"
        return Row(what, ours, other, 1.5, at_most=True)


def peak_mib(folder: Path, batch_size: int, way: list[str] | int) -> float:
    """Peak memory of this process, which makes two fine-tuning steps.

    Args:
        folder: of the bench, whose Store is there.
        batch_size: impressions a step.
        way: overrides of our run, or how many impressions the padded loop encodes together.
    """
    tracking.quiet()
    bench = Bench(folder, batch_size, repeats=1, seconds=1)
    module, trainer = bench.module("bert_full", *(way if isinstance(way, list) else []))
    if isinstance(way, int):
        dataset = Impressions(bench.data.store, MAX_HISTORY, "days", module.encoder.tokens)
        loop = PaddedLoop(module, dataset, piece=way)
        for rows in np.split(bench.data.rows("train")[: 2 * batch_size], 2):
            loop.step(rows)
    else:
        bench.fit(module, trainer, Beside(None, seconds=1e9), steps=2)
    return summary.peak_mib()


def first_batch(folder: str, batch_size: int) -> None:
    """One training step of a frozen model, as a run makes it."""
    tracking.quiet()
    bench = Bench(Path(folder), batch_size, repeats=1, seconds=1)
    module, trainer = bench.module("bert_frozen")
    bench.fit(module, trainer, Beside(None, seconds=1e9), steps=1)


def table_of(rows: list[Row], notes: list[str]) -> Table:
    """Medians, the range of the repeats, and what was asked for."""
    table = Table(title="Encoding", caption="; ".join(notes))
    for name in ("what", "ours", "other", "ratio", "target", "met"):
        table.add_column(name, justify="left" if name == "what" else "right")

    def text_of(rates: list[float]) -> str:
        spread = f"{min(rates):,.3g} – {max(rates):,.3g}"
        return f"{statistics.median(rates):,.4g}\n({spread}, n={len(rates)})"

    for row in rows:
        bound = f"≤ {row.target:g}" if row.at_most else f"≥ {row.target:g}"
        met = "yes" if row.met else "NO"
        table.add_row(row.what, text_of(row.ours), text_of(row.other), f"{row.ratio:,.3g}", bound, met)
    return table


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps([row.json() for row in rows], indent=2) + "\n")
    temporary.replace(path)


def above_zero(text: str) -> int:
    """A whole number from 1, of the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text}")
    return int(text)


def arguments() -> argparse.ArgumentParser:
    """The command line."""

    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a number above 0 (seconds), got {text}")
        return value

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--repeats", type=above_zero, default=3, help="measured steps of each path")
    parser.add_argument("--batch-size", type=above_zero, default=32, help="impressions a step")
    parser.add_argument(
        "--seconds", type=seconds, default=150, help="do not repeat a path again that has run for so long"
    )
    return parser


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = arguments()
    given = parser.parse_args()
    if given.json is not None and not given.json.absolute().parent.is_dir():
        parser.error(f"--json must be a file in a directory that exists, got {given.json}")
    if given.batch_size * (WARM_UP + PAIRS * given.repeats) > TRAIN_IMPRESSIONS:
        parser.error(
            f"--repeats and --batch-size must fit the {TRAIN_IMPRESSIONS:,} training impressions, got "
            f"{WARM_UP + PAIRS * given.repeats} steps of {given.batch_size}"
        )
    tracking.quiet()
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), given.batch_size, given.repeats, given.seconds)
            rows = [*bench.tuned(), *bench.frozen(), *bench.memory(), bench.start()]
    except InputError as error:
        parser.error(str(error))
    tracking.console().print(table_of(rows, bench.notes))
    if given.json is not None:
        write_rows(given.json, rows)


if __name__ == "__main__":
    main()

"""What the README's speed table is printed by: training and evaluation against the usual ways, in one run.

The padded loop is what most implementations do, on the same libraries and the same weights: every place of a
history, filled up to `max_history`, and every candidate holds a title of its own, padded to the longest of the
batch, and all of them go through the encoder at every step. It is a plain PyTorch loop without a trainer, and
goes through a batch a few impressions at a time (their gradients add up to the batch's), since the whole would
take 10 GB. Ours runs as a user's run does: under the Lightning trainer, settings from conf/, batches collated
on the way.

    python benchmarks/throughput.py --json throughput.json
"""

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import clip_grad_norm_

from halflife import pretrained, tracking
from halflife.batches import PAD_AGE, Batch, DataModule, Impressions
from halflife.encoders import text
from halflife.progress import bar
from halflife.recommender import Recommender
from halflife.sources.newsroom import TAILS, TOPICS
from halflife.tables import DAY_S, Tables

CONF = Path(__file__).resolve().parents[1] / "conf"
START_S = 1_704_067_200  # 2024-01-01T00:00Z
MAX_HISTORY = 50
IMPRESSIONS_A_USER = 8
PIECE = 8  # impressions that the padded loop encodes together
SAME_LOSS = 1e-3


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
    """

    def __init__(self, module: Recommender, dataset: Impressions, backbone: nn.Module | None = None) -> None:
        self.dataset = dataset
        self.module = copy.deepcopy(module)
        self.frozen = backbone is not None
        self.backbone: Any = backbone or self.module.encoder.backbone
        self.optimizer = self.module.configure_optimizers()["optimizer"]

    def losses(self, rows: np.ndarray) -> Any:
        """Loss of each piece of the batch, weighted so that they add up to the batch's."""
        batch = self.dataset[rows]
        assert batch.tokens is not None and batch.token_length is not None
        place = torch.arange(int(batch.token_length.max()))
        start = batch.token_length.cumsum(0) - batch.token_length
        mask = place < batch.token_length.unsqueeze(1)
        ids = batch.tokens[(start.unsqueeze(1) + place).clamp_max(len(batch.tokens) - 1)] * mask
        empty = MAX_HISTORY - batch.history.shape[1]
        history, real = pad(batch.history, (0, empty)), pad(batch.history_mask, (0, empty))
        age = pad(batch.age, (0, empty), value=PAD_AGE)
        slots = torch.cat([history, batch.candidates], 1)
        for rows_ in torch.arange(len(batch)).split(PIECE):
            flat = slots[rows_].flatten()
            vectors = self.encode(ids[flat], mask[flat]).view(len(rows_), slots.shape[1], -1)
            score = self.module.interest(
                vectors[:, :MAX_HISTORY],
                self.module.decay(age[rows_]),
                real[rows_],
                vectors[:, MAX_HISTORY:],
            )
            shown = batch.candidate_mask[rows_]
            yield self.module.loss(score, batch.label[rows_], shown) * (shown.sum() / batch.candidate_mask.sum())

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vector of each padded title."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden = self.backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        encoder: Any = self.module.encoder
        return encoder.head(encoder.pooling(hidden, mask))

    def step(self, rows: np.ndarray) -> None:
        """Forward, backward, clip, AdamW."""
        self.optimizer.zero_grad()
        for loss in self.losses(rows):
            loss.backward()
        clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, rows: np.ndarray) -> float:
        """The batch's loss without dropout, as validation needs it."""
        training = self.backbone.training
        self.module.eval()
        self.backbone.eval()
        total = sum(float(loss) for loss in self.losses(rows))
        self.module.train()
        self.backbone.train(training)
        return total


def bare(backbone: Any, batch: Batch) -> float:
    """Seconds of the encoder's forward and backward alone, on the distinct items' tokens.

    The padded chunks are laid out beforehand, the same ones that `encoders.text.encode` makes; each goes
    forward and back before the next.
    """
    assert batch.tokens is not None and batch.token_length is not None
    start, chunks = batch.token_length.cumsum(0) - batch.token_length, []
    for chunk in torch.argsort(batch.token_length, stable=True).split(text.CHUNK_ITEMS):
        place = torch.arange(int(batch.token_length[chunk].max()))
        mask = place < batch.token_length[chunk].unsqueeze(1)
        at = (start[chunk].unsqueeze(1) + place).clamp_max(len(batch.tokens) - 1)
        chunks.append((batch.tokens[at] * mask, mask.long()))
    backbone.zero_grad()
    begin = time.perf_counter()
    for ids, mask in chunks:
        backbone(input_ids=ids, attention_mask=mask).last_hidden_state.sum().backward()
    return time.perf_counter() - begin


@dataclass
class Beside(Callback):
    """Times our training steps, collating included, and runs the others on the same batches in between.

    Args:
        others: name → what runs on a batch and returns its seconds.
        every: our steps between two runs of the others; the first run of each warms up and is not kept.
    """

    others: dict[str, Callable[[Batch], float]]
    every: int
    repeats: int
    ours: list[tuple[int, int, float]] = field(default_factory=list)
    taken: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)
    since: float = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        tokens = 0 if batch.tokens is None else len(batch.tokens)
        self.ours.append((len(batch), tokens, time.perf_counter() - self.since))
        if (batch_idx + 1) % self.every == 0:
            for name, other in self.others.items():
                self.taken.setdefault(name, []).append((len(batch), tokens, other(batch)))
        self.since = time.perf_counter()

    def impressions_per_s(self, name: str | None = None) -> list[float]:
        """Of each step but the first, ours or another's."""
        return [n / s for n, _, s in (self.taken[name] if name else self.ours)[1:]]

    def tokens_per_s(self, name: str | None = None) -> list[float]:
        """Of each step but the first, ours or another's."""
        return [n / s for _, n, s in (self.taken[name] if name else self.ours)[1:]]


@dataclass(frozen=True)
class Row:
    """One line of the table: rates of each repeat, ours and the other's, and the least ratio of medians."""

    what: str
    ours: list[float]
    other: list[float]
    target: float

    @property
    def ratio(self) -> float:
        """Median over median."""
        return statistics.median(self.ours) / statistics.median(self.other)

    def json(self) -> dict[str, Any]:
        """The row as `--json` writes it."""
        return {
            "what": self.what,
            "ours": statistics.median(self.ours),
            "other": statistics.median(self.other),
            "ratio": self.ratio,
            "target": self.target,
            "met": self.ratio >= self.target,
            "ours_range": [min(self.ours), max(self.ours)],
            "other_range": [min(self.other), max(self.other)],
        }


class Bench:
    """The log, and what is measured on it.

    Args:
        folder: for the Store and the vectors; thrown away afterwards.
        batch_size: impressions a step.
        repeats: measured steps of each path, behind one that warms up.
        seconds: evaluation and frozen steps of ours are measured for at least so long.
    """

    def __init__(self, folder: Path, batch_size: int, repeats: int, seconds: float) -> None:
        self.folder, self.repeats, self.seconds = folder, repeats, seconds
        self.batch_size = batch_size
        self.data = DataModule(
            source=partial(news, users=2_500, items=2_000, seed=1),
            root=None,
            files=[],
            cache_dir=str(folder),
            negatives=None,
            split={"val": 0.5, "test": 0.1},
            age="days",
            max_history=MAX_HISTORY,
            min_history=1,
            batch_size=batch_size,
            eval_batch_size=1024,
            num_workers=0,
            seed=1,
        )

    def module(self, model: str) -> tuple[Recommender, Any]:
        """A Recommender and a trainer as conf/ makes them, with this model."""
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [f"model={model}", "logger=none", f"cache_dir={self.folder}"])
        encoder = instantiate(cfg.model)(store=self.data.store)
        self.data.tokens = encoder.tokens if encoder.reads_tokens else None
        pl.seed_everything(1, verbose=False)
        module = Recommender(
            encoder,
            instantiate(cfg.decay),
            instantiate(cfg.interest)(dim=encoder.dim),
            instantiate(cfg.loss),
            instantiate(cfg.metrics),
            **instantiate(cfg.optimizer),
            seed=1,
            unit="days",
        )
        trainer = partial(
            instantiate(cfg.trainer),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=self.folder,
            limit_val_batches=0,
        )
        return module, trainer

    def with_tokens(self, module: Recommender) -> Impressions:
        """The log as the padded loop reads it."""
        return Impressions(self.data.store, MAX_HISTORY, "days", module.encoder.tokens)

    def rows(self, split: str) -> list[np.ndarray]:
        """The first batches of a split, in order of time."""
        rows = self.data.rows(split)
        n = self.batch_size
        return [rows[i * n : (i + 1) * n] for i in range(1 + self.repeats)]

    def same_loss(self, module: Recommender, loop: PaddedLoop) -> float:
        """Difference of the losses of one batch without dropout, or the comparison would mean nothing."""
        rows = self.rows("train")[0]
        with torch.no_grad():
            module.eval()
            batch = loop.dataset[rows]
            ours = float(module.loss(module(batch), batch.label, batch.candidate_mask))
            module.train()
        difference = abs(ours - loop.evaluate(rows))
        if not difference <= SAME_LOSS:
            raise AssertionError(f"the padded loop's loss differs by {difference:.2g}, more than {SAME_LOSS}")
        return difference

    def tuned(self) -> tuple[list[Row], dict[str, float]]:
        """Fine-tuning and evaluation of a model that trains."""
        module, trainer = self.module("bert_full")
        loop = PaddedLoop(module, self.with_tokens(module))
        backbone = copy.deepcopy(module.encoder.backbone)
        difference = self.same_loss(module, loop)
        beside = Beside(
            {"loop": partial(timed, loop.step), "bare": partial(bare, backbone)}, 1, self.repeats
        )
        steps = 1 + self.repeats
        trainer(limit_train_batches=steps, callbacks=[beside]).fit(module, datamodule=self.data)
        distinct = [len(self.data.impressions()[rows].item) for rows in self.rows("train")]

        evaluated = loop.module.val_metrics  # a copy of its own; nothing of ours is touched
        evaluated.reset()
        ours, other = [], []
        n = len(self.data.rows("val"))
        evaluator = trainer(limit_val_batches=None)
        begin = time.perf_counter()
        while len(ours) < self.repeats or time.perf_counter() - begin < self.seconds:
            since = time.perf_counter()
            evaluator.validate(module, datamodule=self.data, verbose=False)
            ours.append(n / (time.perf_counter() - since))
        for i, rows in enumerate(bar(self.rows("val"), "evaluate the usual way")):
            since = time.perf_counter()
            loop.evaluate(rows)
            if i:
                other.append(len(rows) / (time.perf_counter() - since))
        b = self.batch_size
        rows_ = [
            Row(
                f"fine-tuning, batch {b}, impressions/s (padded loop)",
                beside.impressions_per_s(),
                beside.impressions_per_s("loop"),
                5,
            ),
            Row(
                "fine-tuning, tokens/s of distinct items (bare forward and backward)",
                beside.tokens_per_s(),
                beside.tokens_per_s("bare"),
                0.9,
            ),
            Row(f"evaluation of {n:,} impressions, impressions/s (padded loop)", ours, other, 100),
        ]
        return rows_, {"tuned": difference, "distinct": statistics.mean(distinct)}

    def frozen(self) -> tuple[list[Row], dict[str, float]]:
        """Training on a frozen encoder's vectors."""
        module, trainer = self.module("bert_frozen")
        backbone = pretrained.load(pretrained.resolve("bundled")).requires_grad_(False).eval()
        loop = PaddedLoop(module, self.with_tokens(module), backbone)
        difference = self.same_loss(module, loop)
        # the loop runs now and then between many short steps of ours
        every = len(self.data.rows("train")) // self.batch_size // (1 + self.repeats)
        beside = Beside({"loop": partial(timed, loop.step)}, every, self.repeats)
        trainer(callbacks=[beside], limit_train_batches=every * (1 + self.repeats)).fit(
            module, datamodule=self.data
        )
        what = f"frozen, batch {self.batch_size}, impressions/s (loop that encodes every step)"
        return [Row(what, beside.impressions_per_s(), beside.impressions_per_s("loop"), 500)], {
            "frozen": difference
        }


def timed(step: Callable[[np.ndarray], Any], batch: Batch) -> float:
    """Seconds that a step takes on the rows of a batch."""
    begin = time.perf_counter()
    step(batch.impression.numpy())
    return time.perf_counter() - begin

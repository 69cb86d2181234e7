"""A log, from its files to batches: the one DataModule."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from halflife import quality
from halflife.batches import Batch, Impressions
from halflife.draws import Fresh, InView
from halflife.errors import InputError, choice, flag, listed, shown, text, whole
from halflife.negatives import Negatives
from halflife.ranges import runs
from halflife.sampler import BatchRows
from halflife.sources.download import Remote, fetch
from halflife.sources.vectors import located
from halflife.splits import split_of
from halflife.store import Store, open_or_build
from halflife.tables import Tables

Array = NDArray[Any]

MOST_WORKERS = 256
"""More loader processes than this are a slip of the finger, and take the machine down with them."""


class DataModule(pl.LightningDataModule):
    """One log, from its files to batches.

    Args:
        source: a `read` function of `halflife.sources` with its settings.
        root: the folder of the log's files; None where there are none.
        files: globs below `root`; each must match a file.
        cache_dir: where Stores are kept.
        negatives: how to draw negatives; None takes all that an impression shows.
        split: `val` and `test`, and where it is not as usual `by`, `train`, `window` (see `splits.Split`).
        age: `days`; `rank` for a log whose clicks have an order but no times; `shuffled` for a control in
            which time can mean nothing: days, dealt out anew among the clicks of each history.
        max_history: a longer history keeps its newest clicks, at least 1.
        min_history: impressions with fewer past clicks are left out of every split.
        batch_size, eval_batch_size: impressions a step and process.
        batch_tokens: instead of `batch_size` in training, the tokens that the histories and candidates of a
            batch hold at most, before each item is taken once; needs an encoder that reads them.
        targets_per_history: consecutive impressions of a reader that a training batch takes together, so that
            the clicks they share are encoded once; each keeps its own history and ages.
        num_workers: loader processes.
        seed: of the shuffle.
        download: fetch what is missing below `root` first.
        remote: what to fetch, or in words where to get what nobody may fetch unasked; None where there are no
            files.
        pseudonymize: replace user ids by hashes, keyed by HALFLIFE_PSEUDONYM_KEY, before anything is written.
        checks: `report` leaves out rows that cannot be true and tells of them in the data card; `strict`
            stops where there are any, or others that look wrong.
        vectors: files of item vectors beside the log, paths or globs, whole or below `root`; None for none.
        engine: where a Store's shards are worked: `local`, here, or `ray`, on a Ray cluster.

    Raises:
        InputError: for a setting out of range, a missing file, an empty split.
    """

    def __init__(
        self,
        source: "partial[Tables]",
        root: str | None,
        files: list[str],
        cache_dir: str,
        negatives: Negatives | None,
        split: Mapping[str, Any],
        age: str,
        max_history: int,
        min_history: int,
        batch_size: int,
        batch_tokens: int | None,
        eval_batch_size: int,
        targets_per_history: int,
        num_workers: int,
        seed: int,
        download: bool = False,
        remote: list[Remote] | str | None = None,
        pseudonymize: bool = False,
        checks: str = "report",
        vectors: str | list[str] | None = None,
        engine: str = "local",
    ) -> None:
        super().__init__()
        self.batch_tokens = (
            None if batch_tokens is None else whole("data.batch_tokens", batch_tokens, "tokens", at_least=1)
        )
        if not isinstance(source, partial):
            raise InputError(
                f"data.source must be a read function, got {shown(source)}; choose it by data=NAME"
            )
        self.source, self.negatives = source, negatives
        self.root, self.files = root, listed("data.files", files, "globs below data.root")
        if root is not None and not self.files:
            raise InputError(
                f"data.root must be null for a source that reads no files, got {shown(root)}; choose one "
                "that does, for example data=movielens"
            )
        self.cache_dir = Path(text("data.cache_dir", cache_dir, "a directory")).expanduser()
        self.age = choice("data.age", age, ["days", "rank", "shuffled"])
        self.split = split_of(split)
        self.max_history = whole("data.max_history", max_history, "clicks", at_least=1)
        self.min_history = whole("data.min_history", min_history, "clicks", at_least=0)
        self.batch_size = whole("data.batch_size", batch_size, "impressions", at_least=1)
        self.eval_batch_size = whole("data.eval_batch_size", eval_batch_size, "impressions", at_least=1)
        self.targets_per_history = whole(
            "data.targets_per_history", targets_per_history, "impressions", at_least=1
        )
        self.num_workers = whole(
            "data.num_workers", num_workers, "processes", at_least=0, at_most=MOST_WORKERS
        )
        self.tokens: tuple[Array, Array] | None = None
        """Token ids of the catalogue, set by the run whose encoder reads them in training."""
        self.seed = whole("seed", seed, "integer", at_least=0)
        self.download, self.remote = flag("data.download", download), remote
        if self.download and isinstance(remote, str):
            raise InputError(f"data.download must be false for this log, got true; {remote}")
        self.pseudonymize = flag("data.pseudonymize", pseudonymize)
        self.checks = choice("data.checks", checks, ["report", "strict"])
        self.vectors = vectors
        self.engine = choice("data.engine", engine, ["local", "ray"])
        self._store: Store | None = None
        self._rows: dict[str, Array] | None = None
        self._resume: dict[str, int] = {"epoch": 0, "batches": 0}

    @property
    def store(self) -> Store:
        """The log's Store, built at first use."""
        if self._store is None:
            paths = self._paths()
            vectors = [] if self.vectors is None else located(self.vectors, self.root)
            store = open_or_build(
                self.source,
                paths,
                self.negatives,
                self.cache_dir,
                self.pseudonymize,
                vectors,
                self.engine,
            )
            if self.age != "rank" and not store.about["has_click_times"]:
                raise InputError(
                    "data.age must be rank for a log without click times, got days; add data.age=rank, and "
                    "the half-life is then counted in clicks"
                )
            if self.checks == "strict":
                quality.stop(store.about["quality"])
            self._store = store
        return self._store

    @property
    def unit(self) -> str:
        """The unit of ages and half-lives, as every name says it: `days` or `rank`."""
        return "rank" if self.age == "rank" else "days"

    def _paths(self) -> list[Path]:
        """The log's files, in order of glob and name."""
        if not self.files:
            return []
        if self.download and self.root is not None and isinstance(self.remote, list):
            fetch(self.remote, Path(self.root).expanduser())
        if self.root is None:
            raise InputError("data.root must be the folder of the log's files, got null; give its path")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise InputError(
                f"data.root must be the folder of the log's files, got {self.root}, which {what}; correct "
                "the path"
            )
        found = {pattern: sorted(p for p in root.glob(pattern) if p.is_file()) for pattern in self.files}
        for pattern, paths in found.items():
            if not paths:
                raise InputError(
                    f"data.root must hold {pattern}, got {root} without it; put it there or correct the path"
                )
        return [p for paths in found.values() for p in paths]

    def rows(self, split: str) -> Array:
        """Rows of the Store in a split, those with at least `min_history` past clicks."""
        if self._rows is None:
            self._rows = self.split.rows(self.store.impression_time, self.store.impression_user)
        rows = self._rows[split]
        n = len(rows)
        if rows[-1] - rows[0] == n - 1:  # a stretch of time: nothing is gathered
            enough = self.store.past_clicks[rows[0] : rows[-1] + 1] >= self.min_history
        else:
            enough = self.store.past_clicks[rows] >= self.min_history
        rows = rows if enough.all() else rows[enough]
        if len(rows) == 0:
            raise InputError(
                f"data.split must leave {split} at least 1 impression with {self.min_history} past clicks, "
                f"got 0 of {n}; lower data.min_history or give a larger fraction"
            )
        return rows

    def impressions(self, with_tokens: bool = True) -> Impressions:
        """The whole log as a dataset of batches; without tokens where vectors are looked up."""
        return Impressions(self.store, self.max_history, self.age, self.tokens if with_tokens else None)

    def _loader(self, split: str) -> DataLoader[Batch]:
        train = split == "train"
        rows = self.rows(split)
        dataset = self.impressions(with_tokens=train)
        dataset.draws = self._draws(rows) if train else None
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = self.batch_size if train else self.eval_batch_size
        tokens = None
        if train and self.batch_tokens is not None:
            if dataset.tokens is None:
                raise InputError(
                    "data.batch_tokens must be null where training reads no tokens (frozen models, and those "
                    f"without text), got {self.batch_tokens}; set data.batch_size"
                )
            tokens = dataset.token_counts(rows)
        together = None
        if train and self.targets_per_history > 1:
            together = runs(self.store.impression_user[rows], self.targets_per_history)
        lengths = dataset.lengths if train else None
        budget = self.batch_tokens or 0
        sampler = BatchRows(rows, lengths, size, self.seed, rank, world, tokens, budget, together)
        sampler.names_epoch = dataset.draws is not None
        if train:
            sampler.epoch, sampler.skip = self._resume["epoch"], self._resume["batches"]
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _draws(self, rows: Array) -> InView | Fresh | None:
        """Which negatives training takes of these rows; None for those of the Store."""
        settings, logged = self.negatives, self.store.about["has_impressions"]
        if settings is None or not (settings.fresh or settings.by == "in_view"):
            return None
        if settings.by == "in_view":
            return InView(settings, self.store, rows)
        if logged:
            raise InputError(
                "data.negatives.fresh must be false for a log with impressions, whose negatives are those "
                "shown, got true; add data.negatives.by=in_view to draw a part of them"
            )
        return Fresh(settings, self.store)

    def sample(self, split: str, candidates: int = 150_000) -> Iterator[Batch]:
        """Batches without tokens of about so many candidates: rows spread over a split, by length."""
        rows = self.rows(split)
        each = len(self.store.candidate_item) / len(self.store.impression_time)
        most = min(len(rows), int(candidates / each) + 1)
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
        dataset = self.impressions(with_tokens=False)
        rows = rows[np.argsort(dataset.lengths(rows), kind="stable")]
        for part in BatchRows(rows, None, self.eval_batch_size, self.seed):
            yield dataset[part]

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled within buckets of like history length."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Batch]:
        """In the order of time, every row once."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """In the order of time, every row once."""
        return self._loader("test")

    def state_dict(self) -> dict[str, int]:
        """Where the epoch stands, so that a run killed inside one goes on behind its last batch."""
        if self.trainer is None:
            return dict(self._resume)
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        done = 0 if self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch else progress.completed
        return {"epoch": self.trainer.current_epoch, "batches": done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self._resume = dict(state_dict)

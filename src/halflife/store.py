"""Tables to Store: memory-mapped arrays, content-addressed, built in one go or not at all."""

import errno
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock
from numpy.typing import NDArray

from halflife import (
    arrays,
    engines,
    impressions,
    item_vectors,
    negatives,
    pools,
    pretrained,
    pseudonyms,
    quality,
    shards,
    spill,
    tables,
    users,
)
from halflife.errors import InputError
from halflife.negatives import Negatives
from halflife.sources import vectors as vector_files
from halflife.tables import Tables

Array = NDArray[Any]

CODE = [
    Path(inspect.getfile(m))
    for m in (
        tables,
        quality,
        pools,
        negatives,
        spill,
        shards,
        engines,
        impressions,
        users,
        arrays,
        pseudonyms,
        item_vectors,
        vector_files,
    )
] + [Path(__file__)]


FULL = os.strerror(errno.ENOSPC)


@dataclass(frozen=True)
class Store:
    """A log as arrays on disk; a history is the range `event_item[start:end]`, never copied per impression.

    Arrays, all memory-mapped:
        event_item (int32), event_time (int64, seconds), event_kind (int16): sorted by user, then time, then
            item, then kind. A kind's name is `about["kinds"][code]`.
        user_start (int64): where each user's events begin, one more than users.
        item_category (int32): its name is `about["categories"][code]`, `unknown` where the log has none.
        item_born (int64, seconds): published_s, or where the log has none, when the item is first seen in it.
        item_vector (float32, items × V), item_vector_mask (bool): the items' own vectors, 0 and False where
            an item has none; only where the log has vectors.
        impression_user (int32), impression_time (int64): sorted by time.
        history_end (int64): end of the events strictly before the impression.
        past_clicks (int32): how many of its user's events those are.
        candidate_start (int64), candidate_item (int32), candidate_label (int8): candidates as ranges.
        candidate_popularity (int32): events of the candidate strictly before the impression.
        candidate_probability (float64): the true probability, only where a simulator knows it.
        candidate_log_rate (float32): log of how likely a draw of negatives was to take the candidate, had it
            not been clicked (`negatives.log_rate`); where negatives were drawn and `exclude_seen` is false.
    """

    directory: Path

    def __getattr__(self, name: str) -> Array:
        """An array of the Store by its name, mapped on first use."""
        path = self.directory / f"{name}.npy"
        if name.startswith("_") or not path.exists():
            raise AttributeError(name)
        array = np.load(path, mmap_mode="r")
        object.__setattr__(self, name, array)
        return array

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory}  # a worker process maps the files again; nothing is copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "directory", state["directory"])

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the build wrote down: capabilities, counts, dropped rows, leakage proof, fingerprint."""
        return dict(json.loads((self.directory / "store.json").read_text()))

    @cached_property
    def items(self) -> pl.DataFrame:
        """The catalogue in index order: item_id, text, category, published_s."""
        return pl.read_parquet(self.directory / "items.parquet")

    @cached_property
    def users(self) -> pl.DataFrame:
        """User ids in index order."""
        return pl.read_parquet(self.directory / "users.parquet")

    @cached_property
    def impression_ids(self) -> pl.Series:
        """Impression ids in row order."""
        return pl.read_parquet(self.directory / "impressions.parquet")["impression_id"]

    @property
    def n_items(self) -> int:
        """Size of the catalogue."""
        return int(self.about["items"])

    @property
    def has_vectors(self) -> bool:
        """Whether items came with vectors."""
        return self.about["vectors"] is not None

    @property
    def has_rates(self) -> bool:
        """Whether negatives were drawn, and how likely each candidate was to be drawn is known."""
        return (self.directory / "candidate_log_rate.npy").exists()

    @property
    def has_truth(self) -> bool:
        """Whether the true probability of each candidate is known."""
        return (self.directory / "candidate_probability.npy").exists()

    def tokens(self, name: str, max_tokens: int, template: str | None = None) -> tuple[Array, Array]:
        """Token ids of every item, tokenised once and mapped ever after.

        Args:
            name: `bundled`, a directory or a hub name (see `pretrained.resolve`).
            max_tokens: longer texts are cut, special tokens included.
            template: what to make of `{category}` and `{text}`, without special tokens; None is the text
                alone, with them.

        Returns:
            ids (int32, all items on end) and start (int64, one more than items).
        """
        source = pretrained.resolve(name)
        what = " ".join(
            [pretrained.tokenizer_key(source), str(max_tokens), *([template] if template else [])]
        )
        key = hashlib.sha256(what.encode()).hexdigest()[:16]
        place = self.directory / f"tokens-{key}"

        def write(temporary: Path) -> None:
            texts = self.items["text"].to_list()
            if template is not None:
                names = [self.about["categories"][code] for code in self.item_category]
                texts = [template.format(category=c, text=t) for c, t in zip(names, texts, strict=True)]
            ids = pretrained.tokenize(source, texts, max_tokens, special=template is None)
            lengths = np.fromiter((len(i) for i in ids), np.int64, len(ids))
            flat = np.fromiter((t for i in ids for t in i), np.int32, int(lengths.sum()))
            np.save(temporary / "ids.npy", flat)
            np.save(temporary / "start.npy", np.r_[0, np.cumsum(lengths)])

        once(place, write)
        return np.load(place / "ids.npy", mmap_mode="r"), np.load(place / "start.npy", mmap_mode="r")


def once(place: Path, write: Callable[[Path], None]) -> None:
    """Fill a directory exactly once, also under concurrent runs: a temporary name, then a rename.

    Args:
        place: the directory that shall exist afterwards.
        write: fills the temporary directory it is given.

    Raises:
        InputError: when the place cannot be written.
    """
    if place.exists():
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(place) + ".lock"):
            if place.exists():
                return
            temporary = place.with_name(place.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)  # what a killed build left behind
            temporary.mkdir()
            try:
                write(temporary)
                temporary.rename(place)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except (OSError, pl.exceptions.ComputeError) as error:
        if isinstance(error, OSError):
            mine, why = not _elsewhere(error, place.parent), error.strerror or error
        else:  # how Polars tells of a disk that fills while it writes Parquet
            mine, why = FULL in str(error), FULL
        if not mine:
            raise
        raise InputError(
            f"data.cache_dir must be a directory that can be written, got {place.parent} ({why}); give "
            "another one or free some space"
        ) from error


def _elsewhere(error: OSError, directory: Path) -> bool:
    """Whether an error names a file that has nothing to do with a directory, such as one of the log."""
    if not isinstance(error.filename, str | Path):
        return False
    file, directory = Path(error.filename).absolute(), directory.absolute()
    return not (file.is_relative_to(directory) or directory.is_relative_to(file))


def _drawn(settings: Negatives | None) -> dict[str, Any] | None:
    """The settings of negatives that a Store depends on: what training takes of them anew is left out."""
    if settings is None or settings.by == "in_view":
        return None
    return {name: value for name, value in asdict(settings).items() if name != "fresh"}


def open_or_build(
    source: "partial[Tables]",
    files: list[Path],
    settings: Negatives | None,
    cache_dir: Path,
    pseudonymous: bool = False,
    vectors: Sequence[Path] = (),
    engine: str = "local",
) -> Store:
    """The Store of these files under these settings, built when there is none yet.

    The key is made of the files' names, sizes and modification times, all settings, and the code that reads
    and builds: whatever matters changes it.

    Args:
        source: a `read` function with its settings; called with the files.
        files: the log's files, in order.
        settings: how to draw negatives, for logs without impressions.
        cache_dir: where Stores live.
        pseudonymous: replace user ids by hashes, keyed from the environment.
        vectors: files of item vectors (`sources.vectors`).
        engine: where a build's shards are worked, `local` or `ray`: the same Store, under the same key.

    Raises:
        InputError: for vectors given where the source has some of its own.
    """
    secret = pseudonyms.key_of_environment() if pseudonymous else None
    reader = [source.func.__module__, source.func.__qualname__, *source.args]
    readers = sorted(Path(inspect.getfile(source.func)).parent.glob("*.py"))
    stats, vector_stats = (
        [(f.name, f.parent.name, f.stat().st_size, f.stat().st_mtime_ns) for f in part]
        for part in (files, vectors)
    )
    code = hashlib.sha256(b"".join(p.read_bytes() for p in [*readers, *CODE]))
    settings_json = json.dumps(
        [
            reader,
            source.keywords,
            stats,
            vector_stats,
            _drawn(settings),
            code.hexdigest(),
            secret and pseudonyms.pseudonym("the key of this Store", secret),
        ],
        sort_keys=True,
        default=str,
    )
    place = cache_dir / "stores" / hashlib.sha256(settings_json.encode()).hexdigest()[:16]

    def write(temporary: Path) -> None:
        with engines.started(engine) as work:
            log = source(files)
            if vectors and log.vectors is not None:
                raise InputError(
                    "data.vectors must be null where data.source.items.vector names columns, got "
                    f"{vectors[0]}; give one of them"
                )
            if vectors:
                log = replace(log, vectors=vector_files.read(vectors))
            log = log if secret is None else pseudonyms.pseudonymize(log, secret)
            arrays.build(log, settings, temporary, work)

    once(place, write)
    return Store(place)

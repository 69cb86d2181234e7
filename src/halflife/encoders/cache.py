"""Vectors of a frozen encoder on disk: computed once, mapped ever after."""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from halflife.store import once

Array = NDArray[Any]


def key(weights: str, config: bytes, tuning: str, pooling: str, ids: Array, start: Array) -> str:
    """One name for these weights, this architecture, tuning and pooling, and these token ids."""
    digest = hashlib.sha256(f"{weights} {tuning} {pooling} ".encode() + config)
    digest.update(np.ascontiguousarray(ids).tobytes() + np.ascontiguousarray(start).tobytes())
    return digest.hexdigest()[:24]


def vectors(cache_dir: Path, name: str, rows: int, compute: Callable[[], Iterable[Tensor]]) -> Array:
    """The catalogue's vectors under this key, computed when they are not there whole.

    Args:
        cache_dir: where vectors are kept.
        name: from `key`.
        rows: how many there must be; a file cut short is thrown away and made anew.
        compute: gives the (rows, width) float32 vectors, a part at a time, so that memory does not
            grow with the catalogue.
    """
    place = cache_dir / "vectors" / name
    for last_try in (False, True):
        once(place, lambda temporary: _write(temporary / "vectors.npy", rows, compute()))
        try:
            return _read(place / "vectors.npy", rows)
        except (OSError, ValueError, EOFError):
            if last_try:
                raise
        _discard(place, rows)
    raise AssertionError("a second try returns or raises")


def _write(file: Path, rows: int, parts: Iterable[Tensor]) -> None:
    """Write the parts on end."""
    out, done = None, 0
    for part in parts:
        if out is None:
            out = open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, part.shape[1]))
        out[done : done + len(part)] = part.float().cpu().numpy()
        done += len(part)
    if out is None or done != rows:
        raise AssertionError(f"{rows} vectors were to be computed, not {done}")
    out.flush()


def _read(file: Path, rows: int) -> Array:
    """Map the vectors: copy on write, as torch wants it.

    Raises:
        ValueError: when they are not whole; other errors of numpy's likewise.
    """
    found: Array = np.load(file, mmap_mode="c")
    if len(found) != rows:
        raise ValueError(f"{file} has {len(found)} rows, not {rows}")
    return found


def _discard(place: Path, rows: int) -> None:
    """Throw away what is not whole, unless another run has just made it anew."""
    with FileLock(str(place) + ".lock"):
        try:
            _read(place / "vectors.npy", rows)
        except (OSError, ValueError, EOFError):
            shutil.rmtree(place, ignore_errors=True)

"""Vectors of a frozen encoder on disk: computed once, mapped ever after."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.store import once

Array = NDArray[Any]


def key(weights: str, config: bytes, pooling: str, ids: Array, start: Array) -> str:
    """One name for these weights, this architecture, this pooling and these token ids."""
    digest = hashlib.sha256(f"{weights} {pooling} ".encode() + config)
    digest.update(np.ascontiguousarray(ids).tobytes() + np.ascontiguousarray(start).tobytes())
    return digest.hexdigest()[:24]


def vectors(cache_dir: Path, name: str, items: int, compute: Callable[[], Array]) -> Array:
    """The catalogue's vectors under this key, computed when they are not there whole.

    Args:
        cache_dir: where vectors are kept.
        name: from `key`.
        items: how many rows there must be; a file cut short is thrown away and made anew.
        compute: gives the (items, width) float32 array.
    """
    place = cache_dir / "vectors" / name
    for last_try in (False, True):
        once(place, lambda temporary: np.save(temporary / "vectors.npy", compute()))
        try:
            found: Array = np.load(place / "vectors.npy", mmap_mode="c")  # copy on write, as torch wants it
            if len(found) == items:
                return found
        except (OSError, ValueError, EOFError):
            if last_try:
                raise
        shutil.rmtree(place, ignore_errors=True)
    raise AssertionError(f"the vectors just written to {place} have the wrong number of rows")

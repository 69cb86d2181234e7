"""Padded indices: ranges of events or candidates as rows, and permutations of what is real in them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def ranges(start: Array, length: Array) -> tuple[Array, Array]:
    """Padded indices of ranges: row r is start[r], start[r] + 1, … and then repeats its first place.

    Returns:
        index and mask, both (rows, longest), at least one column wide.

    >>> index, mask = ranges(np.array([3, 9]), np.array([2, 1]))
    >>> index.tolist(), mask.tolist()
    ([[3, 4], [9, 9]], [[True, True], [True, False]])
    """
    place = np.arange(max(1, int(length.max(initial=0))))
    mask = place < length[:, None]
    return np.where(mask, start[:, None] + place, start[:, None]), mask


def runs(owner: Array, most: int) -> tuple[Array, Array]:
    """Each owner's places side by side, in order, cut into runs of at most `most`.

    Returns:
        the places (n,), and where among them each run starts, with the end behind (runs + 1,).

    >>> place, start = runs(np.array([7, 8, 7, 7]), most=2)
    >>> place.tolist(), start.tolist()
    ([0, 2, 3, 1], [0, 2, 3, 4])
    """
    n = len(owner)
    if most == 1:
        return np.arange(n), np.arange(n + 1)
    place = np.argsort(owner, kind="stable")
    first = np.flatnonzero(np.diff(owner[place], prepend=owner[place[0]] - 1))
    within = np.arange(n) - np.repeat(first, np.diff(first, append=n))
    return place, np.append(np.flatnonzero(within % most == 0), n)


def shuffled(rows: Array, mask: Array, seed: int = 0) -> Array:
    """A permutation of the real places of each row, padded ones staying behind.

    Keys are a hash of row and place, so that a row is dealt the same in every batch and epoch.

    Args:
        rows: of the Store.
        mask: True where real.
        seed: another one deals anew.

    Shape: rows (B,), mask (B, H) → (B, H).
    """
    place = np.arange(mask.shape[1], dtype=np.uint64)
    key: Array = (rows.astype(np.uint64)[:, None] << np.uint64(24)) + place
    key ^= np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    key = mixed(key)
    return np.argsort(np.where(mask, key >> np.uint64(1), np.iinfo(np.uint64).max), axis=1, kind="stable")


def mixed(key: Array) -> Array:
    """Random bits of each key (uint64), the same for the same key; the low ones are mixed less well.

    Source: the finaliser of SplitMix64, Steele et al., Fast Splittable Pseudorandom Number Generators (OOPSLA
    2014), without its last shift.
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
    return key

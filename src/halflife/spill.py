"""What is larger than memory, in files: rows by bucket, and arrays written a piece at a time."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Buckets:
    """Rows of a structured dtype, dealt to one file a bucket in the order they came.

    Args:
        directory: made here; its files go when they are taken.
        dtype: of a row.
        count: buckets, at least 1.
    """

    def __init__(self, directory: Path, dtype: np.dtype[Any], count: int) -> None:
        directory.mkdir()
        self.dtype, self.paths = dtype, [directory / f"{i}.rows" for i in range(count)]
        for path in self.paths:
            path.touch()

    def add(self, bucket: Array, rows: Array) -> None:
        """Append rows, each to its bucket.

        Shape: both (rows,).
        """
        if len(rows) == 0:
            return
        order = np.argsort(bucket.astype(np.uint16), kind="stable")  # 16 bits: a radix sort
        rows, counts = rows[order], np.bincount(bucket, minlength=len(self.paths))
        ends = np.cumsum(counts)
        for i in np.flatnonzero(counts):
            with self.paths[i].open("ab") as file:
                rows[ends[i] - counts[i] : ends[i]].tofile(file)

    def take(self, bucket: int) -> Array:
        """The rows of a bucket, whose file is then gone."""
        rows = np.fromfile(self.paths[bucket], self.dtype)
        self.paths[bucket].unlink()
        return rows


class Column:
    """A .npy file of a known length, written from front to back and never held in memory.

    Args:
        path: of the file.
        dtype: of an element.
        length: elements that will be written.
    """

    def __init__(self, path: Path, dtype: type[np.generic], length: int) -> None:
        self.dtype, self.length, self.written = np.dtype(dtype), length, 0
        self.file = path.open("wb")
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, values: Array) -> None:
        """Append values."""
        np.ascontiguousarray(values, self.dtype).tofile(self.file)
        self.written += len(values)

    def __enter__(self) -> "Column":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if kind is None and self.written != self.length:
            raise AssertionError(f"{self.written} elements were written where {self.length} were promised")

"""The vectors of a frozen model: computed once, never from other settings, never half there."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halflife.datamodule import DataModule
from halflife.encoders import cache, tuning
from halflife.encoders.text import TextEncoder
from halflife.errors import InputError
from tests.conftest import TEXT

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3)
PARTS_OF_IT = [torch.from_numpy(VECTORS[:3].copy()), torch.from_numpy(VECTORS[3:].copy())]
PARTS: dict[str, Any] = {
    "weights": "abc",
    "config": b'{"layers": 6}',
    "tuning": "frozen() null",
    "pooling": "mean",
    "ids": np.array([101, 7, 102, 101, 102], np.int32),
    "start": np.array([0, 3, 5]),
}


class Compute:
    """The encoder's stand-in; counts how often it was asked."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.times, self.seconds = 0, seconds

    def __call__(self) -> list[torch.Tensor]:
        self.times += 1
        time.sleep(self.seconds)
        return PARTS_OF_IT


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("weights", "abd"),
        ("config", b'{"layers": 7}'),
        ("tuning", "frozen() 4"),
        ("pooling", "cls"),
        ("ids", np.array([101, 8, 102, 101, 102], np.int32)),
        ("start", np.array([0, 2, 5])),
    ],
)
def test_the_key_changes_with_everything_that_matters(part: str, other: Any) -> None:
    assert cache.key(**PARTS) == cache.key(**PARTS)
    assert cache.key(**{**PARTS, part: other}) != cache.key(**PARTS)


def test_vectors_are_computed_once(tmp_path: Path) -> None:
    compute = Compute()
    for _ in range(3):
        np.testing.assert_array_equal(cache.vectors(tmp_path, "key", 4, compute), VECTORS)
    assert compute.times == 1
    cache.vectors(tmp_path, "another", 4, compute)
    assert compute.times == 2


def test_runs_that_start_together_compute_once(tmp_path: Path) -> None:
    compute = Compute(seconds=0.2)
    runs = [threading.Thread(target=cache.vectors, args=(tmp_path, "key", 4, compute)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert compute.times == 1


@pytest.mark.parametrize("keep", [0, 20, 128, -1])
def test_a_file_cut_short_is_made_anew(tmp_path: Path, keep: int) -> None:
    compute = Compute()
    cache.vectors(tmp_path, "key", 4, compute)
    file = tmp_path / "vectors" / "key" / "vectors.npy"
    file.write_bytes(file.read_bytes()[:keep])
    np.testing.assert_array_equal(cache.vectors(tmp_path, "key", 4, compute), VECTORS)
    assert compute.times == 2
    cache.vectors(tmp_path, "key", 4, compute)
    assert compute.times == 2


def test_a_file_of_another_catalogue_is_made_anew(tmp_path: Path) -> None:
    compute = Compute()
    cache.vectors(tmp_path, "key", 4, compute)
    np.save(tmp_path / "vectors" / "key" / "vectors.npy", VECTORS[:3])
    assert len(cache.vectors(tmp_path, "key", 4, compute)) == 4
    assert compute.times == 2


def test_a_computation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Iterator[torch.Tensor]:
        yield PARTS_OF_IT[0]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.vectors(tmp_path, "key", 4, fail)
    assert not (tmp_path / "vectors" / "key").exists()
    np.testing.assert_array_equal(cache.vectors(tmp_path, "key", 4, Compute()), VECTORS)


def test_writing_into_the_vectors_leaves_the_file_alone(tmp_path: Path) -> None:
    cache.vectors(tmp_path, "key", 4, Compute())[:] = -1
    np.testing.assert_array_equal(cache.vectors(tmp_path, "key", 4, Compute()), VECTORS)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"^data\.cache_dir must be a directory that can be written"):
        cache.vectors(tmp_path, "key", 4, Compute())


def test_a_frozen_encoder_runs_over_the_catalogue_once_for_each_setting(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    whole = TextEncoder._all

    def counted(self: TextEncoder, backbone: Any) -> Any:
        runs.append(1)
        return whole(self, backbone)

    monkeypatch.setattr(TextEncoder, "_all", counted)
    settings = TEXT | {"tuning": tuning.frozen, "cache_dir": str(tmp_path)}
    build = partial(TextEncoder, small_log.store, str(tiny_bert), **settings)
    first = build()
    again = build(dim=4, chunk_tokens=64)  # neither the head nor the chunks change what is kept
    assert len(runs) == 1
    np.testing.assert_array_equal(first.vectors.numpy(), again.vectors.numpy())
    build(pooling="cls")
    build(max_tokens=4)
    build(pooling="attention")
    build(pooling="attention")
    assert len(runs) == 4

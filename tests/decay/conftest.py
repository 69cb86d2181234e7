"""Batches by hand, for kernels that read more than ages."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from halflife.batches import PAD_AGE, Batch

Clicks = list[tuple[int, float]]


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Batch]:
    """Make a batch of histories, each a list of (item, age in days): `batch_of([(3, 9.0)], [], kind=…)`.

    Items are 0 to 8, ages float64, and each impression has one candidate, item 0.
    """

    def make(*rows: Clicks, **changes: Any) -> Batch:
        longest = max(1, *(len(row) for row in rows))
        padded = [row + [(0, PAD_AGE)] * (longest - len(row)) for row in rows]
        n, lengths = len(rows), torch.tensor([len(row) for row in rows])
        given: dict[str, Any] = {
            "item": torch.arange(9),
            "tokens": None,
            "token_length": None,
            "category": torch.zeros(9, dtype=torch.int64),
            "history": torch.tensor([[item for item, _ in row] for row in padded]),
            "history_mask": torch.arange(longest) < lengths[:, None],
            "age": torch.tensor([[age for _, age in row] for row in padded], dtype=torch.float64),
            "kind": torch.zeros((n, longest), dtype=torch.int64),
            "candidates": torch.zeros((n, 1), dtype=torch.int64),
            "candidate_mask": torch.ones((n, 1), dtype=torch.bool),
            "candidate_age": torch.zeros((n, 1)),
            "label": torch.zeros((n, 1)),
            "impression": torch.arange(n),
            "user": torch.arange(n),
            "past_clicks": lengths,
        }
        return Batch(**(given | changes))

    return make

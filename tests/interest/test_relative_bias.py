"""Pointwise attention with biases of age and place, against its closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from halflife.interest.relative_bias import RelativeBias

E0, E1 = torch.eye(2)
HISTORY = torch.stack([E0, E1])[None]
MASK = torch.ones(1, 2, dtype=torch.bool)


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def interest_of(positions: int = 8) -> RelativeBias:
    """Edges at 1, 2, 4 and 8 days; no biases yet."""
    interest = RelativeBias(2, scale=3.0, buckets=5, first_days=1.0, last_days=8.0, positions=positions)
    nn.init.zeros_(interest.bias)
    nn.init.zeros_(interest.time)
    return interest


def score(interest: RelativeBias, *age: float) -> Tensor:
    return interest(HISTORY, torch.zeros(1, 2), MASK, torch.eye(2)[None], torch.tensor([age]))[0]


def test_without_biases_it_is_pointwise_attention() -> None:
    assert score(interest_of(), 9.0, 0.0).tolist() == pytest.approx([3 * silu(1.0)] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("age", "bucket"), [(0.0, 0), (0.99, 0), (1.0, 1), (3.9, 2), (4.0, 3), (7.9, 3), (8.0, 4), (1e6, 4)]
)
def test_each_age_has_the_bias_of_its_bucket(age: float, bucket: int) -> None:
    interest = interest_of()
    with torch.no_grad():
        interest.time.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    expected = 3 * silu(1.0 + 0.1 * (bucket + 1))
    assert score(interest, age, age).tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_each_place_behind_the_newest_has_its_bias() -> None:
    interest = interest_of()
    with torch.no_grad():
        interest.position[:2] = torch.tensor([0.5, -0.5])
    assert score(interest, 9.0, 9.0).tolist() == pytest.approx([3 * silu(0.5), 3 * silu(1.5)], rel=1e-5)
    shared = interest_of(positions=1)
    with torch.no_grad():
        shared.position.fill_(0.5)
    assert score(shared, 9.0, 9.0).tolist() == pytest.approx([3 * silu(1.5)] * 2, rel=1e-5)


def test_nothing_is_normalised() -> None:
    interest, twice = interest_of(), HISTORY.repeat(1, 2, 1)
    mask, age = MASK.repeat(1, 2), torch.zeros(1, 4)
    doubled = interest(twice, torch.zeros(1, 4), mask, torch.eye(2)[None], age)[0]
    torch.testing.assert_close(doubled, 2 * score(interest, 0.0, 0.0))


def test_a_candidate_asks_for_itself() -> None:
    interest = interest_of()
    with torch.no_grad():
        interest.query.weight.copy_(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
    # q(e0) = 0 and q(e1) = 2 e0: the second candidate asks for the first click, which does not match it
    assert score(interest, 0.0, 0.0).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    with torch.no_grad():
        interest.key.weight.copy_(torch.ones(2, 2))
    assert score(interest, 0.0, 0.0).tolist() == pytest.approx([0.0, 3 * silu(2.0)], abs=1e-5)

"""Time-interval embeddings, against their closed form."""

import math

import pytest
import torch
from torch import nn

from halflife.interest.time_interval import TimeInterval, relative_intervals

E0, E1 = torch.eye(2)
HISTORY = torch.stack([E0, E1])[None]
MASK = torch.ones(1, 2, dtype=torch.bool)
IGNORED = torch.zeros(1, 2)


def interest_of(intervals: int = 4, positions: int = 8) -> TimeInterval:
    interest = TimeInterval(2, scale=3.0, intervals=intervals, positions=positions)
    nn.init.zeros_(interest.bias)
    return interest


def test_it_starts_as_attention_of_the_newest_click() -> None:
    score = interest_of()(HISTORY, IGNORED, MASK, torch.eye(2)[None], torch.tensor([[9.0, 1.0]]))
    e = math.exp(2**-0.5)  # the newest asks itself with logit 1/√2, the other with 0
    assert score[0].tolist() == pytest.approx([3 / (1 + e), 3 * e / (1 + e)], rel=1e-5)


@pytest.mark.parametrize("name", ["interval", "position"])
def test_an_embedding_enters_the_keys_and_the_values(name: str) -> None:
    interest, age = interest_of(), torch.tensor([[9.0, 1.0]])  # one interval, of the unit: index 1; place 1
    with torch.no_grad():
        getattr(interest, f"{name}_key").weight[1, 1] = 2.0
    e, asked = math.exp(2**-0.5), math.exp(2 * 2**-0.5)
    score = interest(HISTORY, IGNORED, MASK, torch.eye(2)[None], age)
    assert score[0].tolist() == pytest.approx([3 * asked / (asked + e), 3 * e / (asked + e)], rel=1e-5)
    with torch.no_grad():
        getattr(interest, f"{name}_value").weight[1, 1] = -5.0
    score = interest(HISTORY, IGNORED, MASK, torch.eye(2)[None], age)
    expected = [3 * asked / (asked + e), 3 * (e - 5 * asked) / (asked + e)]
    assert score[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        ([[0.0]], [[0]]),
        ([[5.0, 5.0, 5.0]], [[0, 0, 0]]),
        ([[8.0, 5.0, 3.5, 3.0]], [[10, 4, 1, 0]]),
        ([[1e4, 3.1, 3.0]], [[1000, 1, 0]]),  # 0.1 of a day is no float: rounded, not cut
    ],
)
def test_intervals_are_counted_in_the_readers_own_shortest_gap(
    age: list[list[float]], expected: list[list[int]]
) -> None:
    mask = torch.ones(1, len(age[0]), dtype=torch.bool)
    for unit in (1.0, 24.0, 1 / 7):
        assert relative_intervals(unit * torch.tensor(age), mask, longest=1000).tolist() == expected


def test_longer_intervals_and_farther_places_share_the_last_embedding() -> None:
    torch.manual_seed(0)
    interest = interest_of(intervals=4, positions=2)
    with torch.no_grad():
        for p in interest.parameters():
            p.add_(torch.randn_like(p))
    history, mask = HISTORY.repeat(1, 2, 1), torch.ones(1, 4, dtype=torch.bool)

    def score(*age: float) -> torch.Tensor:
        return interest(history, torch.zeros(1, 4), mask, torch.eye(2)[None], torch.tensor([age]))

    torch.testing.assert_close(score(90.0, 50.0, 1.0, 0.0), score(7.0, 4.0, 1.0, 0.0))
    assert not torch.allclose(score(7.0, 4.0, 1.0, 0.0), score(7.0, 3.0, 1.0, 0.0), rtol=0.01)
    swapped = history[:, [1, 0, 2, 3]]
    moved = interest(
        swapped, torch.zeros(1, 4), mask, torch.eye(2)[None], torch.tensor([[9.0, 9.0, 1.0, 0.0]])
    )
    torch.testing.assert_close(moved, score(9.0, 9.0, 1.0, 0.0))

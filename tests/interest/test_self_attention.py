"""Self-attention over a history, against its closed form."""

import math
from itertools import product

import pytest
import torch

from halflife.errors import InputError
from halflife.interest.self_attention import SelfAttention

E0, E1 = torch.eye(2)
EVERY = pytest.mark.parametrize("composition", SelfAttention.compositions)


def plain(composition: str, dim: int = 2, heads: int = 1) -> SelfAttention:
    """Queries, keys and values are the items; the pooling is a mean."""
    interest = SelfAttention(dim, heads, composition, scale=3.0, sink=0.5)
    with torch.no_grad():
        interest.outer.weight.zero_()
        interest.bias.zero_()
    return interest


@EVERY
def test_two_unlike_clicks_have_their_closed_form(composition: str) -> None:
    mask, age, weight = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2), 0.25
    log_weight = torch.tensor([[1.0, weight]]).log()
    got = plain(composition)(torch.stack([E0, E1])[None], log_weight, mask, torch.eye(2)[None], age)
    # a click attends to itself with logit 1/√2 and to the other with 0
    e = math.exp(2**-0.5)
    first, second = (
        (e, weight),
        (1.0, weight * e),
    )  # e^logit · w, of the clicks that each of the two attends to
    extra = {"log_bias": 0.0, "sink": 0.5, "scale": None, "sum": None}[composition]
    if composition == "sum":
        totals = [1.0, 1.0]
    elif composition == "scale":
        totals = [e + 1, 1 + e]
    else:
        totals = [sum(first) + extra, sum(second) + extra]
    expected = [3 * (f / totals[0] + s / totals[1]) / 2 for f, s in zip(first, second, strict=True)]
    assert got[0].tolist() == pytest.approx(expected, rel=1e-5)


@EVERY
def test_heads_are_models_of_their_own_side_by_side(composition: str) -> None:
    generator = torch.Generator().manual_seed(0)
    history, candidate = torch.randn(2, 5, 6, generator=generator), torch.randn(2, 1, 6, generator=generator)
    log_weight, age = -torch.rand(2, 5, generator=generator), torch.zeros(2, 5)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    together = plain(composition, dim=6, heads=3)(history, log_weight, mask, candidate, age)
    head = plain(composition, dim=2)
    parts = [
        head(history[..., i : i + 2], log_weight, mask, candidate[..., i : i + 2], age) for i in (0, 2, 4)
    ]
    torch.testing.assert_close(together, sum(parts))


@pytest.mark.parametrize("composition", ["scale", "sum"])
def test_a_click_fades_once_whichever_clicks_attend_to_it(composition: str) -> None:
    """With a mean for pooling, scores are linear in each weight: an old click does not fade twice."""
    interest, mask = plain(composition), torch.ones(1, 3, dtype=torch.bool)
    history, age = torch.stack([E0, E0 + E1, E1])[None], torch.zeros(1, 3)
    scores = {}
    for w in product([0.25, 0.5, 1.0], repeat=3):
        given = (history, torch.tensor([w]).log(), mask, E0[None, None], age)
        scores[w] = interest(*given).item()
    for w, score in scores.items():
        alone = [scores[tuple(v if i == j else 0.5 for j in range(3))] for i, v in enumerate(w)]
        assert score == pytest.approx(sum(alone) - 2 * scores[0.5, 0.5, 0.5], rel=1e-5)


def test_the_pooling_picks_clicks() -> None:
    interest = plain("log_bias")
    with torch.no_grad():
        interest.inner.weight.copy_(torch.eye(2))
        interest.inner.bias.zero_()
        interest.outer.weight.copy_(torch.tensor([[100.0, 0.0]]))
        interest.query.weight.mul_(100.0)  # each click attends to itself alone
    score = interest(
        torch.stack([E0, E1])[None],
        torch.zeros(1, 2),
        torch.ones(1, 2, dtype=torch.bool),
        torch.eye(2)[None],
        torch.zeros(1, 2),
    )
    assert score[0].tolist() == pytest.approx([3.0, 0.0], abs=1e-5)


@EVERY
def test_the_order_of_a_history_does_not_matter(composition: str) -> None:
    torch.manual_seed(0)
    interest = SelfAttention(4, 2, composition, scale=3.0, sink=1.0)
    history, log_weight, age = torch.randn(2, 5, 4), -torch.rand(2, 5), torch.rand(2, 5)
    mask, order = torch.arange(5) < torch.tensor([[5], [3]]), torch.tensor([3, 0, 4, 2, 1])
    got = interest(history[:, order], log_weight[:, order], mask[:, order], history[:, :2], age[:, order])
    torch.testing.assert_close(got, interest(history, log_weight, mask, history[:, :2], age))


def test_heads_that_do_not_divide_the_vectors_are_refused() -> None:
    with pytest.raises(InputError, match=r"^interest\.heads must be a divisor of model\.dim, 64 .*, got 5; "):
        SelfAttention(64, 5, "sink", scale=1.0, sink=1.0)

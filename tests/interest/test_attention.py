"""Target attention, against its closed form."""

import math

import pytest
import torch

from halflife.interest.attention import Attention

E0, E1 = torch.eye(2)
MASK = torch.ones(1, 2, dtype=torch.bool)
AGE = torch.zeros(1, 2)


# q = (2, 0), k = (1, 0) and (½, 1): logits 2 and 1, log-weights 0 and −0.7; the first click matches
@pytest.mark.parametrize(
    ("composition", "share"),
    [
        ("log_bias", math.exp(2) / (math.exp(2) + math.exp(0.3))),
        ("sink", math.exp(2) / (math.exp(2) + math.exp(0.3) + 0.5)),
        ("scale", math.exp(2) / (math.exp(2) + math.exp(1))),
        ("sum", math.exp(2)),
    ],
)
def test_each_composition_has_its_closed_form(composition: str, share: float) -> None:
    attention = Attention(2, composition, scale=3.0, sink=0.5)
    with torch.no_grad():
        attention.bias.fill_(-0.25)
        attention.query.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        attention.key.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    history, candidate = torch.stack([E0, E1])[None], E0[None, None]
    score = attention(history, torch.tensor([[0.0, -0.7]]), MASK, candidate, AGE)
    assert score.item() == pytest.approx(3 * share - 0.25, rel=1e-5)
    # and what only the second click matches fades by its weight, the more the less is normalised
    fresh = attention(history, torch.zeros(1, 2), MASK, E1[None, None], AGE) + 0.25
    faded = attention(history, torch.tensor([[0.0, -0.7]]), MASK, E1[None, None], AGE) + 0.25
    if composition in ("scale", "sum"):
        assert (faded / fresh).item() == pytest.approx(math.exp(-0.7), rel=1e-5)
    else:
        assert math.exp(-0.7) < (faded / fresh).item() < 1


@pytest.mark.parametrize("composition", Attention.compositions)
def test_a_candidate_asks_for_itself(composition: str) -> None:
    attention = Attention(2, composition, scale=3.0, sink=1.0)
    history, log_weight = torch.stack([E0, E1])[None], torch.zeros(1, 2)
    both = attention(history, log_weight, MASK, torch.stack([E0, 2 * E1])[None], AGE)
    for i, candidate in enumerate((E0, 2 * E1)):
        alone = attention(history, log_weight, MASK, candidate[None, None], AGE)
        torch.testing.assert_close(alone[:, 0], both[:, i])


@pytest.mark.parametrize("composition", Attention.compositions)
def test_the_order_of_a_history_does_not_matter(composition: str) -> None:
    attention = Attention(2, composition, scale=3.0, sink=1.0)
    history, log_weight = torch.stack([E0, E1])[None], torch.tensor([[-1.0, -0.2]])
    got = attention(history.flip(1), log_weight.flip(1), MASK, torch.eye(2)[None], AGE)
    torch.testing.assert_close(got, attention(history, log_weight, MASK, torch.eye(2)[None], AGE))

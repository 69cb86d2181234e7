"""A recurrent interest, against its closed form and against PyTorch's own unit."""

import math

import pytest
import torch
from torch import Tensor, nn

from halflife.decay.exponential import Exponential
from halflife.decay.weibull import Weibull
from halflife.errors import InputError
from halflife.interest.recurrent import Recurrent

MASK = torch.ones(1, 3, dtype=torch.bool)
HISTORY = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
AGE = torch.tensor([[9.0, 4.0, 3.0]])


def recurrent_of(dim: int = 2, scale: float = 3.0) -> Recurrent:
    torch.manual_seed(0)
    interest = Recurrent(dim, "scale", scale)
    nn.init.zeros_(interest.bias)
    return interest


def adder(small: float = 1e-3) -> Recurrent:
    """A GRU that only adds up: its gate keeps all but a trace, its inputs are short, and u ≈ Σ w_i v_i."""
    interest = recurrent_of(scale=1 / small**2)
    with torch.no_grad():
        interest.inputs.weight.zero_()
        interest.inputs.weight[4:] = small * torch.eye(2)
        interest.inputs.bias.zero_()
        interest.inputs.bias[2:4] = math.log(1 / small - 1)  # the gate lets a share of `small` in
        interest.gates.weight.zero_()
        interest.memory.weight.zero_()
    return interest


@pytest.mark.parametrize(
    "kernel",
    [
        Exponential(half_life_days=5.0, learn=False),
        Weibull(half_life_days=5.0, learn=False, shape=0.5, learn_shape=False),
    ],
)
def test_a_unit_that_adds_up_weighs_each_click_by_its_own_age_whatever_the_kernel(kernel: nn.Module) -> None:
    score = adder()(HISTORY, kernel(AGE), MASK, torch.eye(2)[None], AGE)
    expected = torch.einsum("bh,bhd->bd", kernel(AGE).exp(), HISTORY)
    torch.testing.assert_close(score, expected, rtol=3e-3, atol=0)


def test_a_step_is_that_of_a_gru() -> None:
    interest, reference = recurrent_of(4, scale=1.0), nn.GRU(4, 4, batch_first=True)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(interest.inputs.weight.copy_(torch.randn(12, 4)))
        reference.bias_ih_l0.copy_(interest.inputs.bias.copy_(torch.randn(12)))
        reference.weight_hh_l0.copy_(torch.cat([interest.gates.weight, interest.memory.weight]))
        reference.bias_hh_l0.zero_()
        # PyTorch resets behind the matrix, Cho et al. before it: the same under a diagonal one
        reference.weight_hh_l0[8:] = interest.memory.weight.copy_(torch.diag(torch.randn(4)))
    history, mask = torch.randn(1, 3, 4), MASK
    score = interest(history, torch.zeros(1, 3), mask, torch.eye(4)[None], AGE)
    torch.testing.assert_close(score, reference(history)[0][:, -1])


def test_the_state_fades_by_the_gap_between_clicks_and_behind_the_newest() -> None:
    interest = recurrent_of()
    kernel = Exponential(half_life_days=1.0, learn=False)

    def score(*age: float) -> Tensor:
        ages = torch.tensor([age])
        return interest(HISTORY[:, : len(age)], kernel(ages), MASK[:, : len(age)], torch.eye(2)[None], ages)

    now = score(5.0, 1.0, 0.0)
    torch.testing.assert_close(score(7.0, 3.0, 2.0), now / 4)
    # a gap so long that nothing is left: only the clicks behind it count
    last = interest(HISTORY[:, 2:], torch.zeros(1, 1), MASK[:, :1], torch.eye(2)[None], torch.zeros(1, 1))
    torch.testing.assert_close(score(1000.0, 999.0, 0.0), last)
    assert not torch.allclose(now, last, rtol=0.01)


def test_an_older_click_that_weighs_more_is_carried_whole() -> None:
    interest = recurrent_of()
    rising = torch.tensor([[-1.0, -90_000.0, 0.0]])  # e^(89 999) is no number
    even = torch.tensor([[-90_000.0, -90_000.0, 0.0]])
    scores = [interest(HISTORY, w, MASK, torch.eye(2)[None], AGE) for w in (rising, even)]
    torch.testing.assert_close(*scores)


def test_order_matters() -> None:
    interest = recurrent_of()
    forth, back = (
        interest(h, torch.zeros(1, 3), MASK, torch.eye(2)[None], AGE) for h in (HISTORY, HISTORY.flip(1))
    )
    assert not torch.allclose(forth, back, rtol=0.01)


@pytest.mark.parametrize("composition", ["log_bias", "sink", "sum", "normalised"])
def test_a_state_has_no_denominator(composition: str) -> None:
    with pytest.raises(
        InputError, match=rf"^interest\.composition must be one of scale, got {composition}; "
    ):
        Recurrent(2, composition, scale=1.0)

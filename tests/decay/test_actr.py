"""Base-level activation: clicks on one item add up, and nothing else reads another click."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, hessian

from halflife.batches import Batch
from halflife.decay.actr import Actr, same_item
from halflife.decay.power import Power

H = 3.0
MINUTE, YEAR, SECOND = 1 / 1_440, 365.25, 1 / 86_400

Make = Callable[..., Batch]
CLICKS = st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1000)), max_size=8)


def actr(alpha: float = 0.5, temperature: float = 1.0, half_life: float = H, learn: bool = True) -> Actr:
    return Actr(half_life, learn, alpha, learn, temperature, learn)


def formula(row: list[tuple[int, float]], alpha: float, s: float) -> list[float]:
    """The docstring, written out a second time in plain Python."""
    tau = H / (2 ** (s / alpha) - 1)
    found = []
    for item, _ in row:
        own = [a for i, a in row if i == item]
        activation = math.log(sum((1 + a / tau) ** -alpha for a in own))
        found.append(activation / s - math.log(len(own)))
    return found


@settings(max_examples=60)
@given(
    rows=st.lists(CLICKS, min_size=1, max_size=4),
    alpha=st.sampled_from([0.3, 0.5, 2.0]),
    s=st.sampled_from([0.25, 1.0, 3.0]),
)
def test_log_weights_equal_the_formula(
    batch_of: Make, rows: list[list[tuple[int, float]]], alpha: float, s: float
) -> None:
    batch = batch_of(*rows)
    got = actr(alpha, s).double().of(batch)
    assert got.shape == batch.age.shape
    assert torch.isfinite(got).all()  # padded places and rows without any click too
    for row, log_weight, real in zip(rows, got, batch.history_mask, strict=True):
        assert log_weight[real].tolist() == pytest.approx(formula(row, alpha, s), rel=1e-5, abs=1e-6)


def test_clicks_on_one_item_together_weigh_its_activation(batch_of: Make) -> None:
    row = [(0, 40.0), (1, 9.0), (0, 2.0), (0, 0.0), (2, 1.0)]
    weight = actr(temperature=0.5).double().of(batch_of(row))[0].exp()
    tau = H / (2 ** (0.5 / 0.5) - 1)
    activation = math.log(sum((1 + a / tau) ** -0.5 for a in (40.0, 2.0, 0.0)))
    assert weight[[0, 2, 3]].sum().item() == pytest.approx(math.exp(activation / 0.5))
    assert weight[0] == weight[2] == weight[3]
    assert weight[0] > 1  # the flag `bounded` says so
    assert not Actr.bounded


def test_temperature_one_is_a_plain_sum_and_a_small_one_favours_the_most_active(batch_of: Make) -> None:
    row = [(0, 5.0), (0, 3.0), (1, 3.5)]
    plain = actr().double().of(batch_of(row))[0].exp()
    power = Power(H, False, 0.5, False).double()(torch.tensor([5.0, 3.0, 3.5], dtype=torch.float64)).exp()
    assert plain[:2].sum().item() == pytest.approx(power[:2].sum().item())
    assert plain[2].item() == pytest.approx(power[2].item())

    def share(s: float) -> float:
        weight = actr(temperature=s).double().of(batch_of(row))[0].exp()
        return (weight[:2].sum() / weight.sum()).item()

    assert share(0.1) > share(1.0) > share(10.0) > 0.5


def test_an_item_clicked_once_is_a_power_law_of_exponent_alpha_over_s(batch_of: Make) -> None:
    row = [(0, 0.0), (1, 0.2), (2, H), (3, 700.0)]
    once = Power(H, False, 0.5 / 2.5, False).double()(batch_of(row).age)
    kernel = actr(temperature=2.5).double()
    torch.testing.assert_close(kernel.of(batch_of(row)), once)
    torch.testing.assert_close(kernel(batch_of(row).age), once)
    assert once.exp()[0, 2].item() == pytest.approx(0.5)


def test_a_row_reads_neither_its_padding_nor_other_rows(batch_of: Make) -> None:
    rows = [[(0, 5.0), (0, 1.0)], [(0, 9.0)], []]
    together = actr().double().of(batch_of(*rows))
    for row, log_weight in zip(rows, together, strict=True):
        alone = actr().double().of(batch_of(row))[0][: len(row)]
        torch.testing.assert_close(alone, log_weight[: len(row)])


def test_the_order_of_the_clicks_does_not_matter(batch_of: Make) -> None:
    row = [(0, 5.0), (1, 4.0), (0, 1.0), (2, 0.5)]
    log_weight = actr().double().of(batch_of(row))[0]
    turned = actr().double().of(batch_of(row[::-1]))[0].flip(0)
    torch.testing.assert_close(log_weight, turned)


@pytest.mark.parametrize("half_life", [MINUTE, 2.0, 100 * YEAR])
@pytest.mark.parametrize("alpha", [0.05, 0.5, 50.0])
def test_values_and_gradients_are_finite_at_extremes(batch_of: Make, half_life: float, alpha: float) -> None:
    rows = [[(0, 30 * YEAR), (0, SECOND), (0, 0.0)], [(1, 30 * YEAR), (1, 30 * YEAR)], [(2, 0.0)], []]
    batch = batch_of(*rows)
    kernel = actr(alpha, half_life=half_life)
    log_weight = kernel.of(replace(batch, age=batch.age.float()))
    assert torch.isfinite(log_weight).all()
    log_weight.sum().backward()
    assert all(torch.isfinite(p.grad) for p in kernel.parameters() if p.grad is not None)
    assert len([p for p in kernel.parameters() if p.grad is not None]) == 3


def test_gradients_equal_finite_differences_and_second_derivatives_are_finite(batch_of: Make) -> None:
    batch = batch_of([(0, 9.0), (1, 4.0), (0, 1.0)], [(2, 3.0)])
    kernel = actr(temperature=0.7).double()
    start = {n: p.detach() for n, p in kernel.named_parameters()}

    class Of(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = kernel

        def forward(self, batch: Batch) -> torch.Tensor:
            return self.kernel.of(batch)

    of = Of()

    def total(theta: torch.Tensor) -> torch.Tensor:
        values = {f"kernel.{n}": t for n, t in zip(start, theta, strict=True)}
        return functional_call(of, values, (batch,)).exp().sum()

    theta = torch.stack(list(start.values()))
    assert torch.autograd.gradcheck(total, theta.clone().requires_grad_())
    assert torch.isfinite(hessian(total)(theta)).all()


def test_half_precision_ages_keep_their_type(batch_of: Make) -> None:
    batch = batch_of([(0, 9.0), (0, 1.0)])
    half = actr().of(replace(batch, age=batch.age.bfloat16()))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), actr().double().of(batch), rtol=0.01, atol=0.01)


def test_same_items_share_a_number_and_others_do_not() -> None:
    history = torch.randint(0, 5, (20, 12), generator=torch.Generator().manual_seed(0))
    number = same_item(history)
    assert (
        (number.unsqueeze(1) == number.unsqueeze(2)) == (history.unsqueeze(1) == history.unsqueeze(2))
    ).all()
    assert 0 <= number.min() <= number.max() < 12

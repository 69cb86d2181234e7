"""The faded mean or sum of a history, against its closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from halflife.decay.exponential import Exponential
from halflife.errors import InputError
from halflife.interest.pool import Pool

E0, E1 = torch.eye(2)
MINUTE = 1 / 1_440


def pool_of(composition: str, scale: float = 3.0, sink: float = 1.0) -> Pool:
    pool = Pool(2, composition, scale, sink)
    nn.init.zeros_(pool.bias)
    return pool


def one_history(*clicks: Tensor, log_weight: Tensor | list[float]) -> tuple[Tensor, Tensor, Tensor]:
    given = torch.as_tensor(log_weight).reshape(1, -1)
    return torch.stack(clicks)[None], given, torch.ones(1, len(clicks), dtype=torch.bool)


@pytest.mark.parametrize(
    ("composition", "share"),
    [("normalised", 1 / 1.25), ("sink", 1 / (1.25 + 0.5)), ("scale", 1 / 2), ("sum", 1.0)],
)
def test_each_composition_has_its_closed_form(composition: str, share: float) -> None:
    pool = pool_of(composition, scale=3.0, sink=0.5)
    with torch.no_grad():
        pool.bias.fill_(-0.25)
    clicks = one_history(E0, E1, log_weight=torch.tensor([1.0, 0.25]).log())
    score = pool(*clicks, torch.stack([E0, E1, E0 + 2 * E1])[None], torch.zeros(1, 2))
    expected = [3 * share - 0.25, 3 * share / 4 - 0.25, 3 * share * 1.5 - 0.25]
    assert score[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("composition", Pool.compositions)
def test_the_order_of_a_history_does_not_matter(composition: str) -> None:
    generator = torch.Generator().manual_seed(0)
    history, log_weight = torch.randn(3, 5, 2, generator=generator), -torch.rand(3, 5, generator=generator)
    mask, order = torch.arange(5) < torch.tensor([5, 2, 0])[:, None], torch.tensor([3, 0, 4, 2, 1])
    pool, candidates = pool_of(composition), torch.eye(2).expand(3, 2, 2)
    got = pool(history[:, order], log_weight[:, order], mask[:, order], candidates, torch.zeros(3, 5))
    torch.testing.assert_close(got, pool(history, log_weight, mask, candidates, torch.zeros(3, 5)))


def test_normalised_learns_a_half_life_where_a_plain_sum_of_weights_underflows() -> None:
    kernel = Exponential(half_life_days=MINUTE, learn=True)
    age = torch.tensor([[30.0, 30.0 + MINUTE / 2]])  # 2^−43200 is 0 in float32, and 0/0 is no number
    assert kernel(age).exp().sum() == 0
    score = pool_of("normalised")(*one_history(E0, E1, log_weight=kernel(age)), E0[None, None], age)
    assert score.item() == pytest.approx(3 / (1 + 2**-0.5), rel=1e-3)
    score.backward()
    assert kernel.log_half_life.grad is not None
    # p (1 − p) · scale · d(log w_0 − log w_1) / d log h, the last of which is −ln 2 / 2
    p = 1 / (1 + 2**-0.5)
    expected = -3 * p * (1 - p) * math.log(2) / 2  # a longer half-life lets the older click catch up
    assert kernel.log_half_life.grad.item() == pytest.approx(expected, rel=0.05)


def test_normalised_keeps_only_the_newest_click_under_a_short_half_life() -> None:
    age = torch.tensor([[900.0, 30.0]])
    log_weight = Exponential(half_life_days=MINUTE, learn=False)(age)
    score = pool_of("normalised")(*one_history(E0, E1, log_weight=log_weight), torch.eye(2)[None], age)
    assert score[0].tolist() == pytest.approx([0.0, 3.0], abs=1e-4)


def test_an_attention_bias_is_refused_since_there_is_no_attention() -> None:
    with pytest.raises(InputError, match=r"^interest\.composition must be one of normalised, .* log_bias;"):
        pool_of("log_bias")

"""Interest: closed forms, what padding may do (nothing), and which composition can see absence."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halflife.batches import PAD_AGE
from halflife.decay.exponential import Exponential
from halflife.errors import InputError
from halflife.interest import Attention, Pool

E0, E1 = torch.eye(2)
MINUTE = 1 / 1_440

Kind = str
KINDS = ["normalised", "sink", "sum", "log_bias"]
EVERY = pytest.mark.parametrize("kind", KINDS)


def interest_of(kind: Kind, dim: int = 2, scale: float = 3.0, sink: float = 1.0) -> Pool | Attention:
    if kind == "log_bias":
        return Attention(dim, kind, scale, sink)
    return Pool(dim, kind, scale, sink)


def random_history(seed: int = 0, dim: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three histories of 5, 2 and no clicks; two candidates each; the kernel's log-weights."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randn(3, 5, dim, generator=generator)
    log_weight = -3 * torch.rand(3, 5, generator=generator)
    mask = torch.arange(5) < torch.tensor([5, 2, 0])[:, None]
    return history, log_weight, mask, torch.randn(3, 2, dim, generator=generator)


def one_history(*clicks: Tensor, log_weight: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    return torch.stack(clicks)[None], torch.tensor([log_weight]), torch.ones(1, len(clicks), dtype=torch.bool)


@pytest.mark.parametrize(
    ("kind", "share"), [("normalised", 1 / 1.25), ("sink", 1 / (1.25 + 0.5)), ("sum", 1.0)]
)
def test_pool_has_its_closed_form(kind: Kind, share: float) -> None:
    pool = interest_of(kind, scale=3.0, sink=0.5)
    with torch.no_grad():
        pool.bias.fill_(-0.25)
    weights = torch.tensor([1.0, 0.25]).log().tolist()
    score = pool(*one_history(E0, E1, log_weight=weights), torch.stack([E0, E1, E0 + 2 * E1])[None])
    expected = [3 * share - 0.25, 3 * share / 4 - 0.25, 3 * share * 1.5 - 0.25]
    assert score[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_attention_has_its_closed_form() -> None:
    attention = interest_of("log_bias", scale=3.0, sink=0.5)
    with torch.no_grad():
        attention.bias.fill_(-0.25)
        attention.query.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        attention.key.weight.copy_(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    score = attention(*one_history(E0, E1, log_weight=[0.0, -0.7]), E0[None, None])
    # q = (2, 0), k = (1, 0) and (½, 1): logits 2 + 0 and 1 − 0.7
    a = torch.tensor([2.0, 0.3]).exp()
    assert score.item() == pytest.approx(3 * (a[0] / (a.sum() + 0.5)).item() - 0.25, rel=1e-5)


@EVERY
def test_a_history_in_which_all_weigh_the_same_is_a_plain_mean_or_sum(kind: Kind) -> None:
    # candidates that are orthogonal to nothing would make attention uneven, so every click is the same item
    score = interest_of(kind, sink=1.0)(*one_history(E0, E0, E0, log_weight=[0.0] * 3), E0[None, None])
    e = torch.e
    share = {"normalised": 1.0, "sink": 3 / 4, "sum": 3.0, "log_bias": 3 * e / (3 * e + 1)}[kind]
    assert score.item() == pytest.approx(3 * share, rel=1e-5)


@pytest.mark.parametrize("lag_days", [1.0, 30.0])
def test_a_common_lag_cancels_under_an_exponential_kernel_unless_something_else_is_in_the_sum(
    lag_days: float,
) -> None:
    kernel = Exponential(half_life_days=5.0, learn=False)
    history, _, mask, candidates = random_history()
    age = 10 * torch.rand(3, 5, generator=torch.Generator().manual_seed(2))

    def scores(kind: Kind, lag: float) -> Tensor:
        return interest_of(kind, dim=4)(history, kernel(age + lag), mask, candidates)

    torch.testing.assert_close(
        scores("normalised", lag_days), scores("normalised", 0.0), atol=1e-5, rtol=1e-5
    )
    # the sum fades by exactly the lag's weight; the sink by something between that and 1
    fade = 2 ** (-lag_days / 5)
    torch.testing.assert_close(scores("sum", lag_days), scores("sum", 0.0) * fade, atol=1e-6, rtol=1e-4)
    before, after = scores("sink", 0.0)[:2].abs(), scores("sink", lag_days)[:2].abs()
    assert (after < 0.97 * before).all()
    assert (after > fade * before).all()
    before, after = scores("log_bias", 0.0)[:2], scores("log_bias", lag_days)[:2]
    assert not torch.allclose(before, after, rtol=0.01)


@EVERY
def test_after_a_long_absence_only_normalised_still_knows_the_reader(kind: Kind) -> None:
    kernel = Exponential(half_life_days=1.0, learn=False)
    history, _, mask, candidates = random_history()
    score = interest_of(kind, dim=4)(history, kernel(torch.full((3, 5), 60.0)), mask, candidates)[:2]
    if kind == "normalised":
        assert score.abs().min() > 0.01
    else:
        assert score.abs().max() < 1e-9


@EVERY
def test_a_minute_of_half_life_and_years_of_age_stay_finite(kind: Kind) -> None:
    kernel = Exponential(half_life_days=MINUTE, learn=True)
    interest = interest_of(kind, dim=4)
    history, _, mask, candidates = random_history()
    history = history.requires_grad_()
    # days apart, of which every weight underflows: 2^(−1440 · age)
    age = torch.tensor([[3000.0, 900.0, 400.0, 31.0, 30.0]]).repeat(3, 1).masked_fill(~mask, PAD_AGE)
    score = interest(history, kernel(age), mask, candidates)
    assert torch.isfinite(score).all()
    if kind == "normalised":  # all on the newest click, nothing lost to underflow
        newest = torch.stack([history[0, 4], history[1, 1]])
        expected = 3 * torch.einsum("bd,bcd->bc", newest, candidates[:2])
        torch.testing.assert_close(score[:2], expected, atol=1e-4, rtol=1e-4)
    score.square().sum().backward()
    for parameter in [history, *kernel.parameters(), *interest.parameters()]:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_normalised_learns_a_half_life_where_a_plain_sum_of_weights_underflows() -> None:
    kernel = Exponential(half_life_days=MINUTE, learn=True)
    age = torch.tensor([[30.0, 30.0 + MINUTE / 2]])  # 2^−43200 is 0 in float32, and 0/0 is no number
    assert kernel(age).exp().sum() == 0
    score = interest_of("normalised")(
        torch.stack([E0, E1])[None], kernel(age), torch.ones(1, 2, dtype=torch.bool), E0[None, None]
    )
    assert score.item() == pytest.approx(3 / (1 + 2**-0.5), rel=1e-3)
    score.backward()
    assert kernel.log_half_life.grad is not None
    # p (1 − p) · scale · d(log w_0 − log w_1) / d log h, the last of which is −ln 2 / 2
    p = 1 / (1 + 2**-0.5)
    expected = -3 * p * (1 - p) * math.log(2) / 2  # a longer half-life lets the older click catch up
    assert kernel.log_half_life.grad.item() == pytest.approx(expected, rel=0.05)


@EVERY
def test_an_empty_history_scores_the_bias_and_its_gradient_is_finite(kind: Kind) -> None:
    interest = interest_of(kind, dim=4)
    history, log_weight, mask, candidates = random_history()
    with torch.no_grad():
        interest.bias.fill_(0.7)
    history, log_weight = history.requires_grad_(), log_weight.requires_grad_()
    score = interest(history, log_weight, mask & False, candidates)
    assert (score == score.new_tensor(0.7)).all()
    gradients = torch.autograd.grad(
        score.sum(), [history, log_weight, *interest.parameters()], allow_unused=True
    )
    assert all(g is None or torch.isfinite(g).all() for g in gradients)


@EVERY
@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e15])
def test_padded_places_change_nothing_whatever_finite_vector_they_hold(kind: Kind, garbage: float) -> None:
    interest = interest_of(kind, dim=4)
    history, log_weight, mask, candidates = random_history()
    log_weight = log_weight.requires_grad_()
    before = interest(history, log_weight, mask, candidates)
    wider = torch.cat([history.masked_fill(~mask.unsqueeze(-1), garbage), torch.full((3, 4, 4), garbage)], 1)
    weights = torch.cat([log_weight, torch.zeros(3, 4)], 1)
    real = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1)
    more = torch.cat([candidates, torch.full((3, 2, 4), garbage)], 1)
    after = interest(wider, weights, real, more)[:, :2]
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    slopes = [torch.autograd.grad(s.sum(), log_weight, retain_graph=True)[0] for s in (before, after)]
    torch.testing.assert_close(slopes[1], slopes[0], atol=1e-5, rtol=1e-5)


@EVERY
def test_the_order_of_a_history_does_not_matter(kind: Kind) -> None:
    interest = interest_of(kind, dim=4)
    history, log_weight, mask, candidates = random_history()
    order = torch.tensor([3, 0, 4, 2, 1])
    got = interest(history[:, order], log_weight[:, order], mask[:, order], candidates)
    torch.testing.assert_close(got, interest(history, log_weight, mask, candidates), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("normalised", {"log_scale", "bias"}),
        ("sum", {"log_scale", "bias"}),
        ("sink", {"log_scale", "bias", "log_sink"}),
        ("log_bias", {"log_scale", "bias", "log_sink", "query.weight", "key.weight"}),
    ],
)
def test_every_parameter_is_one_that_the_composition_reads(kind: Kind, names: set[str]) -> None:
    interest: nn.Module = interest_of(kind, dim=4)
    assert {n for n, _ in interest.named_parameters()} == names
    interest(*random_history()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in interest.parameters())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"composition": "summ"}, "interest.composition"),
        ({"scale": 0.0}, "interest.scale"),
        ({"sink": -1.0}, "interest.sink"),
    ],
)
@pytest.mark.parametrize("kind", ["sink", "log_bias"])
def test_settings_out_of_range_are_refused(kind: Kind, changes: dict[str, Any], name: str) -> None:
    given = {"dim": 4, "composition": kind, "scale": 1.0, "sink": 1.0} | changes
    with pytest.raises(InputError, match=f"^{name} must be"):
        (Attention if kind == "log_bias" else Pool)(**given)

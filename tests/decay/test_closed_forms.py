"""Golden values: each kernel against its formula, written out a second time in plain Python."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.func import functional_call

from halflife.decay.buckets import Buckets
from halflife.decay.exp_mixture import ExpMixture
from halflife.decay.exponential import Exponential
from halflife.decay.fourier import Fourier
from halflife.decay.gamma_hazard import GammaHazard
from halflife.decay.gaussian import Gaussian
from halflife.decay.general import General
from halflife.decay.hawkes import Hawkes
from halflife.decay.hyperbolic import Hyperbolic
from halflife.decay.kernel import LEAST_WEIGHT, Kernel
from halflife.decay.linear import Linear
from halflife.decay.logarithmic import Logarithmic
from halflife.decay.monotone import Monotone
from halflife.decay.none import NoDecay
from halflife.decay.power import Power
from halflife.decay.rank_exponential import RankExponential
from halflife.decay.weibull import Weibull
from halflife.decay.window import Window
from halflife.errors import InputError, shown

AGES = [0.0, 0.01, 0.5, 1.0, 2.9, 3.0, 3.1, 6.0, 12.0, 40.0]
H = 3.0

Case = tuple[Kernel, Callable[[float], float]]


def tau(alpha: float) -> float:
    return H / (2 ** (1 / alpha) - 1)


def mixture(half_lives: list[float], shares: list[float]) -> Callable[[float], float]:
    """A sum of exponentials in its own half-lives, stretched by bisection until it halves at H."""

    def plain(a: float) -> float:
        return sum(p * 2 ** (-a / h) for h, p in zip(half_lives, shares, strict=True))

    low, high = min(half_lives), max(half_lives)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if plain(middle) > 0.5 else (low, middle)
    return lambda a: plain(a / H * low)


def soft_window(a: float, softness: float) -> float:
    edge = math.exp(1 / softness)
    return (edge - 1) / (edge - 2 + math.exp(a / (softness * H)))


def gamma(a: float, shape: float) -> float:
    """The half-life by bisection of the curve's falling side, in modes."""

    def plain(x: float) -> float:
        return (x * math.exp(1 - x)) ** (shape - 1)

    low, high = 1.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if plain(middle) > 0.5 else (low, middle)
    return plain(max(a * low / H, LEAST_WEIGHT))


def spline(a: float) -> float:
    """Two knots each side of H at factors 2 and 4; log-weights of the hyperbola there, joined up."""
    u = a / H
    knots = [0.25, 0.5, 1.0, 2.0, 4.0]
    levels = [math.log2(1 + k) for k in knots]
    if u < knots[0]:
        return 2 ** -(levels[0] * u / knots[0])
    left = max(j for j in range(4) if u >= knots[j])
    slope = levels[left + 1] - levels[left]
    return 2 ** -(levels[left] + slope * math.log2(u / knots[left]))


def burr(a: float, floor: float, shape: float, tail: float) -> float:
    tau = H / (tail * (2 ** (1 / tail) - 1)) ** (1 / shape)
    return floor + (1 - floor) * (1 + (a / tau) ** shape / tail) ** -tail


CASES: dict[str, Case] = {
    "none": (NoDecay(), lambda a: 1.0),
    "exponential": (Exponential(H, False), lambda a: 2 ** (-a / H)),
    "gaussian": (Gaussian(H, False), lambda a: math.exp(-math.log(2) * (a / H) ** 2)),
    "power 0.5": (Power(H, False, 0.5, False), lambda a: (1 + a / tau(0.5)) ** -0.5),
    "power 1": (Power(H, False, 1.0, False), lambda a: 1 / (1 + a / H)),
    "power 3": (Power(H, False, 3.0, False), lambda a: (1 + a / tau(3.0)) ** -3.0),
    "hyperbolic": (Hyperbolic(H, False), lambda a: 1 / (1 + a / H)),
    "weibull 0.5": (Weibull(H, False, 0.5, False), lambda a: 2 ** -((a / H) ** 0.5)),
    "weibull 3": (Weibull(H, False, 3.0, False), lambda a: 2 ** -((a / H) ** 3)),
    "linear": (Linear(H, False), lambda a: max(LEAST_WEIGHT, 1 - a / (2 * H))),
    "window hard": (
        Window(H, False, 0.0, False),
        lambda a: 1.0 if a < H else 0.5 if a == H else LEAST_WEIGHT,
    ),
    "window soft": (Window(H, False, 0.1, False), lambda a: soft_window(a, 0.1)),
    "window softest": (Window(H, False, 5.0, False), lambda a: soft_window(a, 5.0)),
    "logarithmic": (
        Logarithmic(H, False, 0.5, False),
        lambda a: 1 / (1 + math.log(1 + a / 0.5) / math.log(1 + H / 0.5)),
    ),
    "exp_mixture 1": (ExpMixture(H, False, 1, 4.0, False, False), lambda a: 2 ** (-a / H)),
    "exp_mixture 3": (ExpMixture(H, False, 3, 10.0, False, False), mixture([0.1, 1.0, 10.0], [1 / 3] * 3)),
    "gamma_hazard 1.5": (GammaHazard(H, False, 1.5, False), lambda a: gamma(a, 1.5)),
    "gamma_hazard 4": (GammaHazard(H, False, 4.0, False), lambda a: gamma(a, 4.0)),
    "monotone": (Monotone(H, False, 2, 4.0, False), spline),
    "hawkes": (
        Hawkes(H, False, 0.3, False, 11.0, False, 1.5, False),
        lambda a: 0.7 * 2 ** (-a / H) + 0.3 * math.exp(-(((a - 11) / 1.5) ** 2) / 2),
    ),
    "hawkes without return": (Hawkes(H, False, 0, False, 5.0, False, 1.0, False), lambda a: 2 ** (-a / H)),
    "general": (
        General(H, False, 0.2, False, 1.7, False, 0.6, False),
        lambda a: burr(a, 0.2, 1.7, 0.6),
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_weights_equal_the_closed_form(case: str) -> None:
    kernel, formula = CASES[case]
    ages = torch.tensor(AGES, dtype=torch.float64)
    if isinstance(kernel, Window):
        ages[AGES.index(H)] = (
            kernel.double().half_life.detach()
        )  # exp(log 3) is not quite 3; a hard edge sees it
    got = kernel.double()(ages).exp()
    assert got.tolist() == pytest.approx([formula(a) for a in AGES], rel=2e-5)


def general(shape: float, tail: float, floor: float = 0.0) -> General:
    return General(H, False, floor, False, shape, False, tail, False)


LIMITS: dict[str, tuple[Kernel, Kernel]] = {
    "exponential": (general(shape=1.0, tail=1e7), Exponential(H, False)),
    "gaussian": (general(shape=2.0, tail=1e9), Gaussian(H, False)),
    "weibull": (general(shape=0.5, tail=1e7), Weibull(H, False, 0.5, False)),
    "hyperbolic": (general(shape=1.0, tail=1.0), Hyperbolic(H, False)),
    "lomax": (general(shape=1.0, tail=2.5), Power(H, False, 2.5, False)),
    "exponential from power": (Power(H, False, 1e7, False), Exponential(H, False)),
    "exponential from window": (Window(H, False, 1 / math.log(2), False), Exponential(H, False)),
    "hyperbolic from window": (Window(H, False, 1e5, False), Hyperbolic(H, False)),
    "hyperbolic from logarithmic": (Logarithmic(H, False, 1e6, False), Hyperbolic(H, False)),
    "hyperbolic from monotone": (Monotone(H, False, 400, 1e3, False), Hyperbolic(H, False)),
    "exponential from weibull": (Weibull(H, False, 1.0, False), Exponential(H, False)),
    "gaussian from weibull": (Weibull(H, False, 2.0, False), Gaussian(H, False)),
}


@pytest.mark.parametrize("limit", list(LIMITS))
def test_a_family_reaches_its_limits(limit: str) -> None:
    kernel, other = LIMITS[limit]
    ages = torch.tensor(AGES, dtype=torch.float64)
    assert kernel.double()(ages).exp().tolist() == pytest.approx(
        other.double()(ages).exp().tolist(), abs=5e-5
    )


@pytest.mark.parametrize("kernel", [general(shape=1e4, tail=1.0), Window(H, False, 1e-4, False)])
def test_a_sharp_shape_is_a_step(kernel: Kernel) -> None:
    ages = torch.tensor([0.0, 0.99 * H, 1.01 * H, 10 * H], dtype=torch.float64)
    assert kernel.double()(ages).exp().tolist() == pytest.approx([1, 1, 0, 0], abs=1e-6)


def test_a_floor_is_what_is_left_in_the_end() -> None:
    kernel = general(shape=1.0, tail=2.0, floor=0.3)
    assert kernel(torch.tensor(1e8)).exp().item() == pytest.approx(0.3, rel=1e-4)
    assert kernel(torch.tensor(H)).exp().item() == pytest.approx(0.3 + 0.7 / 2, rel=1e-5)
    with pytest.raises(InputError, match=r"^decay\.floor must be .* to be learned .*, got 0"):
        General(H, True, 0, True, 1.0, False, 1.0, False)


@pytest.mark.parametrize(("learn", "learn_softness"), [(True, False), (False, True)])
def test_a_hard_window_cannot_be_learned(learn: bool, learn_softness: bool) -> None:
    with pytest.raises(InputError, match=r"^decay\.softness must be .* to learn an edge .*, got 0"):
        Window(H, learn, 0, learn_softness)


SHAPED: dict[str, Callable[[float], Kernel]] = {
    "power": lambda shape: Power(H, True, shape, True),
    "weibull": lambda shape: Weibull(H, True, shape, True),
    "window": lambda shape: Window(H, True, shape, True),
    "logarithmic": lambda shape: Logarithmic(H, True, shape, True),
    "exp_mixture": lambda shape: ExpMixture(H, True, 5, 1 + shape, True, True),
    "gamma_hazard": lambda shape: GammaHazard(H, True, 1 + shape, True),
    "monotone": lambda shape: Monotone(H, True, 3, 1 + shape, True),
    "general shape": lambda shape: General(H, True, 0.1, True, shape, True, 1.0, True),
    "general tail": lambda shape: General(H, True, 0.1, True, 1.0, True, shape, True),
}


@pytest.mark.parametrize("family", list(SHAPED))
@pytest.mark.parametrize("shape", [0.003, 0.1, 10.0, 300.0])
def test_extreme_shapes_still_halve_at_the_half_life_with_finite_gradients(family: str, shape: float) -> None:
    kernel = SHAPED[family](shape)
    ages = torch.tensor([0.0, 1 / 86_400, H, 30 * 365.25], requires_grad=True)
    log_weight = kernel(ages)
    floor = float(torch.as_tensor(kernel.floor).detach())
    assert torch.isfinite(log_weight).all()
    assert log_weight[2].exp().item() == pytest.approx((1 + floor) / 2, rel=1e-3)
    log_weight.sum().backward()
    for value in (ages, *kernel.parameters()):
        assert value.grad is not None
        assert torch.isfinite(value.grad).all()


GRADIENTS: dict[str, Kernel] = {
    "exp_mixture": ExpMixture(H, True, 4, 10.0, True, True),
    "gamma_hazard": GammaHazard(H, True, 2.5, True),
    "window": Window(H, True, 0.3, True),
    "monotone": Monotone(H, True, 3, 10.0, True),
    "general": General(H, True, 0.2, True, 1.3, True, 0.8, True),
    "general steep": General(H, True, 0.2, True, 2.0, True, 50.0, True),
    "hawkes": Hawkes(H, True, 0.3, True, 5.0, True, 2.0, True),
}


@pytest.mark.parametrize("family", list(GRADIENTS))
def test_gradients_equal_finite_differences(family: str) -> None:
    kernel = GRADIENTS[family].double()
    ages = torch.tensor([0.1, 1.0, 2.9, 7.0, 50.0], dtype=torch.float64)
    for parameter in kernel.parameters():
        flat = parameter.detach().view(-1)
        for i in range(flat.numel()):
            kernel.zero_grad()
            kernel(ages).sum().backward()
            assert parameter.grad is not None
            step, start, sums = 1e-5, flat[i].item(), []
            for shifted in (start + step, start - step):
                flat[i] = shifted
                sums.append(kernel(ages).sum().item())
            flat[i] = start
            slope = (sums[0] - sums[1]) / (2 * step)
            assert parameter.grad.view(-1)[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("family", list(GRADIENTS))
def test_second_derivatives_are_finite_at_ages_of_zero_and_of_decades(family: str) -> None:
    """The half-life's interval is made of them."""
    kernel = GRADIENTS[family].float()
    names = [n for n, _ in kernel.named_parameters()]
    start = tuple(p.detach() for p in kernel.parameters())
    ages = torch.tensor([0.0, 1 / 86_400, 0.1, 7.0, 30 * 365.25])

    def total(*values: torch.Tensor) -> torch.Tensor:
        return functional_call(kernel, dict(zip(names, values, strict=True)), (ages,)).exp().sum()

    second = torch.autograd.functional.hessian(total, start)
    assert all(torch.isfinite(block).all() for row in second for block in row)


def test_a_return_is_highest_at_its_peak_and_the_half_life_is_the_excitations() -> None:
    kernel = Hawkes(2.0, False, 0.4, False, 30.0, False, 3.0, False).double()
    ages = torch.linspace(15, 45, 301, dtype=torch.float64)
    weights = kernel(ages).exp()
    assert ages[weights.argmax()].item() == pytest.approx(30, abs=0.1)
    assert weights.max().item() == pytest.approx(0.4, abs=1e-4)
    near = kernel(torch.tensor([0.0, 2.0], dtype=torch.float64)).exp()
    assert (near[1] / near[0]).item() == pytest.approx(0.5, rel=1e-5)
    with pytest.raises(InputError, match=r"^decay\.share must be .* to be learned .*, got 0"):
        Hawkes(2.0, True, 0, True, 30.0, True, 3.0, True)


def test_a_mixture_knows_its_components() -> None:
    kernel = ExpMixture(H, False, 3, 10.0, False, False)
    half_lives = kernel.component_half_lives
    assert (half_lives[1:] / half_lives[:-1]).tolist() == pytest.approx([10.0, 10.0], rel=1e-5)
    by_parts = sum(
        p * 2 ** (-5.0 / h) for p, h in zip(kernel.shares.tolist(), half_lives.tolist(), strict=True)
    )
    assert kernel(torch.tensor(5.0)).exp().item() == pytest.approx(by_parts, rel=1e-5)


def test_ranks_count_strictly_newer_clicks_and_ties_share_one() -> None:
    kernel = RankExponential(2.0, False)
    ages = torch.tensor([[40.0, 9.0, 9.0, 1.0], [1.0, 9.0, 9.0, 40.0]])
    expected = [[3, 1, 1, 0], [0, 1, 1, 3]]
    assert (-2 * kernel(ages) / math.log(2)).tolist() == [pytest.approx(row) for row in expected]
    assert torch.equal(kernel(ages), kernel(ages * 1000))


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, "abc", True, None])
def test_a_wrong_half_life_in_ranks_ends_in_a_sentence(wrong: float) -> None:
    with pytest.raises(
        InputError, match=rf"^decay\.half_life_ranks must be a number above 0 \(ranks\), got {shown(wrong)}"
    ):
        RankExponential(wrong, True)


def test_buckets_are_one_step_each_and_the_highest_weighs_one() -> None:
    kernel = Buckets(2.0, True, 5, 1.0, 8.0)
    with torch.no_grad():
        kernel.heights.copy_(torch.tensor([0.0, 3.0, 1.0, -2.0, -5.0]))
    ages = torch.tensor([0.0, 0.99, 1.01, 1.99, 2.01, 4.01, 7.9, 8.1, 1e6])
    assert kernel(ages).tolist() == pytest.approx([-3, -3, 0, 0, -2, -5, -5, -8, -8])


def test_bucket_edges_out_of_order_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^decay\.last_days must be a number above 9 \(days\), got 3.0; give an age"
    ):
        Buckets(2.0, True, 5, 9.0, 3.0)


def test_a_fourier_series_equals_its_formula_with_signs() -> None:
    kernel = Fourier(2.0, True, 4, 0.5, False)
    cosines, sines = [0.2, 1.0, -0.5, 0.3], [0.4, -0.7, 0.1]
    with torch.no_grad():
        kernel.cosines.copy_(torch.tensor(cosines))
        kernel.sines.copy_(torch.tensor(sines))
    size = 0.2 + sum(math.hypot(c, s) for c, s in zip(cosines[1:], sines, strict=True))

    def formula(a: float) -> float:
        phase = math.pi / 3 * math.log2(1 + a / 0.5)
        waves = (c * math.cos(k * phase) - s * math.sin(k * phase) for k, (c, s) in pairs)
        return sum(waves, 0.2) / size

    pairs = list(enumerate(zip(cosines[1:], sines, strict=True), start=1))
    ages = torch.tensor(AGES)
    got = (kernel.sign(ages) * kernel(ages).exp()).tolist()
    assert min(got) < 0 < max(got)
    assert got == pytest.approx([formula(a) for a in AGES], abs=1e-5)


def test_a_fourier_series_starts_as_the_hyperbola() -> None:
    kernel, other = Fourier(H, False, 24, 0.01, False), Hyperbolic(H, False)
    ages = torch.tensor(AGES)
    got = kernel.sign(ages) * kernel(ages).exp()
    assert (got / got[0]).tolist() == pytest.approx(other(ages).exp().tolist(), abs=0.01)


def test_power_at_a_tiny_alpha_still_halves_at_its_half_life() -> None:
    kernel = Power(H, True, 0.005, True)
    log_weight = kernel(torch.tensor(H))
    log_weight.backward()
    assert log_weight.exp().item() == pytest.approx(0.5, rel=1e-5)
    assert all(p.grad is not None and torch.isfinite(p.grad) for p in kernel.parameters())

"""Non-parametric decay: any curve that never rises."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from halflife.decay.kernel import LN2, Kernel, count, log_expm1, log_ratio, positive_parameter, trainable
from halflife.errors import number


class Monotone(Kernel):
    """log w(a) = −ln 2 · G(a/h) / G(1), with G a rising curve through log-spaced knots, of learned drops > 0.

    The 2J+1 knots lie at a/h = spread^(j/J), j = −J … J. G is the running sum of the drops at the knots
    (softplus of what is held), linear in the age up to the first knot, linear in its logarithm between knots
    and, with the last slope, past the last one: a power-law tail. Hence w(0) = 1, w(h) = 1/2 and never rising
    hold by construction, whatever is learned. The drops start as the hyperbola's; only their ratios count.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.
        knots: J ≥ 1, how many on each side of the half-life.
        spread: > 1, no unit; the last knot's age over the half-life.
        learn_drops: whether the curve is learned.

    Shape: any, kept.

    Raises:
        InputError: when h is not a number above 0, J is not a whole number above 0, or the spread is not
            above 1.

    Source: none known for this form; a monotone linear spline in log-log space, whose drops are held as in
    other monotone networks (Dugas et al., Incorporating Second-Order Functional Knowledge for Better Option
    Pricing, NIPS 2000, introduce the softplus for positive slopes).

    >>> kernel = Monotone(half_life_days=5.0, learn=False, knots=2, spread=16.0, learn_drops=False)
    >>> kernel(torch.tensor([0.0, 5.0, 20.0])).exp()
    tensor([1.0000, 0.5000, 0.2000])
    """

    def __init__(
        self, half_life_days: float, learn: bool, knots: int, spread: float, learn_drops: bool
    ) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        self.side = count("decay.knots", knots, at_least=1)
        self.log_spread = math.log(number("decay.spread", spread, "no unit", above=1))
        log_knots = torch.linspace(-self.log_spread, self.log_spread, 2 * self.side + 1)
        drops = torch.log1p(log_knots.exp()).diff(prepend=torch.zeros(1))
        self.raw_drops = trainable("decay.knots", log_expm1(drops), learn_drops)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        drops = F.softplus(self.raw_drops)
        risen = drops.cumsum(0)
        log_age = log_ratio(age, self.half_life)
        place = (log_age + self.log_spread) * (self.side / self.log_spread)
        knot = place.detach().floor().clamp(0, 2 * self.side - 1)
        left = knot.long()
        between = risen[left] + (place - knot) * drops[left + 1]
        # Up to the first knot: linear in the age, which is where the logarithm would run to −∞.
        before = drops[0] * (log_age + self.log_spread).clamp(max=0).exp()
        curve = torch.where(place >= 0, between, before)
        return torch.where(age > 0, -LN2 * curve / risen[self.side], 0.0)

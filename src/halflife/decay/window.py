"""A window: everything inside it counts, nothing outside."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halflife.decay.kernel import LEAST_WEIGHT, LN2, Kernel, positive_parameter
from halflife.errors import InputError, number


class Window(Kernel):
    """w(a) = 1 for a < h, 1/2 at h, 0 beyond; with softness s > 0 the edge is a sigmoid of width s·h.

    The soft edge is w(a) = (E − 1) / (E − 2 + e^(a/(s·h))) with E = e^(1/s): a sigmoid in the age, shifted
    and scaled so that w(0) = 1 and w(h) = 1/2 hold exactly. s → 0 is the hard cut-off, s = 1/ln 2 is
    exponential, s → ∞ is hyperbolic. A hard edge has no gradient, so nothing is learned through it, and
    outside it the weight is `kernel.LEAST_WEIGHT`, since log 0 is not finite.

    Args:
        half_life_days: h > 0, in days; the width of the window.
        learn: whether h is learned; needs s > 0.
        softness: s ≥ 0, no unit; the width of the edge as a share of the window's.
        learn_softness: whether s is learned; needs s > 0.

    Shape: any, kept.

    Raises:
        InputError: when h is not a number above 0, s is below 0, or s = 0 and something is to be learned.

    Source: the sliding window of data streams, the abrupt forgetting of Gama et al., A Survey on Concept
    Drift Adaptation (ACM Computing Surveys 2014). The soft edge is ours.

    >>> kernel = Window(half_life_days=5.0, learn=False, softness=0.02, learn_softness=False)
    >>> kernel(torch.tensor([0.0, 4.0, 5.0, 6.0])).exp()
    tensor([1.0000e+00, 9.9995e-01, 5.0000e-01, 4.5398e-05])
    """

    log_softness: nn.Parameter | None

    def __init__(self, half_life_days: float, learn: bool, softness: float, learn_softness: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        if number("decay.softness", softness, "no unit", at_least=0) > 0:
            self.log_softness = positive_parameter("decay.softness", softness, "no unit", learn_softness)
        elif learn or learn_softness:
            raise InputError(
                f"decay.softness must be a number above 0 to learn an edge (no unit), got {softness}; "
                "give a number above 0, or set decay.learn=false and decay.learn_softness=false"
            )
        else:
            self.register_parameter("log_softness", None)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        half_life = self.half_life
        if self.log_softness is None:
            outside = torch.where(age > half_life, math.log(LEAST_WEIGHT), -LN2)
            return torch.where(age < half_life, 0.0, outside).to(age.dtype)
        # log w = −log(1 + (e^x − 1) / (E − 1)) with x = a/(s·h). The two large exponents are subtracted as
        # (a/h − 1)/s, while the digits that their difference needs are still there.
        steepness = torch.exp(-self.log_softness)
        ratio = age / half_life
        x = (steepness * ratio).clamp(min=torch.finfo(age.dtype).tiny)
        log_odds = (ratio - 1) * steepness + torch.log(torch.expm1(-x) / torch.expm1(-steepness))
        return torch.where(age > 0, -F.softplus(log_odds), 0.0)

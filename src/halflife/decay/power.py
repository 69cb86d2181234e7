"""Power-law decay: fast at first, then ever slower."""

import torch
from torch import Tensor

from halflife.decay.kernel import LN2, Kernel, log_lomax, log_ratio, positive_parameter


class Power(Kernel):
    """w(a) = (1 + a/τ)^(−α) with τ = h / (2^(1/α) − 1): a Lomax tail, so that w(h) = 1/2 for every α.

    A large α comes close to the exponential, α = 1 is the hyperbola. With α = 1/2 it is the power law of
    ACT-R's base-level activation (d = α, moved so that age 0 is finite): an interest model that sums weights
    over the clicks of one item then sums as ACT-R does.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.
        alpha: α > 0, no unit; the smaller, the heavier the tail.
        learn_alpha: whether α is learned.

    Shape: any, kept.

    Raises:
        InputError: when h or α is not a number above 0.

    Source: Lomax, Business Failures (JASA 1954), for the distribution; Wixted & Ebbesen, On the Form of
    Forgetting (Psychological Science 1991), for forgetting as a power of time. That h is the scale is ours.

    >>> kernel = Power(half_life_days=5.0, learn=False, alpha=1.0, learn_alpha=False)
    >>> kernel(torch.tensor([0.0, 5.0, 15.0])).exp()
    tensor([1.0000, 0.5000, 0.2500])
    """

    def __init__(self, half_life_days: float, learn: bool, alpha: float, learn_alpha: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        self.log_alpha = positive_parameter("decay.alpha", alpha, "no unit", learn_alpha)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    @property
    def alpha(self) -> Tensor:
        """α, the exponent of the tail, a scalar with gradient."""
        return self.log_alpha.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        faded = log_lomax(log_ratio(age, self.half_life), self.alpha, LN2)
        return torch.where(age > 0, faded, 0.0)

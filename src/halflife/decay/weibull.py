"""Weibull decay: a stretched (or compressed) exponential."""

import torch
from torch import Tensor

from halflife.decay.kernel import LN2, Kernel, log_ratio, positive_parameter

# So far out the weight has long been 0; the cap keeps the power and its gradient finite in float32.
LARGEST_LOG_POWER = 60.0


class Weibull(Kernel):
    """w(a) = 2^(−(a/h)^k): k < 1 falls fast and then lingers, k = 1 is exponential, k = 2 is Gaussian.

    Where (a/h)^k exceeds e⁶⁰ the log-weight stays constant, and its gradient is 0.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.
        shape: k > 0, no unit.
        learn_shape: whether k is learned.

    Shape: any, kept.

    Raises:
        InputError: when h or k is not a number above 0.

    Source: Rubin & Wenzel, One Hundred Years of Forgetting (Psychological Review 1996), where the exponential
    in √t (k = 1/2) is among the functions that fit retention best, on data since Ebbinghaus, Über das
    Gedächtnis (1885). That h is the scale is ours.

    >>> kernel = Weibull(half_life_days=5.0, learn=False, shape=0.5, learn_shape=False)
    >>> kernel(torch.tensor([0.0, 5.0, 20.0])).exp()
    tensor([1.0000, 0.5000, 0.2500])
    """

    def __init__(self, half_life_days: float, learn: bool, shape: float, learn_shape: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        self.log_shape = positive_parameter("decay.shape", shape, "no unit", learn_shape)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    @property
    def shape(self) -> Tensor:
        """k, the exponent of the age, a scalar with gradient."""
        return self.log_shape.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        log_power = self.shape * log_ratio(age, self.half_life)
        return torch.where(age > 0, -LN2 * log_power.clamp(max=LARGEST_LOG_POWER).exp(), 0.0)

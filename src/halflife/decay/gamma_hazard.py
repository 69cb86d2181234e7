"""A gamma curve: a click matters most some time after it, as a purchase comes round again."""

import torch
from torch import Tensor

from halflife.decay.kernel import LEAST_WEIGHT, LN2, Kernel, positive_parameter
from halflife.errors import number


class GammaHazard(Kernel):
    """w(a) = (x e^(1−x))^(k−1), with x = a/m: a gamma density scaled to 1 at its mode m = h/x*(k).

    The weight rises from almost 0 to 1 at the mode and falls after it; x* > 1 solves w = 1/2, so that h is
    the age at which, past the mode, half is left. It is the chance of a repeat at age a by gamma distributed
    gaps, up to a factor (their density, not the rate among those still waiting). Ages below
    `kernel.LEAST_WEIGHT` modes weigh as much as an age there, since w(0) = 0 has no finite logarithm.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.
        shape: k > 1, no unit; the larger, the sharper the peak.
        learn_shape: whether k is learned.

    Shape: any, kept.

    Raises:
        InputError: when h is not a number above 0 or k is not a number above 1.

    Source: for repeat purchases with gamma priors, Bhagat, Muralidharan, Lobzhanidze & Vishwanath, Buy It
    Again: Modeling Repeat Purchase Recommendations (KDD 2018). The scaling to mode and half-life is ours; the
    search for x* starts from the bound of Chatzigeorgiou, Bounds on the Lambert Function and Their
    Application to the Outage Analysis of User Cooperation (IEEE Communications Letters 2013).

    >>> kernel = GammaHazard(half_life_days=5.0, learn=False, shape=3.0, learn_shape=False)
    >>> kernel(torch.stack([kernel.mode, kernel.half_life])).exp()
    tensor([1.0000, 0.5000])
    """

    monotone = False
    starts_at_one = False

    def __init__(self, half_life_days: float, learn: bool, shape: float, learn_shape: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        above_one = number("decay.shape", shape, "no unit", above=1) - 1
        self.log_shape_above_one = positive_parameter("decay.shape", above_one, "no unit", learn_shape)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    @property
    def shape(self) -> Tensor:
        """k, a scalar with gradient."""
        return 1 + self.log_shape_above_one.exp()

    @property
    def mode(self) -> Tensor:
        """m, the age at which the weight is 1, in the unit of the ages, a scalar with gradient."""
        return self.half_life / (1 + self._excess())

    def _excess(self) -> Tensor:
        """y = x* − 1 > 0, where y − log(1 + y) = u = ln 2 / (k − 1), a scalar with gradient."""
        u = LN2 * torch.exp(-self.log_shape_above_one)
        with torch.no_grad():
            y = torch.sqrt(2 * u) + u  # above the root of a convex function: Newton comes down to it
            for _ in range(5):
                y = y - (y - torch.log1p(y) - u) * (1 + y) / y
        # The root itself carries no gradient; this step does, and it is the implicit function theorem's.
        return y - (y - torch.log1p(y) - u) * ((1 + y) / y)

    def log_weight(self, age: Tensor) -> Tensor:
        x = (age / self.mode).clamp(min=LEAST_WEIGHT)
        return torch.exp(self.log_shape_above_one) * (x.log() + 1 - x)

"""Logarithmic decay: what is lost grows with the logarithm of the age."""

import torch
from torch import Tensor

from halflife.decay.kernel import Kernel, positive_parameter


class Logarithmic(Kernel):
    """w(a) = 1 / (1 + log(1 + a/u) / log(1 + h/u)): the slowest of the tails.

    The unit u, below which time passes almost linearly, is a shape and stands on its own: the ratio of the
    two logarithms makes w(h) = 1/2 for every u. u ≫ h comes close to the hyperbola.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.
        unit_days: u > 0, in days.
        learn_unit: whether u is learned.

    Shape: any, kept.

    Raises:
        InputError: when h or u is not a number above 0.

    Source: Ebbinghaus, Über das Gedächtnis (1885), chapter VII, whose curve of savings is
    b = 100 k / ((log t)^c + k); this is the same curve at c = 1, with 1 + a/u for t so that age 0 is finite.

    >>> kernel = Logarithmic(half_life_days=3.0, learn=False, unit_days=1.0, learn_unit=False)
    >>> kernel(torch.tensor([0.0, 3.0, 63.0])).exp()
    tensor([1.0000, 0.5000, 0.2500])
    """

    def __init__(self, half_life_days: float, learn: bool, unit_days: float, learn_unit: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        self.log_unit = positive_parameter("decay.unit_days", unit_days, "days", learn_unit)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    @property
    def unit(self) -> Tensor:
        """u, in the unit of the ages, a scalar with gradient."""
        return self.log_unit.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        return -torch.log1p(torch.log1p(age / self.unit) / torch.log1p(self.half_life / self.unit))

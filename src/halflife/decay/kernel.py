"""The kernel contract: age in, log-weight out."""

import math

import torch
from torch import Tensor, nn

from halflife.errors import number

LN2 = math.log(2.0)


class Kernel(nn.Module):
    """How much a past click still weighs at a given age: log w(age) ≤ 0, with w(0) = 1.

    A kernel never normalises over a history: that is the interest model's choice, since it changes what can be
    learned. Its scale is `half_life_days`, the age at which the decaying part of a weight has halved, whatever
    the family, so that one number means one thing in every sweep. Where ages are ranks (`data.age=rank`), the
    same number is a rank.

    Subclasses implement `log_weight`, and register what they learn with `positive_parameter`.
    """

    signed = False
    """True for a kernel whose weights may be negative; `log_weight` is then the log of the absolute weight."""

    @property
    def half_life(self) -> Tensor | None:
        """The half-life in the unit of the ages, a scalar with gradient, or None where a kernel has none."""
        return None

    def log_weight(self, age: Tensor) -> Tensor:
        """log w(age), of the shape of `age`.

        Args:
            age: non-negative ages, in days (or ranks), any shape, float.
        """
        raise NotImplementedError

    def forward(self, age: Tensor) -> Tensor:
        """The same as `log_weight`: a kernel is its log-weight."""
        return self.log_weight(age)


def positive_parameter(name: str, value: float, unit: str, learn: bool) -> nn.Parameter:
    """A scalar > 0 held as its logarithm, so that a gradient step never leaves the domain.

    Args:
        name: the setting as the user typed it, for the message.
        value: the start (or fixed) value, > 0.
        unit: of the value, for the message.
        learn: whether the optimizer moves it.

    Returns:
        The parameter log(value), float32, scalar.

    Raises:
        InputError: when the value is not a number above 0.

    >>> round(positive_parameter("decay.half_life_days", 5.0, "days", learn=True).exp().item(), 3)
    5.0
    """
    start = number(name, value, unit, above=0)
    return nn.Parameter(torch.tensor(math.log(start)), requires_grad=bool(learn))

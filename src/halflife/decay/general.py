"""One family that holds most of the others: a long-term floor, a shape and a tail."""

import torch
from torch import Tensor

from halflife.decay.kernel import (
    LN2,
    Kernel,
    above_floor,
    log_lomax,
    log_ratio,
    positive_parameter,
    share_parameter,
)


class General(Kernel):
    """w(a) = c + (1 − c) · [1 + (a/τ)^β / s]^(−s), with τ such that the bracket is 1/2 at a = h.

    That is (h/τ)^β / s = 2^(1/s) − 1. With c = 0 its limits are: s → ∞ the Weibull curve of exponent β, hence
    β = 1 the exponential and β = 2 the Gaussian; β = 1 the power law (Lomax) of exponent s; β = s = 1 the
    hyperbola; β → ∞ the window. The half-life is the decaying part's: c is left out of it.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.
        floor: c in [0, 1), a share of the weight; what never fades. Above 0 to be learned.
        learn_floor: whether c is learned.
        shape: β > 0, no unit; below 1 the fall is steep at once, above 1 there is a plateau first.
        learn_shape: whether β is learned.
        tail: s > 0, no unit; the weight falls as a^(−βs) in the end; the larger, the lighter the tail.
        learn_tail: whether s is learned.

    Shape: any, kept.

    Raises:
        InputError: when h, β or s is not a number above 0, or c is out of range.

    Source: without the floor, the survival function of Burr, Cumulative Frequency Functions (Annals of
    Mathematical Statistics 1942), type XII. The parametrisation by half-life is ours.

    >>> kernel = General(5.0, False, floor=0.2, learn_floor=False, shape=1.0, learn_shape=False,
    ...                  tail=1.0, learn_tail=False)
    >>> kernel(torch.tensor([0.0, 5.0, 1e9])).exp()
    tensor([1.0000, 0.6000, 0.2000])
    """

    def __init__(
        self,
        half_life_days: float,
        learn: bool,
        floor: float,
        learn_floor: bool,
        shape: float,
        learn_shape: bool,
        tail: float,
        learn_tail: bool,
    ) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        self.floor_logit = share_parameter("decay.floor", floor, "share of the weight", learn_floor)
        self.log_shape = positive_parameter("decay.shape", shape, "no unit", learn_shape)
        self.log_tail = positive_parameter("decay.tail", tail, "no unit", learn_tail)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    @property
    def floor(self) -> Tensor:
        """c, a scalar with gradient."""
        return self.floor_logit.sigmoid()

    @property
    def shape(self) -> Tensor:
        """β, a scalar with gradient."""
        return self.log_shape.exp()

    @property
    def tail(self) -> Tensor:
        """s, a scalar with gradient."""
        return self.log_tail.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        # (a/τ)^β / s = (a/h)^β · (2^(1/s) − 1), as a logarithm: both factors overflow on their own.
        faded = log_lomax(self.shape * log_ratio(age, self.half_life), self.tail, LN2)
        return above_floor(torch.where(age > 0, faded, 0.0), self.floor_logit)

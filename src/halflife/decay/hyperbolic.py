"""Hyperbolic decay: the discounting that people show."""

import torch
from torch import Tensor

from halflife.decay.kernel import Kernel, positive_parameter


class Hyperbolic(Kernel):
    """w(a) = 1 / (1 + a/h): the second halving takes twice as long as the first, the third four times.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.

    Shape: any, kept.

    Raises:
        InputError: when h is not a number above 0.

    Source: Mazur, An Adjusting Procedure for Studying Delayed Reinforcement (in Quantitative Analyses of
    Behavior 5, 1987), V = A / (1 + kD), with k = 1/h.

    >>> Hyperbolic(half_life_days=5.0, learn=False)(torch.tensor([0.0, 5.0, 15.0])).exp()
    tensor([1.0000, 0.5000, 0.2500])
    """

    def __init__(self, half_life_days: float, learn: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        return -torch.log1p(age / self.half_life)

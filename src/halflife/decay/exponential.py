"""Exponential decay: every half-life halves what is left."""

from torch import Tensor

from halflife.decay.kernel import LN2, Kernel, positive_parameter


class Exponential(Kernel):
    """w(a) = 2^(−a/h): the same share is lost in every equal stretch of time.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.

    Source: Ding & Li, Time Weight Collaborative Filtering (CIKM 2005), eq. 5, with λ = ln 2 / h.

    >>> import torch
    >>> Exponential(half_life_days=5.0, learn=False)(torch.tensor([0.0, 5.0, 10.0])).exp()
    tensor([1.0000, 0.5000, 0.2500])
    """

    def __init__(self, half_life_days: float, learn: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        return -LN2 * age / self.half_life

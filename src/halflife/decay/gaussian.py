"""Gaussian decay: a plateau, then a steep fall."""

from torch import Tensor

from halflife.decay.kernel import LN2, Kernel, positive_parameter


class Gaussian(Kernel):
    """w(a) = 2^(−(a/h)²): hardly any loss while young, almost nothing left at three half-lives.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.

    Shape: any, kept.

    Raises:
        InputError: when h is not a number above 0.

    Source: Elasticsearch reference, function score query, the decay function `gauss` with `scale` = h and
    `decay` = 0.5.

    >>> import torch
    >>> Gaussian(half_life_days=5.0, learn=False)(torch.tensor([0.0, 5.0, 10.0])).exp()
    tensor([1.0000, 0.5000, 0.0625])
    """

    def __init__(self, half_life_days: float, learn: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        return -LN2 * (age / self.half_life).square()

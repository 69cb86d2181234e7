"""Linear decay: the same amount is lost every day, until nothing is left."""

from torch import Tensor

from halflife.decay.kernel import LEAST_WEIGHT, Kernel, positive_parameter


class Linear(Kernel):
    """w(a) = max(0, 1 − a/(2h)): gone at two half-lives.

    In log space, nothing left is `kernel.LEAST_WEIGHT`: there the weight is constant and has no gradient, so
    a half-life that starts too short for every age in the data is not found again.

    Args:
        half_life_days: h > 0, in days.
        learn: whether h is learned.

    Shape: any, kept.

    Raises:
        InputError: when h is not a number above 0.

    Source: Elasticsearch reference, function score query, the decay function `linear` with `scale` = h and
    `decay` = 0.5.

    >>> import torch
    >>> Linear(half_life_days=5.0, learn=False)(torch.tensor([0.0, 5.0, 7.5])).exp()
    tensor([1.0000, 0.5000, 0.2500])
    """

    def __init__(self, half_life_days: float, learn: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        return (1 - age / (2 * self.half_life)).clamp(min=LEAST_WEIGHT).log()

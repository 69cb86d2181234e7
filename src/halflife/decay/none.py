"""No decay: the baseline in which a click matters for ever."""

import torch
from torch import Tensor

from halflife.decay.kernel import Kernel


class NoDecay(Kernel):
    """w(a) = 1: every past click weighs the same. It has no half-life and nothing to learn.

    Shape: any, kept.

    Source: the plain mean of a history, as in Covington, Adams & Sargin, Deep Neural Networks for YouTube
    Recommendations (RecSys 2016).

    >>> NoDecay()(torch.tensor([0.0, 5.0, 1e4])).exp()
    tensor([1., 1., 1.])
    """

    def log_weight(self, age: Tensor) -> Tensor:
        return torch.zeros_like(age)

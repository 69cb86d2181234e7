"""Exponential decay in the order of the clicks, whatever time lies between them."""

import torch
from torch import Tensor

from halflife.decay.kernel import LN2, Kernel, positive_parameter


class RankExponential(Kernel):
    """w = 2^(−r/h), where the rank r is the number of strictly smaller ages in the row: newest 0, ties share.

    It reads only the order of the ages along their last dimension, so it also serves a log that has no click
    times. Slots that are padding must have an age of +∞ (or larger than every real age): they then rank after
    the real clicks and leave their ranks alone. A padded age of 0 would push every real click one rank down.

    Args:
        half_life_ranks: h > 0, in ranks.
        learn: whether h is learned.

    Shape: (..., history), kept; one history a row.

    Raises:
        InputError: when h is not a number above 0.

    Source: weights by position in the session, as in Ludewig & Jannach, Evaluation of Session-based
    Recommendation Algorithms (UMUAI 2018), with the decay of Ding & Li (CIKM 2005) in ranks.

    >>> kernel = RankExponential(half_life_ranks=1.0, learn=False)
    >>> kernel(torch.tensor([[90.0, 7.0, 7.0, 0.5], [torch.inf, torch.inf, 3.0, 2.0]])).exp()
    tensor([[0.1250, 0.5000, 0.5000, 1.0000],
            [0.2500, 0.2500, 0.5000, 1.0000]])
    """

    ranks = True

    def __init__(self, half_life_ranks: float, learn: bool) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_ranks", half_life_ranks, "ranks", learn)

    @property
    def half_life(self) -> Tensor:
        """The half-life in ranks."""
        return self.log_half_life.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        row = torch.atleast_1d(age.detach()).contiguous()
        # Sorting keeps this O(n log n) in memory O(n); comparing all pairs would need n² at each row.
        rank = torch.searchsorted(row.sort(dim=-1).values, row).to(age.dtype).reshape(age.shape)
        return -LN2 * rank / self.half_life

"""The plainest interest: the faded mean, or sum, of the clicks."""

import torch
from torch import Tensor

from halflife.interest.compose import Composed, weighted_sum


class Pool(Composed):
    """A reader's interest is the faded mean, or sum, of their clicks: u = Σ_i a_i v_i.

    No logits, so a_i = w_i / D. normalised: D = Σ_j w_j;  sink: D = Σ_j w_j + s;  scale: D = the number of
    clicks;  sum: D = 1. Linear in the weights' signs: a kernel may give negative ones.

    Args:
        dim: of the item vectors; unused, there so that every interest model is built alike.
        composition: `normalised`, `sink`, `scale` or `sum`.
        scale: where the learned scale starts, > 0.
        sink: where the learned s starts, > 0, in clicks that just happened; read by `sink` alone.

    Raises:
        InputError: when the composition is unknown, or scale or sink is not a number above 0.

    Source: `normalised` is Ding & Li, Time Weight Collaborative Filtering (CIKM 2005), eq. 4, and `sum` is
    its numerator.
    """

    compositions = ("normalised", "sink", "scale", "sum")
    signed = True
    bilinear = True

    def __init__(self, dim: int, composition: str, scale: float, sink: float) -> None:
        super().__init__(composition, scale, sink)

    def forward(
        self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor, age: Tensor
    ) -> Tensor:
        share = self.share(torch.zeros_like(log_weight), log_weight, mask)
        return self.score(weighted_sum(share, history), candidates)

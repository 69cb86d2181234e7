"""Target attention: each candidate asks the history what matters to it."""

import torch
from torch import Tensor

from halflife.interest.compose import Composed, projection


class Attention(Composed):
    """Each candidate has an interest of its own: u_c = Σ_i a_ci v_i, of logit l_ci = q(v_c)·k(v_i).

    q and k are learned and linear, and start as the identity. `sum` takes e^(l_ci) as it is, which overflows
    where vectors are long: it suits item vectors of length about 1.

    Args:
        dim: of the item vectors.
        composition: `log_bias`, `sink`, `scale` or `sum`.
        scale: where the learned scale starts, > 0.
        sink: where the learned s starts, > 0, in clicks that just happened; read by `sink` alone.

    Raises:
        InputError: when the composition is unknown, or scale or sink is not a number above 0.

    Source: Zhou et al., Deep Interest Network (KDD 2018), section 4.3, with the inner product for its
    activation unit.
    """

    compositions = ("log_bias", "sink", "scale", "sum")

    def __init__(self, dim: int, composition: str, scale: float, sink: float) -> None:
        super().__init__(composition, scale, sink)
        self.query, self.key = projection(dim), projection(dim)

    def forward(
        self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor, age: Tensor
    ) -> Tensor:
        logit = torch.einsum("bcd,bhd->bch", self.query(candidates), self.key(history))
        share = self.share(logit, log_weight.unsqueeze(1), mask.unsqueeze(1))
        similarity = torch.einsum("bhd,bcd->bch", history, candidates)
        return self.log_scale.exp() * (share * similarity).sum(2) + self.bias

"""Self-attention: each click is read beside the others, then all are pooled."""

import math

import torch
from torch import Tensor, nn

from halflife.decay.kernel import count
from halflife.errors import InputError
from halflife.interest.compose import LOWEST, Composed, projection, wide


class SelfAttention(Composed):
    """c_i = Σ_j a_ij V v_j in each head, l_ij = (Q v_i)·(K v_j) / √(dim / heads);  u = Σ_i b_i c_i.

    b = softmax_i(p · tanh(P c_i + p₀)) is additive attention. A click fades where it is attended to, by its
    own weight w_j in a_ij, and there alone: what an old click lends to a newer one has faded too, and b fades
    nothing a second time. Q, K and V start as the identity. `sum` suits vectors of length about 1, as in
    `Attention`.

    Args:
        dim: of the item vectors.
        heads: a divisor of `dim`; each reads dim / heads of the projected dimensions.
        composition: `log_bias`, `sink`, `scale` or `sum`; how w_j enters a_ij.
        scale: where the learned scale starts, > 0.
        sink: where the learned s starts, > 0, in clicks that just happened; read by `sink` alone.

    Raises:
        InputError: when heads does not divide dim, the composition is unknown, or scale or sink is not a
            number above 0.

    Source: Wu et al., Neural News Recommendation with Multi-Head Self-Attention (NRMS; EMNLP 2019), section
    2.2, with logits scaled as by Vaswani et al., Attention Is All You Need (NeurIPS 2017), section 3.2.
    """

    compositions = ("log_bias", "sink", "scale", "sum")

    def __init__(self, dim: int, heads: int, composition: str, scale: float, sink: float) -> None:
        super().__init__(composition, scale, sink)
        self.heads = count("interest.heads", heads, at_least=1)
        if dim % heads:
            raise InputError(
                f"interest.heads must be a divisor of model.dim, {dim} (heads), got {heads}; change either"
            )
        self.query, self.key, self.value = projection(dim), projection(dim), projection(dim)
        self.inner = nn.Linear(dim, dim)
        self.outer = nn.Linear(dim, 1, bias=False)

    def forward(
        self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor, age: Tensor
    ) -> Tensor:
        history = history * mask.unsqueeze(-1)  # padded places ask too, and `sum` answers without bound
        query, key, value = (
            linear(history).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        logit = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        share = self.share(logit, log_weight[:, None, None], mask[:, None, None])
        click = (share @ value.to(share.dtype)).transpose(1, 2).flatten(2)
        pooling = self.outer(self.inner(click).tanh()).squeeze(-1)
        pooled = wide(pooling).masked_fill(~mask, LOWEST).softmax(1) * mask
        return self.score(torch.einsum("bh,bhd->bd", pooled, click), candidates)

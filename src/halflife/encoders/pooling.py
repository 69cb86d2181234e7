"""Token vectors to one vector a text, each right under padding on either side."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from halflife.errors import choice

Pooling = Callable[[Tensor, Tensor], Tensor]


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real tokens' vectors.

    Args:
        hidden: token vectors.
        mask: True where real; at least one a row.

    Shape: hidden (items, tokens, width), mask (items, tokens) → (items, width).

    Source: Reimers & Gurevych, Sentence-BERT (EMNLP 2019), section 3.
    """
    # not a product: what stands in a padded place may be infinite
    return hidden.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(1, keepdim=True).to(hidden.dtype)


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """Vector of the first real token, which BERT puts there to stand for the whole.

    Shape: hidden (items, tokens, width), mask (items, tokens) → (items, width).

    Source: Devlin et al., BERT (NAACL 2019), section 3.
    """
    return _at(hidden, mask.int().argmax(1))


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """Vector of the last real token, the only one of a decoder that has read the whole text.

    Shape: hidden (items, tokens, width), mask (items, tokens) → (items, width).

    Source: Neelakantan et al., Text and Code Embeddings by Contrastive Pre-Training (2022), section 2.1.
    """
    return _at(hidden, mask.shape[1] - 1 - mask.flip(1).int().argmax(1))


def _at(hidden: Tensor, place: Tensor) -> Tensor:
    """The vector at one place of each row."""
    return hidden.gather(1, place.view(-1, 1, 1).expand(-1, 1, hidden.shape[2])).squeeze(1)


class Attention(nn.Module):
    """Additive attention over the real tokens: Σ a_t h_t with a = softmax_t(qᵀ tanh(W h_t + b)).

    Starts as the mean, since q starts at 0.

    Args:
        width: of the token vectors, and of q.

    Shape: hidden (items, tokens, width), mask (items, tokens) → (items, width).

    Source: Wu et al., NRMS (EMNLP 2019), section 2.1, eq. 5 to 7.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.query = nn.Parameter(torch.zeros(width))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = hidden.masked_fill(~mask.unsqueeze(-1), 0)
        weight = torch.tanh(self.inner(hidden)) @ self.query
        share = weight.masked_fill(~mask, -torch.inf).softmax(1)
        return (share.unsqueeze(-1) * hidden).sum(1)


def by_name(name: str, width: int) -> Pooling:
    """The pooling that `model.pooling` names, over vectors of this width.

    Raises:
        InputError: for an unknown name.
    """
    name = choice("model.pooling", name, ["mean", "cls", "last", "attention"])
    return Attention(width) if name == "attention" else {"mean": mean, "cls": cls, "last": last}[name]

"""Token vectors to one vector a text, each right under padding."""

from collections.abc import Callable

from torch import Tensor

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
    real = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1)


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """Vector of the first token, which BERT puts there to stand for the whole.

    Shape: hidden (items, tokens, width), mask (items, tokens) → (items, width).

    Source: Devlin et al., BERT (NAACL 2019), section 3.
    """
    return hidden[:, 0]


def by_name(name: str) -> Pooling:
    """The pooling that `model.pooling` names.

    Raises:
        InputError: for an unknown name.
    """
    return {"mean": mean, "cls": cls}[choice("model.pooling", name, ["mean", "cls"])]

"""Bottleneck adapters: small layers behind frozen ones, which start by doing nothing.

PEFT has none, and the library that has (`adapters`) is tied to an older transformers; they are a few lines.
"""

import torch
from torch import Tensor, nn

from halflife.encoders.layers import LINEAR


class Bottleneck(nn.Module):
    """A frozen linear layer and an adapter behind it: h = W x, then h + U relu(D h), where U starts at 0.

    Args:
        layer: W.
        size: rows of D, the bottleneck.

    Shape: (…, in) → (…, out) of the layer.

    Source: Houlsby et al., Parameter-Efficient Transfer Learning for NLP (ICML 2019), section 2.1.
    """

    def __init__(self, layer: nn.Module, size: int) -> None:
        super().__init__()
        width = width_of(layer)
        self.layer = layer
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.layer(x)
        return hidden + self.up(torch.relu(self.down(hidden)))


def width_of(layer: nn.Module) -> int:
    """Size of what a linear layer gives."""
    if not isinstance(layer, LINEAR):
        raise AssertionError(f"{type(layer).__name__} is no linear layer")
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.nf)


def insert(block: nn.Module, name: str, size: int) -> None:
    """Put an adapter behind a linear layer of a block."""
    parent, _, last = name.rpartition(".")
    owner = block.get_submodule(parent)
    setattr(owner, last, Bottleneck(block.get_submodule(name), size))

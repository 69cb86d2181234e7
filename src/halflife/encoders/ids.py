"""Item vectors without text: the collaborative baseline."""

import torch
from torch import Tensor, nn

from halflife.batches import Batch
from halflife.errors import number, whole
from halflife.store import Store


class IdEmbedding(nn.Module):
    """One learned vector an item; knows nothing of an item it never saw.

    Vectors start small, so that an unseen item scores near the bias.

    Args:
        store: the catalogue.
        dim: size of the item vectors, at least 1.
        lr: learning rate of the vectors.

    Source: Koren, Bell & Volinsky, Matrix Factorization Techniques for Recommender Systems (Computer 2009).
    """

    def __init__(self, store: Store, dim: int, lr: float) -> None:
        super().__init__()
        self.dim = whole("model.dim", dim, "dimensions", at_least=1)
        self.lr = number("model.lr", lr, "learning rate", at_least=0)
        self.reads_tokens, self.tokens = False, None
        self.frozen_parameters = 0
        self.identity: dict[str, str] = {}
        """What beside shapes makes two encoders the same, by the key that a user would set."""
        self.backbone = nn.Embedding(store.n_items, self.dim)
        nn.init.normal_(self.backbone.weight, std=0.1 / self.dim**0.5)

    def forward(self, batch: Batch) -> Tensor:
        """Vectors of the batch's distinct items, (U, dim)."""
        return self.backbone(batch.item)

    @torch.no_grad()
    def catalogue(self) -> Tensor:
        """Vectors of every item, (items, dim)."""
        return self.backbone.weight.detach()

"""Item vectors without text or training: an item is its category."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from halflife.batches import Batch
from halflife.store import Store


class Topics(nn.Module):
    """One-hot vectors of the items' categories: v_i·v_j = 1 within a category and 0 between two.

    Where clicks depend on nothing but the category, as in the newsroom, these are the true vectors, and a fit
    through them shows what the estimate of the decay is worth by itself.

    Args:
        store: the catalogue.
    """

    vectors: Tensor

    def __init__(self, store: Store) -> None:
        super().__init__()
        _, code = torch.unique(torch.from_numpy(store.item_category.astype("int64")), return_inverse=True)
        self.register_buffer("vectors", nn.functional.one_hot(code).float(), persistent=False)
        self.dim, self.lr = int(self.vectors.shape[1]), 0.0
        self.reads_tokens, self.tokens = False, None
        self.frozen_parameters = 0
        self.identity: dict[str, str] = {}

    def forward(self, batch: Batch) -> Tensor:
        """Vectors of the batch's distinct items, (U, dim)."""
        return embedding(batch.item, self.vectors)

    def catalogue(self) -> Tensor:
        """Vectors of every item, (items, dim)."""
        return self.vectors

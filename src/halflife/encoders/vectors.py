"""Item vectors out of those that came with the log: of images, sound, graphs, or another model's."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from halflife.batches import Batch
from halflife.errors import InputError, whole
from halflife.store import Store

CATALOGUE_ITEMS = 16_384  # vectors of the catalogue that are mapped together


class VectorMap(nn.Module):
    """A learned linear map of the items' own vectors: W x / |x|, and 0 for an item without one.

    Args:
        store: of a log with vectors.
        dim: size of what comes out.
        beside: width of vectors that another orthogonal map takes to `dim` beside this one: it starts scaled,
            so that both parts are of one expected length, |W x̂|² = |W′ t̂|² on average over directions.
    """

    def __init__(self, store: Store, dim: int, beside: int | None = None) -> None:
        super().__init__()
        self.given = store.item_vector
        width = self.given.shape[1]
        self.projection = nn.Linear(width, dim, bias=False)
        gain = 1.0 if beside is None else (max(width, dim) / max(beside, dim)) ** 0.5
        nn.init.orthogonal_(self.projection.weight, gain)  # keeps the similarities that are in the vectors

    def forward(self, batch: Batch) -> Tensor:
        """Of the batch's distinct items, (U, dim)."""
        if batch.item_vectors is None:
            raise AssertionError("the batches of a log with vectors carry them")
        return self._mapped(batch.item_vectors)

    def of_range(self, low: int, high: int) -> Tensor:
        """Of items of the catalogue, (high − low, dim)."""
        part = torch.from_numpy(np.array(self.given[low:high]))
        return self._mapped(part.to(self.projection.weight.device))

    def _mapped(self, vectors: Tensor) -> Tensor:
        """Brought to length 1, where it is not 0, and mapped."""
        return self.projection(nn.functional.normalize(vectors, dim=-1))


class ItemVectors(nn.Module):
    """Item vectors from those that came with the log alone, whatever the items' text: v = W x / |W x|.

    An item without a vector is 0, so that nothing is known of it: it scores the bias as a candidate, and as a
    click it adds nothing.

    Args:
        store: of a log with vectors (`data.vectors`).
        dim: size of the item vectors, at least 1.

    Raises:
        InputError: for a log without vectors, or a setting out of range.
    """

    def __init__(self, store: Store, dim: int) -> None:
        super().__init__()
        self.dim, self.lr = whole("model.dim", dim, "dimensions", at_least=1), 0.0
        if not store.has_vectors:
            raise InputError(
                "data.vectors must be a file of item vectors for model=item_vectors, got null; add "
                "data.vectors=FILE, or choose another model"
            )
        self.reads_tokens, self.tokens = False, None
        self.frozen_parameters = 0
        self.identity: dict[str, str] = {}
        self.items = store.n_items
        self.map = VectorMap(store, self.dim)

    def forward(self, batch: Batch) -> Tensor:
        """Vectors of the batch's distinct items, (U, dim)."""
        return nn.functional.normalize(self.map(batch), dim=-1)

    @torch.no_grad()
    def catalogue(self) -> Tensor:
        """Vectors of every item, (items, dim)."""
        edges = [*range(0, self.items, CATALOGUE_ITEMS), self.items]
        parts = [self.map.of_range(low, high) for low, high in pairwise(edges)]
        return nn.functional.normalize(torch.cat(parts), dim=-1)

"""Item text to vectors with a pretrained model: each distinct item once, hardly any padding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halflife import pretrained as pretrained_models
from halflife.batches import Batch
from halflife.encoders import cache
from halflife.encoders.pooling import Pooling, by_name
from halflife.errors import InputError, number, shown, text, whole
from halflife.store import Store

CHUNK_ITEMS = 64  # texts of like length that go through the encoder together; measured on 2 CPU cores

RECOMPUTE_ITEMS = 2048
"""Distinct items of a batch from which activations are recomputed, chunk by chunk, instead of kept: a third
more work, and memory that no longer grows with the batch."""


def encode(backbone: Any, pooling: Pooling, tokens: Tensor, length: Tensor) -> Tensor:
    """Encode texts given on end, in chunks of like length, so that hardly a padded token is computed.

    Args:
        backbone: a `transformers` model.
        pooling: token vectors and mask to one vector.
        tokens: token ids of all texts on end.
        length: tokens of each text, at least 1.

    Shape: tokens (T,), length (U,) → (U, width), in the order given.
    """
    start = length.cumsum(0) - length
    order = torch.argsort(length, stable=True)
    parts = []
    for chunk in order.split(CHUNK_ITEMS):
        place = torch.arange(int(length[chunk[-1]]), device=tokens.device)
        mask = place < length[chunk].unsqueeze(1)
        ids = tokens[(start[chunk].unsqueeze(1) + place).clamp_max(len(tokens) - 1)].masked_fill(~mask, 0)
        if torch.is_grad_enabled() and len(order) > RECOMPUTE_ITEMS:
            pooled = checkpoint(_pooled, backbone, pooling, ids, mask, use_reentrant=False)
        else:
            pooled = _pooled(backbone, pooling, ids, mask)
        parts.append(pooled)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return torch.cat(parts)[back]


def _pooled(backbone: Any, pooling: Pooling, ids: Tensor, mask: Tensor) -> Tensor:
    """Encode one padded chunk and pool it."""
    return pooling(backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask)


class TextEncoder(nn.Module):
    """Item vectors from text: a pretrained model, what of it trains, a pooling, a linear head, length 1.

    v = W · pool(backbone(text)) / |W · pool(backbone(text))|

    A model of which nothing trains is run once over the catalogue and its vectors are kept on disk; a tuned
    one is run once a batch over the distinct items.

    Args:
        store: the catalogue to encode.
        pretrained: `bundled`, a directory or a hub name.
        tuning: a function of `encoders.tuning` with its settings.
        pooling: `mean` or `cls`.
        dim: size of the item vectors.
        max_tokens: longer texts are cut.
        lr: learning rate of what trains in the pretrained model.
        cache_dir: where the vectors of frozen models are kept.

    Raises:
        InputError: for a model that cannot be found, or a setting out of range.
    """

    vectors: Tensor

    def __init__(
        self,
        store: Store,
        pretrained: str,
        tuning: Callable[[Any], Any],
        pooling: str,
        dim: int,
        max_tokens: int,
        lr: float,
        cache_dir: str,
    ) -> None:
        super().__init__()
        max_tokens = whole("model.max_tokens", max_tokens, "tokens", at_least=3)
        self.dim = whole("model.dim", dim, "dimensions", at_least=1)
        self.lr = number("model.lr", lr, "learning rate", at_least=0)
        self.pooling = by_name(pooling)
        text("model.pretrained", pretrained, "bundled, a directory or a hub name")
        if not callable(tuning):
            raise InputError(
                f"model.tuning must be a function of halflife.encoders.tuning, got {shown(tuning)}; "
                "choose it by model=bert_lora, model=bert_full and so on"
            )
        self.tokens = self.ids, self.start = store.tokens(pretrained, max_tokens)
        source = pretrained_models.resolve(pretrained)
        weights = pretrained_models.weights_key(source)
        self.identity = {
            "model.pretrained": f"the model with weights {weights[:16]}",
            "model.pooling": pooling,
            "model.max_tokens": str(max_tokens),
        }
        """What beside shapes makes two encoders the same, by the key that a user would set."""
        backbone = tuning(pretrained_models.load(source))
        limit = getattr(backbone.config, "max_position_embeddings", None)
        if limit is not None and max_tokens > limit:
            raise InputError(
                f"model.max_tokens must be at most {limit} (tokens) for {pretrained}, got {max_tokens}; "
                "lower it"
            )
        self.reads_tokens = any(p.requires_grad for p in backbone.parameters())
        self.frozen_parameters = 0
        width = int(backbone.config.hidden_size)
        if self.reads_tokens:
            self.backbone = backbone.train()  # loading leaves it in eval mode, without dropout
        else:
            self.frozen_parameters = sum(p.numel() for p in backbone.parameters())
            config = (source / "config.json").read_bytes()
            name = cache.key(weights, config, pooling, self.ids, self.start)
            found = cache.vectors(
                Path(cache_dir).expanduser(), name, store.n_items, lambda: self._all(backbone).numpy()
            )
            self.register_buffer("vectors", torch.from_numpy(found), persistent=False)
        self.projection = nn.Linear(width, self.dim, bias=False)
        nn.init.orthogonal_(self.projection.weight)  # keeps the similarities that pretraining found

    def head(self, pooled: Tensor) -> Tensor:
        """Project and scale to length 1; (…, width) → (…, dim)."""
        return nn.functional.normalize(self.projection(pooled), dim=-1)

    def forward(self, batch: Batch) -> Tensor:
        """Vectors of the batch's distinct items, (U, dim)."""
        if not self.reads_tokens:
            return self.head(self.vectors[batch.item])
        if batch.tokens is None or batch.token_length is None:
            raise AssertionError("a tuned encoder needs batches with tokens")
        return self.head(encode(self.backbone, self.pooling, batch.tokens, batch.token_length))

    @torch.no_grad()
    def catalogue(self) -> Tensor:
        """Vectors of every item, (items, dim), for evaluation. Leaves the training mode as it was."""
        if not self.reads_tokens:
            return self.head(self.vectors)
        training = self.backbone.training
        self.backbone.eval()
        pooled = self._all(self.backbone)
        self.backbone.train(training)
        return self.head(pooled)

    @torch.no_grad()
    def _all(self, backbone: Any) -> Tensor:
        """Pooled vectors of every item, a few thousand texts at a time, with a bar when it takes a while."""
        from halflife.progress import bar

        backbone.eval()
        device = next(backbone.parameters()).device
        rows = np.array_split(np.arange(len(self.start) - 1), max(1, (len(self.start) - 1) // 1024))
        parts = []
        for part in bar(rows, "encode the catalogue"):
            first, last = self.start[part[0]], self.start[part[-1] + 1]
            tokens = torch.from_numpy(self.ids[first:last].astype(np.int64)).to(device)
            length = torch.from_numpy(np.diff(self.start[part[0] : part[-1] + 2])).to(device)
            parts.append(encode(backbone, self.pooling, tokens, length))
        return torch.cat(parts)

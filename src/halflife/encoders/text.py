"""Item text to vectors with a pretrained model: each distinct item once."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halflife import pretrained as pretrained_models
from halflife.batches import Batch
from halflife.encoders import cache, packing
from halflife.encoders.chunks import encode, rectangle, token_vectors
from halflife.encoders.pooling import Attention, by_name
from halflife.encoders.ranks import RankSchedule
from halflife.encoders.reuse import Reuse
from halflife.encoders.vectors import VectorMap
from halflife.errors import InputError, flag, number, shown, text, whole
from halflife.store import Store

CATALOGUE_ITEMS = 1024  # texts of the catalogue that are looked at together, for their lengths
CHUNK_TOKENS = {
    False: 1024,
    True: 32768,
}  # by whether on a GPU, which waits for its next call in smaller ones


class TextEncoder(nn.Module):
    """Item vectors from text: a pretrained model, what of it trains, a pooling, a linear head, length 1.

    v = W · t / |W · t| with t = pool(backbone(text)). Where items came with vectors x (`data.vectors`):
    v ∝ W · t / |t| + W′ · x / |x|, of length 1 too, with the last term 0 for an item without one.

    A model of which nothing trains is run once over the catalogue and its vectors are kept on disk: one an
    item, or one a token where the pooling itself learns. A tuned one is run once a batch over the distinct
    items.

    Args:
        store: the catalogue to encode.
        pretrained: `bundled`, `smollm2`, a directory or a hub name.
        quantize: bits of the frozen weights, 4 or 8, on a GPU; None keeps them as they are.
        tuning: a function of `encoders.tuning` with its settings.
        pooling: `mean`, `cls`, `last` or `attention`.
        dim: size of the item vectors.
        max_tokens: longer texts are cut.
        lr: learning rate of what trains in the pretrained model.
        chunk_tokens: as in `encoders.chunks.encode`; None leaves it to the device.
        keep_tokens: as there; the two bound memory.
        packed: whether texts go through the model on end, as in `encoders.packing`, where its architecture
            can; else in padded rows of like length.
        gradient_checkpointing: keep one activation a block, and recompute what lies between.
        compile: hand the model to `torch.compile`.
        reuse_steps, reuse_rise_steps: as in `encoders.reuse`; 0 steps encodes every item anew.
        cache_dir: where the vectors of frozen models are kept.

    Raises:
        InputError: for a model that cannot be found, or a setting out of range.
    """

    vectors: Tensor

    def __init__(
        self,
        store: Store,
        pretrained: str,
        quantize: int | None,
        tuning: Callable[[Any], Any],
        pooling: str,
        dim: int,
        max_tokens: int,
        lr: float,
        chunk_tokens: int | None,
        keep_tokens: int,
        packed: bool,
        gradient_checkpointing: bool,
        compile: bool,
        reuse_steps: int,
        reuse_rise_steps: int,
        cache_dir: str,
    ) -> None:
        super().__init__()
        max_tokens = whole("model.max_tokens", max_tokens, "tokens", at_least=3)
        self.dim = whole("model.dim", dim, "dimensions", at_least=1)
        self.lr = number("model.lr", lr, "learning rate", at_least=0)
        if chunk_tokens is not None:
            whole("model.chunk_tokens", chunk_tokens, "tokens", at_least=1)
        self.chunk_tokens = chunk_tokens
        self.keep_tokens = whole("model.keep_tokens", keep_tokens, "tokens", at_least=0)
        reuse_steps = whole("model.reuse_steps", reuse_steps, "steps", at_least=0)
        text("model.pretrained", pretrained, "bundled, smollm2, a directory or a hub name")
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
            "model.quantize": shown(quantize),
            "model.tuning": described(tuning),
            "model.pooling": pooling,
            "model.max_tokens": str(max_tokens),
            "model.reuse_steps": str(reuse_steps),
        }
        """What beside shapes makes two encoders the same, by the key that a user would set."""
        model = pretrained_models.load(source, quantize)
        on_end = flag("model.packed", packed) and packing.prepare(model, max_tokens)
        backbone = tuning(model)
        self.packed = on_end and not _virtual_tokens(backbone)  # which stand before every text
        _check_longest(backbone, max_tokens, pretrained)
        width = int(backbone.config.hidden_size)
        self.pooling = by_name(pooling, width)
        self.reads_tokens = any(p.requires_grad for p in backbone.parameters())
        self.ranks: RankSchedule | None = getattr(backbone, "rank_schedule", None)
        self.reuse: Reuse | None = None
        self.frozen_parameters = 0
        if self.reads_tokens:
            if flag("model.gradient_checkpointing", gradient_checkpointing):
                backbone.gradient_checkpointing_enable({"use_reentrant": False})
            if flag("model.compile", compile):
                backbone.compile(dynamic=True)
            self.backbone = backbone.train()  # loading leaves it in eval mode, without dropout
            if reuse_steps:
                self.reuse = Reuse(store.n_items, width, reuse_steps, reuse_rise_steps)
        else:
            self.frozen_parameters = sum(p.numel() for p in backbone.parameters())
            name = cache.key(
                weights,
                pretrained_models.config_key(source),
                f"{described(tuning)} {quantize}",
                "every token" if self._by_token else pooling,
                self.ids,
                self.start,
            )
            rows = len(self.ids) if self._by_token else store.n_items
            device = "cuda" if torch.cuda.is_available() else "cpu"  # no trainer has moved anything yet
            found = cache.vectors(
                Path(cache_dir).expanduser(), name, rows, lambda: self._all(backbone.to(device))
            )
            self.register_buffer("vectors", torch.from_numpy(found), persistent=False)
        self.projection = nn.Linear(width, self.dim, bias=False)
        nn.init.orthogonal_(self.projection.weight)  # keeps the similarities that pretraining found
        self.beside = VectorMap(store, self.dim, width) if store.has_vectors else None

    @property
    def _by_token(self) -> bool:
        """Whether a vector a token is kept, since nothing but the pooling trains."""
        return isinstance(self.pooling, Attention) and not self.reads_tokens

    def head(self, pooled: Tensor, beside: Tensor | None = None) -> Tensor:
        """Project, add the items' mapped vectors, scale to length 1; (U, width), (U, dim) → (U, dim)."""
        if beside is None:
            return nn.functional.normalize(self.projection(pooled), dim=-1)
        both = self.projection(nn.functional.normalize(pooled, dim=-1)) + beside
        return nn.functional.normalize(both, dim=-1)

    def forward(self, batch: Batch) -> Tensor:
        """Vectors of the batch's distinct items, (U, dim)."""
        beside = None if self.beside is None else self.beside(batch)
        if not self.reads_tokens:
            return self.head(self._looked_up(batch.item), beside)
        if batch.tokens is None or batch.token_length is None:
            raise AssertionError("a tuned encoder needs batches with tokens")
        tokens, length = batch.tokens, batch.token_length
        if self.reuse is None or not self.training:
            return self.head(self._encode(self.backbone, tokens, length), beside)
        stale = self.reuse.stale(batch.item)
        fresh = self._encode(self.backbone, tokens[stale.repeat_interleave(length)], length[stale])
        return self.head(self.reuse.joined(batch.item, stale, fresh), beside)

    @torch.no_grad()
    def catalogue(self) -> Tensor:
        """Vectors of every item, (items, dim), for evaluation. Leaves the training mode as it was."""
        if not self.reads_tokens:
            every = torch.arange(len(self.start) - 1, device=self.vectors.device)
            return self._headed(self._looked_up(part) for part in every.split(CATALOGUE_ITEMS))
        training = self.backbone.training
        found = self._headed(self._all(self.backbone))
        self.backbone.train(training)
        return found

    def _headed(self, parts: Iterable[Tensor]) -> Tensor:
        """Vectors of every item of its pooled ones, given a part at a time."""
        found, done = [], 0
        for pooled in parts:
            here = done, done + len(pooled)
            found.append(self.head(pooled, None if self.beside is None else self.beside.of_range(*here)))
            done += len(pooled)
        return torch.cat(found)

    def plan(self, steps: int) -> None:
        """Training starts, or goes on, and will have made so many optimizer steps at its end."""
        if self.ranks is not None:
            self.ranks.plan(steps)

    def stepped(self, done: int) -> None:
        """The optimizer has made its step; gradients are still there."""
        if self.ranks is not None:
            self.ranks.step(done)
        if self.reuse is not None:
            self.reuse.step()

    def penalty(self) -> Tensor | float:
        """What the loss gains for the sake of the tuning."""
        return 0.0 if self.ranks is None else self.ranks.penalty()

    def _encode(self, backbone: Any, tokens: Tensor, length: Tensor) -> Tensor:
        """Pooled vectors of texts, (U, width), in chunks that fit the settings."""
        together = self.tokens_together(tokens.device)
        return encode(backbone, self.pooling, tokens, length, together, self.keep_tokens, self.packed)

    def tokens_together(self, device: torch.device) -> int:
        """Tokens that go through the model together on a device."""
        return self.chunk_tokens or CHUNK_TOKENS[device.type == "cuda"]

    def _looked_up(self, item: Tensor) -> Tensor:
        """Pooled vectors of items of a frozen model, (U, width)."""
        if not self._by_token:
            return self.vectors[item]
        place = item.cpu().numpy()
        length = self.start[place + 1] - self.start[place]
        at = np.repeat(self.start[place] - (np.cumsum(length) - length), length) + np.arange(length.sum())
        of_tokens = self.vectors[torch.from_numpy(at).to(item.device)]
        lengths = torch.from_numpy(length).to(item.device)
        return self.pooling(*rectangle(of_tokens, lengths, torch.arange(len(item), device=item.device)))

    @torch.no_grad()
    def _all(self, backbone: Any) -> Iterator[Tensor]:
        """Vectors of every item, pooled or by token, a part at a time, with a bar when it takes a while."""
        from halflife.progress import bar

        backbone.eval()
        device = next(backbone.parameters()).device
        items = len(self.start) - 1
        for part in bar(
            np.array_split(np.arange(items), -(-items // CATALOGUE_ITEMS)), "encode the catalogue"
        ):
            first, last = self.start[part[0]], self.start[part[-1] + 1]
            tokens = torch.from_numpy(self.ids[first:last].astype(np.int64)).to(device)
            length = torch.from_numpy(np.diff(self.start[part[0] : part[-1] + 2])).to(device)
            if self._by_token:
                yield token_vectors(backbone, tokens, length, self.tokens_together(device))
            else:
                yield self._encode(backbone, tokens, length)


def described(tuning: Callable[[Any], Any]) -> str:
    """A tuning function and its settings, in words.

    >>> from functools import partial
    >>> from halflife.encoders.tuning import last_k
    >>> described(partial(last_k, k=2, layer_decay=0.9))
    'last_k(k=2, layer_decay=0.9)'
    """
    function, settings = (tuning.func, tuning.keywords) if isinstance(tuning, partial) else (tuning, {})
    given = ", ".join(f"{key}={shown(value)}" for key, value in sorted(settings.items()))
    return f"{getattr(function, '__name__', type(function).__name__)}({given})"


def _check_longest(backbone: Any, max_tokens: int, pretrained: str) -> None:
    """Raise the InputError where the model has no places for texts that long."""
    limit = getattr(backbone.config, "max_position_embeddings", None)
    if limit is None:
        return
    places = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(places, "padding_idx", None)
    if padding is not None:  # RoBERTa counts places from behind the padding's id
        limit -= padding + 1
    limit -= _virtual_tokens(backbone)
    if max_tokens > limit:
        raise InputError(
            f"model.max_tokens must be at most {limit} (tokens) for {pretrained}, got {max_tokens}; lower it"
        )


def _virtual_tokens(backbone: Any) -> int:
    """Places that a tuning puts in front of every text."""
    learned = getattr(backbone, "peft_config", {}).values()
    return sum(getattr(one, "num_virtual_tokens", None) or 0 for one in learned)

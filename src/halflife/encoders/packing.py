"""Texts on end in one row: linear layers see no padding, and each text attends to itself alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "halflife_packed"


@dataclass(frozen=True)
class Layout:
    """Where the tokens of texts on end lie in the rectangle that attention works on.

    Args:
        mask: True where a text has a token.
        at: the place of each token in the flattened rectangle.

    Shape: mask (n, longest), at (T,).
    """

    mask: Tensor
    at: Tensor


def prepare(model: Any, max_tokens: int) -> bool:
    """Have a model take texts on end, where its architecture can, and say whether.

    One can whose attention is exchangeable and sees the whole of so long a text. What it makes of padded
    batches stays the same.

    Args:
        model: a `transformers` model, before anything of it is tuned.
        max_tokens: of the longest text.
    """
    config = model.config
    window = getattr(config, "sliding_window", None)
    if isinstance(getattr(config, "local_attention", None), int):  # ModernBERT: to either side, half of it
        window = config.local_attention // 2
    exchangeable = getattr(model, "_supports_attention_backend", False)
    if (
        not exchangeable
        or config._attn_implementation != "sdpa"
        or (window is not None and max_tokens > window)
    ):
        return False
    model.set_attn_implementation(NAME)
    return True


def hidden(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Vectors of the tokens of texts, which go through the model on end; 0 where rows are padded.

    Args:
        backbone: a model that `prepare` said yes to.
        ids: token ids, rows padded behind.
        mask: True where real.

    Shape: ids, mask (n, longest) → (n, longest, width).
    """
    places = Layout(mask, mask.flatten().nonzero().squeeze(1))
    position = torch.arange(mask.shape[1], device=ids.device).expand_as(mask) + first_position(backbone)
    found = backbone(
        input_ids=ids[mask].unsqueeze(0), position_ids=position[mask].unsqueeze(0), packed=places
    ).last_hidden_state[0]
    return rectangular(found, places)


def first_position(backbone: Any) -> int:
    """The id of a text's first place: RoBERTa counts from behind the padding's id, all others from 0."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def rectangular(on_end: Tensor, places: Layout) -> Tensor:
    """What belongs to tokens on end, as rows padded with 0; (T, …) → (n, longest, …)."""
    out = on_end.new_zeros((places.mask.numel(), *on_end.shape[1:]))
    return out.index_copy(0, places.at, on_end).view(*places.mask.shape, *on_end.shape[1:])


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Layout | None = None,
    is_causal: bool | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Attention of `transformers`' interface; of texts on end, each to itself.

    Padding comes back for it, and only for it: texts of like length lie together, and of a title's work
    attention is a few percent.

    Shape: query, key, value (1, heads, T, size) → (1, T, heads, size) where packed; else as SDPA's.
    """
    if packed is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, is_causal=is_causal, **settings
        )
        return out
    q, k, v = (rectangular(x[0].transpose(0, 1), packed).transpose(1, 2) for x in (query, key, value))
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    mask = None if causal else packed.mask[:, None, None, :]  # behind a text's end is nothing that it sees
    found, _ = sdpa_attention_forward(module, q, k, v, mask, is_causal=causal, **settings)
    return found.flatten(0, 1).index_select(0, packed.at).unsqueeze(0), None


def mask(**settings: Any) -> Tensor | None:
    """SDPA's mask of a padded batch, and none where texts lie on end."""
    if settings["attention_mask"] is None:
        return None
    made: Tensor | None = sdpa_mask(**settings)
    return made


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)

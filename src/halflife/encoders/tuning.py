"""What trains: each function takes a pretrained model and leaves `requires_grad` where it belongs.

A mode may leave two more things on the model, for the training loop: `lr_scale`, the share of the learning
rate of each parameter, by name; and `rank_schedule`, what AdaLoRA does behind each step.
"""

import re
from typing import Any

import torch
from torch import nn

from halflife.encoders.adapters import insert
from halflife.encoders.layers import blocks, check_some_train, sublayer_ends, targets
from halflife.encoders.ranks import RankSchedule
from halflife.errors import InputError, choice, number, whole


def frozen(model: Any) -> Any:
    """Nothing trains, embeddings neither; every vector can then be computed once and kept."""
    model.requires_grad_(False)
    return model


def full(model: Any) -> Any:
    """Every parameter trains, but for heads that no text encoder uses."""
    model.requires_grad_(True)
    pooler = getattr(model, "pooler", None)
    if isinstance(pooler, nn.Module):  # never called: DDP would wait for its gradient
        pooler.requires_grad_(False)
    return model


def last_k(model: Any, k: int, layer_decay: float) -> Any:
    """The last k transformer blocks train; embeddings and the blocks below stay.

    Args:
        k: blocks, from 1 to as many as the model has.
        layer_decay: learning rate of a block over that of the block above it, in (0, 1].

    Raises:
        InputError: when the model has fewer blocks.

    Source: Howard & Ruder, ULMFiT (ACL 2018): rates by layer in section 3.1, unfreezing from the top in 3.3.
    """
    every = blocks(model)
    k = whole("model.tuning.k", k, "blocks", at_least=1, at_most=len(every))
    model.requires_grad_(False)
    layer_decay = number("model.tuning.layer_decay", layer_decay, "factor", above=0, at_most=1)
    model.lr_scale = {}
    for above, (where, block) in enumerate(reversed(every[-k:])):
        block.requires_grad_(True)
        model.lr_scale |= {f"{where}.{name}": layer_decay**above for name, _ in block.named_parameters()}
    return model


def bitfit(model: Any) -> Any:
    """Biases train, and nothing else.

    Raises:
        InputError: for a model without biases, such as Llama and ModernBERT.

    Source: Ben Zaken, Ravfogel & Goldberg, BitFit (ACL 2022), section 3.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias") and not name.startswith("pooler."))
    return check_some_train(model, "bitfit")


def lora(model: Any, r: int, alpha: float, dropout: float, target_modules: Any) -> Any:
    """Low-rank updates beside frozen weights: W x + (alpha / r) · B A x, where B starts at 0.

    Args:
        r: rank of A and B, at least 1.
        alpha: scale of the update, > 0.
        dropout: on the update's input, in [0, 1).
        target_modules: ends of the names of the linear layers that get an update, or `all`.

    Raises:
        InputError: when a value is out of range, or a target matches no layer.

    Source: Hu et al., LoRA (ICLR 2022), section 4.1, eq. 3; PEFT does the work.
    """
    return _low_rank(model, r, alpha, dropout, target_modules, magnitude=False)


def dora(model: Any, r: int, alpha: float, dropout: float, target_modules: Any) -> Any:
    """LoRA for the direction of each weight column, and a learned magnitude for its length.

    Args:
        r, alpha, dropout, target_modules: as in `lora`.

    Raises:
        InputError: as in `lora`.

    Source: Liu et al., DoRA (ICML 2024), section 4.1, eq. 5; PEFT does the work.
    """
    return _low_rank(model, r, alpha, dropout, target_modules, magnitude=True)


def adalora(
    model: Any,
    init_r: int,
    target_r: int,
    alpha: float,
    dropout: float,
    warmup: float,
    final: float,
    orthogonal: float,
    target_modules: Any,
) -> Any:
    """Low-rank updates P Λ Q whose ranks the training hands out: each layer keeps those that matter.

    Args:
        init_r: rank of every layer at the start.
        target_r: mean rank at the end, at least 1 and below `init_r`.
        alpha: scale of the update, over the rank.
        dropout: on the update's input, in [0, 1).
        warmup: fraction of the steps before ranks are taken away.
        final: fraction of the steps, at the end, in which ranks stay as they are.
        orthogonal: weight of the penalty on P and Q.
        target_modules: as in `lora`.

    Raises:
        InputError: when a value is out of range, or a target matches no layer.

    Source: Zhang et al., AdaLoRA (ICLR 2023), sections 3.1 to 3.3; PEFT does the work.
    """
    from peft import AdaLoraConfig, TaskType, get_peft_model

    init_r = whole("model.tuning.init_r", init_r, "rank", at_least=2)
    target_r = whole("model.tuning.target_r", target_r, "rank", at_least=1, at_most=init_r - 1)
    warmup = number("model.tuning.warmup", warmup, "fraction of the steps", at_least=0, at_most=0.9)
    final = number("model.tuning.final", final, "fraction of the steps", at_least=0, at_most=0.9)
    number("model.tuning.warmup + model.tuning.final", warmup + final, "fraction of the steps", at_most=0.95)
    orthogonal = number("model.tuning.orthogonal", orthogonal, "weight", at_least=0)
    config = AdaLoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        init_r=init_r,
        target_r=target_r,
        lora_alpha=number("model.tuning.alpha", alpha, "scale", above=0),
        lora_dropout=_dropout(dropout),
        target_modules=_exactly(targets(model, target_modules)),
        fan_in_fan_out=_transposed(model),
        total_step=2,  # until the trainer knows
    )
    tuned = get_peft_model(model, config)
    tuned.rank_schedule = RankSchedule(tuned.base_model, warmup, final, orthogonal)
    return tuned


def ia3(model: Any, target_modules: Any) -> Any:
    """Learned factors, one a dimension, on keys, values and the feed-forward's hidden layer; they start at 1.

    Args:
        target_modules: ends of the names of the layers whose output is scaled: keys and values.

    Raises:
        InputError: when a target matches no layer.

    Source: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning (NeurIPS 2022), section 3.3; PEFT does
    the work.
    """
    from peft import IA3Config, TaskType, get_peft_model

    feed_forward = [f"{where}.{sublayer_ends(block)[1]}" for where, block in blocks(model)]
    scaled = [name for name in targets(model, target_modules) if name not in feed_forward]
    config = IA3Config(
        task_type=TaskType.FEATURE_EXTRACTION,
        target_modules=_exactly([*scaled, *feed_forward]),
        feedforward_modules=_exactly(feed_forward),
        fan_in_fan_out=_transposed(model),
    )
    return get_peft_model(model, config)


def prefix(model: Any, tokens: int) -> Any:
    """Learned keys and values in front of every block's own; the model itself stays.

    Args:
        tokens: places in front.

    Raises:
        InputError: for an architecture whose attention takes none, such as DeBERTa and ModernBERT.

    Source: Li & Liang, Prefix-Tuning (ACL 2021), section 4.2; PEFT does the work.
    """
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    tokens = whole("model.tuning.tokens", tokens, "tokens in front", at_least=1)
    name, plain = type(model).__name__, _hidden(model.eval())
    config = PrefixTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=tokens)
    sentence = (
        f"model.tuning must be a mode that the architecture allows, got prefix with {name}, whose attention "
        "takes no keys in front; choose model=bert_prompt or model=bert_lora"
    )
    try:
        tuned = get_peft_model(model, config)
        with_prefix = _hidden(tuned.eval())
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # each architecture fails its own way
        raise InputError(sentence) from error
    if torch.equal(plain, with_prefix):
        raise InputError(sentence)
    return tuned


def prompt(model: Any, tokens: int) -> Any:
    """Learned embeddings in front of every text; the model itself stays.

    Args:
        tokens: places in front, which count towards the longest text that the model takes.

    Source: Lester, Al-Rfou & Constant, The Power of Scale (EMNLP 2021), section 2; PEFT does the work.
    """
    from peft import PromptTuningConfig, TaskType, get_peft_model

    tokens = whole("model.tuning.tokens", tokens, "tokens in front", at_least=1)
    config = PromptTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=tokens)
    return get_peft_model(model, config)


def adapter(model: Any, size: int, after: str) -> Any:
    """Bottleneck adapters inside every block, behind frozen layers.

    Args:
        size: of the bottleneck, at least 1.
        after: `feed_forward`, one adapter a block (Pfeiffer), or `both`, also behind the attention (Houlsby).

    Raises:
        InputError: for a size out of range, or a model without such layers.

    Source: Houlsby et al. (ICML 2019), figure 2; Pfeiffer et al., AdapterFusion (EACL 2021), appendix A.
    """
    size = whole("model.tuning.size", size, "dimensions", at_least=1)
    choice("model.tuning.after", after, ["feed_forward", "both"])
    model.requires_grad_(False)
    for _, block in blocks(model):
        attention, feed_forward = sublayer_ends(block)
        for name in [attention, feed_forward] if after == "both" else [feed_forward]:
            insert(block, name, size)
    return model


def _low_rank(
    model: Any, r: int, alpha: float, dropout: float, target_modules: Any, *, magnitude: bool
) -> Any:
    """LoRA, or DoRA where the magnitude is learned as well."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=whole("model.tuning.r", r, "rank", at_least=1),
        lora_alpha=number("model.tuning.alpha", alpha, "scale", above=0),
        lora_dropout=_dropout(dropout),
        target_modules=_exactly(targets(model, target_modules)),
        fan_in_fan_out=_transposed(model),
        use_dora=magnitude,
        bias="none",
    )
    return get_peft_model(model, config)


def _dropout(dropout: float) -> float:
    """The dropout of an update's input, checked."""
    return number("model.tuning.dropout", dropout, "probability", at_least=0, at_most=0.99)


def _transposed(model: Any) -> bool:
    """Whether the model's linear layers keep their weights transposed, as GPT-2's do."""
    return any(type(m).__name__ == "Conv1D" for m in model.modules())


def _exactly(names: list[str]) -> str:
    """A pattern that matches these full names and no other, as PEFT takes it."""
    return "|".join(re.escape(name) for name in names)


@torch.no_grad()
def _hidden(model: Any) -> torch.Tensor:
    """What the model makes of two tokens."""
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2]], device=device)
    out: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return out

"""What trains: each function takes a pretrained model and leaves `requires_grad` where it belongs."""

from typing import Any

from torch import nn

from halflife.errors import InputError, listed, meant, number, whole


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


def last_k(model: Any, k: int) -> Any:
    """The last k transformer blocks train; embeddings and the blocks below stay.

    Args:
        k: blocks, from 1 to as many as the model has.

    Raises:
        InputError: when the model has fewer blocks.

    Source: Howard & Ruder, ULMFiT (ACL 2018), section 3.3, which unfreezes from the top.
    """
    blocks = max(
        (m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len, default=nn.ModuleList()
    )
    k = whole("model.tuning.k", k, "blocks", at_least=1, at_most=len(blocks))
    model.requires_grad_(False)
    for block in blocks[-k:]:
        block.requires_grad_(True)
    return model


def lora(model: Any, r: int, alpha: float, dropout: float, target_modules: list[str]) -> Any:
    """Low-rank updates beside frozen weights: W x + (alpha / r) · B A x, where B starts at 0.

    Args:
        r: rank of A and B, at least 1.
        alpha: scale of the update, > 0.
        dropout: on the update's input, in [0, 1).
        target_modules: ends of the names of the linear layers that get an update.

    Raises:
        InputError: when a value is out of range, or a target matches no layer.

    Source: Hu et al., LoRA (ICLR 2022), section 4.1, eq. 3; PEFT does the work.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    r = whole("model.tuning.r", r, "rank", at_least=1)
    number("model.tuning.alpha", alpha, "scale", above=0)
    number("model.tuning.dropout", dropout, "probability", at_least=0, at_most=0.99)
    targets = listed("model.tuning.target_modules", target_modules, "names of linear layers")
    linear = sorted(
        {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    )
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    for target in targets or ["none"]:
        if not any(name == target or name.endswith("." + target) for name in names):
            raise InputError(
                f"model.tuning.target_modules must name linear layers of the model ({', '.join(linear)}), "
                f"got {target}; {meant(target, linear)}"
            )
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=r,
        lora_alpha=alpha,
        lora_dropout=float(dropout),
        target_modules=targets,
        bias="none",
    )
    return get_peft_model(model, config)

"""Where things are in a pretrained model of any architecture: blocks, linear layers, ends of sub-layers."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from halflife.errors import InputError, listed, meant

LINEAR = (nn.Linear, Conv1D)  # GPT-2 keeps its weights transposed, in a class of its own


def blocks(model: Any) -> list[tuple[str, nn.Module]]:
    """Names and modules of the transformer blocks, lowest first.

    Raises:
        InputError: when the model has none.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise InputError(
            f"model.tuning must have a model of transformer blocks, got {type(model).__name__}; choose "
            "model=bert_full or model=bert_frozen"
        )
    where, found = max(lists, key=lambda named: len(named[1]))
    return [(f"{where}.{i}", block) for i, block in enumerate(found)]


def linear(block: nn.Module) -> list[str]:
    """Names of a block's linear layers, in the order they are defined."""
    return [name for name, m in block.named_modules() if isinstance(m, LINEAR)]


def targets(model: Any, names: Any) -> list[str]:
    """Full names of the linear layers of all blocks whose names end so.

    Args:
        names: ends of names, whole between dots; `all` alone means every linear layer of the blocks.

    Raises:
        InputError: for an end that no layer has; it lists those there are.
    """
    every = [f"{where}.{name}" for where, block in blocks(model) for name in linear(block)]
    if names == "all":
        return every
    wanted = listed("model.tuning.target_modules", names, "names of linear layers")
    there = sorted({name.rsplit(".", 1)[-1] for name in every})
    for end in wanted or ["none"]:
        if not any(name == end or name.endswith("." + end) for name in every):
            raise InputError(
                f"model.tuning.target_modules must name linear layers of the model ({', '.join(there)}), "
                f"got {end}; {meant(end, there)}"
            )
    return [name for name in every if any(name == end or name.endswith("." + end) for end in wanted)]


def sublayer_ends(block: nn.Module) -> tuple[str, str]:
    """Names of the linear layers that end a block's attention and its feed-forward.

    In every architecture they are the last ones defined, those that the residual is added to.

    Raises:
        InputError: for a block without attention or without feed-forward.
    """
    names = linear(block)
    attention = [name for name in names if "att" in name]
    if not attention or names[-1] in attention:
        raise InputError(
            f"model.tuning must have blocks of attention and feed-forward, got one of "
            f"{', '.join(names) or 'no linear layer'}; choose model=bert_lora or model=bert_full"
        )
    return attention[-1], names[-1]


def check_some_train(model: Any, mode: str) -> Any:
    """The model, when something of it trains.

    Raises:
        InputError: when nothing does; it lists the kinds of modules there are.
    """
    if any(p.requires_grad for p in model.parameters()):
        return model
    ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    kinds = ", ".join(sorted(end for end in ends if end and not end.isdigit()))
    raise InputError(
        f"model.tuning must leave a parameter to train, got {mode}, which finds none in "
        f"{type(model).__name__} ({kinds}); choose another mode, for example model=bert_lora"
    )

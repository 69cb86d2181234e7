"""Tiny random models of every kind of architecture, built from their configurations alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
SHARED = {**SMALL, "num_key_value_heads": 1}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", SMALL),
    "roberta": ("RobertaConfig", SMALL),
    "deberta": ("DebertaV2Config", SMALL | RELATIVE),
    "modernbert": ("ModernBertConfig", SMALL | ENDS | {"pad_token_id": 0}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 60, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40} | ENDS,
    ),
    "llama": ("LlamaConfig", SHARED),
    "qwen": ("Qwen2Config", SHARED),
}
DECODERS = ["gpt2", "llama", "qwen"]


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], Any]:
    """Make a model of three blocks and width 16, with nothing at 0, so that weight decay shows everywhere."""
    import transformers

    def make(architecture: str) -> Any:
        name, settings = ARCHITECTURES[architecture]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.AutoModel.from_config(getattr(transformers, name)(**settings)).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        model.config.use_cache = False
        return model

    return make

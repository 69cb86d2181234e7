"""Each tuning mode trains exactly what it says and starts from the pretrained model, in any architecture."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from halflife.encoders import tuning
from halflife.encoders.layers import blocks, sublayer_ends
from halflife.errors import InputError
from tests.encoders.conftest import ARCHITECTURES, DECODERS

CONF = Path(__file__).parents[2] / "conf"
with initialize_config_dir(str(CONF), version_base="1.3"):
    MODELS = {p.stem: compose(f"model/{p.stem}").model for p in sorted((CONF / "model").glob("*.yaml"))}
YAMLS = [name for name, cfg in MODELS.items() if cfg._target_ == "halflife.encoders.text.TextEncoder"]

TRAINS: dict[str, Callable[[str], bool]] = {
    "bert_frozen": lambda name: False,
    "gpt_frozen": lambda name: False,
    "bert_full": lambda name: not name.startswith("pooler."),
    "gpt_full": lambda name: True,
    "bert_last_k": lambda name: name.startswith(("encoder.layer.1.", "encoder.layer.2.")),
    "bert_bitfit": lambda name: name.endswith(".bias") and not name.startswith("pooler."),
    "bert_lora": lambda name: ".lora_A." in name or ".lora_B." in name,
    "bert_qlora": lambda name: ".lora_A." in name or ".lora_B." in name,
    "gpt_lora": lambda name: ".lora_A." in name or ".lora_B." in name,
    "gpt_qlora": lambda name: ".lora_A." in name or ".lora_B." in name,
    "bert_dora": lambda name: ".lora_" in name,
    "bert_adalora": lambda name: any(f".lora_{part}." in name for part in "AEB"),
    "bert_ia3": lambda name: ".ia3_l." in name,
    "bert_prefix": lambda name: name == "prompt_encoder.default.embedding.weight",
    "bert_prompt": lambda name: name == "prompt_encoder.default.embedding.weight",
    "bert_adapter": lambda name: ".down." in name or ".up." in name,
    "bert_houlsby": lambda name: ".down." in name or ".up." in name,
}
"""What trains in a model of three blocks, by name."""

COUNT = {
    "bert_lora": 3 * 2 * 2,  # A and B of two layers in each of three blocks
    "bert_qlora": 3 * 6 * 2,
    "gpt_lora": 3 * 7 * 2,
    "gpt_qlora": 3 * 7 * 2,
    "bert_dora": 3 * 2 * 3,
    "bert_adalora": 3 * 2 * 3,
    "bert_ia3": 3 * 3,
    "bert_prefix": 1,
    "bert_prompt": 1,
    "bert_adapter": 3 * 4,
    "bert_houlsby": 3 * 8,
    "bert_last_k": 2 * 16,
    "gpt_full": 3 * 9 + 2,
}
"""How many tensors train."""

FROM_PRETRAINED = [y for y in YAMLS if y not in ("bert_prefix", "bert_prompt")]
IDS = torch.tensor([[2, 9, 4, 3, 17], [7, 1, 5, 8, 40]])
LORA = partial(tuning.lora, r=2, alpha=4.0, dropout=0.0, target_modules=["query", "value"])

Tiny = Callable[[str], Any]


def mode_of(yaml: str, architecture: str = "") -> Callable[[Any], Any]:
    """The tuning function of conf/model/, its targets named as the architecture names them."""
    cfg = copy.deepcopy(MODELS[yaml].tuning)
    if "target_modules" in cfg and architecture and architecture not in ("bert", "roberta"):
        cfg.target_modules = {
            "deberta": ["key_proj", "value_proj"],
            "modernbert": ["Wqkv"],
            "gpt2": ["c_attn"],
        }.get(architecture, ["k_proj", "v_proj"])
    return instantiate(cfg)


def hidden(model: Any, ids: torch.Tensor = IDS, mask: torch.Tensor | None = None) -> torch.Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    return model(input_ids=ids, attention_mask=mask).last_hidden_state[:, -ids.shape[1] :]


def step(model: Any) -> None:
    """Two steps of AdamW over every parameter, frozen ones too: where B is 0, A waits for it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        hidden(model)[..., 0].square().sum().backward()
        optimizer.step()


def test_every_mode_of_conf_is_tested() -> None:
    assert set(YAMLS) == set(TRAINS)


@pytest.mark.parametrize("yaml", YAMLS)
def test_one_step_changes_exactly_the_parameters_expected(yaml: str, tiny: Tiny) -> None:
    model = mode_of(yaml)(tiny("llama" if yaml.startswith("gpt") else "bert"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    if any(p.requires_grad for p in model.parameters()):
        step(model)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if TRAINS[yaml](n)}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(changed) == COUNT.get(yaml, len(changed))


@pytest.mark.parametrize("yaml", FROM_PRETRAINED)
@torch.no_grad()
def test_tuning_starts_from_the_pretrained_model(yaml: str, tiny: Tiny) -> None:
    architecture = "llama" if yaml.startswith("gpt") else "bert"
    tuned = mode_of(yaml)(tiny(architecture)).eval()
    torch.testing.assert_close(hidden(tuned), hidden(tiny(architecture)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "bert"])
@pytest.mark.parametrize(
    "yaml",
    [
        "bert_last_k",
        "bert_bitfit",
        "bert_lora",
        "bert_dora",
        "bert_adalora",
        "bert_ia3",
        "bert_prefix",
        "bert_prompt",
        "bert_houlsby",
    ],
)
def test_every_mode_works_or_is_refused_in_every_architecture(
    yaml: str, architecture: str, tiny: Tiny
) -> None:
    tune = mode_of(yaml, architecture)
    refused = {
        "bert_bitfit": ("modernbert", "llama"),
        "bert_prefix": ("deberta", "modernbert"),
    }
    if architecture in refused.get(yaml, ()):
        with pytest.raises(InputError, match=r"^model\.tuning must .*, got .*; choose"):
            tune(tiny(architecture))
        return
    model = tune(tiny(architecture)).eval()
    if yaml in FROM_PRETRAINED:
        with torch.no_grad():
            torch.testing.assert_close(hidden(model), hidden(tiny(architecture)), atol=1e-5, rtol=0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(model)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad} != set()
    # a text has the vectors it has alone, padded behind as we do it
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        got, alone = hidden(model, IDS, mask)[0, :3], hidden(model, IDS[:1, :3])[0]
    torch.testing.assert_close(got, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("yaml", ["bert_lora", "bert_dora", "bert_adalora", "bert_ia3"])
@torch.no_grad()
def test_merged_and_unmerged_agree(yaml: str, tiny: Tiny) -> None:
    model = mode_of(yaml)(tiny("bert")).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = hidden(model)
    assert not torch.allclose(before, hidden(tiny("bert")), atol=1e-3)
    torch.testing.assert_close(hidden(model.merge_and_unload()), before, atol=1e-5, rtol=1e-4)


def test_nothing_of_a_frozen_model_takes_a_gradient_embeddings_neither(tiny: Tiny) -> None:
    model = tuning.frozen(tiny("bert"))
    assert not hidden(model).requires_grad
    assert not any(p.requires_grad for p in model.get_input_embeddings().parameters())


def test_the_learning_rate_of_a_block_is_that_of_the_block_above_times_the_decay(tiny: Tiny) -> None:
    model = tuning.last_k(tiny("bert"), k=3, layer_decay=0.5)
    assert model.lr_scale.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, share in model.lr_scale.items():
        assert share == {"2": 1.0, "1": 0.5, "0": 0.25}[name.split(".")[2]]


def test_a_mode_that_leaves_nothing_to_train_lists_the_modules(tiny: Tiny) -> None:
    with pytest.raises(
        InputError, match=r"got bitfit, which finds none in LlamaModel \(.*q_proj.*\); choose"
    ):
        tuning.bitfit(tiny("llama"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sublayers_end_where_the_residual_is_added(architecture: str, tiny: Tiny) -> None:
    found = blocks(tiny(architecture))
    assert len(found) == 3
    expected = {
        "gpt2": ("attn.c_proj", "mlp.c_proj"),
        "modernbert": ("attn.Wo", "mlp.Wo"),
        **dict.fromkeys(DECODERS[1:], ("self_attn.o_proj", "mlp.down_proj")),
    }
    for _, block in found:
        assert sublayer_ends(block) == expected.get(architecture, ("attention.output.dense", "output.dense"))


def test_ia3_scales_keys_values_and_the_feed_forward_alone(tiny: Tiny) -> None:
    model = tuning.ia3(tiny("bert"), target_modules=["key", "value"])
    scaled = {
        n.split(".ia3_l")[0].split("layer.0.")[1]
        for n, p in model.named_parameters()
        if ".0." in n and p.requires_grad
    }
    assert scaled == {"attention.self.key", "attention.self.value", "output.dense"}
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad and "layer.0.output" in n}
    assert set(sizes.values()) == {32}  # the hidden layer's width: its input is scaled, not its output


def test_lora_names_layers_by_any_end_of_their_name(tiny: Tiny) -> None:
    model = tuning.lora(tiny("bert"), r=1, alpha=1.0, dropout=0.0, target_modules=["attention.output.dense"])
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 3
    assert all("attention.output.dense.lora" in n for n in trained)


def test_a_lora_target_that_matches_no_layer_is_refused_with_near_names(tiny: Tiny) -> None:
    lora = partial(tuning.lora, r=2, alpha=4.0, dropout=0.0)
    with pytest.raises(InputError, match=r"target_modules .*got qeury; did you mean query\?$"):
        lora(tiny("bert"), target_modules=["value", "qeury"])
    with pytest.raises(InputError, match=r"\(dense, key, query, value\), got q_proj; choose one of them$"):
        lora(tiny("bert"), target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"must name linear layers .*, got none; "):
        lora(tiny("bert"), target_modules=[])
    with pytest.raises(
        InputError, match=r"must be a list of names of linear layers, got query; write \[query\]$"
    ):
        lora(tiny("bert"), target_modules="query")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"r": 0}, "r"),
        ({"r": 2.5}, "r"),
        ({"alpha": 0.0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_lora_settings_out_of_range_are_refused(changes: dict[str, Any], name: str, tiny: Tiny) -> None:
    with pytest.raises(InputError, match=rf"^model\.tuning\.{name} must be"):
        LORA(tiny("bert"), **changes)


@pytest.mark.parametrize(
    ("yaml", "changes", "name"),
    [
        ("bert_adalora", {"target_r": 12}, "target_r"),
        ("bert_adalora", {"warmup": 0.6, "final": 0.6}, r"warmup \+ model\.tuning\.final"),
        ("bert_adapter", {"size": 0}, "size"),
        ("bert_adapter", {"after": "attention"}, "after"),
        ("bert_prefix", {"tokens": 0}, "tokens"),
        ("bert_prompt", {"tokens": 0}, "tokens"),
        ("bert_last_k", {"layer_decay": 0.0}, "layer_decay"),
    ],
)
def test_settings_out_of_range_are_refused(yaml: str, changes: dict[str, Any], name: str, tiny: Tiny) -> None:
    with pytest.raises(InputError, match=rf"^model\.tuning\.{name} must be"):
        partial(mode_of(yaml), **changes)(tiny("bert"))


@pytest.mark.parametrize("k", [0, 4, -1, 1.5])
def test_last_k_is_refused_beyond_the_model(k: float, tiny: Tiny) -> None:
    with pytest.raises(
        InputError, match=rf"^model\.tuning\.k must be a whole number \(blocks\), got {k}; give 1 to 3"
    ):
        tuning.last_k(tiny("bert"), k=k, layer_decay=1.0)

"""Each tuning mode trains exactly what it says, and starts from the pretrained model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from halflife.encoders import tuning
from halflife.errors import InputError

LORA = partial(tuning.lora, r=2, alpha=4.0, dropout=0.0, target_modules=["query", "value"])
IDS = torch.tensor([[2, 9, 4, 3], [7, 1, 5, 8]])

MODES: dict[str, tuple[Callable[[Any], Any], Callable[[str], bool]]] = {
    "frozen": (tuning.frozen, lambda name: False),
    "full": (tuning.full, lambda name: not name.startswith("pooler.")),
    "last_k 1": (partial(tuning.last_k, k=1), lambda name: name.startswith("encoder.layer.2.")),
    "last_k 2": (
        partial(tuning.last_k, k=2),
        lambda name: name.startswith(("encoder.layer.1.", "encoder.layer.2.")),
    ),
    "last_k 3": (partial(tuning.last_k, k=3), lambda name: name.startswith("encoder.layer.")),
    "lora": (LORA, lambda name: ".lora_A." in name or ".lora_B." in name),
}
EVERY = pytest.mark.parametrize("mode", list(MODES))


def bert() -> BertModel:
    """Three blocks of a BERT with nothing at 0, so that even weight decay would show in every parameter."""
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=12,
            hidden_size=8,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def hidden(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state


@EVERY
def test_exactly_the_expected_parameters_train(mode: str) -> None:
    tune, trains = MODES[mode]
    model = tune(bert())
    names = [name for name, _ in model.named_parameters()]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n in names if trains(n)}
    if mode == "lora":  # A and B of two layers in each of three blocks
        assert sum(trains(n) for n in names) == 2 * 2 * 3


@EVERY
def test_one_step_changes_exactly_what_trains(mode: str) -> None:
    model = MODES[mode][0](bert())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained:
        # every parameter is handed over, as a careless optimizer would
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        hidden(model)[..., 0].square().sum().backward()
        optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad}


def test_nothing_of_a_frozen_model_takes_a_gradient_embeddings_neither() -> None:
    model = tuning.frozen(bert())
    assert not hidden(model).requires_grad
    assert not any(p.requires_grad for p in model.get_input_embeddings().parameters())


@EVERY
@torch.no_grad()
def test_tuning_starts_from_the_pretrained_model(mode: str) -> None:
    torch.testing.assert_close(hidden(MODES[mode][0](bert())), hidden(bert()), atol=1e-6, rtol=0)


def test_lora_names_layers_by_any_end_of_their_name() -> None:
    model = tuning.lora(bert(), r=1, alpha=1.0, dropout=0.0, target_modules=["attention.output.dense"])
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 3
    assert all("attention.output.dense.lora" in n for n in trained)


def test_a_lora_target_that_matches_no_layer_is_refused_with_near_names() -> None:
    with pytest.raises(InputError, match=r"target_modules .*got qeury; did you mean query\?$"):
        tuning.lora(bert(), r=2, alpha=4.0, dropout=0.0, target_modules=["value", "qeury"])
    with pytest.raises(InputError, match=r"\(dense, key, query, value\), got q_proj; choose one of them$"):
        tuning.lora(bert(), r=2, alpha=4.0, dropout=0.0, target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"must name linear layers .*, got none; "):
        tuning.lora(bert(), r=2, alpha=4.0, dropout=0.0, target_modules=[])
    with pytest.raises(
        InputError, match=r"must be a list of names of linear layers, got query; write \[query\]$"
    ):
        tuning.lora(bert(), r=2, alpha=4.0, dropout=0.0, target_modules="query")


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
def test_lora_settings_out_of_range_are_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.tuning\.{name} must be"):
        LORA(bert(), **changes)


@pytest.mark.parametrize("k", [0, 4, -1, 1.5])
def test_last_k_is_refused_beyond_the_model(k: float) -> None:
    with pytest.raises(
        InputError, match=rf"^model\.tuning\.k must be a whole number \(blocks\), got {k}; give 1 to 3"
    ):
        tuning.last_k(bert(), k=k)

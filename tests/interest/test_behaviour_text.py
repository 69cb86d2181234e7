"""One sequence for history and candidate: what its score depends on, and how the kernel enters it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoModel, AutoTokenizer

from halflife import losses, metrics
from halflife.batches import PAD_AGE, Batch, Impressions
from halflife.datamodule import DataModule
from halflife.decay.exponential import Exponential
from halflife.decay.fourier import Fourier
from halflife.decay.kernel import Kernel
from halflife.decay.none import NoDecay
from halflife.encoders import tuning
from halflife.errors import InputError
from halflife.estimate import estimate, refit
from halflife.interest import behaviour_text
from halflife.interest.behaviour_text import BehaviourText
from halflife.recommender import Recommender, build

CONF = Path(__file__).parents[2] / "conf"
LORA = partial(tuning.lora, r=2, alpha=4.0, dropout=0.0, target_modules=["query", "value"])
OPTIMIZER = {
    **{"head_lr": 0.01, "decay_lr": 0.05, "weight_decay": 0.1, "warmup_steps": 0, "schedule": "constant"},
    **{"schedule_epochs": 1, "seed": 7, "unit": "days", "impressions": 400, "loss": losses.bce},
}
NO_AGE, AGE = "{category} · {text}", "{age} · {category} · {text}"

Make = Callable[..., Recommender]


@pytest.fixture
def make(small_log: DataModule, tiny_bert: Path) -> Make:
    """Make a Recommender that reads histories: `make(NoDecay(), template=AGE, tune=LORA)`."""

    def make(
        decay: Kernel,
        template: str = NO_AGE,
        tune: Callable[[Any], Any] = tuning.full,
        history_tokens: int = 36,
        bert: Path = tiny_bert,
    ) -> Recommender:
        torch.manual_seed(0)
        reader = BehaviourText(
            small_log.store, str(bert), tune, template, "days", 12, history_tokens, lr=0.001
        )
        with torch.no_grad():  # scores that differ, as after some training
            reader.head.weight.normal_()
        module = Recommender(reader.items, decay, reader, metrics={"auc": metrics.AUC()}, **OPTIMIZER)
        return module.eval()

    return make


def batch_of(data: DataModule, module: Recommender, n: int = 12) -> Batch:
    """Impressions of the whole log, readers without any click among them."""
    dataset = Impressions(data.store, data.max_history, data.age, module.encoder.tokens)
    length = dataset.lengths(every := np.arange(len(data.store.impression_time)))
    return dataset[np.concatenate([every[length == 0][:2], every[length > 0][:: len(every) // n]])[:n]]


def exponential(half_life_days: float) -> Exponential:
    return Exponential(half_life_days=half_life_days, learn=True)


def scores(module: Recommender, batch: Batch) -> Tensor:
    with torch.no_grad():
        return module(batch)


# --- a score is a score, whoever shares its batch


@pytest.mark.parametrize("template", [NO_AGE, AGE])
@pytest.mark.parametrize("chunk", [1, 200, 8192])
def test_a_score_is_the_same_alone_and_in_any_batch(
    make: Make, small_log: DataModule, monkeypatch: pytest.MonkeyPatch, template: str, chunk: int
) -> None:
    module = make(exponential(2.0), template)
    dataset = Impressions(small_log.store, small_log.max_history, "days", module.encoder.tokens)
    batch = batch_of(small_log, module)
    together = scores(module, batch)
    monkeypatch.setattr(behaviour_text, "CHUNK_TOKENS", chunk)
    alone = [scores(module, dataset[row.numpy()]) for row in batch.impression.split(1)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores(module, batch), together, atol=1e-5, rtol=1e-5)
    assert together.std() > 0.1


def test_padded_columns_change_neither_scores_nor_gradients(make: Make, small_log: DataModule) -> None:
    module = make(exponential(2.0), AGE)
    batch = batch_of(small_log, module)
    wider = replace(
        batch,
        history=pad(batch.history, (0, 3), value=1),
        history_mask=pad(batch.history_mask, (0, 3)),
        age=pad(batch.age, (0, 3), value=PAD_AGE),
        kind=pad(batch.kind, (0, 3)),
        candidates=pad(batch.candidates, (0, 2), value=2),
        candidate_mask=pad(batch.candidate_mask, (0, 2)),
        candidate_age=pad(batch.candidate_age, (0, 2)),
        label=pad(batch.label, (0, 2), value=1.0),
    )
    found = []
    for given in (batch, wider):
        module.zero_grad()
        score = module(given)
        module.loss(score, given.label, given.candidate_mask).backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        found.append((score[:, : batch.label.shape[1]].detach(), torch.cat(gradients)))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_evaluation_scores_as_training_does(make: Make, small_log: DataModule) -> None:
    module = make(exponential(2.0), AGE)
    batch = batch_of(small_log, module)
    items = module.encoder.catalogue()[batch.item]
    torch.testing.assert_close(module.score(batch, items), module(batch), atol=1e-5, rtol=1e-5)


def test_the_order_of_candidates_does_not_matter(make: Make, small_log: DataModule) -> None:
    module = make(exponential(2.0), AGE)
    batch = batch_of(small_log, module)
    order = torch.tensor([2, 0, 3, 1])
    other = replace(batch, candidates=batch.candidates[:, order])
    torch.testing.assert_close(scores(module, other), scores(module, batch)[:, order], atol=1e-6, rtol=1e-5)


def test_activations_computed_again_give_the_same_gradients(
    make: Make, small_log: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for chunk in (10**6, 200):
        monkeypatch.setattr(behaviour_text, "CHUNK_TOKENS", chunk)
        module = make(exponential(2.0), AGE)
        module(batch_of(small_log, module)).square().sum().backward()
        found.append([p.grad for p in module.parameters() if p.requires_grad])
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


# --- what is read


def test_without_decay_it_is_a_plain_sequence_classifier(
    make: Make, small_log: DataModule, tiny_bert: Path
) -> None:
    module = make(NoDecay(), AGE)
    batch, store = batch_of(small_log, module), small_log.store
    tokenizer, bert = (
        AutoTokenizer.from_pretrained(str(tiny_bert)),
        AutoModel.from_pretrained(str(tiny_bert)).eval(),
    )
    encoder, reader = module.encoder, module.interest
    assert isinstance(reader, BehaviourText)
    expected = torch.zeros(2, 4)
    for row, (b, c) in enumerate([(b, c) for b in (4, 9) for c in range(4)]):
        candidate = encoder.ids[
            slice(*encoder.start[int(batch.item[batch.candidates[b, c]]) + np.array([0, 1])])
        ]
        now = tokenizer("now", add_special_tokens=False)["input_ids"]
        first = [tokenizer.cls_token_id, *now, *candidate.tolist(), tokenizer.sep_token_id]
        second: list[int] = []
        for h in reversed(range(int(batch.history_mask[b].sum()))):
            item = int(batch.item[batch.history[b, h]])
            said = encoder.said(batch.age[b, h])
            click = [
                *said[said >= 0].tolist(),
                *encoder.ids[encoder.start[item] : encoder.start[item + 1]].tolist(),
            ]
            if len(second) + len(click) + 1 > reader.history_tokens:
                break
            second += [*click, tokenizer.sep_token_id]
        assert second, "a click fits"
        with torch.no_grad():
            hidden = bert(
                input_ids=torch.tensor([first + second]),
                attention_mask=torch.ones(1, len(first + second), dtype=torch.long),
                token_type_ids=torch.tensor([[0] * len(first) + [1] * len(second)]),
            ).last_hidden_state
            logit = reader.head(hidden[0, : len(first)].mean(0)).item()
        expected[row // 4, row % 4] = reader.log_scale.exp().item() * logit + reader.bias.item()
    assert store.n_items
    torch.testing.assert_close(scores(module, batch)[[4, 9]], expected, atol=1e-5, rtol=1e-4)


def test_the_cap_keeps_the_newest_clicks_that_fit_whole(make: Make, small_log: DataModule) -> None:
    module = make(NoDecay(), AGE, history_tokens=36)
    reader = module.interest
    assert isinstance(reader, BehaviourText)
    batch = batch_of(small_log, module)
    ids, owner = reader.rendered(module.encoder(batch)[batch.history], batch.history_mask, batch.age)
    length = batch.history_mask.sum(1)
    cut = 0
    for b in range(len(batch)):
        clicks = owner[b][owner[b] >= 0].unique()
        assert clicks.tolist() == list(range(int(length[b]) - len(clicks), int(length[b]))), "the newest"
        assert int((ids[b] >= 0).sum()) <= 36
        assert len(clicks) > 0 or length[b] == 0
        cut += len(clicks) < length[b]
    assert cut > 0
    # what does not fit is not read: another old click, the same score
    b = int((length > 6).nonzero()[0])
    changed = batch.history.clone()
    changed[b, 0] = (changed[b, 0] + 1) % len(batch.item)
    assert torch.equal(scores(module, replace(batch, history=changed)), scores(module, batch))


# --- the kernel


@pytest.mark.parametrize("tune", [tuning.full, LORA, tuning.frozen], ids=["full", "lora", "frozen"])
def test_gradients_reach_the_half_life_the_head_and_what_is_tuned(
    make: Make, small_log: DataModule, tune: Callable[[Any], Any]
) -> None:
    module = make(decay := exponential(2.0), tune=tune)
    batch = batch_of(small_log, module)
    module.loss(module(batch), batch.label, batch.candidate_mask).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert decay.log_half_life.grad.abs() > 0
    trains = {n for n, p in module.named_parameters() if p.requires_grad and ".backbone." in n}
    assert bool(trains) == (tune is not tuning.frozen)
    optimizer = module.configure_optimizers()["optimizer"]
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert all(rates[id(p)] == 0.001 for n, p in module.named_parameters() if n in trains)
    assert rates[id(module.interest.head.weight)] == 0.01
    assert rates[id(decay.log_half_life)] == 0.05


def test_the_slope_in_the_half_life_is_that_of_finite_differences(make: Make, small_log: DataModule) -> None:
    module = make(decay := exponential(2.0)).double()
    batch = batch_of(small_log, module)
    batch = replace(batch, age=batch.age.double())
    module(batch).sum().backward()
    found = []
    for step in (-1e-5, 2e-5):
        with torch.no_grad():
            decay.log_half_life += step
        found.append(scores(module, batch).sum().item())
    slope = (found[1] - found[0]) / 2e-5
    assert slope == pytest.approx(decay.log_half_life.grad.item(), rel=1e-5)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("template", [NO_AGE, AGE])
def test_an_endless_half_life_is_no_decay(make: Make, small_log: DataModule, template: str) -> None:
    plain, endless, short = (make(k, template) for k in (NoDecay(), exponential(1e9), exponential(0.5)))
    batch = batch_of(small_log, plain)
    torch.testing.assert_close(scores(endless, batch), scores(plain, batch), atol=1e-5, rtol=1e-5)
    assert (scores(short, batch) - scores(plain, batch)).abs().max() > 1e-2


def test_a_history_faded_away_scores_as_if_it_were_not_there(make: Make, small_log: DataModule) -> None:
    module = make(exponential(1e-4))
    batch = batch_of(small_log, module)
    without = replace(batch, history_mask=torch.zeros_like(batch.history_mask))
    gone = replace(batch, age=batch.age + 10.0)
    torch.testing.assert_close(scores(module, gone), scores(module, without), atol=1e-5, rtol=1e-5)
    there = make(NoDecay())
    assert (scores(there, batch) - scores(there, without)).abs().max() > 1e-2


def test_a_single_click_that_fades_away_is_as_if_it_were_not_there(make: Make, small_log: DataModule) -> None:
    """Its own tokens go on reading it, and nobody listens."""
    module = make(exponential(0.01))
    batch = batch_of(small_log, module)
    two = batch.history_mask.sum(1) >= 2
    batch = replace(batch, age=torch.where(batch.history_mask, 0.0, PAD_AGE), history_mask=batch.history_mask)
    aged = batch.age.clone()
    aged[:, 0] = 50.0  # the oldest click, which comes last in the sequence and moves no other
    lost = batch.history_mask.clone()
    lost[:, 0] = False
    faded, absent = (
        scores(module, replace(batch, age=aged)),
        scores(module, replace(batch, history_mask=lost)),
    )
    torch.testing.assert_close(faded[two], absent[two], atol=1e-5, rtol=1e-5)


def test_age_enters_through_the_kernel_and_the_words_alone(make: Make, small_log: DataModule) -> None:
    silent, spoken = make(NoDecay()), make(NoDecay(), AGE)
    batch = batch_of(small_log, silent)
    days = torch.where(batch.history_mask, batch.age.clamp(max=12).floor() + 1.2, batch.age)  # « n days ago »
    batch = replace(batch, age=days)
    later = replace(batch, age=days + 0.5 * batch.history_mask)  # the same words
    weeks = replace(batch, age=days + 20.0 * batch.history_mask)
    assert torch.equal(scores(silent, weeks), scores(silent, batch))
    spoken_batch = replace(
        batch, tokens=(b := batch_of(small_log, spoken)).tokens, token_length=b.token_length
    )
    tokens = {"tokens": spoken_batch.tokens, "token_length": spoken_batch.token_length}
    assert torch.equal(scores(spoken, replace(later, **tokens)), scores(spoken, spoken_batch))
    clicks = batch.history_mask.any(1)
    moved = (scores(spoken, replace(weeks, **tokens)) - scores(spoken, spoken_batch)).abs()
    assert (moved[clicks].amax(1) > 0).all()
    assert (moved[~clicks] == 0).all()
    kernel = make(exponential(2.0))
    moved = (scores(kernel, later) - scores(kernel, batch)).abs()
    assert (moved[clicks].amax(1) > 0).all()
    assert (moved[~clicks] == 0).all()


def test_every_layer_adds_the_bias(make: Make, small_log: DataModule) -> None:
    """A click read in full by the second layer would change a score however little it weighs."""
    module = make(exponential(1e-4))
    batch = batch_of(small_log, module)
    other = replace(batch, history=(batch.history + 1) % len(batch.item), age=batch.age + 10.0)
    torch.testing.assert_close(
        scores(module, other), scores(module, replace(batch, age=batch.age + 10.0)), atol=1e-4, rtol=1e-4
    )


# --- the end of a run, and what is refused


def test_the_half_life_is_told_without_an_interval(make: Make, small_log: DataModule) -> None:
    module = make(exponential(3.0))
    assert refit(module, iter(())) is None
    found = estimate(module, None)
    assert found["half_life_days"] == pytest.approx(3.0)
    assert found["low"] is found["high"] is None
    assert not found["identified"]
    assert found["status"] == "not_refitted"
    assert found["how"] == "gradient descent alone: without item vectors no refit and no interval"
    fixed = make(Exponential(half_life_days=3.0, learn=False))
    assert estimate(fixed, None)["status"] == "fixed"


def test_a_kernel_with_negative_weights_is_refused(make: Make) -> None:
    with pytest.raises(
        InputError, match=r"^decay must be a kernel of weights above 0 for a model that reads"
    ):
        make(Fourier(2.0, learn=True, frequencies=2, unit_days=0.01, learn_unit=False))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"history_tokens": 5}, "model.history_tokens must be a whole number"),
        ({"history_tokens": 60}, "model.history_tokens must be a whole number"),
        ({"tune": "lora"}, "model.tuning must be a function"),
    ],
)
def test_settings_out_of_range_are_refused(make: Make, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        make(NoDecay(), **changes)
    assert str(refused.value).startswith(sentence)


def saved(place: Path, model: Any, bert: Path, **tokens: str | None) -> Path:
    model.save_pretrained(str(place))
    tokenizer = AutoTokenizer.from_pretrained(str(bert))
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(str(place))
    return place


def test_a_model_whose_attention_takes_no_bias_is_refused(
    make: Make, tiny_bert: Path, tmp_path: Path
) -> None:
    from transformers import DebertaV2Config, DebertaV2Model

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = DebertaV2Model(DebertaV2Config(vocab_size=2000, max_position_embeddings=64, **size))
    with pytest.raises(InputError, match=r"^model\.pretrained must be a model whose attention takes a bias"):
        make(NoDecay(), bert=saved(tmp_path / "deberta", model, tiny_bert))


def test_a_tokenizer_that_neither_begins_nor_ends_a_text_is_refused(
    make: Make, tiny_bert: Path, tmp_path: Path
) -> None:
    model = AutoModel.from_pretrained(str(tiny_bert))
    bare = saved(tmp_path / "bare", model, tiny_bert, cls_token=None)
    with pytest.raises(
        InputError, match=r"^model\.pretrained must be an encoder with tokens that begin and end"
    ):
        make(NoDecay(), bert=bare)


def test_the_whole_group_composes_to_one_model(make_log: Callable[..., DataModule], tiny_bert: Path) -> None:
    data = make_log()
    words = ["model=bert_text_lora", f"model.pretrained={tiny_bert}", "model.max_tokens=12"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*words, "model.history_tokens=30", "data.age=rank"])
    module = build(cfg, data)
    assert module.interest.items is module.encoder
    assert data.tokens is module.encoder.tokens
    assert "interest.items" not in {n for n, _ in module.named_parameters()}

"""Pretraining goes on: what it trains on, what it measures, what it saves, that a stop changes nothing."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from halflife import mlm, pretrained
from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.settings import check_read

CONF = Path(__file__).parents[1] / "conf"


def composed(data: DataModule, bert: Path, *overrides: str) -> DictConfig:
    words = ["task=mlm", "logger=none", f"model.pretrained={bert}", f"cache_dir={data.cache_dir}"]
    words += ["data.split.val=0.15", "data.split.test=0.15", "task.batch_size=8", "task.lr=3e-3"]
    source = data.source.keywords
    words += [f"data.source.{k}={source[k]}" for k in ("users", "items", "days", "candidates")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*words, *overrides])


def pretrain(cfg: DictConfig, run_dir: Path) -> float:
    run_dir.mkdir(exist_ok=True)
    torch.manual_seed(cfg.seed)  # as train.py does: the head may be new
    return float(instantiate(cfg.task)(cfg, run_dir))


def metrics(run_dir: Path) -> dict[str, Any]:
    found = json.loads((run_dir / "metrics.json").read_text())
    return {k: v for k, v in found.items() if not k.startswith("memory/")}


@pytest.fixture(scope="module")
def finished(
    make_log: Callable[..., DataModule], tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """A run of four epochs, and what it returned."""
    place = tmp_path_factory.mktemp("mlm")
    cfg = composed(make_log(), tiny_bert, "trainer.max_epochs=4")
    return place, pretrain(cfg, place)


def test_held_out_texts_become_less_surprising(finished: tuple[Path, float]) -> None:
    place, returned = finished
    found = metrics(place)
    assert found["val/pseudo_perplexity_after"] < 0.8 * found["val/pseudo_perplexity_before"]
    assert returned == found["val/pseudo_log_likelihood_after"]
    assert math.exp(-returned) == pytest.approx(found["val/pseudo_perplexity_after"], rel=1e-5)
    assert "pseudo-perplexity" in (place / "summary.txt").read_text()


def test_the_saved_model_is_an_encoder_and_goes_on_with_its_head(finished: tuple[Path, float]) -> None:
    place = finished[0] / "pretrained"
    encoder, (masked, tokenizer, new_head) = pretrained.load(place), pretrained.load_masked(place)
    assert not new_head
    ids = torch.tensor(tokenizer("astronaut photographs a distant galaxy")["input_ids"])[None]
    with torch.no_grad():
        ours, theirs = encoder(ids).last_hidden_state, masked.base_model(ids).last_hidden_state
    torch.testing.assert_close(ours, theirs)
    assert pretrained.tokenize(place, ["a derby win"], 8) == [tokenizer("a derby win")["input_ids"]]


def test_a_frozen_encoder_takes_the_saved_directory(
    finished: tuple[Path, float], tiny_bert: Path, small_log: DataModule
) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfgs = [
            compose(
                "train",
                overrides=["model=bert_frozen", f"model.pretrained={d}", f"cache_dir={small_log.cache_dir}"],
            )
            for d in (finished[0] / "pretrained", tiny_bert)
        ]
    ours, theirs = (instantiate(cfg.model)(store=small_log.store).vectors for cfg in cfgs)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() > 0.05, "vectors of the other weights are not taken for these"


def test_a_run_stopped_after_an_epoch_resumes_to_the_same_weights(
    finished: tuple[Path, float], small_log: DataModule, tiny_bert: Path, tmp_path: Path
) -> None:
    pretrain(composed(small_log, tiny_bert, "trainer.max_epochs=2"), tmp_path / "first")
    ckpt = tmp_path / "first" / "checkpoints" / "last.ckpt"
    again = composed(small_log, tiny_bert, "trainer.max_epochs=4", f"ckpt={ckpt}")
    pretrain(again, tmp_path / "second")
    assert metrics(tmp_path / "second") == metrics(finished[0])
    weights = [pretrained.weights_key(d / "pretrained") for d in (tmp_path / "second", finished[0])]
    assert weights[0] == weights[1]


def test_pseudo_perplexity_is_that_of_a_loop_over_tokens(
    finished: tuple[Path, float], small_log: DataModule
) -> None:
    model, tokenizer, _ = pretrained.load_masked(finished[0] / "pretrained")
    ids, start = small_log.store.tokens(str(finished[0] / "pretrained"), 32)
    _, held = mlm.split_texts(small_log, ids, start, tokenizer.all_special_ids, 0.1, seed=1)
    surprise = []
    for row in held:
        text = torch.from_numpy(ids[start[row] : start[row + 1]].astype(np.int64))
        for place in range(1, len(text) - 1):  # between [CLS] and [SEP]
            masked = text.clone()
            masked[place] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model.eval()(masked[None]).logits[0, place]
            surprise.append(-logits.log_softmax(-1)[text[place]].item())
    assert len(surprise) == metrics(finished[0])["data/tokens_held_out"]
    assert math.exp(np.mean(surprise)) == pytest.approx(
        metrics(finished[0])["val/pseudo_perplexity_after"], rel=1e-4
    )


def test_nothing_held_out_and_nothing_from_behind_the_training_split_is_trained_on(
    small_log: DataModule, tiny_bert: Path
) -> None:
    ids, start = (np.array(a) for a in small_log.store.tokens(str(tiny_bert), 32))
    text = [ids[start[i] : start[i + 1]].tobytes() for i in range(small_log.store.n_items)]
    train, held = mlm.split_texts(small_log, ids, start, [0, 1, 2, 3, 4], 0.25, seed=3)
    assert len(held) == len({text[i] for i in [*train, *held]}) // 4
    assert not {text[i] for i in train} & {text[i] for i in held}
    last = small_log.store.impression_time[small_log.rows("train")].max()
    born = small_log.store.item_born.copy()
    late = train[:3]
    born[late] = last + 1
    object.__setattr__(small_log.store, "item_born", born)
    fewer = np.concatenate(mlm.split_texts(small_log, ids, start, [0, 1, 2, 3, 4], 0.25, seed=3))
    assert len(fewer) == len(train) + len(held) - 3
    assert not set(fewer) & set(late)


def test_a_log_without_words_is_refused(small_log: DataModule, tiny_bert: Path) -> None:
    n = small_log.store.n_items
    ids, start = np.tile([2, 3], n), np.arange(n + 1) * 2  # [CLS] [SEP]
    with pytest.raises(InputError, match=r"^data must hold at least 2 different texts .*, got 0 among"):
        mlm.split_texts(small_log, ids, start, [0, 1, 2, 3, 4], 0.1, seed=1)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("task.held_out=0", "task.held_out must be a number above 0"),
        ("task.mask_share=0.9", "task.mask_share must be a number above 0 and at most 0.5"),
        ("task.lr=-1", "task.lr must be a number above 0"),
        ("task.batch_size=0", "task.batch_size must be a whole number"),
        ("model.max_tokens=65", "model.max_tokens must be a whole number (tokens), got 65; give 3 to 64"),
        ("ckpt=nowhere.ckpt", "ckpt must be a checkpoint file, got nowhere.ckpt"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_is_written(
    small_log: DataModule, tiny_bert: Path, tmp_path: Path, override: str, sentence: str
) -> None:
    with pytest.raises(InputError) as refused:
        pretrain(composed(small_log, tiny_bert, override), tmp_path)
    assert str(refused.value).startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_mask_token_is_refused(small_log: DataModule, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<eos>")
    tokenizer.save_pretrained(str(tmp_path / "gpt"))
    gpt = GPT2Model(GPT2Config(vocab_size=3, n_embd=8, n_layer=1, n_head=1, n_positions=64))
    gpt.save_pretrained(str(tmp_path / "gpt"))
    with pytest.raises(InputError, match=r"^model\.pretrained must be a masked language model.*gpt2"):
        pretrain(composed(small_log, tmp_path / "gpt"), tmp_path / "run")


def test_a_model_without_text_is_refused(small_log: DataModule, tiny_bert: Path, tmp_path: Path) -> None:
    cfg = composed(small_log, tiny_bert)
    with open_dict(cfg):
        del cfg.model.pretrained
    with pytest.raises(InputError, match=r"^model must be one with a pretrained text encoder"):
        pretrain(cfg, tmp_path)


def test_a_checkpoint_of_another_run_is_refused(
    finished: tuple[Path, float], small_log: DataModule, tiny_bert: Path, tmp_path: Path
) -> None:
    ckpt = finished[0] / "checkpoints" / "last.ckpt"
    for override, differs in (
        ("seed=2", "seed is 1, not 2"),
        ("model.max_tokens=9", "model.max_tokens is 32"),
    ):
        with pytest.raises(InputError, match=f"in which {differs}"):
            pretrain(composed(small_log, tiny_bert, f"ckpt={ckpt}", override), tmp_path)


@pytest.mark.parametrize(
    "override", ["decay=power", "model.lr=1e-4", "decay@decay.candidate=power", "loss=bce"]
)
def test_what_pretraining_does_not_read_is_refused(override: str) -> None:
    check_read(
        ["data=mind", "data.age=rank", "model=bert_lora", "model.pretrained=x", "seed=2"], mlm.READ, "x"
    )
    with pytest.raises(InputError, match=r"must be left out with task=mlm"):
        check_read([override], mlm.READ, "task=mlm")

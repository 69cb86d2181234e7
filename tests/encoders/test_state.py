"""What tuned models leave in a checkpoint, and what of a run they need to go on as if never stopped."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from halflife import losses, metrics
from halflife.batches import Batch, Impressions
from halflife.checkpoints import check_checkpoint
from halflife.datamodule import DataModule
from halflife.decay.exponential import Exponential
from halflife.encoders import tuning
from halflife.encoders.text import TextEncoder
from halflife.interest.pool import Pool
from halflife.recommender import Recommender
from tests.conftest import TEXT
from tests.encoders.test_tuning import YAMLS, mode_of

HERE = [y for y in YAMLS if not y.endswith("qlora")]  # those that need no GPU

Make = Callable[..., Recommender]


@pytest.fixture
def make(small_log: DataModule, tiny_bert: Path, tiny_gpt: Path, tmp_path: Path) -> Make:
    """Make a Recommender: `make(mode_of("bert_lora"), gpt=False, seed=1, pooling="mean")`."""

    def made(tune: Any, gpt: bool = False, seed: int = 1, **changes: Any) -> Recommender:
        torch.manual_seed(seed)
        directory = tiny_gpt if gpt else tiny_bert
        encoder = TextEncoder(
            small_log.store, str(directory), tuning=tune, **(TEXT | changes), cache_dir=str(tmp_path)
        )
        small_log.tokens = encoder.tokens if encoder.reads_tokens else None
        decay = Exponential(half_life_days=2.0, learn=True)
        decay.bind(small_log.store)
        return Recommender(
            encoder,
            decay,
            Pool(8, composition="sink", scale=5.0, sink=1.0),
            losses.bce,
            {"auc": metrics.AUC()},
            head_lr=0.01,
            decay_lr=0.05,
            weight_decay=0.1,
            warmup_steps=0,
            schedule="constant",
            schedule_epochs=1,
            seed=7,
            unit="days",
            impressions=400,
        )

    return made


def mode(yaml: str) -> Any:
    """The mode of conf/model/, small enough for a model of two blocks."""
    return partial(mode_of(yaml), k=1) if yaml.endswith("last_k") else mode_of(yaml)


def batch_of(data: DataModule, module: Recommender) -> Batch:
    tokens = module.encoder.tokens if module.encoder.reads_tokens else None
    return Impressions(data.store, data.max_history, data.age, tokens)[data.rows("train")[:8]]


def scores(module: Recommender, batch: Batch) -> Tensor:
    with torch.no_grad():
        return module.eval()(batch)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("yaml", HERE)
def test_a_checkpoint_holds_what_trains_and_gives_the_same_scores(
    yaml: str, pooling: str, make: Make, small_log: DataModule
) -> None:
    if pooling == "attention" and yaml not in ("bert_frozen", "bert_lora"):
        pytest.skip("pooling and tuning know nothing of each other")
    gpt = yaml.startswith("gpt")
    module = make(mode(yaml), gpt, pooling=pooling)
    batch = batch_of(small_log, module)
    optimizer = module.configure_optimizers()["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    module.train()
    for _ in range(2):
        optimizer.zero_grad()
        module.loss(module(batch), batch.label, batch.candidate_mask).backward()
        optimizer.step()
    expected = scores(module, batch)

    module.trainer = SimpleNamespace(datamodule=small_log)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    fixed = {n for n in checkpoint["state_dict"] if n.startswith("encoder.")} - trained
    assert {n for n in trained if n.startswith("encoder.")} <= set(checkpoint["state_dict"])
    assert sum(checkpoint["state_dict"][n].numel() for n in fixed) < 1000  # no weights that never changed

    other = make(mode(yaml), gpt, seed=2, pooling=pooling)
    assert not torch.allclose(scores(other, batch), expected, atol=1e-4)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"], strict=True)
    torch.testing.assert_close(scores(other, batch), expected, atol=1e-6, rtol=0)


def trained(module: Recommender, data: DataModule, folder: Path, **changes: Any) -> pl.Trainer:
    """Three epochs of two batches, or what `changes` make of it."""
    settings = {
        "max_epochs": 3,
        "limit_train_batches": 2,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    ckpt = changes.pop("ckpt_path", None)
    trainer = pl.Trainer(**(settings | changes))
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=False)
    return trainer


class StopAfter(pl.Callback):
    """Saves a checkpoint and ends the training behind an epoch, as a killed run has it."""

    def __init__(self, epoch: int, path: Path) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


ADALORA = partial(
    tuning.adalora,
    init_r=4,
    target_r=2,
    alpha=4.0,
    dropout=0.1,
    warmup=0.2,
    final=0.3,
    orthogonal=0.5,
    target_modules=["query", "value"],
)


@pytest.mark.parametrize("changes", [{"tune": ADALORA}, {"tune": mode_of("bert_full"), "reuse_steps": 3}])
def test_a_stopped_run_goes_on_to_the_weights_of_one_that_was_not(
    changes: dict[str, Any], make: Make, make_log: Callable[..., DataModule], tmp_path: Path
) -> None:
    data = make_log(batch_size=64)

    def module() -> Recommender:
        made = make(**changes)
        data.tokens = made.encoder.tokens
        return made

    trained(whole := module(), data, tmp_path)
    trained(module(), data, tmp_path, callbacks=[StopAfter(0, tmp_path / "x.ckpt")])
    resumed = module()
    check_checkpoint(str(tmp_path / "x.ckpt"), resumed, data)
    trained(resumed, data, tmp_path, ckpt_path=str(tmp_path / "x.ckpt"))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, atol=0, rtol=0, msg=name)


def test_adalora_takes_ranks_away_until_the_target_is_left(
    make: Make, make_log: Callable[..., DataModule], tmp_path: Path
) -> None:
    data, module = make_log(batch_size=64), make(ADALORA)
    data.tokens = module.encoder.tokens
    alive: list[int] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            ranks = [p for n, p in pl_module.named_parameters() if "lora_E" in n]
            alive.append(sum(int((p != 0).sum()) for p in ranks))

    trained(module, data, tmp_path, max_epochs=5, callbacks=[Watch()])
    layers = 2 * 2
    assert alive[0] == 4 * layers  # warmup: every rank of every layer
    assert alive == sorted(alive, reverse=True)
    assert alive[-3:] == [2 * layers] * 3  # the last 0.3 of 10 steps
    assert module.encoder.ranks.config.total_step == 10


def test_the_penalty_of_adalora_reaches_the_loss(make: Make, small_log: DataModule) -> None:
    module = make(partial(ADALORA, orthogonal=2.0))
    half = make(partial(ADALORA, orthogonal=1.0))
    torch.testing.assert_close(module.encoder.penalty(), 2 * half.encoder.penalty())
    matrices = [p for n, p in module.named_parameters() if "lora_A" in n]
    with torch.no_grad():
        for p in matrices:
            p.copy_(torch.eye(*p.shape))
        for name, p in module.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.eye(*p.shape))
    assert float(module.encoder.penalty()) == 0.0
    assert make(mode_of("bert_lora")).encoder.penalty() == 0.0


def test_each_block_has_its_learning_rate(make: Make) -> None:
    module = make(partial(tuning.last_k, k=2, layer_decay=0.5))
    groups = module.configure_optimizers()["optimizer"].param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, p in module.encoder.backbone.named_parameters():
        if p.requires_grad:
            assert rate[id(p)] == TEXT["lr"] * (1.0 if "layer.1." in name else 0.5)


# --- reuse of young vectors


def test_without_rise_young_vectors_are_reused_and_old_ones_are_not(
    make: Make, small_log: DataModule
) -> None:
    module = make(tuning.full, reuse_steps=2)
    encoder, batch = module.encoder.train(), batch_of(small_log, module)
    reuse = encoder.reuse
    encoder.stepped(0)
    assert reuse.stale(batch.item).all()
    first = encoder(batch)
    for _ in range(2):
        encoder.stepped(0)
        assert int(reuse.stale(batch.item).sum()) == 1  # one always is
        again = encoder(batch)
        assert int(torch.isclose(again, first).all(1).sum()) >= len(batch.item) - 2
    encoder.stepped(0)
    assert int(reuse.stale(batch.item).sum()) == len(batch.item) - 2  # those encoded in between are younger


def test_only_what_is_encoded_passes_a_gradient(make: Make, small_log: DataModule) -> None:
    module = make(tuning.full, reuse_steps=5)
    encoder, batch = module.encoder.train(), batch_of(small_log, module)
    encoder.stepped(0)
    encoder(batch)
    encoder.stepped(0)
    stale = encoder.reuse.stale(batch.item)
    vectors = encoder(batch)
    reused, fresh = vectors[~stale], vectors[stale]
    backbone = [p for p in encoder.backbone.parameters() if p.requires_grad]
    of_reused = torch.autograd.grad(reused.sum(), backbone, allow_unused=True, retain_graph=True)
    assert all(g is None or (g == 0).all() for g in of_reused)
    assert any(g.abs().sum() > 0 for g in torch.autograd.grad(fresh[0, 0], backbone, retain_graph=True))
    assert torch.autograd.grad(reused[0, 0], encoder.projection.weight)[0].abs().sum() > 0  # the head learns


def test_reuse_rises_from_nothing_and_evaluation_never_reuses(make: Make, small_log: DataModule) -> None:
    module = make(tuning.full, reuse_steps=4, reuse_rise_steps=8)
    encoder, batch = module.encoder.train(), batch_of(small_log, module)
    left = []
    for _ in range(9):
        left.append(int(encoder.reuse.stale(batch.item).sum()))
        encoder.reuse.joined(
            batch.item, torch.ones_like(batch.item, dtype=torch.bool), torch.zeros(len(batch.item), 32)
        )
        encoder.stepped(0)
    assert left[:2] == [len(batch.item)] * 2  # N(1) = 4 · 1 / 8 is less than a step
    assert left[2:] == [1] * 7
    expected = encoder.catalogue()[batch.item]
    torch.testing.assert_close(encoder.eval()(batch), expected, atol=1e-5, rtol=0)


# --- everything off and on


def test_once_an_item_chunks_packing_recomputation_and_reuse_leave_the_loss_and_gradients_of_the_padded_path(
    make: Make, small_log: DataModule
) -> None:
    plain = make(tuning.full).eval()
    batch = batch_of(small_log, plain)
    vectors = every_place(plain, batch)
    found = [loss_and_gradients(plain, batch, vectors)]
    settings: list[dict[str, Any]] = [
        {"packed": False, "chunk_tokens": 100_000},  # each item once, in one rectangle
        {"packed": False, "chunk_tokens": 20},  # in chunks of like length
        {"packed": False, "chunk_tokens": 20, "keep_tokens": 0},  # recomputed
        {"chunk_tokens": 20},  # texts on end
        {"chunk_tokens": 20, "keep_tokens": 0, "reuse_steps": 4},  # reused from no step yet
        {"chunk_tokens": 20, "keep_tokens": 0, "reuse_steps": 4, "gradient_checkpointing": True},
        {"packed": False, "chunk_tokens": 20, "keep_tokens": 0, "gradient_checkpointing": True},
    ]
    for changes in settings:
        module = make(tuning.full, **changes)
        for part in module.modules():  # all but dropout as in training, where reuse and checkpointing happen
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            if hasattr(part, "dropout_prob"):
                part.dropout_prob = 0.0
        module.encoder.backbone.config.attention_probs_dropout_prob = 0.0
        found.append(loss_and_gradients(module.train(), batch, module.encoder(batch)))
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0], atol=1e-5, rtol=0)
        assert gradients.keys() == found[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, found[0][1][name], atol=1e-5, rtol=1e-3, msg=name)


def test_cached_vectors_leave_loss_and_gradients_as_the_running_model_has_them(
    make: Make, small_log: DataModule
) -> None:
    running = make(tuning.full).eval()
    batch = batch_of(small_log, running)
    expected = loss_and_gradients(running, batch, every_place(running, batch))
    cached = make(tuning.frozen).eval()
    cached.load_state_dict({n: v for n, v in running.state_dict().items() if "backbone" not in n})
    loss, gradients = loss_and_gradients(cached, batch, cached.encoder(batch))
    torch.testing.assert_close(loss, expected[0], atol=1e-5, rtol=0)
    assert gradients.keys() == {n for n in expected[1] if "backbone" not in n}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[1][name], atol=1e-5, rtol=1e-3, msg=name)


def every_place(module: Recommender, batch: Batch) -> Tensor:
    """Vectors (U, dim) by way of every place of the batch: each title padded to the longest, copies too."""
    encoder: Any = module.encoder
    texts = torch.split(batch.tokens, batch.token_length.tolist())
    ids = torch.nn.utils.rnn.pad_sequence(list(texts), batch_first=True)
    mask = torch.arange(ids.shape[1]) < batch.token_length[:, None]
    places = torch.cat([batch.history[batch.history_mask], batch.candidates[batch.candidate_mask]])
    hidden = encoder.backbone(input_ids=ids[places], attention_mask=mask[places].long()).last_hidden_state
    copies = encoder.head(encoder.pooling(hidden, mask[places]))
    count = torch.bincount(places, minlength=len(ids)).unsqueeze(1)
    # copies of an item are alike: their mean is the item, and hands each copy its share of the gradient
    return torch.zeros(len(ids), copies.shape[1]).index_add(0, places, copies) / count


def loss_and_gradients(
    module: Recommender, batch: Batch, vectors: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    loss = module.loss(module.score(batch, vectors), batch.label, batch.candidate_mask)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

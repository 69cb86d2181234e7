"""One module: scores that do not depend on the batch, what trains and how fast, checkpoints, seeds."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import pad

from halflife import losses, metrics
from halflife.batches import PAD_AGE, Batch, Impressions
from halflife.checkpoints import check_checkpoint
from halflife.datamodule import DataModule
from halflife.decay.exponential import Exponential
from halflife.decay.fourier import Fourier
from halflife.decay.kernel import Kernel
from halflife.encoders import tuning
from halflife.encoders.ids import IdEmbedding
from halflife.encoders.text import TextEncoder
from halflife.errors import InputError
from halflife.interest.attention import Attention
from halflife.interest.pool import Pool
from halflife.recommender import Recommender, score
from tests.conftest import TEXT

CONF = Path(__file__).parents[1] / "conf"
KERNELS = sorted(path.stem for path in (CONF / "decay").glob("*.yaml"))
LORA = partial(tuning.lora, r=2, alpha=4.0, dropout=0.2, target_modules=["query", "value"])
TUNINGS = {
    "frozen": tuning.frozen,
    "full": tuning.full,
    "last_k": partial(tuning.last_k, k=1, layer_decay=0.9),
    "lora": LORA,
}
ENCODERS = ["id", *TUNINGS]
MODELS = sorted(path.stem for path in (CONF / "interest").glob("*.yaml"))
INTERESTS = ["normalised", "sink", "sum", "log_bias"]
OPTIMIZER = {
    "head_lr": 0.01,
    "decay_lr": 0.05,
    "weight_decay": 0.1,
    "warmup_steps": 0,
    "schedule": "constant",
    "schedule_epochs": 1,
}

Make = Callable[..., Recommender]


def kernel_of(name: str) -> Kernel:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(f"decay/{name}").decay)


def interest_of(kind: str, dim: int) -> Pool | Attention:
    return (Attention if kind == "log_bias" else Pool)(dim, composition=kind, scale=5.0, sink=1.0)


@pytest.fixture
def make(small_log: DataModule, tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make a Recommender: `make("lora", "sink", kernel_of("power"), head_lr=0.1)`."""
    cache = tmp_path_factory.getbasetemp() / "vectors"

    def make(
        encoder: str,
        interest: str = "sink",
        decay: Kernel | None = None,
        dim: int = 8,
        bert: Path = tiny_bert,
        pooling: str = "mean",
        **changes: Any,
    ) -> Recommender:
        torch.manual_seed(0)
        items: TextEncoder | IdEmbedding
        if encoder == "id":
            items = IdEmbedding(small_log.store, dim=dim, lr=0.02)
        else:
            items = TextEncoder(
                small_log.store,
                str(bert),
                tuning=TUNINGS[encoder],
                **(TEXT | {"pooling": pooling, "dim": dim}),
                cache_dir=str(cache),
            )
        given = OPTIMIZER | {"seed": 7, "unit": "days", "impressions": 400, "loss": losses.bce} | changes
        kernel = decay or Exponential(half_life_days=2.0, learn=True)
        kernel.bind(small_log.store)
        return Recommender(items, kernel, interest_of(interest, dim), metrics={"auc": metrics.AUC()}, **given)

    return make


def dataset_of(data: DataModule, module: Recommender) -> Impressions:
    tokens = module.encoder.tokens if module.encoder.reads_tokens else None
    return Impressions(data.store, data.max_history, data.age, tokens)


def some_rows(data: DataModule, n: int = 32) -> np.ndarray:
    """Rows of the whole log, readers without any click among them."""
    length = data.impressions(with_tokens=False).lengths(every := np.arange(len(data.store.impression_time)))
    rows = np.concatenate([every[length == 0][:3], every[length > 0][:: len(every) // n]])[:n]
    assert 0 in length[rows]
    return rows


def flat_scores(module: Recommender, dataset: Impressions, parts: list[np.ndarray]) -> Tensor:
    """Scores of all real candidates, scored in these parts."""
    module.eval()
    with torch.no_grad():
        scores = [(b := dataset[part], module(b)) for part in parts]
    return torch.cat([score[b.candidate_mask] for b, score in scores])


def trainer_of(folder: Path, **changes: Any) -> pl.Trainer:
    given = {
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(default_root_dir=folder, **(given | changes))


def fitted(module: Recommender, data: DataModule, folder: Path, **changes: Any) -> pl.Trainer:
    data.tokens = module.encoder.tokens if module.encoder.reads_tokens else None
    trainer = trainer_of(folder, **changes)
    trainer.fit(module, datamodule=data)
    return trainer


# --- a score is a score, whoever shares its batch


@pytest.mark.parametrize("encoder", ["id", "frozen", "lora"])
@pytest.mark.parametrize("interest", INTERESTS)
@pytest.mark.parametrize("decay", ["exponential", "power", "gaussian", "none"])
def test_a_score_is_the_same_alone_and_in_any_batch(
    make: Make, small_log: DataModule, encoder: str, interest: str, decay: str
) -> None:
    module = make(encoder, interest, kernel_of(decay))
    dataset, rows = dataset_of(small_log, module), some_rows(small_log)
    together = flat_scores(module, dataset, [rows])
    alone = flat_scores(module, dataset, [rows[i : i + 1] for i in range(len(rows))])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    assert together.std() > 0


@pytest.mark.parametrize("encoder", ["id", "lora"])
def test_targets_of_one_history_together_are_those_one_by_one_and_none_looks_ahead(
    make: Make, make_log: Callable[..., DataModule], encoder: str
) -> None:
    data, module = make_log(targets_per_history=8, batch_size=32), make(encoder).eval()
    data.tokens = module.encoder.tokens if module.encoder.reads_tokens else None
    batch = next(iter(data.train_dataloader()))
    store, readers = data.store, batch.user.unique()
    assert len(readers) <= len(batch) / 3, "a reader has several targets in a batch"
    for row, user, mask, age in zip(batch.impression, batch.user, batch.history_mask, batch.age, strict=True):
        clicks = store.event_time[store.user_start[user] : store.user_start[user + 1]]
        ages = (store.impression_time[row] - clicks[clicks < store.impression_time[row]]) / 86_400
        np.testing.assert_allclose(age[mask], ages[-data.max_history :], rtol=1e-5)

    def spent(part: Batch) -> Tensor:
        return module.loss(module(part), part.label, part.candidate_mask, reduction="sum").sum()

    found = []
    dataset = dataset_of(data, module)
    for parts in ([batch], [dataset[row.numpy()] for row in batch.impression.split(1)]):
        module.zero_grad()
        total = torch.stack([spent(part) for part in parts]).sum()
        total.backward()
        found.append((total.detach(), [p.grad for p in module.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_more_targets_of_a_history_take_fewer_items_to_encode(make_log: Callable[..., DataModule]) -> None:
    items = [
        sum(len(batch.item) for batch in make_log({"items": 480}, targets_per_history=n).train_dataloader())
        for n in (1, 8)
    ]
    assert items[1] < 0.8 * items[0]


@pytest.mark.parametrize("decay", KERNELS)
def test_every_kernel_scores_an_impression_the_same_in_any_batch(
    make: Make, small_log: DataModule, decay: str
) -> None:
    module = make("id", "sink", kernel_of(decay))
    dataset, rows = dataset_of(small_log, module), some_rows(small_log)
    parts = np.array_split(rows, [1, 2, 9, 10, 25])
    torch.testing.assert_close(
        flat_scores(module, dataset, parts), flat_scores(module, dataset, [rows]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("interest", INTERESTS)
@pytest.mark.parametrize("decay", [k for k in KERNELS if k != "fourier"])
def test_padded_columns_change_neither_scores_nor_loss_nor_gradients(
    make: Make, small_log: DataModule, interest: str, decay: str
) -> None:
    module = make("id", interest, kernel_of(decay))
    batch = dataset_of(small_log, module)[some_rows(small_log)]
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
    items = module.encoder(batch)
    found = []
    for b in (batch, wider):
        score = module.score(b, items)
        loss = module.loss(score, b.label, b.candidate_mask)
        gradients = torch.autograd.grad(
            loss, [p for p in module.parameters() if p.requires_grad], retain_graph=True, allow_unused=True
        )
        found.append([score[b.candidate_mask], loss, *(g for g in gradients if g is not None)])
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("interest", INTERESTS)
def test_a_reader_without_clicks_scores_the_bias(
    make: Make, small_log: DataModule, encoder: str, interest: str
) -> None:
    module = make(encoder, interest)
    with torch.no_grad():
        module.interest.bias.fill_(-1.25)
    dataset, rows = dataset_of(small_log, module), some_rows(small_log)
    empty = rows[dataset.lengths(rows) == 0]
    assert (flat_scores(module, dataset, [empty]) == -1.25).all()
    batch = dataset[rows]
    module.eval()
    with torch.no_grad():
        beside_others = module(batch)[torch.from_numpy(dataset.lengths(rows) == 0)]
    assert (beside_others == -1.25).all()


def test_evaluation_looks_up_what_training_encodes(make: Make, small_log: DataModule, tmp_path: Path) -> None:
    module = make("lora")
    trainer = fitted(module, small_log, tmp_path, limit_test_batches=None)
    trainer.test(module, datamodule=small_log, verbose=False)
    rows = np.concatenate(module.predictions["impression"])
    assert rows.tolist() == small_log.rows("test").tolist()
    expected = flat_scores(module, dataset_of(small_log, module), np.array_split(rows, 5))
    torch.testing.assert_close(
        torch.from_numpy(np.concatenate(module.predictions["score"])), expected, atol=1e-5, rtol=1e-5
    )


def test_a_signed_kernel_turns_the_vector_of_a_click_around(make: Make, small_log: DataModule) -> None:
    signed, plain = make("id", "sum", kernel_of("fourier")), make("id", "sum", kernel_of("fourier"))
    batch = dataset_of(small_log, signed)[some_rows(small_log)]
    items = signed.encoder(batch)
    signed.decay.sign = lambda age: -torch.ones_like(age)  # type: ignore[method-assign]
    plain.decay.sign = torch.ones_like  # type: ignore[method-assign]
    turned, straight = (m.score(batch, items) - m.interest.bias for m in (signed, plain))
    torch.testing.assert_close(turned, -straight, atol=1e-6, rtol=0)


# --- candidates fade too


def test_a_candidate_loses_the_log_weight_of_its_own_age(make: Make, small_log: DataModule) -> None:
    plain, fading = make("id"), make("id", candidate_decay=Exponential(half_life_days=4.0, learn=True))
    batch = dataset_of(small_log, plain)[some_rows(small_log)]
    assert batch.candidate_age.max() > 2
    before, after = plain(batch), fading(batch)
    odds = torch.exp(after - before)[batch.candidate_mask]
    torch.testing.assert_close(
        odds, 2 ** (-batch.candidate_age[batch.candidate_mask] / 4.0), atol=1e-5, rtol=1e-4
    )
    scores = score(fading.decay, fading.interest, batch, fading.encoder(batch))  # as without the argument
    torch.testing.assert_close(scores, before)


def test_a_group_of_candidates_fades_at_its_own_half_life(make: Make, small_log: DataModule) -> None:
    kernel = kernel_of("by_category")
    kernel.bind(small_log.store)
    with torch.no_grad():
        kernel.deviation.copy_(torch.linspace(-1, 1, len(kernel.names)))
    module, plain = make("id", candidate_decay=kernel), make("id")
    batch = dataset_of(small_log, module)[some_rows(small_log)]
    half_life = torch.stack(list(kernel.half_lives().values()))[batch.category[batch.candidates]]
    expected = -math.log(2) * batch.candidate_age / half_life
    torch.testing.assert_close(module(batch) - plain(batch), expected, atol=1e-4, rtol=1e-4)


def test_the_kernel_of_candidates_trains_with_the_decay_and_tells_its_half_life(
    make: Make, small_log: DataModule, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    module = make("id", candidate_decay=Exponential(half_life_days=4.0, learn=True), unit="rank")
    [group] = [g for g in module.configure_optimizers()["optimizer"].param_groups if g["name"] == "decay"]
    assert {id(p) for p in group["params"]} == {
        id(module.decay.log_half_life),
        id(module.candidate_decay.log_half_life),
    }
    fitted(module, small_log, tmp_path, logger=logger, log_every_n_steps=1)
    logger.finalize("success")
    logged = (
        polars.read_csv(tmp_path / "metrics.csv")["decay/candidate_half_life_days"].drop_nulls().to_list()
    )
    assert logged[0] == pytest.approx(4.0)  # days, also where clicks have ranks
    assert module.candidate_decay.half_life.item() != pytest.approx(4.0)


@pytest.mark.parametrize("name", ["fourier", "rank_exponential", "by_kind"])
def test_a_kernel_that_cannot_fade_candidates_is_refused(make: Make, name: str) -> None:
    sentence = (
        r"^decay\.candidate must be a kernel of the age alone \(days\), got \w+; choose another one, since "
    )
    with pytest.raises(InputError, match=sentence):
        make("id", candidate_decay=kernel_of(name))


def test_a_half_life_of_news_and_that_of_clicks_are_found_together(
    make_log: Callable[..., DataModule],
) -> None:
    data = make_log(source={"users": 300, "news_half_life_days": 2.0}, max_history=100)
    batch = data.impressions(with_tokens=False)[data.rows("train")]
    categories = data.store.item_category[batch.item]
    items = torch.eye(len(data.store.about["categories"]))[torch.from_numpy(categories).long()]
    clicks, news = Exponential(half_life_days=2.0, learn=True), Exponential(half_life_days=20.0, learn=True)
    interest = interest_of("sink", items.shape[1])
    learned = [p for m in (clicks, news, interest) for p in m.parameters()]
    optimizer = torch.optim.LBFGS(learned, max_iter=100, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = losses.bce(score(clicks, interest, batch, items, news), batch.label, batch.candidate_mask)
        loss.backward()
        return loss

    optimizer.step(step)
    assert news.half_life.item() == pytest.approx(2.0, rel=0.15)
    assert clicks.half_life.item() == pytest.approx(5.0, rel=0.2)


# --- what trains, and how fast


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("decay", KERNELS)
def test_every_trainable_parameter_is_in_exactly_one_group_and_decay_in_its_own(
    make: Make, encoder: str, decay: str
) -> None:
    module = make(encoder, "sink", kernel_of(decay))
    groups = module.configure_optimizers()["optimizer"].param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters() if p.requires_grad)

    learned = {id(p) for p in module.decay.parameters() if p.requires_grad}
    own = [g for g in groups if g["name"] == "decay"]
    assert len(own) == bool(learned)
    for group in own:
        assert {id(p) for p in group["params"]} == learned
        assert (group["initial_lr"], group["weight_decay"]) == (0.05, 0.0)
    for group in groups:
        if group["name"] != "decay":
            lr = module.encoder.lr if group["name"].startswith("encoder") else 0.01
            matrices = {p.ndim > 1 for p in group["params"]}
            assert group["initial_lr"] == lr
            assert matrices == {not group["name"].endswith("_no_decay")}
            assert group["weight_decay"] == (0.0 if group["name"].endswith("_no_decay") else 0.1)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_moves_exactly_what_trains(
    make: Make, small_log: DataModule, tmp_path: Path, encoder: str
) -> None:
    module = make(encoder)
    before = {n: p.detach().clone() for n, p in module.state_dict().items()}
    vectors = getattr(module.encoder, "vectors", torch.zeros(1)).clone()
    fitted(module, small_log, tmp_path)
    changed = {n for n, p in module.state_dict().items() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in module.named_parameters() if p.requires_grad}
    assert torch.equal(getattr(module.encoder, "vectors", torch.zeros(1)), vectors)


def test_a_fixed_half_life_stays(make: Make, small_log: DataModule, tmp_path: Path) -> None:
    module = make("frozen", decay=Exponential(half_life_days=2.5, learn=False))
    fitted(module, small_log, tmp_path)
    assert module.decay.half_life is not None
    assert module.decay.half_life.item() == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [
        ("constant", 1, {0: 1 / 11, 9: 10 / 11, 10: 1.0, 55: 1.0, 500: 1.0}),
        ("linear", 1, {0: 1 / 11, 10: 1.0, 55: 0.5, 91: 0.1, 100: 0.0, 500: 0.0}),
        ("cosine", 1, {4: 5 / 11, 10: 1.0, 55: 0.5, 40: 0.75, 100: 0.0, 500: 0.0}),
        ("linear", 2, {10: 1.0, 105: 0.5, 200: 0.0}),
    ],
)
def test_the_learning_rate_follows_its_schedule(
    make: Make, schedule: str, epochs: int, expected: dict[int, float]
) -> None:
    module = make("id", schedule=schedule, schedule_epochs=epochs, warmup_steps=10)
    module._trainer = SimpleNamespace(max_epochs=1, estimated_stepping_batches=100, precision="32-true")  # type: ignore[assignment]
    (factor, *_) = module.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas
    assert {step: factor(step) for step in expected} == pytest.approx(expected, abs=1e-6)


def test_the_schedule_scales_every_group_alike(make: Make) -> None:
    made = make("full", warmup_steps=3).configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for step in range(5):
        factor = min(1.0, (step + 1) / 4)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(group["initial_lr"] * factor)
        optimizer.step()
        scheduler.step()


def test_a_schedule_without_an_end_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match=r"^optimizer\.schedule must be one of .* did you mean linear\?$"):
        make("id", schedule="linea")


def refused(small_log: DataModule, interest: str, decay: str) -> str:
    """The sentence that a pair of interest model and kernel ends in, or nothing."""
    model = instantiate(OmegaConf.load(CONF / "interest" / f"{interest}.yaml"))(dim=8)
    items = IdEmbedding(small_log.store, dim=8, lr=0.02)
    try:
        Recommender(
            items, kernel_of(decay), model, losses.bce, {}, **OPTIMIZER, seed=7, unit="days", impressions=1
        )
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("interest", MODELS)
def test_a_kernel_with_negative_weights_is_for_pool_alone(small_log: DataModule, interest: str) -> None:
    assert isinstance(kernel_of("fourier"), Fourier)
    sentence = (
        f"interest must be pool for a kernel with negative weights, got {interest} with Fourier; "
        "add interest=pool, since a logarithm has no sign"
    )
    assert refused(small_log, interest, "fourier") == ("" if interest == "pool" else sentence)


@pytest.mark.parametrize("interest", MODELS)
def test_a_model_that_keeps_its_own_time_goes_with_no_decay(small_log: DataModule, interest: str) -> None:
    assert refused(small_log, interest, "none") == ""
    own = interest in ("time_interval", "relative_bias")
    sentence = (
        f"decay must be none for interest={interest}, which keeps its own time and reads no kernel, got "
    )
    assert refused(small_log, interest, "power") == (sentence + "Power; add decay=none" if own else "")


def test_a_loss_that_is_not_finite_ends_in_one_sentence(make: Make, small_log: DataModule) -> None:
    module = make("id", loss=lambda score, label, mask: score.sum() * math.nan)
    with pytest.raises(InputError, match=r"^train/loss must stay finite, got nan at step 0; lower model\.lr"):
        module.training_step(dataset_of(small_log, module)[some_rows(small_log)], 0)


def test_the_prior_of_a_kernel_is_shared_out_over_the_impressions_of_an_epoch(
    make: Make, small_log: DataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Believer(Exponential):
        def log_prior(self) -> Tensor:
            return -3.0 * self.log_half_life

    twice = {"candidate_decay": Believer(half_life_days=2.0, learn=True), "impressions": 60}
    module = make("id", decay=Believer(half_life_days=2.0, learn=True), **twice)
    module._trainer = SimpleNamespace(log_every_n_steps=2, global_step=1, loggers=[])  # type: ignore[assignment]
    logged: dict[str, Any] = {}
    monkeypatch.setattr(module, "log", lambda key, value, **_: logged.update({key: value}))
    batch = dataset_of(small_log, module)[some_rows(small_log)]
    loss = module.training_step(batch, 1)
    data_loss = module.loss(module(batch), batch.label, batch.candidate_mask)
    assert loss.item() == pytest.approx(data_loss.item() + 2 * 3.0 * math.log(2.0) / 60)
    assert logged["train/loss"].item() == pytest.approx(data_loss.item())  # what val/loss compares with


def test_a_kernel_of_ranks_names_its_unit(make: Make) -> None:
    assert make("id", decay=kernel_of("rank_exponential")).unit == "rank"
    assert make("id").unit == "days"


def test_every_step_logs_its_loss_its_learning_rates_and_the_half_life(
    make: Make, small_log: DataModule, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    module = make("lora", warmup_steps=1)
    fitted(module, small_log, tmp_path, logger=logger, log_every_n_steps=1)
    logger.finalize("success")
    logged = polars.read_csv(tmp_path / "metrics.csv")
    for key in ("train/loss", "decay/half_life_days", "lr/encoder", "lr/head", "lr/decay"):
        rows = logged.filter(polars.col(key).is_not_null())
        assert rows["step"].to_list() == [0, 1], key
        if key == "lr/decay":
            assert rows[key].to_list() == pytest.approx([0.025, 0.05])


# --- dropout depends on seed and step alone


def drawn(module: Recommender, batch: Batch, step: int) -> Tensor:
    module.on_train_batch_start(batch, step)
    with torch.no_grad():
        return module(batch)


@pytest.mark.parametrize("encoder", ["full", "lora"])
def test_dropout_is_drawn_from_seed_and_step_alone(make: Make, small_log: DataModule, encoder: str) -> None:
    module, again = make(encoder), make(encoder)
    batch = dataset_of(small_log, module)[some_rows(small_log)[3:]]
    first = drawn(module, batch, 3)
    torch.rand(17)  # whatever else draws in between
    assert torch.equal(drawn(again, batch, 3), first)
    assert not torch.equal(drawn(module, batch, 4), first)
    assert not torch.equal(drawn(make(encoder, seed=8), batch, 3), first)


def test_two_runs_with_one_seed_end_in_the_same_weights(
    make: Make, small_log: DataModule, tmp_path: Path
) -> None:
    weights = []
    for _ in range(2):
        module = make("lora")
        torch.rand(5)
        fitted(module, small_log, tmp_path)
        weights.append({n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad})
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


# --- checkpoints


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_checkpoint_holds_what_trained_and_gives_the_same_scores_back(
    make: Make, small_log: DataModule, tmp_path: Path, encoder: str
) -> None:
    module = make(encoder)
    path = str(tmp_path / "run.ckpt")
    fitted(module, small_log, tmp_path).save_checkpoint(path)
    kept = torch.load(path, weights_only=False)["state_dict"]
    assert {n for n in kept if not n.startswith(("val_", "test_"))} == {
        n for n, p in module.named_parameters() if p.requires_grad
    }

    fresh = make(encoder)
    dataset, rows = dataset_of(small_log, module), some_rows(small_log)
    expected = flat_scores(module, dataset, [rows])
    assert not torch.allclose(flat_scores(fresh, dataset, [rows]), expected, atol=1e-5)
    check_checkpoint(path, fresh, small_log)
    trainer = trainer_of(tmp_path)
    small_log.tokens = fresh.encoder.tokens if fresh.encoder.reads_tokens else None
    trainer.validate(fresh, datamodule=small_log, ckpt_path=path, verbose=False, weights_only=False)
    torch.testing.assert_close(flat_scores(fresh, dataset, [rows]), expected, atol=1e-6, rtol=1e-6)


def test_a_fixed_kernel_is_in_the_checkpoint_too(make: Make, small_log: DataModule, tmp_path: Path) -> None:
    module = make("id", decay=Exponential(half_life_days=3.0, learn=False))
    fitted(module, small_log, tmp_path).save_checkpoint(path := str(tmp_path / "run.ckpt"))
    assert "decay.log_half_life" in torch.load(path, weights_only=False)["state_dict"]


def test_a_run_that_goes_on_from_a_checkpoint_ends_where_the_other_does(
    make: Make, small_log: DataModule, tmp_path: Path
) -> None:
    whole = make("lora", schedule="linear", schedule_epochs=2, warmup_steps=2)
    fitted(whole, small_log, tmp_path, max_epochs=2)
    half = make("lora", schedule="linear", schedule_epochs=2, warmup_steps=2)
    fitted(half, small_log, tmp_path, max_epochs=1).save_checkpoint(path := str(tmp_path / "half.ckpt"))
    rest = make("lora", schedule="linear", schedule_epochs=2, warmup_steps=2)
    trainer_of(tmp_path, max_epochs=2).fit(rest, datamodule=small_log, ckpt_path=path, weights_only=False)
    for (name, expected), (_, got) in zip(whole.named_parameters(), rest.named_parameters(), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def refusal(path: Path, module: Recommender, data: DataModule) -> str:
    """The sentence with which a checkpoint is refused."""
    with pytest.raises(InputError) as refused:
        check_checkpoint(str(path), module, data)
    sentence = str(refused.value)
    assert sentence.startswith("ckpt must be ")
    assert f"got {path}" in sentence
    assert "; " in sentence
    assert "\n" not in sentence
    return sentence


def test_a_checkpoint_that_cannot_be_resumed_is_refused_in_one_sentence(
    make: Make, small_log: DataModule, tmp_path: Path
) -> None:
    module = make("lora")
    fitted(module, small_log, tmp_path).save_checkpoint(good := tmp_path / "good.ckpt")
    check_checkpoint(str(good), module, small_log)

    assert "does not exist" in refusal(tmp_path / "missing.ckpt", module, small_log)
    assert "cannot be read" in refusal(tmp_path, module, small_log)
    content = good.read_bytes()
    for name, broken in {"empty": b"", "text": b"epoch: 3\n", "short": content[: len(content) // 2]}.items():
        (file := tmp_path / f"{name}.ckpt").write_bytes(broken)
        assert "cannot be read" in refusal(file, module, small_log)
    for name, foreign in {"lightning": {"state_dict": {}, "epoch": 3}, "tensor": torch.zeros(3)}.items():
        torch.save(foreign, file := tmp_path / f"{name}.ckpt")
        assert "a checkpoint of a Halflife run" in refusal(file, module, small_log)


@pytest.fixture(scope="module")
def other_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another pretrained model of the very same shapes."""
    from transformers import AutoModel

    place = tmp_path_factory.mktemp("other") / "bert"
    shutil.copytree(tiny_bert, place)
    model = AutoModel.from_pretrained(tiny_bert)
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    model.save_pretrained(place)
    return place


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"bert": "other"}, "model.pretrained is the model with weights "),
        ({"pooling": "cls"}, "model.pooling is mean, not cls"),
        ({"encoder": "id"}, "model is TextEncoder, not IdEmbedding"),
        ({"encoder": "full"}, "model.tuning is lora(alpha=4.0, dropout=0.2, r=2, target_modules=["),
        ({"encoder": "frozen"}, "model.tuning is lora("),
        ({"dim": 4}, "encoder.projection.weight has the shape [8, 32], not [4, 32]"),
        ({"interest": "log_bias"}, "interest is Pool, not Attention"),
        ({"interest": "sum"}, "interest.composition is sink, not sum"),
        ({"decay": Exponential(half_life_days=2.0, learn=False)}, "decay.log_half_life trains"),
        ({"decay": kernel_of("gaussian")}, "decay is Exponential, not Gaussian"),
        ({"decay": kernel_of("weibull")}, "decay is Exponential, not Weibull"),
        ({"candidate_decay": kernel_of("power")}, "decay.candidate is null, not Power"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_says_where_it_differs(
    make: Make,
    small_log: DataModule,
    other_bert: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    differs: str,
) -> None:
    trainer = fitted(make("lora"), small_log, tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.save_checkpoint(path := tmp_path / "run.ckpt")
    bert = {"bert": other_bert} if "bert" in changes else {}
    sentence = refusal(path, make(**({"encoder": "lora"} | changes | bert)), small_log)
    assert f"in which {differs}" in sentence


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source": {"seed": 2}}, "data is the log with fingerprint"),
        ({"split": {"val": 0.15, "test": 0.2}}, "data.split is val 0.15, test 0.15, not val 0.15, test 0.2"),
        ({"max_history": 5}, "data.max_history is 20, not 5"),
        ({"age": "rank"}, "data.age is days, not rank"),
    ],
)
def test_a_checkpoint_of_another_log_or_split_is_refused(
    make: Make,
    make_log: Callable[..., DataModule],
    small_log: DataModule,
    tmp_path: Path,
    changes: dict[str, Any],
    key: str,
) -> None:
    trainer = fitted(make("id"), small_log, tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.save_checkpoint(path := tmp_path / "run.ckpt")
    assert key in refusal(path, make("id"), make_log(**changes))


def test_what_is_fixed_must_have_the_value_of_the_checkpoint(
    make: Make, small_log: DataModule, tmp_path: Path
) -> None:
    there = make("id", decay=Exponential(half_life_days=2.0, learn=False))
    trainer = fitted(there, small_log, tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.save_checkpoint(path := tmp_path / "run.ckpt")
    here = make("id", decay=Exponential(half_life_days=3.0, learn=False))
    assert "decay.log_half_life, which is fixed, has another value" in refusal(path, here, small_log)


def test_a_run_may_go_on_with_other_rates_start_values_seed_and_batches(
    make: Make, make_log: Callable[..., DataModule], small_log: DataModule, tmp_path: Path
) -> None:
    trainer = fitted(make("lora"), small_log, tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.save_checkpoint(path := tmp_path / "run.ckpt")
    start = Exponential(half_life_days=9.0, learn=True)
    other = make("lora", decay=start, head_lr=0.5, schedule="linear", schedule_epochs=7, seed=9)
    check_checkpoint(str(path), other, make_log(batch_size=8, eval_batch_size=16, num_workers=1))

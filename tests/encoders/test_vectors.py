"""The items' own vectors through a learned map: alone, beside text, and where only they carry the topic."""

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

from halflife.cli import CONFIG_DIR
from halflife.datamodule import DataModule
from halflife.encoders import tuning
from halflife.encoders.text import TextEncoder
from halflife.encoders.vectors import ItemVectors, VectorMap
from halflife.errors import InputError
from halflife.recommender import Recommender, build
from halflife.sources import synthetic
from halflife.tables import Tables
from tests.conftest import TEXT

LORA = partial(tuning.lora, r=2, alpha=4.0, dropout=0.0, target_modules=["query", "value"])
TUNINGS = {"frozen": tuning.frozen, "lora": LORA}

Make = Callable[..., DataModule]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Vectors of every second item of the newsroom, of no common length."""
    file = tmp_path_factory.mktemp("vectors") / "half.csv"
    numbers = np.random.default_rng(0).normal(size=(48, 5)) * np.arange(1, 49)[:, None]
    file.write_text("".join(f"N{i:05d},{','.join(map(str, numbers[i]))}\n" for i in range(0, 48, 2)))
    return str(file)


def text_encoder(data: DataModule, bert: Path, cache: Path, tune: str, **changes: Any) -> TextEncoder:
    torch.manual_seed(0)
    settings = TEXT | changes
    return TextEncoder(data.store, str(bert), tuning=TUNINGS[tune], **settings, cache_dir=str(cache))


def batch_of(data: DataModule, encoder: TextEncoder | ItemVectors) -> Any:
    data.tokens = encoder.tokens if encoder.reads_tokens else None
    return data.impressions()[data.rows("train")[:20]]


# --- alone


def test_vectors_are_mapped_at_length_1_and_a_missing_one_is_0(make_log: Make, half: str) -> None:
    data = make_log(vectors=half)
    encoder = ItemVectors(data.store, dim=8)
    every = encoder.catalogue()
    mask = torch.from_numpy(np.array(data.store.item_vector_mask))
    torch.testing.assert_close(every.norm(dim=1), mask.float())
    given = torch.from_numpy(np.array(data.store.item_vector))[mask]
    want = torch.nn.functional.normalize(given @ encoder.map.projection.weight.T, dim=1)
    torch.testing.assert_close(every[mask], want.detach())
    batch = batch_of(data, encoder)
    torch.testing.assert_close(encoder(batch), every[batch.item])


def test_the_map_starts_with_the_similarities_of_the_vectors(make_log: Make, half: str) -> None:
    store = make_log(vectors=half).store
    given = torch.nn.functional.normalize(torch.from_numpy(np.array(store.item_vector)), dim=1)
    every = ItemVectors(store, dim=8).catalogue()
    torch.testing.assert_close(every @ every.T, given @ given.T, atol=1e-5, rtol=0)


def test_the_catalogue_is_mapped_in_parts(make_log: Make, half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ItemVectors(make_log(vectors=half).store, dim=8)
    whole = encoder.catalogue()
    monkeypatch.setattr("halflife.encoders.vectors.CATALOGUE_ITEMS", 7)
    torch.testing.assert_close(encoder.catalogue(), whole)
    assert not whole.requires_grad


def test_a_log_without_vectors_is_refused(small_log: DataModule, make_log: Make, half: str) -> None:
    with pytest.raises(InputError, match=r"^data\.vectors must be a file of item vectors for model=item_vec"):
        ItemVectors(small_log.store, dim=8)
    with pytest.raises(InputError, match=r"^model\.dim must be"):
        ItemVectors(make_log(vectors=half).store, dim=0)


# --- beside text


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("tune", TUNINGS)
def test_text_and_vectors_are_added_and_the_catalogue_is_what_a_batch_gives(
    tune: str, pooling: str, make_log: Make, half: str, tiny_bert: Path, tmp_path: Path
) -> None:
    data, plain = make_log(vectors=half), make_log()
    encoder = text_encoder(data, tiny_bert, tmp_path, tune, pooling=pooling).eval()
    alone = text_encoder(plain, tiny_bert, tmp_path, tune, pooling=pooling).eval()
    with torch.no_grad():
        every, text = encoder.catalogue(), alone.catalogue()
        torch.testing.assert_close(every.norm(dim=1), torch.ones(48))
        mask = torch.from_numpy(np.array(data.store.item_vector_mask))
        torch.testing.assert_close(every[~mask], text[~mask])  # without a vector, an item is its text
        assert (every[mask] - text[mask]).norm(dim=1).min() > 0.05
        batch = batch_of(data, encoder)
        torch.testing.assert_close(encoder(batch), every[batch.item])


def test_vectors_beside_reused_text_are_those_of_the_batch(
    make_log: Make, half: str, tiny_bert: Path, tmp_path: Path
) -> None:
    data = make_log(vectors=half)
    encoder = text_encoder(data, tiny_bert, tmp_path, "lora", reuse_steps=2, reuse_rise_steps=1)
    batch = batch_of(data, encoder)
    encoder.eval()
    want = encoder(batch)
    encoder.train()
    encoder.backbone.eval()
    for _ in range(2):
        torch.testing.assert_close(encoder(batch), want)
        encoder.stepped(1)
    assert encoder.reuse is not None
    assert not encoder.reuse.stale(batch.item)[1:].all()


def test_lengths_of_text_and_vectors_do_not_matter(
    make_log: Make, half: str, tiny_bert: Path, tmp_path: Path
) -> None:
    data = make_log(vectors=half)
    encoder = text_encoder(data, tiny_bert, tmp_path, "frozen")
    every = encoder.catalogue()
    encoder.vectors = encoder.vectors * 100
    torch.testing.assert_close(encoder.catalogue(), every)


@pytest.mark.parametrize(("width", "dim", "beside"), [(5, 8, 32), (32, 8, 64), (300, 16, 32), (4, 16, 8)])
def test_parts_of_text_and_vectors_start_as_long_as_each_other(width: int, dim: int, beside: int) -> None:
    store: Any = SimpleNamespace(item_vector=np.zeros((1, width), np.float32))
    torch.manual_seed(0)
    given, text = (torch.nn.functional.normalize(torch.randn(4_000, n), dim=1) for n in (width, beside))
    head = torch.nn.init.orthogonal_(torch.empty(dim, beside))
    part = given @ VectorMap(store, dim, beside).projection.weight.T
    assert float(part.square().sum(1).mean() / (text @ head.T).square().sum(1).mean()) == pytest.approx(
        1, rel=0.1
    )


@pytest.mark.parametrize("tune", TUNINGS)
def test_the_map_takes_a_gradient_and_nothing_does_without_vectors(
    tune: str, make_log: Make, half: str, tiny_bert: Path, tmp_path: Path
) -> None:
    data = make_log(vectors=half)
    encoder = text_encoder(data, tiny_bert, tmp_path, tune)
    assert isinstance(encoder.beside, VectorMap)
    encoder(batch_of(data, encoder))[:, 0].sum().backward()
    grad = encoder.beside.projection.weight.grad
    assert grad is not None
    assert grad.abs().max() > 0
    assert text_encoder(make_log(), tiny_bert, tmp_path, tune).beside is None


def test_a_batch_without_vectors_is_a_defect(
    make_log: Make, half: str, tiny_bert: Path, tmp_path: Path
) -> None:
    data = make_log(vectors=half)
    encoder = text_encoder(data, tiny_bert, tmp_path, "frozen")
    with pytest.raises(AssertionError):
        encoder(replace(batch_of(data, encoder), item_vectors=None))


# --- in a run


def module_of(data: DataModule, *overrides: str) -> Recommender:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", overrides=[*overrides, f"cache_dir={data.cache_dir}"])
    torch.manual_seed(0)
    return build(cfg, data)


@pytest.mark.parametrize("model", ["id_embedding", "topics"])
def test_a_model_that_does_not_read_vectors_refuses_a_log_with_them(
    model: str, make_log: Make, half: str
) -> None:
    with pytest.raises(InputError, match=r"^model must be item_vectors or a text encoder for a log with"):
        module_of(make_log(vectors=half), f"model={model}")


def blank(files: list[Path], **settings: Any) -> Tables:
    """The newsroom with one text for every item, which says nothing of its topic."""
    log = synthetic.read(files, **settings)
    return replace(log, items=log.items.lazy().with_columns(text=polars.lit("news")))


@pytest.fixture(scope="module")
def planted(make_log: Make, tmp_path_factory: pytest.TempPathFactory, newsroom: dict[str, Any]) -> Make:
    """A log whose topics are in the vectors alone, as a noisy direction each: `planted(vectors=True)`."""
    settings = newsroom | {"users": 150, "items": 96, "days": 40.0}
    items = synthetic.read([], **settings).items.lazy().collect()
    rng = np.random.default_rng(0)
    topic = items["category"].cast(polars.Categorical).to_physical().to_numpy()
    given = rng.normal(size=(topic.max() + 1, 24))[topic] + 0.3 * rng.normal(size=(len(items), 24))
    file = tmp_path_factory.mktemp("planted") / "v.parquet"
    polars.DataFrame({"item_id": items["item_id"], "vector": given}).write_parquet(file)

    def make(vectors: bool) -> DataModule:
        data = make_log(settings, vectors=str(file) if vectors else None)
        data.source = partial(blank, **settings)
        return data

    return make


def auc(data: DataModule, folder: Path, *overrides: str) -> float:
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    module = module_of(data, *overrides)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return float(trainer.callback_metrics["test/gauc"])


@pytest.mark.parametrize("model", ["item_vectors", "bert_frozen", "bert_lora"])
def test_vectors_predict_where_the_text_says_nothing(
    model: str, planted: Make, tiny_bert: Path, tmp_path: Path
) -> None:
    words = [f"model={model}", *([] if model == "item_vectors" else [f"model.pretrained={tiny_bert}"])]
    assert auc(planted(vectors=True), tmp_path, *words) > 0.7


def test_the_text_of_that_log_does_say_nothing(planted: Make, tiny_bert: Path, tmp_path: Path) -> None:
    found = auc(planted(vectors=False), tmp_path, "model=bert_frozen", f"model.pretrained={tiny_bert}")
    assert found == pytest.approx(0.5, abs=0.03)

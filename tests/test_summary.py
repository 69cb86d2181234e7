"""The end of a run: what its picture and table are made of."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest

from halflife.datamodule import DataModule
from halflife.recommender import build
from halflife.summary import bent, beyond, caveats, last_table, unsettled
from tests.test_conf import composed


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        ({"status": "estimated", "half_life_days": 4.0, "low": 3.0, "high": 5.0}, ["4", "3 – 5"]),
        ({"status": "fixed", "half_life_days": 4.0, "low": None}, ["4", "fixed"]),
        ({"status": "not_refitted", "half_life_days": 4.0, "low": None}, ["4", "not estimated"]),
        ({"status": "not_identified", "half_life_days": None, "low": None}, ["not identified", ""]),
        ({"status": "no_half_life", "half_life_days": None, "low": None}, None),
    ],
)
def test_the_last_table_says_what_stands_behind_a_half_life(
    estimate: dict[str, Any], shown: list[str] | None
) -> None:
    found = {"data/test_impressions": 10, "data/split": "it leaks", "data/split_leaks": 1}
    table = last_table(found, {"unit": "days", "kernel": "power", **estimate}, Path("run"))
    rows = {row[0]: list(row[1:3]) for row in zip(*(c.cells for c in table.columns), strict=True)}
    assert rows.get("half-life (days), power") == shown
    assert table.caption == "it leaks"


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [(5.2, 4.1, 6.4, ["5.2", "4.1 – 6.4"]), (None, None, None, ["not identified", ""])],
)
def test_the_last_table_shows_the_half_life_of_clicks_that_vectors_have_not_learned_from(
    value: float | None, low: float | None, high: float | None, shown: list[str]
) -> None:
    held_out = {"status": "estimated", "half_life_days": value, "low": low, "high": high}
    told = {"status": "estimated", "half_life_days": 4.0, "low": 3.0, "high": 5.0, "held_out": held_out}
    found = {"data/test_impressions": 10, "data/split": "by the clock"}
    table = last_table(found, {"unit": "days", "kernel": "power", **told}, Path("run"))
    rows = {row[0]: list(row[1:3]) for row in zip(*(c.cells for c in table.columns), strict=True)}
    assert rows["  by validation clicks alone"] == shown


@pytest.mark.parametrize(
    ("half_life", "said"),
    [
        (46.0, "the half-life is longer than the log (20 days): it rests on the shape of the kernel"),
        (20.0, None),
        (3.0, None),
        (None, None),
    ],
)
def test_a_half_life_longer_than_the_log_says_so(half_life: float | None, said: str | None) -> None:
    seconds = np.array([0, 5, 20]) * 86_400
    store: Any = SimpleNamespace(event_time=seconds[::-1], impression_time=seconds[1:])
    assert beyond({"half_life_days": half_life}, store) == said


@pytest.mark.parametrize(
    ("model", "share", "told"), [("id_embedding", 2, True), ("id_embedding", None, False)]
)
def test_a_half_life_from_vectors_that_hardly_learned_says_so(
    model: str, share: int | None, told: bool, make_log: Callable[..., DataModule], tmp_path: Path
) -> None:
    data = make_log()
    module = build(composed(f"model={model}"), data)
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=share,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    note = unsettled(module)
    assert (note is not None) is told
    if told:
        batches = len(data.train_dataloader())
        assert note == (
            f"item vectors learned from 2 of {batches} batches: the half-life may move as they learn on"
        )
        assert caveats([{"decay/note": note, "data/split": "by the clock"}]) == [note]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (None, False),
        ({"status": "not_identified", "half_life_days": None, "low": None, "high": None}, False),
        ({"status": "estimated", "half_life_days": 5.6, "low": 4.0, "high": 7.9}, False),  # √(0.20² + 0.34²)
        ({"status": "estimated", "half_life_days": 6.2, "low": 4.4, "high": 8.7}, True),
        ({"status": "estimated", "half_life_days": 2.6, "low": 1.9, "high": 3.7}, True),
    ],
)
def test_a_split_that_vectors_have_not_seen_and_that_tells_another_half_life_is_a_caveat(
    other: dict[str, Any] | None, told: bool
) -> None:
    here = {"unit": "days", "half_life_days": 4.0, "low": 4 / 1.22, "high": 4 * 1.22}
    note = bent(here if other is None else {**here, "held_out": other})
    assert (note is not None) is told
    if told and other is not None:
        shown = f"tells {other['half_life_days']} [{other['low']}, {other['high']}] (days)"
        assert shown in str(note)

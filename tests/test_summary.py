"""The end of a run: what its picture and table are made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from halflife.batches import DataModule
from halflife.summary import ages, last_table


@pytest.mark.parametrize("unit", ["days", "rank"])
def test_the_ages_of_the_picture_are_those_of_the_clicks_that_the_model_reads(
    unit: str, make_log: Callable[..., DataModule]
) -> None:
    data = make_log(max_history=3, age=unit)
    rows = data.rows("test")
    assert len(rows) <= 1000
    batch = data.impressions(with_tokens=False)[rows]
    assert (batch.past_clicks > 3).any(), "some histories are cut"
    shown = ages(data.store, rows, unit, data.max_history)
    np.testing.assert_allclose(shown, batch.age[batch.history_mask].numpy(), rtol=1e-6)


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

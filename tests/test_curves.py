"""The pictures of a run: what they are made of, and that they say which is which."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from halflife.curves import GROUPS_DRAWN, ages, decay_curve, half_lives
from halflife.datamodule import DataModule


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


def test_the_picture_of_a_run_is_not_kept_when_the_run_is_over() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    drawn = {"age": [0.0, 1.0, 2.0, 3.0, 4.0], "weight": [1.0, 0.5, 0.25, 0.1, 0.0], "clicks": [1.0]}
    fitted = {"unit": "days", "kernel": "power", "half_life_days": 1.0, "low": 0.5, "high": 2.0}
    assert decay_curve(drawn, fitted, None).axes
    assert plt.get_fignums() == before


def grouped(many: int, **more: Any) -> dict[str, Any]:
    each = {f"group {k}": 1.0 + k for k in range(many)}
    ends = {name: [h / (1.1 + k), h * (1.1 + k)] for k, (name, h) in enumerate(each.items())}
    return {"unit": "days", "half_life_days": 4.0, "half_lives": each, "half_lives_intervals": ends, **more}


def test_groups_are_drawn_from_the_shortest_half_life_to_the_longest_with_what_was_planted() -> None:
    (axes,) = half_lives(grouped(3, half_lives_planted={"group 1": 2.5})).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["group 0", "group 1", "group 2"]
    assert axes.get_legend_handles_labels()[1] == ["95 % interval", "planted", "shared: 4 days"]
    drawn = [tuple(float(x) for x in line.get_xdata()) for line in axes.lines]
    assert (2.5,) in drawn  # what was planted
    assert (1.0 / 1.1, 1.0 * 1.1) in drawn  # an interval


def test_of_many_groups_the_surest_are_drawn_and_that_is_said() -> None:
    (axes,) = half_lives(grouped(GROUPS_DRAWN + 5)).axes
    names = [t.get_text() for t in axes.get_yticklabels()]
    assert names == [f"group {k}" for k in range(GROUPS_DRAWN)]
    assert f"the surest {GROUPS_DRAWN} of {GROUPS_DRAWN + 5} groups" in axes.get_xlabel()


def test_groups_without_an_interval_or_a_shared_half_life_are_drawn_too() -> None:
    estimate = grouped(2, half_life_days=None)
    del estimate["half_lives_intervals"]
    (axes,) = half_lives(estimate).axes
    assert axes.get_legend_handles_labels()[1] == []

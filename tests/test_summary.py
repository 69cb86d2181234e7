"""The end of a run: what its picture and table are made of."""

from collections.abc import Callable

import numpy as np
import pytest

from halflife.batches import DataModule
from halflife.summary import ages


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

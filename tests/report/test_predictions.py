"""Calibration, AUC within parts, and paired differences, against plain counts."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from halflife.report import predictions


def frame(users: int, seed: int, noise: float) -> pl.DataFrame:
    """Impressions of five candidates with one click; the score finds it through noise."""
    random = np.random.default_rng(seed)
    rows = users * 4 * 5
    label = np.tile([1, 0, 0, 0, 0], users * 4)
    return pl.DataFrame(
        {
            "impression_id": np.repeat(np.arange(users * 4), 5),
            "item_id": np.tile(np.arange(5), users * 4),
            "user": np.repeat(np.arange(users), 20),
            "label": label,
            "score": label + noise * np.random.default_rng(seed + 99).normal(size=rows),
            "history": np.repeat(random.integers(1, 30, users * 4), 5),
        }
    )


@given(st.integers(0, 1000), st.integers(2, 12))
@settings(max_examples=20)
def test_bins_hold_every_row_once_and_their_means_add_up(seed: int, bins: int) -> None:
    random = np.random.default_rng(seed)
    probability = random.uniform(size=200).round(2)
    label, user = (random.uniform(size=200) < probability).astype(int), random.integers(0, 20, 200)
    found, error = predictions.reliability(probability, label, user, bins)
    rows = np.array([b.rows for b in found])
    assert rows.sum() == 200
    assert len(found) <= bins
    assert np.sum(rows * [b.predicted for b in found]) == pytest.approx(probability.sum())
    assert np.sum(rows * [b.observed for b in found]) == pytest.approx(label.sum())
    assert [b.predicted for b in found] == sorted(b.predicted for b in found)
    assert error == pytest.approx(np.sum(rows * [abs(b.observed - b.predicted) for b in found]) / 200)


def test_a_calibrated_score_has_its_chances_inside_the_intervals() -> None:
    random = np.random.default_rng(3)
    probability = random.uniform(0.05, 0.6, 20000)
    label = (random.uniform(size=20000) < probability).astype(int)
    found, error = predictions.reliability(probability, label, np.arange(20000) // 10)
    assert error < 0.015
    assert sum(b.low <= b.predicted <= b.high for b in found) >= 8
    assert 0.02 < np.mean([b.high - b.low for b in found]) < 0.06


def test_a_listwise_chance_adds_up_to_one_within_an_impression() -> None:
    rows = frame(3, 0, 1.0)
    chance = predictions.probability(rows, listwise=True)
    assert chance.reshape(-1, 5).sum(1) == pytest.approx(np.ones(12))
    assert predictions.probability(rows, listwise=False) == pytest.approx(1 / (1 + np.exp(-rows["score"])))


def test_auc_within_a_part_is_that_of_its_rows_alone() -> None:
    rows = frame(40, 1, 1.0)
    parts = predictions.auc_by(rows, "history", slices=3)
    assert sum(p.impressions for p in parts) == 160
    low, high = map(int, parts[0].name.split(" – "))
    some = rows.filter(pl.col("history").is_between(low, high))
    assert parts[0].auc == pytest.approx(roc_auc_score(some["label"], some["score"]))
    assert all(p.low <= p.auc <= p.high for p in parts)


def test_a_part_without_enough_clicks_and_a_column_without_values_are_left_out() -> None:
    rows = frame(2, 1, 1.0)
    assert predictions.auc_by(rows.with_columns(label=pl.lit(0, pl.Int64)), "history") == []
    assert predictions.auc_by(rows.with_columns(history=pl.lit(None, pl.Int64)), "history") == []


def test_a_paired_difference_is_zero_against_itself_and_sure_against_noise() -> None:
    good, bad = frame(60, 1, 1.0), frame(60, 2, 3.0)
    assert predictions.paired([(good, good.sample(fraction=1.0, shuffle=True, seed=1))]) == (0.0, 0.0, 0.0)
    found = predictions.paired([(good, bad)])
    assert found is not None
    point, low, high = found
    expected = roc_auc_score(good["label"], good["score"]) - roc_auc_score(bad["label"], bad["score"])
    assert point == pytest.approx(expected)
    assert 0 < low < point < high
    back = predictions.paired([(bad, good)])
    assert back == pytest.approx((-point, -high, -low))
    assert predictions.paired([(good, bad.filter(pl.col("impression_id") > 0))]) is None

"""What predictions tell beyond one number: calibration, AUC by kind of history, paired differences."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars
import torch
from numpy.typing import NDArray

from halflife import metrics

Array = NDArray[Any]

DRAWS = 200  # of the cluster bootstrap over users
CLASS = 5  # clicked and not clicked candidates that a group of rows needs for an AUC worth showing


@dataclass(frozen=True)
class Bin:
    """Candidates of similar predicted probability.

    Args:
        predicted: mean probability.
        observed: share that was clicked, with the 95 % interval `low` to `high` by a bootstrap over users.
        rows: how many candidates.
    """

    predicted: float
    observed: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Slice:
    """AUC within a part of the test rows.

    Args:
        name: what the part is, for example `7 – 12`.
        low, high: 95 % interval by a bootstrap over users.
        impressions: how many.
    """

    name: str
    auc: float
    low: float
    high: float
    impressions: int


def read(run_dir: Path) -> polars.DataFrame:
    """A run's predictions, users numbered in `user`."""
    frame = polars.read_parquet(run_dir / "predictions.parquet")
    return frame.with_columns(user=polars.col("user_id").rank("dense").cast(polars.Int64))


def probability(frame: polars.DataFrame, listwise: bool) -> Array:
    """Chance of a click of each row: σ(score), or the softmax within the impression after a listwise loss."""
    score = frame["score"].to_numpy().astype(np.float64)
    if not listwise:
        return np.asarray(1 / (1 + np.exp(-score)))
    within = polars.col("score").cast(polars.Float64)
    power = (within - within.max().over("impression_id")).exp()
    return frame.select(power / power.sum().over("impression_id")).to_series().to_numpy()


def reliability(probability: Array, label: Array, user: Array, bins: int = 10) -> tuple[list[Bin], float]:
    """Predicted against observed, in bins of equally many rows, and the expected calibration error.

    ECE = Σ_b (n_b / n) |observed_b − predicted_b|. Rows of one probability stay in one bin.

    Args:
        probability: of a click, in [0, 1].
        label: 0 or 1.
        user: whole numbers; rows of one user are drawn together.
        bins: at most.

    Shape: probability, label, user: (rows,).

    Source: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning (AAAI 2015).

    >>> found, error = reliability(np.array([0.25] * 4), np.array([0, 0, 0, 1]), np.arange(4))
    >>> found[0].observed, error
    (0.25, 0.0)
    """
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1]))
    _, at = np.unique(np.searchsorted(edges, probability, side="left"), return_inverse=True)
    _, owner = np.unique(user, return_inverse=True)
    size, users = at.max() + 1, owner.max() + 1
    cell = owner * size + at  # a draw weighs users: sums by user and bin are all it needs
    rows, clicks = (
        np.bincount(cell, weights, minlength=users * size).reshape(users, size)
        for weights in (None, label.astype(np.float64))
    )
    random = np.random.default_rng(0)
    weight = random.multinomial(users, np.full(users, 1 / users), size=DRAWS)
    drawn = (weight @ clicks) / np.maximum(weight @ rows, 1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    total, predicted = rows.sum(0), np.bincount(at, probability) / rows.sum(0)
    observed = clicks.sum(0) / total
    error = float((total * np.abs(observed - predicted)).sum() / total.sum())
    columns = [c.tolist() for c in (predicted, observed, low, high, total.astype(np.int64))]
    return [Bin(*values) for values in zip(*columns, strict=True)], error


def auc_by(frame: polars.DataFrame, column: str, slices: int = 5) -> list[Slice]:
    """AUC within parts of equally many impressions, by a column; parts of too few clicks are left out.

    Args:
        frame: from `read`.
        column: `history` or `last_age_days`; rows without a value are left out.
        slices: at most; equal values stay together.
    """
    frame = frame.drop_nulls(column)
    each = frame.group_by("impression_id").agg(polars.col(column).first())[column].to_numpy()
    if len(each) == 0:
        return []
    edges = np.unique(np.quantile(each, np.linspace(0, 1, slices + 1)[1:-1], method="inverted_cdf"))
    value = frame[column].to_numpy()
    at = np.searchsorted(edges, value, side="left")
    found = []
    for part in np.unique(at):
        rows = frame.filter(at == part)
        clicks = int(rows["label"].sum())
        if min(clicks, len(rows) - clicks) < CLASS:
            continue
        score, label, user = (torch.from_numpy(rows[c].to_numpy().copy()) for c in ("score", "label", "user"))
        low, high = metrics.auc_interval(score, label, user, resamples=DRAWS)
        least, most = value[at == part].min(), value[at == part].max()
        ends = [age(v) if column == "last_age_days" else f"{v:,.0f}" for v in (least, most)]
        name = ends[0] if ends[0] == ends[1] else " – ".join(ends)
        found.append(
            Slice(name, float(metrics.auc(score, label)), low, high, rows["impression_id"].n_unique())
        )
    return found


def age(days: float) -> str:
    """An age in the unit that suits it.

    >>> age(0.001), age(0.25), age(2.71), age(40.4)
    ('1 min', '6 h', '2.7 d', '40 d')
    """
    if days < 1 / 24:
        return f"{days * 1440:.0f} min"
    if days < 1:
        return f"{days * 24:.0f} h"
    return f"{days:.1f} d" if days < 10 else f"{days:.0f} d"


def paired(pairs: list[tuple[polars.DataFrame, polars.DataFrame]]) -> tuple[float, float, float] | None:
    """Difference in AUC of two settings, run by run on the same test rows, and its 95 % interval.

    Each draw takes the same users for both settings and all seeds; the mean over seeds is what varies between
    draws, so the interval speaks of other users, at these seeds.

    Args:
        pairs: predictions of the setting and of what it is compared with, one pair a seed.

    Returns:
        The mean difference, its low and its high end; None where the test rows are not the same.

    Source: Field & Welsh, Bootstrapping Clustered Data (JRSS B 2007).
    """
    keys = ["impression_id", "item_id", "label"]
    point, draws = [], []
    for setting, base in pairs:
        setting, base = setting.sort(keys), base.sort(keys)
        if not setting.select(keys).equals(base.select(keys)):
            return None
        label, user = (torch.from_numpy(setting[c].to_numpy().copy()) for c in ("label", "user"))
        scores = [torch.from_numpy(frame["score"].to_numpy().copy()) for frame in (setting, base)]
        aucs = [float(metrics.auc(score, label)) for score in scores]
        drawn = [metrics.auc_draws(score, label, user, resamples=DRAWS) for score in scores]
        point.append(aucs[0] - aucs[1])
        draws.append(drawn[0] - drawn[1])
    low, high = torch.nanquantile(torch.stack(draws).mean(0), torch.tensor([0.025, 0.975]).double()).tolist()
    return float(np.mean(point)), low, high

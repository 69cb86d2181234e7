"""Kernels beside no decay: the paired difference, its interval by user, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch

from halflife.compare import (
    Outcome,
    against_none,
    check_alike,
    configured,
    fits,
    half_life_text,
    heavier,
    outcome,
    per_user,
    picture,
    run,
    table,
    told_of_users,
)
from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.estimate import Z
from halflife.likelihood import Likelihood
from tests.test_estimate import log_of, module_of


def some(loss: list[float], draws: list[float], free: float = 3, likelihood: float = -10.0) -> Outcome:
    about = {"parameters_effective": free, "log_likelihood": likelihood, "half_life": None, "unit": "days"}
    return Outcome(about, torch.tensor(loss).double(), ["a", "a", "b"], draws[0], torch.tensor(draws), None)


def test_a_difference_is_clustered_by_user() -> None:
    runs = [{"none": some([1, 1, 1], [0.5, 0.5]), "x": some([0.7, 0.9, 1.1], [0.6, 0.7], 3.5, -8.0)}]
    found = against_none(runs, "x")
    d, n = np.array([-0.4, 0.1]), np.array([2, 1])  # of users a and b
    delta = d.sum() / n.sum()
    half = Z * np.sqrt(((d - delta * n) ** 2).sum()) / n.sum()
    assert found["loss_difference"] == pytest.approx(delta)
    assert found["loss_difference_high"] - found["loss_difference"] == pytest.approx(half)
    assert found["auc_difference"] == pytest.approx(0.1)
    assert found["auc_difference_low"] == pytest.approx(0.1025, abs=1e-4)  # between draws of 0.1 and 0.2
    assert found["aic_over_none"] == pytest.approx(2 * (3.5 + 8.0) - 2 * (3 + 10.0))


def test_the_planted_kernel_beats_no_decay_on_its_own_log(make_log: Callable[..., DataModule]) -> None:
    data = log_of(make_log)
    module = module_of(data)
    vectors = module.encoder.catalogue()
    train = Likelihood(module, data.sample("train"), vectors)
    splits = train, train  # a log so small has no test split to tell by
    ids = data.store.users["user_id"].cast(str).to_list()
    found = {n: outcome(module, "days", configured(n), *splits, ids) for n in ("none", "exponential")}
    row = against_none([found], "exponential")
    assert row["loss_difference"] < 0
    assert row["aic_over_none"] < 0
    assert half_life_text(row["runs"], "days").endswith("]")
    assert found["none"].about["half_life"] is None


def test_a_heavy_tail_has_users_who_differ_beside_it(make_log: Callable[..., DataModule]) -> None:
    free, none = some([1.0], [0.5]), some([1.0], [0.5], likelihood=-20.0)
    power = some([1.0], [0.5], likelihood=-5.0)
    found = {"none": none, "exponential": free, "power": power, "weibull": some([1.0], [0.5])}
    assert heavier(found) == "power"
    assert heavier({**found, "exponential": power}) is None, "no tail beats it"
    assert heavier({"power": power, "none": none}) is None
    power.about["by_user"] = {"sd": 0.9, "aic": 2 * (3 + 4.0)}
    (told,) = told_of_users(found)
    assert told.startswith(
        "power: AIC -30.0; exponential with a half-life for each user (sd of its logarithm 0.9)"
    )
    assert told.endswith("-32.0; users who differ explain the tail")
    power.about["by_user"]["aic"] = 2 * (3 + 6.0)
    assert told_of_users(found)[0].endswith("users who differ do not explain it")

    data = log_of(make_log, users=60, half_life_sd=1.5)
    module = module_of(data)
    train = Likelihood(module, data.sample("train"), module.encoder.catalogue())
    alone = per_user(train, data.store)
    kernel = configured("exponential")
    alike = train.with_decay(kernel)
    assert alone["sd"] > 0.5
    assert alone["aic"] < 2 * (alike.best().value + len(alike.names)), "they do differ in this log"


def test_a_kernel_that_a_run_cannot_take_says_why(
    make_log: Callable[..., DataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halflife.compare.LARGEST", 8)
    data = log_of(make_log)
    kernel = configured("by_user")
    kernel.bind(data.store)
    assert "groups, and a refit takes 2 to 8" in fits(kernel, module_of(data))


def finished(place: Path, split: str = "7d", age: str = "days", item: int = 5, negative: int = 6) -> Path:
    """What of a finished run is looked at before it is loaded: one impression of a click and a negative."""
    for name in (".hydra", "checkpoints"):
        (place / name).mkdir(parents=True)
    (place / ".hydra" / "config.yaml").write_text(f"data: {{age: {age}}}")
    (place / "checkpoints" / "best.ckpt").touch()
    (place / "metrics.json").write_text(json.dumps({"data/split": split, "data/fingerprint": str(negative)}))
    ids = {"impression_id": [0, 0], "user_id": ["a", "a"], "timestamp_s": [9, 9]}
    frame = polars.DataFrame({**ids, "item_id": [item, negative], "label": [1, 0]})
    frame.write_parquet(place / "predictions.parquet")
    return place


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"split": "1d"}, r"data.split \(7d and 1d\)"),
        ({"age": "rank"}, r"data.age \(days and rank\)"),
        ({"item": 7}, "the clicks of the test split"),
    ],
)
def test_runs_of_different_logs_splits_or_ages_are_refused(
    other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    one, same = finished(tmp_path / "one"), finished(tmp_path / "same", negative=8)
    check_alike([one, same])  # negatives drawn by another seed
    with pytest.raises(InputError, match=f"^RUN_DIR must be runs of one log, .*/b, which differ in {said}"):
        run([one, same, finished(tmp_path / "b", **other)], None, 1, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("unit", "age"), [("days", "days"), ("rank", "newer clicks")])
def test_table_and_picture_name_the_unit_and_the_curves_that_are_drawn(
    unit: str, age: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    about = {"half_life": None, "low": None, "high": None, "unit": unit, "status": "no_half_life"}
    runs = [{"none": some([1, 1, 1], [0.5, 0.5]), "x": some([0.7, 0.9, 1.1], [0.6, 0.7])}]
    runs[0]["none"].about.update(about)
    runs[0]["x"].about.update(about, half_life=6.0)
    found = {name: against_none(runs, name) for name in ("x", "none")}
    shown = table(found, 1, 3, ["it leaks"])
    assert shown.caption == "it leaks"
    assert shown.columns[1].header == f"half-life ({unit})"
    assert list(shown.columns[1].cells) == ["6", ""]
    assert half_life_text([{**about, "status": "not_identified"}], unit) == "not identified"
    assert half_life_text([{**about, "half_life": 6.0, "unit": "rank"}], "days") == "6 rank"
    for many, title in ((2, "lowest loss first"), (9, "lowest loss first, 8 of 9 curves")):
        picture(found, {str(i): [1.0] * 101 for i in range(many)}, ["it leaks"], tmp_path / "x.png")
        right = drawn[-1].axes[1]
        assert right.get_legend().get_title().get_text() == title
        assert right.get_xlabel() == f"age of a click ({age})"
        assert drawn[-1].get_supxlabel() == "it leaks"


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--kernels must be one of .*, got exponentail; did you mean exp"):
        run([tmp_path], ["exponentail"], 1, tmp_path)
    with pytest.raises(InputError, match=r"^RUN_DIR must be the directory of a finished run"):
        run([tmp_path], None, 1, tmp_path)

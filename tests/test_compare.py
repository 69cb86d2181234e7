"""Kernels beside no decay: the paired difference, its interval by user, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from halflife.batches import DataModule
from halflife.compare import Outcome, against_none, configured, fits, half_life_text, outcome, run
from halflife.errors import InputError
from halflife.estimate import Z
from halflife.likelihood import Likelihood
from tests.test_estimate import log_of, module_of


def some(loss: list[float], draws: list[float], free: int = 3, likelihood: float = -10.0) -> Outcome:
    about = {"free": free, "log_likelihood": likelihood, "half_life": None, "how": "", "unit": "days"}
    return Outcome(about, torch.tensor(loss).double(), ["a", "a", "b"], draws[0], torch.tensor(draws), None)


def test_a_difference_is_clustered_by_user() -> None:
    runs = [{"none": some([1, 1, 1], [0.5, 0.5]), "x": some([0.7, 0.9, 1.1], [0.6, 0.7], 4, -8.0)}]
    found = against_none(runs, "x")
    d, n = np.array([-0.4, 0.1]), np.array([2, 1])  # of users a and b
    delta = d.sum() / n.sum()
    half = Z * np.sqrt(((d - delta * n) ** 2).sum()) / n.sum()
    assert found["loss_difference"] == pytest.approx(delta)
    assert found["loss_difference_high"] - found["loss_difference"] == pytest.approx(half)
    assert found["auc_difference"] == pytest.approx(0.1)
    assert found["auc_difference_low"] == pytest.approx(0.1025, abs=1e-4)  # between draws of 0.1 and 0.2
    assert found["aic_over_none"] == pytest.approx(2 * (4 + 8.0) - 2 * (3 + 10.0))


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
    assert half_life_text(row["runs"]).endswith("]")
    assert found["none"].about["half_life"] is None


def test_a_kernel_that_a_run_cannot_take_says_why(
    make_log: Callable[..., DataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halflife.compare.LARGEST", 8)
    data = log_of(make_log)
    kernel = configured("by_user")
    kernel.bind(data.store)
    assert "groups, and a refit takes 2 to 8" in fits(kernel, module_of(data))


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--kernels must be one of .*, got exponentail; did you mean exp"):
        run([tmp_path], ["exponentail"], 1, tmp_path)
    with pytest.raises(InputError, match=r"^RUN_DIR must be the directory of a finished run"):
        run([tmp_path], None, 1, tmp_path)

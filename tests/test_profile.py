"""The profile of a run: its interval brackets the estimate and agrees with the bootstrap."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from halflife.datamodule import DataModule
from halflife.errors import InputError
from halflife.estimate import fit_likelihood
from halflife.likelihood import Likelihood
from halflife.profile import DROP, bootstrap, interval, load, permute, profile
from tests.test_estimate import log_of, module_of

MakeLog = Callable[..., DataModule]


def likelihood_of(data: DataModule) -> Likelihood:
    module = module_of(data)
    return Likelihood(module, data.sample("train"), module.encoder.catalogue())


def test_the_interval_ends_where_the_likelihood_has_dropped_by_its_quantile(make_log: MakeLog) -> None:
    fit = fit_likelihood(likelihood_of(log_of(make_log)))
    curve = profile(fit, points=9)
    assert curve.half_life == sorted(curve.half_life)
    assert min(curve.drop) == 0
    best = curve.half_life[curve.drop.index(0)]
    assert curve.low is not None
    assert curve.high is not None
    assert curve.low < best < curve.high
    half = math.log(curve.high / curve.low) / 2
    near = [x for x in map(math.log, curve.half_life) if abs(x - math.log(best)) < 1.5 * half]
    assert max(b - a for a, b in pairwise(near)) < half / 2  # the picture bends where the likelihood does
    held = [str(fit.likelihood.half_life)]
    for end in (curve.low, curve.high):
        there = fit.likelihood.minimise(fit.likelihood.at_half_life(fit.point.theta, end), held=held)
        assert there.value - fit.point.value == pytest.approx(DROP, abs=0.05)


def test_the_bootstrap_is_as_wide_as_the_profile_on_a_log_whose_readers_are_alike(make_log: MakeLog) -> None:
    fit = fit_likelihood(likelihood_of(log_of(make_log)))
    drawn = interval(bootstrap(fit, 30, seed=1))
    curve = profile(fit, points=9)
    assert curve.low is not None
    assert curve.high is not None
    assert drawn["sd_log_half_life"] == pytest.approx(math.log(curve.high / curve.low) / 3.92, rel=0.5)


def test_a_log_without_decay_has_an_interval_without_end(make_log: MakeLog) -> None:
    fit = fit_likelihood(likelihood_of(log_of(make_log, 1, users=40, kernel="none")))
    assert profile(fit, points=7).high is None


def test_ages_dealt_out_anew_gain_less_than_true_ones(make_log: MakeLog) -> None:
    fit = fit_likelihood(likelihood_of(log_of(make_log)))
    assert fit.gain is not None
    assert max(permute(fit, 4, seed=1)) < fit.gain


def test_a_run_that_names_what_this_version_has_not_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("data: {_target_: halflife.gone.DataModule}")
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/best.ckpt", "metrics.json", "predictions.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(
        InputError, match=r"^RUN_DIR must be a run of this version, got .*halflife\.gone"
    ) as e:
        load(tmp_path, "profile its half-life")
    assert "HYDRA_FULL_ERROR" not in str(e.value)


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^RUN_DIR must be the directory of a finished run, got .* without "
    ):
        load(tmp_path, "profile its half-life")

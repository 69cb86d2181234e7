"""The half-life's interval: it covers what was planted, is as wide as the spread, or says why there is
none.
"""

import math
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halflife import losses, metrics
from halflife.batches import Batch
from halflife.datamodule import DataModule
from halflife.decay.exp_mixture import ExpMixture
from halflife.decay.exponential import Exponential
from halflife.decay.floor import Floor
from halflife.decay.fourier import Fourier
from halflife.decay.grouped import Grouped
from halflife.decay.kernel import Kernel
from halflife.decay.logarithmic import Logarithmic
from halflife.decay.monotone import Monotone
from halflife.decay.none import NoDecay
from halflife.decay.rank_exponential import RankExponential
from halflife.decay.weibull import Weibull
from halflife.estimate import (
    FEW_USERS,
    LARGEST_SD,
    LEVEL,
    Fit,
    estimate,
    inverse,
    parameters_effective,
    refit,
)
from halflife.interest.pool import Pool
from halflife.likelihood import Likelihood
from halflife.recommender import Recommender
from halflife.sources.newsroom import TOPICS
from halflife.store import Store

PLANTED_DAYS = 5.0
MakeLog = Callable[..., DataModule]


class Oracle(nn.Module):
    """An item's vector is its topic, one-hot: what the newsroom's clicks really depend on."""

    reads_tokens, tokens, frozen_parameters, lr = False, None, 0, 0.0
    table: Tensor

    def __init__(self, store: Store) -> None:
        super().__init__()
        topic = torch.tensor([list(TOPICS).index(c) for c in store.items["category"]])
        self.register_buffer("table", torch.eye(len(TOPICS))[topic])

    def forward(self, batch: Batch) -> Tensor:
        return self.table[batch.item]

    def catalogue(self) -> Tensor:
        return self.table


def module_of(data: DataModule, decay: Kernel | None = None) -> Recommender:
    return Recommender(
        Oracle(data.store),  # type: ignore[arg-type]
        decay or Exponential(half_life_days=2.0, learn=True),
        Pool(len(TOPICS), composition="sink", scale=5.0, sink=1.0),
        losses.bce,
        {"auc": metrics.AUC()},
        head_lr=0.01,
        decay_lr=0.05,
        weight_decay=0.0,
        warmup_steps=0,
        schedule="constant",
        schedule_epochs=1,
        seed=1,
        unit="days",
        impressions=len(data.rows("train")),
    )


def log_of(make_log: MakeLog, seed: int = 0, users: int = 60, **source: Any) -> DataModule:
    """About 1,000 impressions in 40 days, whose histories are hardly cut."""
    return make_log(
        source={"users": users, "days": 40.0, "candidates": 5, "seed": seed} | source,
        max_history=100,
        eval_batch_size=1000,
        split={"val": 0.05, "test": 0.05},
    )


def fit(data: DataModule, decay: Kernel | None = None) -> tuple[Recommender, Fit | None, dict[str, Any]]:
    module = module_of(data, decay)
    found = refit(module, data.sample("train"))
    return module, found, estimate(module, found)


def loss_of(module: Recommender, batches: Iterable[Batch]) -> float:
    with torch.no_grad():
        return sum(float(module.loss(module(b), b.label, b.candidate_mask)) * len(b) for b in batches)


@pytest.fixture(scope="module")
def seeds(make_log: MakeLog) -> list[dict[str, Any]]:
    """Estimates on eight logs that differ in their seed alone."""
    return [fit(log_of(make_log, seed))[2] for seed in range(8)]


def test_the_interval_covers_the_planted_half_life(seeds: list[dict[str, Any]]) -> None:
    assert all(e["identified"] and e["status"] == "estimated" for e in seeds)
    assert all(e["low"] < e["half_life_days"] < e["high"] for e in seeds)
    covers = [e["low"] < PLANTED_DAYS < e["high"] for e in seeds]
    assert sum(covers) >= 6  # of 8; fewer than 6 has a chance of 0.6 % where 95 % is true
    middle = statistics.mean(math.log(e["half_life_days"]) for e in seeds)
    assert math.exp(middle) == pytest.approx(PLANTED_DAYS, rel=0.15)


def test_the_interval_is_as_wide_as_the_spread_over_seeds(seeds: list[dict[str, Any]]) -> None:
    spread = statistics.stdev(math.log(e["half_life_days"]) for e in seeds)
    assert statistics.mean(e["sd_log_half_life"] for e in seeds) == pytest.approx(spread, rel=0.35)


def test_the_interval_is_symmetric_in_the_logarithm_at_its_level(seeds: list[dict[str, Any]]) -> None:
    for e in seeds:
        assert e["level"] == LEVEL
        assert e["low"] * e["high"] == pytest.approx(e["half_life_days"] ** 2, rel=1e-6)
        assert math.log(e["high"] / e["low"]) == pytest.approx(2 * 1.95996 * e["sd_log_half_life"], rel=1e-4)


def test_four_times_the_readers_halve_the_interval(make_log: MakeLog, seeds: list[dict[str, Any]]) -> None:
    small = statistics.mean(e["sd_log_half_life"] for e in seeds)
    assert fit(log_of(make_log, users=240))[2]["sd_log_half_life"] == pytest.approx(small / 2, rel=0.25)


def test_the_refit_ends_where_the_loss_is_least(make_log: MakeLog) -> None:
    data = log_of(make_log)
    batches = list(data.sample("train"))
    module = module_of(data)
    before = loss_of(module, batches)
    found = refit(module, batches)
    least = loss_of(module, batches)
    assert least < before
    assert found is not None
    assert set(found.likelihood.names) == {
        "decay.log_half_life",
        "interest.log_scale",
        "interest.bias",
        "interest.log_sink",
    }
    assert found.gradient.shape == (len(data.rows("train")), 4)
    for parameter in [*module.decay.parameters(), *module.interest.parameters()]:
        for move in (-0.02, 0.02):
            with torch.no_grad():
                parameter.add_(move)
                assert loss_of(module, batches) > least
                parameter.sub_(move)
    again = refit(module, batches)
    assert again is not None
    assert loss_of(module, batches) == pytest.approx(least, rel=1e-6)


def test_where_vectors_learn_the_held_out_split_is_fitted_beside_and_changes_nothing(
    make_log: MakeLog,
) -> None:
    data = log_of(make_log)
    alone, beside, fixed = module_of(data), module_of(data), module_of(data)
    for module in (alone, beside):  # a table that could have learned
        module.encoder.free = nn.Parameter(torch.zeros(1))
    found = estimate(alone, refit(alone, data.sample("train")))
    told = estimate(beside, refit(beside, data.sample("train"), data.sample("test")))
    own = module_of(data)
    expected = estimate(own, refit(own, data.sample("test")))
    held_out = told.pop("held_out")
    assert held_out.pop("status") == expected["status"] == "estimated"
    assert held_out == {k: pytest.approx(expected[k], rel=1e-3) for k in ("half_life_days", "low", "high")}
    assert told == found
    assert dict(beside.named_parameters()).keys() == dict(alone.named_parameters()).keys()
    for name, value in alone.named_parameters():
        assert torch.equal(value, beside.get_parameter(name)), name
    assert "held_out" not in estimate(fixed, refit(fixed, data.sample("train"), data.sample("test")))


@pytest.mark.parametrize("start_days", [0.01, 300.0])
def test_the_refit_finds_the_minimum_from_far_away_too(make_log: MakeLog, start_days: float) -> None:
    data = log_of(make_log)
    near, far = fit(data)[2], fit(data, Exponential(half_life_days=start_days, learn=True))[2]
    assert far["half_life_days"] == pytest.approx(near["half_life_days"], rel=0.01)
    assert far["sd_log_half_life"] == pytest.approx(near["sd_log_half_life"], rel=0.01)


def test_the_refit_does_not_depend_on_how_the_rows_are_batched(make_log: MakeLog) -> None:
    data = log_of(make_log)
    whole = fit(data)[2]
    data.eval_batch_size = 100
    assert fit(data)[2]["half_life_days"] == pytest.approx(whole["half_life_days"], rel=1e-3)


@pytest.mark.parametrize("by", ["category", "activity"])
def test_batches_side_by_side_lose_what_they_lose_apart(make_log: MakeLog, by: str) -> None:
    """Shorter histories, smaller impressions and other batches' items must not show through the padding."""
    data = log_of(make_log)
    data.eval_batch_size = 64
    kernel = Grouped(3.0, True, by, True, sd=0.5, estimate_sd=False, kernel=partial(Exponential))
    kernel.bind(data.store)
    with torch.no_grad():
        kernel.deviation.copy_(torch.linspace(-1, 1, len(kernel.names)))
    module = module_of(data, kernel)
    batches = list(data.sample("train"))
    likelihood = Likelihood(module, batches, module.encoder.catalogue())
    assert len(likelihood._parts) < len(batches) / 4
    with torch.no_grad():
        apart = torch.cat([module.loss(module(b), b.label, b.candidate_mask, "sum") for b in batches])
    joined = likelihood.per_impression(likelihood.start)
    assert torch.allclose(joined.float().sort().values, apart.sort().values, rtol=1e-5)


def test_the_refit_moves_decay_and_interest_scalars_alone_and_keeps_the_mode(make_log: MakeLog) -> None:
    data = log_of(make_log)
    module = module_of(data)
    table = module.encoder.catalogue().clone()
    for training in (True, False):
        module.train(training)
        refit(module, data.sample("train"))
        assert module.training is training
    assert torch.equal(module.encoder.catalogue(), table)
    assert all(p.grad is None for p in module.parameters())


def test_a_kernel_with_a_shape_has_an_interval_too(make_log: MakeLog) -> None:
    data = log_of(make_log, 2, users=120)
    _, found, e = fit(data, Weibull(half_life_days=2.0, learn=True, shape=0.7, learn_shape=True))
    assert found is not None
    assert len(found.likelihood.names) == 5
    assert e["identified"]
    assert e["low"] < PLANTED_DAYS < e["high"]
    assert e["parameters"].keys() == {"log_half_life", "log_shape"}
    # an exponential is a Weibull of shape 1
    assert math.exp(e["parameters"]["log_shape"]) == pytest.approx(1.0, rel=0.5)


def unknown(e: dict[str, Any], status: str = "not_identified") -> str:
    """How an estimate without an interval says why."""
    assert e["status"] == status
    assert (e["low"], e["high"], e["identified"]) == (None, None, False)
    return e["how"]


def test_a_kernel_that_holds_another_one_fits_no_worse(make_log: MakeLog) -> None:
    train = Likelihood(
        module_of(data := log_of(make_log)), data.sample("train"), Oracle(data.store).catalogue()
    )
    plain = train.best().value
    for holds in (
        Floor(30.0, True, floor=0.6, learn_floor=True, kernel=partial(Exponential)),
        ExpMixture(30.0, True, components=3, spread=4.0, learn_rates=False, learn_shares=True),
    ):
        assert train.with_decay(holds).best().value <= plain + 0.01


def test_a_kernel_without_half_life_says_so(make_log: MakeLog) -> None:
    data = log_of(make_log)
    _, found, e = fit(data, NoDecay())
    # scale, bias and sink are refitted all the same, so that log-losses of kernels compare
    assert not any(n.startswith("decay.") for n in found.likelihood.names)
    assert e["half_life_days"] is None
    assert unknown(e, "no_half_life") == "the kernel has no half-life"
    fourier = Fourier(half_life_days=2.0, learn=True, frequencies=4, unit_days=1.0, learn_unit=False)
    assert unknown(estimate(module_of(data, fourier), None), "no_half_life") == "the kernel has no half-life"


def test_a_half_life_that_is_given_says_so_and_stays(make_log: MakeLog) -> None:
    _, found, e = fit(log_of(make_log), Exponential(half_life_days=3.0, learn=False))
    assert not any(n.startswith("decay.") for n in found.likelihood.names)
    assert e["half_life_days"] == pytest.approx(3.0)
    assert unknown(e, "fixed") == "fixed by the configuration, not estimated"
    shaped = Weibull(half_life_days=3.0, learn=False, shape=0.7, learn_shape=True)
    e = fit(log_of(make_log), shaped)[2]
    assert unknown(e, "fixed") == "fixed by the configuration, not estimated"
    assert e["half_life_days"] == pytest.approx(3.0)


def test_a_half_life_that_was_learned_and_not_refitted_says_so(make_log: MakeLog) -> None:
    e = estimate(module_of(log_of(make_log)), None)  # refit=false
    assert e["half_life_days"] == pytest.approx(2.0)
    assert unknown(e, "not_refitted") == "gradient descent alone: no refit and no interval"


def test_an_estimate_from_a_sample_names_it(make_log: MakeLog) -> None:
    data = log_of(make_log)
    rows = len(data.rows("train"))
    whole, part = module_of(data), module_of(data)
    found = refit(part, data.sample("train", candidates=rows))  # of five an impression
    assert found is not None
    used = len(found.likelihood.user)
    assert used < rows / 4
    e = estimate(part, found)
    assert e["how"].endswith(f"; from {used:,} of {rows:,} training impressions, evenly spread")
    assert "training impressions" not in estimate(whole, refit(whole, data.sample("train")))["how"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_half_life_far_beyond_the_log_is_not_identified(make_log: MakeLog, seed: int) -> None:
    data = log_of(make_log, seed, users=40, days=60.0, half_life_days=10_000.0)
    assert unknown(fit(data)[2]).startswith("not identified: ")


def test_logs_without_any_decay_show_none(make_log: MakeLog) -> None:
    hows = [unknown(fit(log_of(make_log, seed, users=40, kernel="none"))[2]) for seed in range(4)]
    ran_away = "not identified: the training loss no longer changes with the half-life"
    moves = "not identified: the training loss keeps falling as the half-life grows"
    wide = "not identified: the standard deviation of the log half-life is "
    assert all(how in (ran_away, moves) or how.startswith(wide) for how in hows)
    assert ran_away in hows


def test_two_users_do_not_make_a_half_life_certain(make_log: MakeLog) -> None:
    few = fit(log_of(make_log, users=2, days=120.0))[2]
    many = fit(log_of(make_log, users=60, days=120.0))[2]
    assert many["how"].count("clustered by user") == 1
    if few["status"] == "estimated":
        assert f"by impression (under {FEW_USERS} users)" in few["how"]
        assert few["sd_log_half_life"] > 2 * many["sd_log_half_life"]
    else:
        assert few["status"] == "not_identified"


def test_parameters_of_which_only_ratios_count_do_not_hide_a_half_life(make_log: MakeLog) -> None:
    bend = torch.tensor([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    for noise in (1e-9, -1e-9):
        found = inverse(bend + noise * torch.eye(3, dtype=torch.float64))
        assert found is not None
        bends, flat = found
        assert flat.shape == (3, 1)
        torch.testing.assert_close(bends, torch.linalg.pinv(bend), atol=1e-6, rtol=0)
    assert inverse(-bend) is None
    e = fit(log_of(make_log), Monotone(2.0, learn=True, knots=3, spread=30.0, learn_drops=True))[2]
    assert e["status"] == "estimated", e["how"]
    assert e["low"] < PLANTED_DAYS < e["high"]


@pytest.mark.parametrize(
    "kernel",
    [partial(Logarithmic, unit_days=1.0, learn_unit=True), Exponential],
    ids=["logarithmic", "exponential"],
)
def test_the_gain_is_over_a_model_in_which_nothing_fades(kernel: Any, make_log: MakeLog) -> None:
    data = log_of(make_log)
    found = fit(data, kernel(half_life_days=2.0, learn=True))[1]
    plain = fit(data, NoDecay())[1]
    assert found is not None
    assert plain is not None
    assert found.gain is not None
    gain = plain.likelihood.loss(plain.point.theta) - found.likelihood.loss(found.point.theta)
    assert found.gain == pytest.approx(gain, abs=0.01)


def test_clicks_counted_by_order_are_the_same_in_joined_parts(make_log: MakeLog) -> None:
    data = log_of(make_log)
    module = module_of(data, RankExponential(half_life_ranks=3.0, learn=True))
    batches = list(data.sample("train"))
    vectors = module.encoder.catalogue()
    whole = Likelihood(module, batches, vectors)
    alone = sum(Likelihood(module, [b], vectors).loss(whole.start) for b in batches)
    by_hand = 0.0
    with torch.no_grad():
        for b in batches:
            score = module.score(b.to("cpu"), vectors[b.item])
            by_hand += float(module.loss(score, b.label, b.candidate_mask, reduction="sum").sum())
    assert whole.loss(whole.start) == pytest.approx(by_hand, rel=1e-6)
    assert alone == pytest.approx(by_hand, rel=1e-6)


def test_the_half_life_of_candidates_is_told_as_that_of_clicks(make_log: MakeLog) -> None:
    data = log_of(make_log)
    module = module_of(data)
    module.candidate_decay = Exponential(half_life_days=9.0, learn=True)
    e = estimate(module, refit(module, data.sample("train")))
    assert e["status"] == "estimated"
    assert e["candidate_status"] == "not_identified", "no news die in this log"
    assert e["candidate_half_life_days"] is None
    dying = log_of(make_log, news_half_life_days=2.0)
    module = module_of(dying)
    module.candidate_decay = Exponential(half_life_days=9.0, learn=True)
    e = estimate(module, refit(module, dying.sample("train")))
    assert e["candidate_low"] < 2.0 < e["candidate_high"]
    module.candidate_decay = Exponential(half_life_days=9.0, learn=False)
    e = estimate(module, refit(module, dying.sample("train")))
    assert (e["candidate_status"], e["candidate_half_life_days"]) == ("fixed", pytest.approx(9.0))


def test_an_interval_that_would_reach_no_decay_at_all_is_not_stated(seeds: list[dict[str, Any]]) -> None:
    # sd(1/h) / (1/h) = sd(log h), so 1/h − 1.96 sd(1/h) > 0 exactly where sd(log h) < 1/1.96
    assert pytest.approx(1 / 1.95996, rel=1e-4) == LARGEST_SD
    assert all(e["sd_log_half_life"] < LARGEST_SD for e in seeds)


class Believer(Exponential):
    """A kernel whose prior says the same of every half-life."""

    def log_prior(self) -> Tensor:
        return torch.tensor(-3.0)


def test_the_priors_of_both_kernels_are_part_of_the_likelihood(make_log: MakeLog) -> None:
    data = log_of(make_log)
    values = []
    for clicks, candidates in ((Exponential, Exponential), (Believer, Exponential), (Believer, Believer)):
        module = module_of(data, clicks(half_life_days=2.0, learn=True))
        module.candidate_decay = candidates(half_life_days=9.0, learn=True)
        likelihood = Likelihood(module, data.sample("train"), module.encoder.catalogue())
        assert "candidate_decay.log_half_life" in likelihood.names
        assert likelihood.half_life == "decay.log_half_life"
        values.append(likelihood.value(likelihood.start))
    assert values[1] - values[0] == pytest.approx(3.0, abs=1e-3)
    assert values[2] - values[0] == pytest.approx(6.0, abs=1e-3)


def test_the_effective_parameters_of_a_ridge_are_the_trace_of_its_hat_matrix() -> None:
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for penalty in (0.0, 3.0, 200.0):
        prior = penalty * torch.eye(4, dtype=torch.float64)
        bend = x.T @ x + prior
        ridge: Any = SimpleNamespace(
            prior=lambda t, p=prior: (t, p), curvature=lambda t, b=bend: (0.0, t, b), estimated_priors=0
        )
        hat = torch.linalg.svdvals(x).square()
        expected = float((hat / (hat + penalty)).sum())
        assert parameters_effective(ridge, torch.zeros(4)) == pytest.approx(expected, rel=1e-9)


def test_groups_count_as_far_as_their_prior_lets_the_data_move_them(make_log: MakeLog) -> None:
    data = log_of(make_log, 3)
    plain = Likelihood(module_of(data), data.sample("train"), Oracle(data.store).catalogue())
    assert parameters_effective(plain, plain.start) == len(plain.names) == 4
    counted = []
    for sd in (0.001, 0.3, 30.0):
        both = []
        for estimated in (False, True):
            kernel = Grouped(5.0, True, "category", True, sd, estimated, partial(Exponential))
            kernel.bind(data.store)
            grouped = plain.with_decay(kernel)
            both.append(parameters_effective(grouped, grouped.start))
        assert both[1] == both[0] + 1, "an estimated spread is one more"
        counted.append(both[0])
    groups = len(TOPICS)
    assert counted[0] == pytest.approx(4, abs=0.01)
    assert 4.5 < counted[1] < 3 + groups
    # the shared half-life and every deviation together are one more than there are groups: 30 hardly pulls
    assert counted[2] == pytest.approx(3 + groups, abs=0.1)


def test_the_refit_estimates_how_far_groups_differ_and_tells_the_module(make_log: MakeLog) -> None:
    data = log_of(make_log, 3)
    kernel = Grouped(
        2.0, True, "category", learn_groups=True, sd=0.5, estimate_sd=True, kernel=partial(Exponential)
    )
    kernel.bind(data.store)
    module = module_of(data, kernel)
    assert refit(module, data.sample("train")) is not None
    assert kernel.group_sd < 0.3  # no group differs in the log, and half of the start's sd is far
    half_lives = estimate(module, None)["half_lives"]
    assert set(half_lives) == set(TOPICS)
    assert all(abs(math.log(h / PLANTED_DAYS)) < 0.5 for h in half_lives.values())


def test_groups_have_intervals_that_hold_what_was_planted_and_are_as_wide_as_the_prior_without_data(
    make_log: MakeLog,
) -> None:
    data = log_of(make_log, 3)
    kernel = Grouped(2.0, True, "category", True, sd=0.5, estimate_sd=False, kernel=partial(Exponential))
    kernel.bind(data.store)
    kernel.names.append("nobody reads it")
    kernel.deviation = torch.nn.Parameter(torch.zeros(len(kernel.names)))
    found = fit(data, kernel)[2]
    intervals = found["half_lives_intervals"]
    empty = intervals.pop("nobody reads it")
    held = [low < PLANTED_DAYS < high for low, high in intervals.values()]
    assert len(held) == len(TOPICS)
    assert sum(held) >= len(TOPICS) - 2
    width = math.log(empty[1] / empty[0]) / 2 / 1.96
    assert width == pytest.approx(math.hypot(0.5, found["sd_log_half_life"]), rel=0.02)
    assert all(math.log(high / low) / 2 / 1.96 < 0.45 for low, high in intervals.values())


def test_a_likelihood_is_the_same_on_a_log_with_vectors_and_keeps_none_of_them(
    make_log: MakeLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halflife.parts.PIECE", 2_000)  # so that batches are cut
    file = tmp_path / "v.csv"
    file.write_text("N00003,1,2\n")
    found = []
    for vectors in (None, str(file)):
        data = make_log(vectors=vectors, eval_batch_size=1000)
        module = module_of(data)
        likelihood = Likelihood(module, data.sample("train"), module.encoder.catalogue())
        assert len(likelihood._parts) > 3
        assert all(part.batch.item_vectors is None for part in likelihood._parts)
        found.append(likelihood.per_impression(likelihood.start))
    assert torch.equal(found[0], found[1])

"""Half-lives of groups: the right group fades faster, and a group that says little stays near the others."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian

from halflife.batches import Batch
from halflife.datamodule import DataModule
from halflife.decay.actr import Actr
from halflife.decay.buckets import Buckets
from halflife.decay.configured import kernels
from halflife.decay.exponential import Exponential
from halflife.decay.floor import Floor
from halflife.decay.grouped import LEAST_SD, MOST_NAMES, Grouped
from halflife.decay.kernel import LARGEST, Kernel
from halflife.decay.power import Power
from halflife.decay.rank_exponential import RankExponential
from halflife.errors import InputError
from halflife.interest.pool import Pool
from halflife.recommender import score

CONF = Path(__file__).parents[2] / "conf"
H = 3.0
Make = Callable[..., Batch]


def kernel_of(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return kernels(compose("train", [f"decay={name}", *overrides]).decay)[0]


def grouped(by: str = "category", groups: int = 1, kernel: Any = None, **changes: Any) -> Grouped:
    """A kernel of so many groups, as `bind` would leave it."""
    given: dict[str, Any] = {"half_life_days": H, "learn": True, "learn_groups": True, "sd": 0.5}
    made = Grouped(by=by, kernel=kernel or partial(Exponential), **({"estimate_sd": False} | given | changes))
    made.names = [f"g{n}" for n in range(groups)]
    made.deviation = nn.Parameter(torch.zeros(groups), requires_grad=made.learn_groups)
    return made


def deviate(kernel: Grouped, *deviations: float) -> Grouped:
    with torch.no_grad():
        kernel.deviation.copy_(torch.tensor(deviations))
    return kernel


def lifted_kinds(estimate_sd: bool) -> Floor:
    """Half-lives by kind under a floor of 0.2."""
    settings = {"by": "kind", "learn_groups": True, "sd": 1.0, "estimate_sd": estimate_sd}
    return Floor(H, True, 0.2, True, partial(Grouped, kernel=partial(Exponential), **settings))


# --- which click is of which group


@pytest.mark.parametrize("name", ["exponential", "power", "weibull", "gamma_hazard", "monotone", "hawkes"])
def test_a_group_halves_at_its_own_half_life(batch_of: Make, name: str) -> None:
    kernel = kernel_of("by_category", f"decay@decay.kernel={name}", "decay.half_life_days=3").double()
    own = kernel_of(name, "decay.half_life_days=9").double()
    kernel.deviation = nn.Parameter(torch.tensor([0.0, math.log(3.0)], dtype=torch.float64))
    ages = [9.0, 4.0, 0.1]
    batch = batch_of([(1, a) for a in ages], category=torch.tensor([0, 1] + [0] * 7))
    # the bump of hawkes has a scale of its own, which stretches too
    expected = kernel(batch.age / 3) if name == "hawkes" else own(batch.age)
    torch.testing.assert_close(kernel.of(batch), expected)
    kernel.names = ["slow", "slower"]
    assert {n: float(h.detach()) for n, h in kernel.half_lives().items()} == {
        "slow": pytest.approx(3.0),
        "slower": pytest.approx(9.0),
    }


def test_categories_are_those_of_the_clicked_items(batch_of: Make) -> None:
    kernel = deviate(grouped("category", 3), 0.0, math.log(2.0), math.log(4.0)).double()
    batch = batch_of(
        [(0, 12.0), (1, 12.0), (2, 12.0)], [(2, 6.0)], category=torch.tensor([2, 0, 1] + [0] * 6)
    )
    weight = kernel.of(batch).exp()
    assert weight[0].tolist() == pytest.approx([2**-1.0, 2**-4.0, 2**-2.0])
    assert weight[1, 0].item() == pytest.approx(0.5)


def test_kinds_are_those_of_the_clicks(batch_of: Make) -> None:
    kernel = deviate(grouped("kind", 2), math.log(2.0), 0.0).double()
    batch = batch_of([(0, 6.0), (0, 6.0)], kind=torch.tensor([[1, 0]]))
    assert kernel.of(batch).exp()[0].tolist() == pytest.approx([0.25, 0.5])
    assert kernel.clicks_only


def test_users_are_those_of_the_impressions(batch_of: Make) -> None:
    kernel = deviate(grouped("user", 9), *([0.0] * 7), math.log(2.0), 0.0).double()
    batch = batch_of([(0, 6.0)], [(0, 6.0), (1, 3.0)], user=torch.tensor([7, 2]))
    weight = kernel.of(batch).exp()
    assert weight[0, 0].item() == pytest.approx(0.5)
    assert weight[1].tolist() == pytest.approx([0.25, 0.5])
    assert not kernel.clicks_only


def test_activity_doubles_from_bucket_to_bucket(batch_of: Make) -> None:
    kernel = deviate(grouped("activity", 4), *(math.log(2.0) * n for n in range(4))).double()
    past = [0, 1, 2, 3, 4, 7, 8, 15, 16, 2**40]
    batch = batch_of(*([(0, H)] for _ in past), past_clicks=torch.tensor(past))
    halvings = [-math.log2(w) for w in kernel.of(batch).exp()[:, 0].tolist()]
    # the last bucket takes whoever is more active still
    assert halvings == pytest.approx([1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8])


def test_candidates_are_grouped_too(batch_of: Make) -> None:
    shown = {"candidates": torch.tensor([[0, 1]]), "candidate_mask": torch.ones((1, 2), dtype=torch.bool)}
    shown["candidate_age"] = torch.tensor([[6.0, 6.0]])
    category = torch.tensor([0, 1] + [0] * 7)
    batch = batch_of([], category=category, user=torch.tensor([1]), **shown)
    for by, expected in (("category", [0.25, 0.5]), ("user", [0.5, 0.5])):
        kernel = deviate(grouped(by, 2), 0.0, math.log(2.0))
        assert kernel.of_candidates(batch).exp()[0].tolist() == pytest.approx(expected)


def test_groups_within_groups_and_under_a_floor_multiply_their_half_lives(batch_of: Make) -> None:
    kernel = kernel_of("by_kind", "decay@decay.kernel=by_category", "decay.half_life_days=3")
    kernel.deviation = nn.Parameter(torch.tensor([math.log(2.0)]))
    kernel.kernel.deviation = nn.Parameter(torch.tensor([0.0, math.log(2.0)]))
    batch = batch_of([(0, 12.0), (1, 12.0)], category=torch.tensor([0, 1] + [0] * 7))
    batch = replace(batch, age=batch.age.float())
    assert kernel.of(batch).exp()[0].tolist() == pytest.approx([0.25, 0.5])
    lifted = lifted_kinds(estimate_sd=False)
    assert lifted.of(batch).exp()[0].tolist() == pytest.approx([0.2 + 0.8 / 16] * 2)
    assert lifted.log_prior().item() == pytest.approx(-math.log(2 * math.pi) / 2)
    assert lifted.clicks_only


def test_outputs_call_groups_and_floors_by_what_they_are_made_of() -> None:
    assert kernel_of("by_kind").label == "exponential by kind"
    assert kernel_of("by_user", "decay@decay.kernel=floor").label == "exponential above a floor by user"
    assert kernel_of("rank_exponential").label == "rank_exponential"


def test_ages_alone_have_the_shared_half_life() -> None:
    kernel = deviate(grouped("category", 2), -1.0, 1.0)
    assert kernel(torch.tensor(H)).exp().item() == pytest.approx(0.5)
    assert kernel.half_life is not None
    assert kernel.half_life.item() == pytest.approx(H)


# --- from the Store


@pytest.mark.parametrize("by", ["category", "kind", "user", "activity"])
def test_groups_are_taken_from_the_store(by: str, small_log: DataModule) -> None:
    store = small_log.store
    kernel = kernel_of(f"by_{by}")
    kernel.bind(store)
    rows = small_log.rows("train")
    batch = small_log.impressions()[rows]
    assert kernel.deviation.shape == (len(kernel.names),)
    kernel.of(batch).sum().backward()
    reached = int((kernel.deviation.grad != 0).sum())
    if by == "category":
        assert kernel.names == sorted(set(store.items["category"]))
    elif by == "kind":
        assert kernel.names == ["click", "read"]
    elif by == "user":
        assert kernel.names == store.users["user_id"].to_list()
    else:
        most = int((store.history_end - store.user_start[store.impression_user]).max())
        assert kernel.names[:3] == ["1 click", "2 to 3 clicks", "4 to 7 clicks"]
        assert len(kernel.names) == int(math.log2(most)) + 1
    assert reached >= min(4, len(kernel.names)) or by == "user"
    assert set(kernel.half_lives()) == set(kernel.names)
    assert all(float(v.detach()) == pytest.approx(2.0) for v in kernel.half_lives().values())


@pytest.mark.parametrize("by", ["category", "kind", "user", "activity"])
def test_a_click_is_of_its_group_in_any_batch(by: str, small_log: DataModule) -> None:
    kernel = kernel_of(f"by_{by}")
    kernel.bind(small_log.store)
    draw = torch.Generator().manual_seed(0)
    kernel.deviation = nn.Parameter(torch.randn(len(kernel.names), generator=draw))
    rows = small_log.rows("train")[::20]
    whole = small_log.impressions()[rows]
    together = kernel.of(whole)
    for n, row in enumerate(rows):
        alone = kernel.of(small_log.impressions()[rows[n : n + 1]])[0]
        torch.testing.assert_close(together[n][whole.history_mask[n]], alone)
        if by == "category":  # once more, by hand
            items = small_log.store.event_item[: small_log.store.history_end[row]][-len(alone) :]
            names = small_log.store.items["category"].gather(items)
            half_lives = torch.stack([kernel.half_lives()[name] for name in names])
            torch.testing.assert_close(alone, -math.log(2.0) * whole.age[n][: len(alone)] / half_lives)


def test_many_groups_are_told_by_quantiles() -> None:
    kernel = grouped("user", MOST_NAMES + 1)
    with torch.no_grad():
        kernel.deviation.copy_(torch.linspace(-1, 1, MOST_NAMES + 1))
    found = {name: float(h) for name, h in kernel.half_lives().items()}
    assert list(found) == [f"quantile {q}" for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert found["quantile 0.5"] == pytest.approx(H)
    assert found["quantile 0.95"] == pytest.approx(H * math.exp(0.9))


# --- the prior


def test_the_prior_is_normal_in_log_half_life() -> None:
    kernel = deviate(grouped("category", 3, sd=0.4), 0.1, -0.7, 0.0).double()
    normal = torch.distributions.Normal(0.0, 0.4)
    expected = normal.log_prob(torch.tensor([0.1, -0.7, 0.0], dtype=torch.float64)).sum()
    assert kernel.log_prior().item() == pytest.approx(expected.item(), rel=1e-6)
    kernel.log_prior().backward()
    assert kernel.deviation.grad.tolist() == pytest.approx([-0.1 / 0.16, 0.7 / 0.16, 0.0], rel=1e-6)


def simulated(
    half_lives: list[float], share: list[float], n: int, batch_of: Make, seed: int = 0
) -> tuple[Batch, Tensor]:
    """Impressions whose clicks follow the faded share of the candidate's topic, as in the newsroom; and the
    items' vectors, one-hot in their topic. Item i is of category i; `share` of the clicks go to each.
    """
    draw = torch.Generator().manual_seed(seed)
    groups, history, shown = len(half_lives), 12, 4
    item = torch.multinomial(torch.tensor(share), n * history, True, generator=draw).reshape(n, history)
    age = 60 * torch.rand(n, history, generator=draw, dtype=torch.float64) ** 3
    candidates = torch.rand(n, groups, generator=draw).argsort(1)[:, :shown]
    weight = 2 ** (-age / torch.tensor(half_lives, dtype=torch.float64)[item])
    match = (item.unsqueeze(1) == candidates.unsqueeze(2)).double()
    liked = (match * weight.unsqueeze(1)).sum(2) / (weight.sum(1, keepdim=True) + 1)
    label = torch.bernoulli(torch.sigmoid(-2 + 7 * liked), generator=draw)
    made = batch_of(
        *([(0, 0.0)] * history for _ in range(n)),
        item=torch.arange(groups),
        category=torch.arange(groups),
        history=item,
        age=age,
        candidates=candidates,
        candidate_mask=torch.ones_like(candidates, dtype=torch.bool),
        label=label,
    )
    return made, torch.eye(groups, dtype=torch.float64)


class Fit:
    """The posterior mode of a kernel and a Pool, by Newton's method, and how uncertain each δ_g is there."""

    def __init__(self, kernel: Grouped, batch: Batch, vectors: Tensor) -> None:
        self.kernel = kernel.double()
        self.pool = Pool(vectors.shape[1], composition="sink", scale=5.0, sink=1.0).double()
        self.batch, self.vectors = batch, vectors
        self.both = nn.ModuleDict({"decay": self.kernel, "interest": self.pool})
        self.free = {n: p for n, p in self.both.named_parameters() if p.requires_grad}

    def loss(self, theta: Tensor) -> Tensor:
        sizes = [p.numel() for p in self.free.values()]
        parts = zip(self.free.items(), theta.split(sizes), strict=True)
        values = {n: part.reshape(p.shape) for (n, p), part in parts}

        class Loss(nn.Module):
            def __init__(self, fit: Fit) -> None:
                super().__init__()
                self.both, self.batch, self.vectors = fit.both, fit.batch, fit.vectors

            def forward(self) -> Tensor:
                logit = score(self.both["decay"], self.both["interest"], self.batch, self.vectors)
                each = nn.functional.binary_cross_entropy_with_logits(
                    logit, self.batch.label.double(), reduction="sum"
                )
                return each - self.both["decay"].log_prior()

        return functional_call(Loss(self), {f"both.{n}": v for n, v in values.items()}, ())

    def newton(self) -> dict[str, Tensor]:
        """Move to the mode; returns the variance of each of the kernel's parameters."""
        theta = torch.cat([p.detach().reshape(-1) for p in self.free.values()])
        damping, value = 1e-3, self.loss(theta)
        for _ in range(60):
            slope, bend = grad(self.loss)(theta), hessian(self.loss)(theta)
            values, vectors = torch.linalg.eigh(bend)
            while True:
                step = -(vectors @ ((vectors.T @ slope) / (values.abs() + damping * values.abs().max())))
                tried = self.loss(theta + step)
                if tried <= value or damping > 1e6:
                    break
                damping *= 10
            done = bool(value - tried < 1e-6)
            theta, value, damping = theta + step, tried, damping / 10
            if done:
                break
        sizes = [p.numel() for p in self.free.values()]
        with torch.no_grad():
            for parameter, part in zip(self.free.values(), theta.split(sizes), strict=True):
                parameter.copy_(part.reshape(parameter.shape))
        split = zip(self.free, torch.linalg.inv(bend).diagonal().split(sizes), strict=True)
        return {n.removeprefix("decay."): v for n, v in split if n.startswith("decay.")}

    def half_lives(self) -> list[float]:
        return [float(h.detach()) for h in self.kernel.half_lives().values()]


def test_the_right_group_halves_faster_and_each_half_life_is_found(batch_of: Make) -> None:
    planted = [1.0, 10.0] * 3
    batch, vectors = simulated(planted, [1 / 6] * 6, 2500, batch_of)
    two = replace(batch, category=torch.tensor([0, 1] * 3))  # two categories of three items each
    fit = Fit(grouped("category", 2, sd=2.0), two, vectors)
    fit.newton()
    fast, slow = fit.half_lives()
    assert fast == pytest.approx(1.0, rel=0.15)
    assert slow == pytest.approx(10.0, rel=0.15)
    swapped = Fit(grouped("category", 2, sd=2.0), replace(batch, category=torch.tensor([1, 0] * 3)), vectors)
    swapped.newton()
    assert swapped.half_lives() == pytest.approx([slow, fast], rel=1e-3)


def test_a_group_with_few_clicks_stays_near_the_others_and_one_with_many_does_not(batch_of: Make) -> None:
    rare = 0.003
    planted, share = [1.0, 1.0, 1.0, 10.0, 10.0], [(1 - rare) / 4] * 4 + [rare]
    batch, vectors = simulated(planted, share, 2000, batch_of)
    free, shrunk = (Fit(grouped("category", 5, sd=sd), batch, vectors) for sd in (20.0, 0.5))
    free.newton()
    shrunk.newton()
    loose, tight = (fit.kernel.deviation.detach().abs() for fit in (free, shrunk))
    assert free.half_lives()[3] == pytest.approx(10.0, rel=0.25)
    assert shrunk.half_lives()[3] == pytest.approx(10.0, rel=0.25)  # so many clicks have their way
    assert tight[4] < 0.7 * loose[4]  # planted as slow too, but hardly seen
    assert shrunk.half_lives()[4] < 0.6 * shrunk.half_lives()[3]


def test_a_small_sd_holds_all_groups_together(batch_of: Make) -> None:
    batch, vectors = simulated([1.0, 10.0, 3.0, 3.0], [0.25] * 4, 800, batch_of)
    spreads = []
    for sd in (0.001, 0.1, 0.5, 5.0):
        fit = Fit(grouped("category", 4, sd=sd), batch, vectors)
        fit.newton()
        spreads.append(fit.kernel.deviation.detach().std().item())
    assert spreads == sorted(spreads)
    assert spreads[0] < 1e-3
    assert spreads[-1] > 0.7


def settle(fit: Fit) -> float:
    """Fit and estimate sd in turn, as the refit of a run does."""
    for _ in range(60):
        if fit.kernel.update_prior(fit.newton()) < 0.01:
            break
    return fit.kernel.group_sd


@pytest.mark.parametrize("start", [0.2, 2.0])
def test_the_sd_between_groups_is_estimated_from_the_groups(batch_of: Make, start: float) -> None:
    logs = torch.linspace(-1.4, 1.4, 8, dtype=torch.float64)
    planted = (math.log(4.0) + logs).exp().tolist()
    batch, vectors = simulated(planted, [1 / 8] * 8, 1500, batch_of)
    fit = Fit(grouped("category", 8, sd=start, estimate_sd=True), batch, vectors)
    # where sd starts does not matter; 0.92 is what these eight have
    assert settle(fit) == pytest.approx(logs.std(correction=0).item(), rel=0.2)


def test_groups_that_do_not_differ_have_an_sd_near_zero(batch_of: Make) -> None:
    batch, vectors = simulated([4.0] * 8, [1 / 8] * 8, 1000, batch_of)
    fit = Fit(grouped("category", 8, sd=0.5, estimate_sd=True), batch, vectors)
    assert LEAST_SD * 0.99 <= settle(fit) < 0.12
    assert fit.half_lives() == pytest.approx([4.0] * 8, rel=0.2)


def test_a_given_sd_stays(batch_of: Make) -> None:
    kernel = deviate(grouped("category", 2, sd=0.5), 1.0, -1.0)
    assert kernel.update_prior({"deviation": torch.tensor([0.01, 0.01])}) == 0.0
    assert kernel.group_sd == pytest.approx(0.5)
    learner = deviate(grouped("category", 2, sd=0.5, estimate_sd=True), 1.0, -1.0)
    assert learner.update_prior({}) == 0.0  # nobody knows how uncertain the groups are
    lifted = lifted_kinds(estimate_sd=True)
    with torch.no_grad():
        lifted.get_parameter("kernel.deviation").fill_(0.8)
    assert lifted.update_prior({"kernel.deviation": torch.tensor([0.0])}) == pytest.approx(-math.log(0.8))


# --- numbers


@pytest.mark.parametrize("half_life", [1 / 1_440, 2.0, 36_525.0])
@pytest.mark.parametrize("inner", [partial(Exponential), partial(Power, alpha=1.0, learn_alpha=True)])
def test_gradients_are_finite_at_extremes(batch_of: Make, half_life: float, inner: Any) -> None:
    kernel = deviate(grouped("category", 3, inner, half_life_days=half_life), -4.0, 0.0, 4.0)
    batch = batch_of(
        [(0, 30 * 365.25), (1, 1 / 86_400), (2, 0.0)], [(1, 0.0)], [], category=torch.tensor([0, 1, 2] * 3)
    )
    log_weight = kernel.of(replace(batch, age=batch.age.float()))
    assert torch.isfinite(log_weight).all()
    (log_weight.exp().sum() + log_weight[batch.history_mask].sum() - kernel.log_prior()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in kernel.parameters())


def test_second_derivatives_reach_a_kernel_that_reads_the_batch(batch_of: Make) -> None:
    settings = {"alpha": 0.5, "learn_alpha": True, "temperature": 1.0, "learn_temperature": True}
    kernel = grouped("kind", 2, partial(Actr, **settings)).double()
    batch = batch_of([(0, 9.0), (0, 3.0), (1, 1.0)], kind=torch.tensor([[0, 1, 1]]))

    class Of(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = kernel

        def forward(self) -> Tensor:
            return self.kernel.of(batch).exp().sum()

    of = Of()

    def total(deviation: Tensor) -> Tensor:
        return functional_call(of, {"kernel.deviation": deviation}, ())

    start = torch.tensor([0.3, -0.4], dtype=torch.float64)
    assert torch.autograd.gradcheck(total, start.clone().requires_grad_())
    assert torch.isfinite(hessian(total)(start)).all()


# --- what is refused


def refusal(**changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        grouped(**changes)
    return str(caught.value)


def test_kernels_without_a_half_life_are_refused() -> None:
    free = partial(Buckets, buckets=4, first_days=1.0, last_days=9.0)
    assert refusal(kernel=free).startswith(
        "decay.kernel must be a kernel with a half-life (days), got Buckets; "
    )
    ranks: Callable[..., Kernel] = partial(RankExponential)
    assert refusal(kernel=ranks).startswith(
        "decay.kernel must be a kernel of half_life_days (days), got RankExponential; choose another one"
    )


def test_a_spread_over_more_groups_than_a_refit_moves_is_not_said_to_be_estimated(
    make_log: Callable[..., DataModule],
) -> None:
    log = make_log(source={"users": LARGEST + 16})
    with pytest.raises(InputError, match=r"^decay\.estimate_sd must be false for more than 64 .*by user; "):
        kernel_of("by_user", "decay.estimate_sd=true").bind(log.store)
    kernel_of("by_user").bind(log.store)


def test_wrong_settings_are_refused() -> None:
    assert refusal(by="kinds") == (
        "decay.by must be one of category, kind, user, activity, got kinds; did you mean kind?"
    )
    assert refusal(sd=0).startswith("decay.sd must be a number above 0 (of log half-life), got 0; ")
    assert refusal(estimate_sd="flase").startswith("decay.estimate_sd must be true or false, got flase")

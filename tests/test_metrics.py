"""Metrics against scikit-learn, plain loops, and the properties they must have."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score
from torch import Tensor
from torchmetrics import MetricCollection

from halflife import metrics
from halflife.errors import InputError
from halflife.metrics import (
    AUC,
    MRR,
    NDCG,
    GroupedAUC,
    LogLoss,
    auc,
    auc_interval,
    grouped_auc,
    logloss,
    mrr,
    ndcg,
)

CONF = Path(__file__).parents[1] / "conf" / "metrics"
Rows = tuple[Tensor, Tensor, Tensor]


def rows(seed: int, n: int = 400, groups: int = 60, levels: int = 4) -> Rows:
    """Random rows with heavy ties (few score levels), uneven scattered groups, some of a single class."""
    g = torch.Generator().manual_seed(seed)
    score = torch.randint(levels, (n,), generator=g).float() - 1.5
    group = torch.randint(groups, (n,), generator=g) * 7919 - 10**12
    label = (torch.rand(n, generator=g) < 0.25).long()
    label[group == group.min()] = 0
    label[group == group.max()] = 1
    return score, label, group


def groups_of(score: Tensor, label: Tensor, group: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(score[group == i].double().numpy(), label[group == i].numpy()) for i in group.unique()]


@st.composite
def small_rows(draw: st.DrawFn) -> Rows:
    n = draw(st.integers(1, 30))
    score = draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    label = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    group = draw(st.lists(st.integers(-2, 4), min_size=n, max_size=n))
    return torch.tensor(score, dtype=torch.float32), torch.tensor(label), torch.tensor(group)


EVERY: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "auc": lambda s, y, g: auc(s, y),
    "gauc_skip": lambda s, y, g: grouped_auc(s, y, g),
    "gauc_half": lambda s, y, g: grouped_auc(s, y, g, "half"),
    "mrr_skip": lambda s, y, g: mrr(s, y, g),
    "mrr_zero": lambda s, y, g: mrr(s, y, g, "zero"),
    "ndcg_skip": lambda s, y, g: ndcg(s, y, g, 3),
    "ndcg_zero": lambda s, y, g: ndcg(s, y, g, 3, "zero"),
}
every = pytest.mark.parametrize("metric", EVERY.values(), ids=EVERY)


def same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.isclose(a, b, rtol=0, atol=1e-12, equal_nan=True))


# Against scikit-learn


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.float32])
def test_auc_equals_scikit_learn_with_ties(seed: int, dtype: torch.dtype) -> None:
    score, label, _ = rows(seed)
    assert auc(score, label.to(dtype)).item() == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_auc_equals_scikit_learn_without_ties() -> None:
    g = torch.Generator().manual_seed(0)
    score, label = torch.randn(5000, generator=g), torch.rand(5000, generator=g) < 0.1
    assert auc(score, label).item() == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", ["skip", "half"])
def test_grouped_auc_equals_a_loop_over_scikit_learn(seed: int, policy: str) -> None:
    score, label, group = rows(seed)
    each = [roc_auc_score(y, s) if 0 < y.mean() < 1 else 0.5 for s, y in groups_of(score, label, group)]
    if policy == "skip":
        each = [a for a, (_, y) in zip(each, groups_of(score, label, group), strict=True) if 0 < y.mean() < 1]
    assert grouped_auc(score, label, group, policy).item() == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 2, 3, 5, 10, 1000])
@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_ndcg_equals_a_loop_over_scikit_learn_with_ties(seed: int, k: int, policy: str) -> None:
    score, label, group = rows(seed)
    found = groups_of(score, label, group)
    # scikit-learn refuses a single candidate, whose nDCG is its label.
    each = [float(y[0]) if len(y) == 1 else ndcg_score([y], [s], k=k) for s, y in found]
    if policy == "skip":
        each = [a for a, (_, y) in zip(each, found, strict=True) if y.any()]
    assert ndcg(score, label, group, k, policy).item() == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_mrr_equals_a_loop_over_mid_ranks(seed: int, policy: str) -> None:
    score, label, group = rows(seed)
    each = []
    for s, y in groups_of(score, label, group):
        if y.any():
            best = s[y == 1].max()
            each.append(1 / ((s > best).sum() + ((s == best).sum() + 1) / 2))
        elif policy == "zero":
            each.append(0.0)
    assert mrr(score, label, group, policy).item() == pytest.approx(np.mean(each), abs=1e-12)


def test_logloss_equals_scikit_learn() -> None:
    score, label, _ = rows(0)
    assert logloss(score, label).item() == pytest.approx(log_loss(label, score.double().sigmoid()), abs=1e-12)


def test_logloss_stays_finite_at_extreme_logits() -> None:
    assert logloss(torch.tensor([-1e4, 1e4]), torch.tensor([1, 0])).item() == pytest.approx(1e4)


# Properties


@every
@settings(max_examples=60)
@given(data=small_rows(), seed=st.integers(0, 10**6))
def test_ranking_metrics_ignore_row_order_and_monotone_transforms(
    metric: Callable[..., Tensor], data: Rows, seed: int
) -> None:
    score, label, group = data
    value = metric(score, label, group)
    order = torch.randperm(len(score), generator=torch.Generator().manual_seed(seed))
    assert same(metric(score[order], label[order], group[order]), value)
    assert same(metric((0.5 * score).exp() - 7, label, group), value)
    assert same(metric(score, label, 3 - group * 1001), value)  # the ids themselves mean nothing
    assert value.isnan() or 0 <= value <= 1


@settings(max_examples=60)
@given(data=small_rows())
def test_reversing_the_scores_reverses_the_auc(data: Rows) -> None:
    score, label, group = data
    assert same(auc(-score, label), 1 - auc(score, label))
    assert same(grouped_auc(-score, label, group, "half"), 1 - grouped_auc(score, label, group, "half"))
    assert same(auc(torch.zeros_like(score), label), auc(score, label) * 0 + 0.5)


@settings(max_examples=60)
@given(data=small_rows())
def test_one_group_makes_grouped_auc_the_auc(data: Rows) -> None:
    score, label, _ = data
    assert same(grouped_auc(score, label, torch.zeros_like(label, dtype=torch.int64)), auc(score, label))


@every
def test_a_perfect_order_scores_one(metric: Callable[..., Tensor]) -> None:
    label, group = torch.tensor([1, 0, 0, 1, 0]), torch.tensor([5, 5, 5, 2, 2])
    assert metric(label.float(), label, group).item() == 1


def test_negative_zero_ties_with_zero() -> None:
    assert auc(torch.tensor([-0.0, 0.0]), torch.tensor([0, 1])).item() == 0.5
    assert mrr(torch.tensor([-0.0, 0.0]), torch.tensor([0, 1]), torch.tensor([1, 1])).item() == 1 / 1.5


def test_half_precision_scores_are_accepted() -> None:
    score, label, group = rows(0)
    for metric in EVERY.values():
        assert same(metric(score.bfloat16(), label, group), metric(score, label, group))


# Intervals


@settings(max_examples=60)
@given(data=small_rows(), seed=st.integers(0, 10**6))
def test_weighted_auc_equals_repeating_the_rows(data: Rows, seed: int) -> None:
    score, label, _ = data
    pairs = metrics._pairs(score, label)
    weight = torch.randint(4, (len(score),), generator=torch.Generator().manual_seed(seed))
    repeated = auc(score.repeat_interleave(weight), label.repeat_interleave(weight))
    assert same(pairs.auc(weight), repeated)
    assert same(pairs.auc(torch.ones_like(weight)), auc(score, label))


def test_interval_equals_a_bootstrap_that_sorts_every_resample() -> None:
    score, label, user = rows(1)
    users, position = user.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(3)
    draws = []
    for _ in range(50):
        drawn = torch.randint(len(users), (len(users),), generator=generator)
        row = torch.cat([(position == u).nonzero().squeeze(1) for u in drawn])
        draws.append(roc_auc_score(label[row], score[row]))
    low, high = auc_interval(score, label, user, level=0.9, resamples=50, seed=3)
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.05, 0.95])), abs=1e-12)


def test_interval_is_wider_when_users_cluster() -> None:
    g = torch.Generator().manual_seed(0)
    user = torch.arange(2000) // 50
    label = torch.rand(2000, generator=g) < 0.3
    skill = torch.randn(40, generator=g)[user]  # some users are predicted well, some badly
    score = label.float() * skill + 0.1 * torch.randn(2000, generator=g)
    low, high = auc_interval(score, label, user)
    row_low, row_high = auc_interval(score, label, torch.arange(2000))
    assert low < auc(score, label) < high
    assert high - low > 2 * (row_high - row_low)


def test_interval_is_the_same_for_the_same_seed_and_nan_for_one_class() -> None:
    score, label, user = rows(0)
    assert auc_interval(score, label, user, seed=1) == auc_interval(score, label, user, seed=1)
    assert auc_interval(score, label, user, seed=1) != auc_interval(score, label, user, seed=2)
    assert np.isnan(auc_interval(score, label * 0, user)).all()
    assert np.isnan(auc_interval(score[:0], label[:0], user[:0])).all()


# Edges


@every
def test_no_rows_give_nan(metric: Callable[..., Tensor]) -> None:
    assert metric(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.int64)).isnan()


def test_groups_that_cannot_be_ranked_follow_the_policy() -> None:
    score, group = torch.tensor([0.3, 0.1]), torch.tensor([4, 4])
    none, both = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert grouped_auc(score, none, group).isnan()
    assert grouped_auc(score, both, group, "half").item() == 0.5
    assert mrr(score, none, group).isnan()
    assert mrr(score, none, group, "zero").item() == 0
    assert ndcg(score, none, group, 5).isnan()
    assert ndcg(score, none, group, 5, "zero").item() == 0
    assert ndcg(score, both, group, 5).item() == pytest.approx(1, abs=1e-15)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_our_defect(metric: Callable[..., Tensor], bad: float) -> None:
    with pytest.raises(ValueError, match="finite, got 1 of 2") as error:
        metric(torch.tensor([0.0, bad]), torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert not isinstance(error.value, InputError)


def test_labels_between_classes_and_rows_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="label must be 0 or 1"):
        auc(torch.zeros(2), torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="one length"):
        auc(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="flat"):
        auc(torch.zeros(2, 2), torch.zeros(2, 2))


def test_wrong_settings_say_what_to_do() -> None:
    with pytest.raises(InputError, match="did you mean impression"):
        GroupedAUC(by="impresion")
    with pytest.raises(InputError, match="must be one of skip, half, got drop"):
        GroupedAUC(single_class="drop")
    with pytest.raises(InputError, match="did you mean zero"):
        MRR(no_positive="zeros")
    for k in (0, 2.5):
        with pytest.raises(InputError, match="k must be a"):
            NDCG(k=k)
    with pytest.raises(InputError, match="level must be a"):
        auc_interval(torch.zeros(2), torch.tensor([0, 1]), torch.tensor([1, 2]), level=95)


# Classes


def collection() -> MetricCollection:
    return MetricCollection(
        {
            "auc": AUC(),
            "gauc": GroupedAUC(),
            "gauc_user": GroupedAUC(by="user"),
            "mrr": MRR(),
            "ndcg@10": NDCG(k=10),
            "logloss": LogLoss(),
        }
    )


def test_a_collection_keeps_one_copy_of_the_rows() -> None:
    score, label, impression = rows(0)
    several = collection()
    for part in torch.arange(len(score)).split(150):
        several.update(score[part], label[part], impression[part], impression[part] % 5)
    assert len(several.compute_groups) == 1
    first, *others = several.values(copy_state=False)
    for name in ("score", "label", "impression", "user"):
        assert all(getattr(other, name) is getattr(first, name) for other in others)
    assert len(first.score) == 3


def test_batches_give_what_one_update_gives_and_what_the_functions_give() -> None:
    score, label, impression = rows(0)
    user = impression % 5
    whole, parts = collection(), collection()
    whole.update(score, label, impression, user)
    for part in torch.randperm(len(score)).split(77):
        parts.update(score[part], label[part], impression[part], user[part])
    expected = {
        "auc": auc(score, label),
        "gauc": grouped_auc(score, label, impression),
        "gauc_user": grouped_auc(score, label, user),
        "mrr": mrr(score, label, impression),
        "ndcg@10": ndcg(score, label, impression, 10),
        "logloss": logloss(score, label),
    }
    for got in (whole.compute(), parts.compute()):
        assert got.keys() == expected.keys()
        assert all(same(got[name], value) for name, value in expected.items())


def test_a_reset_forgets_and_a_kept_score_holds_no_graph() -> None:
    metric = AUC()
    score = torch.tensor([0.1, 0.9], requires_grad=True)
    metric.update(score * 2, torch.tensor([0, 1]), torch.tensor([1, 1]), torch.tensor([1, 1]))
    assert not metric.score[0].requires_grad
    assert metric.compute().item() == 1
    metric.reset()
    assert metric.score == []


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_a_metric_that_saw_nothing_is_nan() -> None:
    assert all(value.isnan() for value in collection().compute().values())


def test_lower_is_better_for_the_log_loss_alone() -> None:
    assert [m.higher_is_better for m in collection().values()].count(False) == 1
    assert LogLoss().higher_is_better is False


ONE_RANK = """
import sys, torch
from halflife.metrics import GroupedAUC, AUC
rank, data = int(sys.argv[1]), torch.load(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
mine = slice(0, 130) if rank == 0 else slice(130, None)
for metric in (AUC(), GroupedAUC()):
    metric.update(*[column[mine] for column in data])
    print(metric.compute().item())
"""


def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    score, label, impression = rows(0)
    torch.save((score, label, impression, impression), tmp_path / "rows.pt")
    command = [sys.executable, "-c", ONE_RANK]
    ranks = [
        subprocess.Popen([*command, rank, tmp_path / "rows.pt", tmp_path / "meet"], stdout=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    try:
        printed = [[float(x) for x in rank.communicate(timeout=120)[0].split()] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    expected = [auc(score, label).item(), grouped_auc(score, label, impression).item()]
    assert printed == [pytest.approx(expected, abs=1e-12)] * 2


# Configs


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_metric_config_holds_one_key_and_builds_a_metric(path: Path) -> None:
    config = OmegaConf.load(path)
    (key,) = config
    assert str(key).replace("@", "") == path.stem
    metric = instantiate(config)[key]
    assert isinstance(metric, metrics.Metric)
    score, label, group = rows(0)
    metric.update(score, label, group, group)
    assert metric.compute().isfinite()


def test_metric_configs_compose_as_a_list() -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF.parent), version_base=None):
        config = compose(overrides=["+metrics=[auc,gauc,ndcg10]"])
    assert list(config.metrics) == ["auc", "gauc", "ndcg@10"]
    MetricCollection(dict(instantiate(config.metrics)))

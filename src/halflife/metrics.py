"""Metrics of a ranking: pure functions on flat tensors, and thin torchmetrics classes over them.

Every function takes one row a candidate. Nothing loops over impressions or users: rows are sorted once, and
what is left are sums over segments. Where scores tie, no result depends on the order of the rows.

A score that is not finite, a label that is neither 0 nor 1, or rows that do not line up raise a plain
ValueError: they come from our own steps, so they are a defect and keep their traceback. What a person typed
(`by`, `k`, a policy) raises InputError.
"""

from typing import NamedTuple

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities.data import dim_zero_cat

from halflife.errors import choice, number, whole

SINGLE_CLASS = ("skip", "half")
NO_POSITIVE = ("skip", "zero")


class _Pairs(NamedTuple):
    """Every positive's place among the sorted negatives: all an AUC, weighted or not, needs of the scores."""

    negative: Tensor  # rows of the negatives, by ascending score
    positive: Tensor  # rows of the positives
    below: Tensor  # of each positive: how many negatives score lower
    not_above: Tensor  # of each positive: how many negatives score lower or the same

    def auc(self, weight: Tensor) -> Tensor:
        """AUC where a row counts `weight` times; int64, so that sums are exact and the same on a GPU."""
        negatives = F.pad(weight[self.negative].cumsum(0), (1, 0))
        positives = weight[self.positive]
        won_twice = (positives * (negatives[self.below] + negatives[self.not_above])).sum()
        return 0.5 * won_twice.double() / (positives.sum() * negatives[-1]).double()


class _Blocks(NamedTuple):
    """Runs of tied scores, best first within each group: int64, (blocks,) but for the last two, (groups,)."""

    group: Tensor  # the block's group, 0 … groups − 1
    before: Tensor  # rows of the group that score higher
    size: Tensor  # rows in the block
    positives: Tensor  # positives in the block
    positives_before: Tensor  # positives of the group that score higher
    group_size: Tensor
    group_positives: Tensor


def auc(score: Tensor, label: Tensor) -> Tensor:
    """Area under the ROC curve over all rows: the chance that a positive outscores a negative.

    AUC = (1 / PN) Σ_p Σ_n [s_p > s_n] + ½ [s_p = s_n]

    Args:
        score: any finite number, higher is better.
        label: 0 or 1, of any dtype.

    Shape: score, label: (rows,). Output: scalar float64 in [0, 1], nan where one class is missing.

    Raises:
        ValueError: rows that do not line up, a score that is not finite, or a label other than 0 and 1.

    Source: Hanley & McNeil, The Meaning and Use of the Area under a ROC Curve (Radiology 1982).

    >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([0, 0, 1, 1])).item()
    0.875
    """
    _check(score, label)
    return _pairs(score, label).auc(torch.ones_like(label, dtype=torch.int64))


def auc_interval(
    score: Tensor, label: Tensor, cluster: Tensor, level: float = 0.95, resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Interval of the AUC by the cluster bootstrap: whole users are drawn; percentile method.

    Drawing U users of U is counting each row w_user times with w ~ Multinomial(U, 1/U). So the rows are
    sorted once, a resample is one pass over them, and memory does not grow with the number of resamples.

    Args:
        score, label: as in `auc`.
        cluster: any int64 id; rows with one id (a user) are drawn together.
        level: coverage, in (0, 1].
        resamples: bootstrap draws, at least 1. Draws that lack a class are left out.
        seed: of the draws; the same on every device.

    Shape: score, label, cluster: (rows,). Output: the low and the high end, nan where one class is missing.

    Raises:
        ValueError: as in `auc`.
        InputError: `level` or `resamples` out of range.

    Source: Field & Welsh, Bootstrapping Clustered Data (JRSS B 2007); Efron & Tibshirani, An Introduction to
    the Bootstrap (1993), chapter 13.

    >>> score, label = torch.tensor([0.9, 0.1, 0.8, 0.3]), torch.tensor([1, 0, 1, 0])
    >>> auc_interval(score, label, cluster=torch.tensor([1, 1, 2, 2]))
    (1.0, 1.0)
    """
    number("level", level, "share", above=0, at_most=1)
    draws = auc_draws(score, label, cluster, resamples, seed)
    tail = (1 - level) / 2
    low, high = torch.nanquantile(draws, draws.new_tensor([tail, 1 - tail])).tolist()
    return low, high


def auc_draws(score: Tensor, label: Tensor, cluster: Tensor, resamples: int = 200, seed: int = 0) -> Tensor:
    """The AUC of each bootstrap draw behind `auc_interval`.

    Two scores of the same rows meet the same draws: the difference of their draws is a paired comparison.

    Args:
        score, label, cluster, resamples, seed: as in `auc_interval`.

    Shape: score, label, cluster: (rows,). Output: (resamples,) float64, nan where a class is missing.

    Raises:
        ValueError: as in `auc`.
        InputError: `resamples` out of range.

    >>> better, worse = torch.tensor([0.9, 0.1, 0.8, 0.3]), torch.tensor([0.9, 0.1, 0.3, 0.8])
    >>> label, user = torch.tensor([1, 0, 1, 0]), torch.tensor([1, 1, 2, 2])
    >>> (auc_draws(better, label, user) - auc_draws(worse, label, user)).min().item()
    0.0
    """
    _check(score, label, cluster)
    whole("resamples", resamples, "draws", at_least=1)
    users, user = torch.unique(cluster, return_inverse=True)
    pairs = _pairs(score, label)
    draws = torch.full((resamples,), float("nan"), dtype=torch.float64, device=score.device)
    if len(pairs.negative) == 0 or len(pairs.positive) == 0:
        return draws
    # A draw weighs users, not rows: looking up the user of a sorted row once spares it at every draw.
    pairs = pairs._replace(negative=user[pairs.negative], positive=user[pairs.positive])
    generator = torch.Generator().manual_seed(seed)
    for i in range(resamples):
        drawn = torch.randint(len(users), (len(users),), generator=generator)
        draws[i] = pairs.auc(drawn.bincount(minlength=len(users)).to(score.device))
    return draws


def grouped_auc(score: Tensor, label: Tensor, group: Tensor, single_class: str = "skip") -> Tensor:
    """Mean over groups of the AUC within the group: gAUC, where a group is an impression or a user.

    gAUC = (1 / G) Σ_g AUC_g, each group counting the same.

    Args:
        score, label: as in `auc`.
        group: any int64 id; equal ids form a group, wherever the rows stand.
        single_class: a group that lacks positives or negatives is left out (`skip`) or counts ½ (`half`).

    Shape: score, label, group: (rows,). Output: scalar float64 in [0, 1], nan where no group is left.

    Raises:
        ValueError: as in `auc`.
        InputError: an unknown `single_class`.

    Source: Zhu et al., Optimized Cost per Click in Taobao Display Advertising (KDD 2017), there weighted by
    the size of a group; unweighted as in Wu et al., MIND (ACL 2020), section 5.1.

    >>> score, label = torch.tensor([0.9, 0.1, 0.2, 0.2]), torch.tensor([1, 0, 0, 1])
    >>> grouped_auc(score, label, group=torch.tensor([7, 7, 3, 3])).item()
    0.75
    """
    choice("single_class", single_class, SINGLE_CLASS)
    b = _blocks(score, label, group)
    negatives = b.size - b.positives
    group_negatives = b.group_size - b.group_positives
    worse = group_negatives[b.group] - (b.before - b.positives_before) - negatives
    won_twice = torch.zeros_like(b.group_size).index_add_(0, b.group, b.positives * (2 * worse + negatives))
    pairs = b.group_positives * group_negatives
    both = pairs > 0
    each = 0.5 * won_twice.double() / pairs.double()
    return each[both].mean() if single_class == "skip" else each.where(both, 0.5).mean()


def mrr(score: Tensor, label: Tensor, group: Tensor, no_positive: str = "skip") -> Tensor:
    """Mean over groups of the reciprocal rank of the best-ranked positive.

    MRR = (1 / G) Σ_g 1 / rank_g. In a tie, rank is the mid-rank, the mean of the ranks it spans.

    Args:
        score, label, group: as in `grouped_auc`.
        no_positive: a group without a positive is left out (`skip`) or counts 0 (`zero`).

    Shape: score, label, group: (rows,). Output: scalar float64 in [0, 1], nan where no group is left.

    Raises:
        ValueError: as in `auc`.
        InputError: an unknown `no_positive`.

    Source: Voorhees, The TREC-8 Question Answering Track Report (TREC 1999). MIND's own script averages
    1 / rank over all positives of an impression instead; the two agree where it has one.

    >>> score, label = torch.tensor([0.9, 0.1, 0.2, 0.2]), torch.tensor([0, 1, 0, 1])
    >>> round(mrr(score, label, group=torch.tensor([7, 7, 3, 3])).item(), 4)
    0.5833
    """
    choice("no_positive", no_positive, NO_POSITIVE)
    b = _blocks(score, label, group)
    best = (b.positives > 0) & (b.positives_before == 0)  # one block in every group that has a positive
    reciprocal = 1 / (b.before[best] + 0.5 * (b.size[best] + 1).double())
    return reciprocal.sum() / (len(reciprocal) if no_positive == "skip" else len(b.group_size))


def ndcg(score: Tensor, label: Tensor, group: Tensor, k: int, no_positive: str = "skip") -> Tensor:
    """Mean over groups of the normalised discounted cumulative gain among the first k.

    nDCG@k = (1 / G) Σ_g DCG@k / ideal DCG@k, DCG@k = Σ_{r ≤ k} label_r / log₂(r + 1). Tied rows share the
    mean of their gains, which is the mean over all orders of the tie, also where k cuts through it.

    Args:
        score, label, group: as in `grouped_auc`.
        k: ranks that count, at least 1.
        no_positive: a group without a positive is left out (`skip`) or counts 0 (`zero`).

    Shape: score, label, group: (rows,). Output: scalar float64 in [0, 1], nan where no group is left.

    Raises:
        ValueError: as in `auc`.
        InputError: an unknown `no_positive`, or k below 1.

    Source: Järvelin & Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques (TOIS 2002), section 2;
    ties: McSherry & Najork, Computing IR Performance Measures … in the Presence of Tied Scores (ECIR 2008).

    >>> score, label = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0, 1, 0])
    >>> round(ndcg(score, label, group=torch.tensor([7, 7, 7]), k=2).item(), 4)
    0.6309
    """
    choice("no_positive", no_positive, NO_POSITIVE)
    _check_k(k)
    b = _blocks(score, label, group)
    depth = min(int(k), int(b.group_size.max())) if len(b.group_size) else 1
    discount = 1 / torch.log2(torch.arange(2, depth + 2, dtype=torch.float64))
    gain = F.pad(discount.cumsum(0), (1, 0)).to(score.device)  # gain[r]: of the first r ranks
    hit = (b.positives > 0) & (b.before < depth)
    before, size = b.before[hit], b.size[hit]
    gains = gain[(before + size).clamp(max=depth)] - gain[before]
    dcg = torch.zeros(len(b.group_size), dtype=torch.float64, device=score.device)
    dcg.index_add_(0, b.group[hit], gains * b.positives[hit].double() / size.double())
    some = b.group_positives > 0
    each = dcg[some] / gain[b.group_positives[some].clamp(max=depth)]
    return each.sum() / (len(each) if no_positive == "skip" else len(dcg))


def logloss(score: Tensor, label: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits over all rows, in nats.

    −(1 / n) Σ label · log σ(score) + (1 − label) · log(1 − σ(score))

    Args:
        score: a logit.
        label: 0 or 1, of any dtype.

    Shape: score, label: (rows,). Output: scalar float64 ≥ 0, nan without rows.

    Raises:
        ValueError: as in `auc`.

    Source: Good, Rational Decisions (JRSS B 1952).

    >>> round(logloss(torch.tensor([0.0, 0.0]), torch.tensor([0, 1])).item(), 4)
    0.6931
    """
    _check(score, label)
    return F.binary_cross_entropy_with_logits(score.double(), label.double())


def _check(score: Tensor, label: Tensor, group: Tensor | None = None) -> None:
    """Refuse rows that no metric can mean something on."""
    shapes = [tuple(t.shape) for t in (score, label, group) if t is not None]
    if score.ndim != 1 or len(set(shapes)) != 1:
        raise ValueError(f"score, label and group must be flat and of one length, got shapes {shapes}")
    finite = score.isfinite()
    if not bool(finite.all()):
        raise ValueError(f"score must be finite, got {int((~finite).sum())} of {len(score)} that are not")
    if not bool(((label == 0) | (label == 1)).all()):
        raise ValueError("label must be 0 or 1")


def _check_k(k: int) -> None:
    whole("k", k, "ranks", at_least=1)


def _pairs(score: Tensor, label: Tensor) -> _Pairs:
    """Sort once, for any number of weighted AUCs."""
    negative, positive = (label == 0).nonzero().squeeze(1), (label == 1).nonzero().squeeze(1)
    low, low_order = score[negative].sort()
    # Sorted queries walk through `low` in order; unsorted ones jump about in it and miss the cache.
    high, high_order = score[positive].sort()
    below, not_above = torch.searchsorted(low, high), torch.searchsorted(low, high, right=True)
    return _Pairs(negative[low_order], positive[high_order], below, not_above)


def _blocks(score: Tensor, label: Tensor, group: Tensor) -> _Blocks:
    """Sort by group, then by descending score, and count what lies in and above every tie."""
    _check(score, label, group)
    order = score.argsort(descending=True, stable=True)
    order = order[group[order].argsort(stable=True)]
    score, group = score[order], group[order]
    clicked = F.pad(label[order].long().cumsum(0), (1, 0))  # positives among the first r rows
    new_group = torch.ones_like(group, dtype=torch.bool)
    new_group[1:] = group[1:] != group[:-1]
    new_block = new_group.clone()
    new_block[1:] |= score[1:] != score[:-1]
    start, group_start = new_block.nonzero().squeeze(1), new_group.nonzero().squeeze(1)
    end = start.new_tensor([len(score)])
    size, group_size = torch.cat([start, end]).diff(), torch.cat([group_start, end]).diff()
    index = new_group[start].long().cumsum(0) - 1
    opened = group_start[index]
    return _Blocks(
        group=index,
        before=start - opened,
        size=size,
        positives=clicked[start + size] - clicked[start],
        positives_before=clicked[start] - clicked[opened],
        group_size=group_size,
        group_positives=clicked[group_start + group_size] - clicked[group_start],
    )


class Metric(torchmetrics.Metric):
    """All rows seen so far; what every metric here is computed from.

    A `MetricCollection` sees that its members hold the same states and keeps one copy of them. Under DDP the
    rows of all ranks are gathered before `compute`: ids must mean the same on every rank, and an impression
    that two ranks see (a sampler that pads) counts as one with every candidate twice.
    """

    full_state_update = False
    higher_is_better = True

    score: list[Tensor]
    label: list[Tensor]
    impression: list[Tensor]
    user: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("score", "label", "impression", "user"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, score: Tensor, label: Tensor, impression: Tensor, user: Tensor) -> None:
        """Keep the real candidates of a batch.

        Args:
            score: logits.
            label: 0 or 1.
            impression, user: int64 ids of the row's impression and user.

        Shape: all (rows,), padding already removed.
        """
        self.score.append(score.detach())  # or every batch's graph would live until compute
        self.label.append(label)
        self.impression.append(impression)
        self.user.append(user)

    def rows(self, name: str) -> Tensor:
        """One state over everything seen, (rows,)."""
        state: list[Tensor] = getattr(self, name)
        rows = dim_zero_cat(state) if len(state) else torch.empty(0, device=self.device)
        return rows.cpu() if rows.device.type == "mps" else rows  # Apple's GPU has no float64


class AUC(Metric):
    """`auc` over everything seen: one order across all users."""

    def compute(self) -> Tensor:
        return auc(self.rows("score"), self.rows("label"))


class GroupedAUC(Metric):
    """`grouped_auc` by `impression` or by `user`, and its `single_class`."""

    def __init__(self, by: str = "impression", single_class: str = "skip") -> None:
        super().__init__()
        self.by = choice("by", by, ["impression", "user"])
        self.single_class = choice("single_class", single_class, SINGLE_CLASS)

    def compute(self) -> Tensor:
        return grouped_auc(self.rows("score"), self.rows("label"), self.rows(self.by), self.single_class)


class MRR(Metric):
    """`mrr` within each impression, and its `no_positive`."""

    def __init__(self, no_positive: str = "skip") -> None:
        super().__init__()
        self.no_positive = choice("no_positive", no_positive, NO_POSITIVE)

    def compute(self) -> Tensor:
        return mrr(self.rows("score"), self.rows("label"), self.rows("impression"), self.no_positive)


class NDCG(Metric):
    """`ndcg` within each impression, and its `k` and `no_positive`."""

    def __init__(self, k: int, no_positive: str = "skip") -> None:
        super().__init__()
        _check_k(k)
        self.k = k
        self.no_positive = choice("no_positive", no_positive, NO_POSITIVE)

    def compute(self) -> Tensor:
        rows = self.rows("score"), self.rows("label"), self.rows("impression")
        return ndcg(*rows, self.k, self.no_positive)


class LogLoss(Metric):
    """`logloss` over everything seen."""

    higher_is_better = False

    def compute(self) -> Tensor:
        return logloss(self.rows("score"), self.rows("label"))

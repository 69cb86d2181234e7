"""Losses: scores of the candidates of an impression → one number to minimise.

Both are negative log-likelihoods. Training takes their mean; with `reduction="sum"` they give the negative
log-likelihood of each impression, from which intervals and likelihood ratios are made.

Padded candidates are replaced before anything is computed from them, so neither their scores nor their labels
reach the loss or its gradient, whatever they hold.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus


def bce(score: Tensor, label: Tensor, mask: Tensor, reduction: str = "mean") -> Tensor:
    """Pointwise: binary cross-entropy, averaged over the real candidates of the batch.

    −(1 / n) Σ label · log σ(score) + (1 − label) · log(1 − σ(score)), in nats. σ(score) is then
    the probability of a click.

    Args:
        score: logits.
        label: 1 clicked, 0 not.
        mask: True where a candidate is real.
        reduction: `mean`, or `sum`: over the candidates of each impression, and not over impressions.

    Shape: score, label, mask: (batch, candidates). Output: scalar, 0 where nothing is real; (batch,) with
    `sum`.

    Source: Cox, The Regression Analysis of Binary Sequences (JRSS B 1958).

    >>> import torch
    >>> score, label = torch.tensor([[0.0, 9.0]]), torch.tensor([[1.0, 0.0]])
    >>> round(bce(score, label, mask=torch.tensor([[True, False]])).item(), 4)
    0.6931
    """
    score = at_least_float32(score).masked_fill(~mask, 0)
    label = label.to(score.dtype).masked_fill(~mask, 0)
    each = (softplus(score) - label * score) * mask  # unlike torch's own, with cheap second derivatives
    return each.sum(1) if reduction == "sum" else each.sum() / mask.sum().clamp(min=1)


def softmax(score: Tensor, label: Tensor, mask: Tensor, reduction: str = "mean") -> Tensor:
    """Listwise: cross-entropy of the clicked candidate among those of its impression.

    −(1 / I) Σ_i (1 / P_i) Σ_{p clicked in i} log softmax(score_i)_p, in nats, over the I impressions with a
    click. Only differences of scores within an impression matter, so σ(score) is no probability of a click.

    Args:
        score: logits.
        label: 1 clicked, 0 not.
        mask: True where a candidate is real.
        reduction: `mean`, or `sum`: each impression's own, whose clicks share one vote.

    Shape: score, label, mask: (batch, candidates). Output: scalar, 0 where nothing was clicked; (batch,) with
    `sum`.

    Source: Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach (ICML 2007), ListNet
    with its target shared evenly among the clicks.

    >>> import torch
    >>> score, label = torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> round(softmax(score, label, mask=torch.tensor([[True, True, False]])).item(), 4)
    0.6931
    """
    score = at_least_float32(score)
    label = label.to(score.dtype).masked_fill(~mask, 0)
    # Very low but finite: with −inf a row that is all padding would turn into NaN, and so would its gradient.
    log_p = log_softmax(score.masked_fill(~mask, -3e38), dim=1).masked_fill(~mask, 0)
    clicks = label.sum(1)
    each = -(label * log_p).sum(1) / clicks.clamp(min=1)
    return each if reduction == "sum" else each.sum() / (clicks > 0).sum().clamp(min=1)


def at_least_float32(score: Tensor) -> Tensor:
    """Scores as they are, half precision widened: a sum of logarithms over a batch would lose all digits."""
    return score if score.dtype == torch.float64 else score.float()

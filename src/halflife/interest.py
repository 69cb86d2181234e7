"""Item vectors and log-weights to scores: how faded clicks become an interest.

Which composition can say that interest fades with absence? Age every click of a history by the same lag c:
under an exponential kernel all weights shrink by the same factor. `sum` and `sink` see it; `normalised` and
an attention without a sink divide it away again, so for them only the spread of a history's ages carries any
information.
"""

import math

import torch
from torch import Tensor, nn

from halflife.errors import choice, number

LOWEST = torch.finfo(torch.float32).min


def log_softmax_beside(log_sink: Tensor, logit: Tensor) -> Tensor:
    """Log-softmax over the last dimension with one more place of logit log s, which is then left out.

    Not logit − logsumexp: log-weights of old clicks are so low under a short half-life that float32 rounds
    their logsumexp by a thousandth, and times their age that is more than the gradient of the half-life.

    >>> log_softmax_beside(torch.tensor(0.0), torch.tensor([0.0, 0.0])).exp()
    tensor([0.3333, 0.3333])
    """
    sink = log_sink.expand(*logit.shape[:-1], 1)
    return torch.cat([logit, sink], -1).log_softmax(-1)[..., :-1]


def log_sum(left: Tensor, right: Tensor) -> Tensor:
    """log(exp(left) + exp(right)), with a second derivative that is finite however far the two lie apart.

    `torch.logaddexp` has none there, and the half-life's interval is made of second derivatives.
    """
    return torch.stack(torch.broadcast_tensors(left, right)).logsumexp(0)


class Pool(nn.Module):
    """A reader's interest is the faded mean, or sum, of their clicks.

    normalised: u = Σ w_i v_i / Σ w_i;  sink: u = Σ w_i v_i / (Σ w_i + s);  sum: u = Σ w_i v_i
    score_c = scale · u·v_c + bias. An empty history has u = 0.

    Args:
        dim: of the item vectors; unused, there so that every interest model is built alike.
        composition: `normalised`, `sink` or `sum`.
        scale: where the learned scale starts, > 0.
        sink: where the learned s starts, > 0, in clicks that just happened; read by `sink` alone.

    Source: `sum` is Ding & Li (CIKM 2005), eq. 4 without its denominator; `sink` is a null slot in the manner
    of zero attention, Ai et al. (CIKM 2019).
    """

    bilinear = True
    """True where scores depend on vectors through the inner products of clicks and candidates alone."""

    def __init__(self, dim: int, composition: str, scale: float, sink: float) -> None:
        super().__init__()
        self.composition = choice("interest.composition", composition, ["normalised", "sink", "sum"])
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(number("interest.scale", scale, "factor", above=0)))
        )
        self.bias = nn.Parameter(torch.tensor(0.0))
        number("interest.sink", sink, "clicks", above=0)
        if self.composition == "sink":
            self.log_sink = nn.Parameter(torch.tensor(math.log(sink)))

    def forward(self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        """Scores of the candidates.

        Shape: history (B, H, dim), log_weight and mask (B, H), candidates (B, C, dim) → (B, C).
        """
        log_weight = log_weight.masked_fill(~mask, LOWEST)
        if self.composition == "normalised":
            log_weight = log_weight.log_softmax(1)
        elif self.composition == "sink":
            log_weight = log_softmax_beside(self.log_sink, log_weight)
        weight = log_weight.exp() * mask  # the mask again: an empty history has only padded places
        user = torch.einsum("bh,bhd->bd", weight, history)
        return self.log_scale.exp() * torch.einsum("bd,bcd->bc", user, candidates) + self.bias


class Attention(nn.Module):
    """Each candidate asks the history what matters to it; age enters as a bias on the attention.

    a_ci = softmax_i(q(v_c)·k(v_i) + log w_i);  score_c = scale · (Σ_i a_ci v_i)·v_c + bias, with a sink of
    logit log s in the softmax, so that absence shows.

    Args:
        dim: of the item vectors.
        composition: `log_bias`: the log-weight is added before the softmax.
        scale: where the learned scale starts, > 0.
        sink: where the learned s starts, > 0, in clicks that just happened.

    Source: Zhou et al., Deep Interest Network (KDD 2018), section 4.3, with the inner product for its unit;
    the log bias is Press et al., ALiBi (ICLR 2022), section 3, with the kernel's log-weight for the linear
    one.
    """

    bilinear = False

    def __init__(self, dim: int, composition: str, scale: float, sink: float) -> None:
        super().__init__()
        choice("interest.composition", composition, ["log_bias"])
        self.log_scale = nn.Parameter(
            torch.tensor(math.log(number("interest.scale", scale, "factor", above=0)))
        )
        self.log_sink = nn.Parameter(torch.tensor(math.log(number("interest.sink", sink, "clicks", above=0))))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.query.weight)
        nn.init.eye_(self.key.weight)

    def forward(self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        """Scores of the candidates.

        Shape: history (B, H, dim), log_weight and mask (B, H), candidates (B, C, dim) → (B, C).
        """
        logit = torch.einsum("bcd,bhd->bch", self.query(candidates), self.key(history))
        logit = (logit + log_weight.unsqueeze(1)).masked_fill(~mask.unsqueeze(1), LOWEST)
        weight = log_softmax_beside(self.log_sink, logit).exp() * mask.unsqueeze(1)
        similarity = torch.einsum("bhd,bcd->bch", history, candidates)
        return self.log_scale.exp() * (weight * similarity).sum(2) + self.bias

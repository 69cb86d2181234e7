"""The interest contract, and the compositions: how a log-weight enters what a click counts."""

from typing import Any

import torch
from torch import Tensor, nn

from halflife.decay.kernel import positive_parameter
from halflife.errors import choice

LOWEST = torch.finfo(torch.float32).min

START_BIAS = -2.0
"""Where the learned bias starts: at clicks that are rare, 12 in 100. From 0 the first steps lower all scores
by whatever lowers them soonest, and an attention that has turned away from what matches does not come back.
Source: Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), section 3.3."""


class Interest(nn.Module):
    """What a reader's faded clicks say about each candidate: score_c = scale · u·v_c + bias.

    Scale and bias are scalars, as is the sink of `Composed`: these few are refitted at the end together with
    the decay, so that a score has to be twice differentiable in them and in the log-weights. An empty history
    has u = 0 and scores the bias.

    Args:
        scale: where the learned scale starts, > 0.
    """

    compositions: tuple[str, ...] = ()
    """What `interest.composition` may be; empty for a model that reads no kernel."""

    signed = False
    """True for a model that is linear in the weights, so that a kernel may give negative ones."""

    bilinear = False
    """True for a model that sees vectors through the inner products of clicks and candidates alone."""

    own_time = False
    """True for a model that learns its own account of time from the ages, and reads no log-weight."""

    reads_text = False
    """True for a model that reads clicks and candidates as token ids: no vectors can be held fixed."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = positive_parameter("interest.scale", scale, "factor", learn=True)
        self.bias = nn.Parameter(torch.tensor(START_BIAS))

    def forward(
        self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor, age: Tensor
    ) -> Tensor:
        """Scores of the candidates.

        Args:
            history: vectors of the clicked items, oldest first, padded behind.
            log_weight: the kernel's; finite, whatever it is where padded.
            mask: True where a click is real.
            candidates: vectors of the shown items.
            age: of the clicks, in days (or ranks), ≥ 0.

        Shape: history (B, H, dim), log_weight, mask and age (B, H), candidates (B, C, dim) → (B, C).
        """
        raise NotImplementedError

    def score(self, user: Tensor, candidates: Tensor) -> Tensor:
        """scale · u·v_c + bias; (B, dim) and (B, C, dim) → (B, C)."""
        return self.log_scale.exp() * weighted_sum(user, candidates.transpose(1, 2)) + self.bias


class Composed(Interest):
    """A model in which click i counts a_i = e^(l_i) w_i / D: l_i is its attention logit, w_i its weight.

    The composition is the denominator:
    log_bias: D = Σ_j e^(l_j) w_j, the log-weight is added to the logit before the softmax;
    sink: D = Σ_j e^(l_j) w_j + s, the same softmax with one more place, of constant, learned weight s;
    scale: D = Σ_j e^(l_j), the weight multiplies what comes out of the softmax and nothing is renormalised;
    sum: D = 1, nothing is normalised.
    Which of them can say that interest fades with absence: docs/compositions.md.

    Args:
        composition: one of the model's `compositions`.
        scale: where the learned scale starts, > 0.
        sink: where the learned s starts, > 0, in clicks that just happened; read by `sink` alone.

    Raises:
        InputError: when the composition is not one of the model's, or scale or sink is not a number above 0.

    Source: `log_bias` is Press et al., ALiBi (ICLR 2022), section 3, with the kernel's log-weight for the
    linear one; `sink` is a null slot in the manner of zero attention, Ai et al. (CIKM 2019); that attention
    need not be normalised is Zhou et al., Deep Interest Network (KDD 2018), section 4.3.
    """

    def __init__(self, composition: str, scale: float, sink: float) -> None:
        super().__init__(scale)
        self.composition = choice("interest.composition", composition, self.compositions)
        log_sink = positive_parameter("interest.sink", sink, "clicks", learn=True)
        if composition == "sink":
            self.log_sink = log_sink

    def share(self, logit: Tensor, log_weight: Tensor, mask: Tensor) -> Tensor:
        """a_i, 0 where padded.

        Shape: logit (…, H); log_weight and mask broadcast to it → (…, H).
        """
        logit = wide(logit)
        faded = (logit + log_weight).masked_fill(~mask, LOWEST)
        if self.composition == "sink":
            log_share = log_softmax_beside(self.log_sink, faded)
        elif self.composition == "scale":
            log_share = logit.masked_fill(~mask, LOWEST).log_softmax(-1) + log_weight.masked_fill(~mask, 0)
        elif self.composition == "sum":
            log_share = faded
        else:
            log_share = faded.log_softmax(-1)
        return log_share.exp() * mask  # the mask again: an empty history has only padded places


def weighted_sum(weight: Tensor, vectors: Tensor) -> Tensor:
    """Σ_k w_k v_k, as `torch.einsum("bk,bkd->bd", weight, vectors)`, many tangents at once.

    Shape: (B, K) and (B, K, d) → (B, d).
    """
    found: Tensor = _WeightedSum.apply(weight, vectors)
    return found


class _WeightedSum(torch.autograd.Function):
    """The refit takes derivatives in all its parameters at once, by `vmap` over the weights. Torch's own rule
    copies the vectors once a parameter; here the parameters are rows of one matrix product.
    """

    generate_vmap_rule = False

    @staticmethod
    def forward(weight: Tensor, vectors: Tensor) -> Tensor:
        return (weight.unsqueeze(-2) @ vectors).squeeze(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        weight, vectors = ctx.saved_tensors
        to_weight, to_vectors = ctx.needs_input_grad
        return (
            weighted_sum(grad, vectors.transpose(-2, -1)) if to_weight else None,
            weight.unsqueeze(-1) * grad.unsqueeze(-2) if to_vectors else None,
        )

    @staticmethod
    def jvp(ctx: Any, of_weight: Tensor | None, of_vectors: Tensor | None) -> Tensor | None:
        weight, vectors = ctx.saved_tensors
        found = None if of_weight is None else weighted_sum(of_weight, vectors)
        if of_vectors is None:
            return found
        other = weighted_sum(weight, of_vectors)
        return other if found is None else found + other

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], weight: Tensor, vectors: Tensor) -> Any:
        at_weight, at_vectors = in_dims
        if at_vectors is None:  # (B, P, K) @ (B, K, d): the vectors once
            return weight.movedim(at_weight or 0, -2) @ vectors, weight.ndim - 2
        vectors = vectors.movedim(at_vectors, 0)
        weight = weight.movedim(at_weight, 0) if at_weight is not None else weight.unsqueeze(0)
        return (weight.unsqueeze(-2) @ vectors).squeeze(-2), 0


def projection(dim: int) -> nn.Linear:
    """A learned dim × dim matrix that starts as the identity: similarities start as the encoder's."""
    linear = nn.Linear(dim, dim, bias=False)
    nn.init.eye_(linear.weight)
    return linear


def places(mask: Tensor, longest: int) -> Tensor:
    """How many clicks are newer: 0 for the newest, at most `longest` − 1; 0 where padded.

    Shape: mask (B, H), padded behind → (B, H), int64.

    >>> places(torch.tensor([[True, True, True, False]]), longest=2)
    tensor([[1, 1, 0, 0]])
    """
    newer = mask.sum(1, keepdim=True) - 1 - torch.arange(mask.shape[1], device=mask.device)
    return newer.clamp(0, longest - 1)


def wide(logit: Tensor) -> Tensor:
    """In float32 at least, since half precision cannot hold LOWEST."""
    return logit.to(torch.promote_types(logit.dtype, torch.float32))


def log_softmax_beside(log_sink: Tensor, logit: Tensor) -> Tensor:
    """Log-softmax over the last dimension with one more place of logit log s, which is then left out.

    Not logit − logsumexp: log-weights of old clicks are so low under a short half-life that float32 rounds
    their logsumexp by a thousandth, and times their age that is more than the gradient of the half-life.

    >>> log_softmax_beside(torch.tensor(0.0), torch.tensor([0.0, 0.0])).exp()
    tensor([0.3333, 0.3333])
    """
    sink = log_sink.expand(*logit.shape[:-1], 1)
    return torch.cat([logit, sink], -1).log_softmax(-1)[..., :-1]

"""The half-life: refitted to the whole training split, with an interval, or the reason why there is none."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, vmap

from halflife.batches import Batch
from halflife.recommender import Recommender, score

LEVEL = 0.95
Z = 1.959963984540054
LARGEST_SD = 1 / Z  # of log half-life; from here on no fading at all (1/h = 0) is within 1.96 sd of 1/h
STILL_MOVING = 0.3  # of log half-life: a Newton step so long says that the fit ran away, not that it arrived
STEPS = 30  # of Newton; a dozen is usual, and a half-life that runs away to infinity stops here


@dataclass(frozen=True)
class Fit:
    """The free parameters at their refitted values, and what the loss looks like around them.

    Args:
        names: of each entry, as `decay.log_half_life`; a vector's name occurs once an entry.
        bend: Hessian of the summed loss, (P, P).
        gradient: of each impression's loss, (impressions, P).
        user: of each impression.
    """

    names: list[str]
    bend: Tensor
    gradient: Tensor
    user: Tensor


class _Scores(nn.Module):
    """Scores as a function of the decay and interest parameters alone, item vectors given."""

    def __init__(self, module: Recommender) -> None:
        super().__init__()
        self.decay, self.interest = module.decay, module.interest

    def forward(self, batch: Batch, items: Tensor) -> Tensor:
        return score(self.decay, self.interest, batch, items)


def refit(module: Recommender, batches: Iterable[Batch]) -> Fit | None:
    """Move decay, scale, bias and sink to the minimum of the training loss, item vectors held as they are.

    Stochastic steps leave a half-life a few percent to either side of where the loss is least; damped Newton
    steps on the whole split (Levenberg's) take it there, since so few parameters are free.

    Args:
        module: after the fit; its parameters are changed in place.
        batches: of the training split; any order.

    Returns:
        What `estimate` needs, or None where nothing is free.

    Source: Levenberg, A Method for the Solution of Certain Non-Linear Problems in Least Squares (1944).
    """
    decay = {f"decay.{n}": p for n, p in module.decay.named_parameters() if p.requires_grad}
    scalars = {
        f"interest.{n}": p for n, p in module.interest.named_parameters() if p.requires_grad and p.ndim == 0
    }
    free = decay | scalars
    if not free:
        return None
    names = [n for n, p in free.items() for _ in range(p.numel())]
    start = torch.cat([p.detach().reshape(-1) for p in free.values()]).double()
    training = module.training
    module.eval()
    vectors = module.encoder.catalogue()
    held = [b.to(vectors.device) for b in batches]
    loss = _loss(module, {n: p.shape for n, p in free.items()})

    def total(theta: Tensor, *, order: int) -> tuple[float, Tensor, Tensor]:
        value, slope, bend = (
            0.0,
            torch.zeros(len(names)).double(),
            torch.zeros(len(names), len(names)).double(),
        )
        at = theta.float().to(vectors.device)
        for batch in held:
            items = vectors[batch.item]

            def summed(t: Tensor, items: Tensor = items, batch: Batch = batch) -> Tensor:
                return loss(t, items, batch).sum()

            value += float(summed(at))
            if order:
                slope += grad(summed)(at).double().cpu()
                bend += hessian(summed)(at).double().cpu()
        return value, slope, bend

    theta, damping = start, 1e-3
    value, slope, bend = total(theta, order=2)
    for _ in range(STEPS):
        step = _newton_step(bend, slope, damping)
        if not -float(slope @ step) > 1e-7 * max(1.0, abs(value)):  # float32 sees no smaller gain
            break
        tried = total(theta + step, order=0)[0]
        if tried < value:
            theta, damping = theta + step, max(damping / 10, 1e-9)
            value, slope, bend = total(theta, order=2)
        else:
            damping *= 10
    with torch.no_grad():
        parts = theta.float().split([p.numel() for p in free.values()])
        for parameter, part in zip(free.values(), parts, strict=True):
            parameter.copy_(part.reshape(parameter.shape))
    at = theta.float().to(vectors.device)
    gradient = [jacfwd(loss)(at, vectors[b.item], b).double().cpu() for b in held]
    module.train(training)
    return Fit(names, bend, torch.cat(gradient), torch.cat([b.user for b in held]).cpu())


def _newton_step(bend: Tensor, slope: Tensor, damping: float) -> Tensor:
    """−(|H| + damping · diag)⁻¹ g, downhill where the loss bends the wrong way too: |H| has the absolute
    eigenvalues of H, both in units of the diagonal. Zero where the loss has no finite curvature.

    Source: Dauphin et al., Identifying and Attacking the Saddle Point Problem (NeurIPS 2014), section 5.
    """
    if not torch.isfinite(bend).all():
        return torch.zeros_like(slope)
    size = bend.diagonal().abs().clamp_min(1e-6).sqrt()
    values, vectors = torch.linalg.eigh(bend / torch.outer(size, size))
    step = -(vectors @ (vectors.T @ (slope / size) / (values.abs() + damping))) / size
    return step / step.abs().max().clamp_min(1.0)  # logarithms: at most a factor e at once


def _loss(module: Recommender, shapes: dict[str, torch.Size]) -> Callable[[Tensor, Tensor, Batch], Tensor]:
    """One loss an impression, as a function of the free parameters on end, item vectors and batch."""
    scores = _Scores(module)
    fixed = {n: p.detach() for n, p in scores.named_parameters()}
    sizes = [s.numel() for s in shapes.values()]

    def loss(theta: Tensor, items: Tensor, batch: Batch) -> Tensor:
        parts = theta.split(sizes)
        values = {n: part.reshape(s) for (n, s), part in zip(shapes.items(), parts, strict=True)}
        scored = functional_call(scores, {**fixed, **values}, (batch, items))
        return vmap(lambda s, y, m: module.loss(s[None], y[None], m[None]))(
            scored, batch.label, batch.candidate_mask
        )

    return loss


def estimate(module: Recommender, fit: Fit | None) -> dict[str, Any]:
    """State the half-life, its 95 % interval and how it was made, or why it is not identified.

    log h ± 1.96 · sd, with sd² = ∇ᵀ H⁻¹ G H⁻¹ ∇: ∇ the slope of log h in the free parameters, H the Hessian
    of the training loss, G = Σ_users g_u g_uᵀ the sum over users of the outer products of their summed
    gradients. Item vectors are held as they are, so the error that the text brings in is not in the interval.

    Args:
        module: after `refit`.
        fit: what `refit` returned.

    Returns:
        What `decay.json` holds; `half_life_*` is null where a kernel has none.

    Source: Huber, The Behavior of Maximum Likelihood Estimates under Nonstandard Conditions (1967); clusters:
    Liang & Zeger (Biometrika 1986), section 3.
    """
    half_life = module.decay.half_life
    value = None if half_life is None else float(half_life.detach())
    out: dict[str, Any] = {
        "kernel": type(module.decay).__module__.rpartition(".")[2],
        "unit": module.unit,
        f"half_life_{module.unit}": value,
        "low": None,
        "high": None,
        "level": LEVEL,
        "identified": False,
        "parameters": {n: p.detach().tolist() for n, p in module.decay.named_parameters()},
    }
    if value is None:
        return {**out, "how": "the kernel has no half-life"}
    if fit is None or not any(p.requires_grad for p in module.decay.parameters()):
        return {**out, "how": "fixed by the configuration, not estimated"}
    sd, why = _sd_log_half_life(module, fit)
    if sd is None:
        return {**out, "how": f"not identified: {why}"}
    how = (
        f"gradient descent, then Newton on the training loss; {LEVEL:.0%} Wald interval of the logarithm, "
        "sandwich "
        "variance clustered by user over decay, scale, bias and sink, item vectors held fixed"
    )
    low, high = value * math.exp(-Z * sd), value * math.exp(Z * sd)
    return {**out, "low": low, "high": high, "sd_log_half_life": sd, "identified": True, "how": how}


def _sd_log_half_life(module: Recommender, fit: Fit) -> tuple[float | None, str]:
    """Sandwich standard deviation of the log half-life, or None and the reason."""
    gradient = fit.gradient - fit.gradient.mean(0)
    _, owner = np.unique(fit.user.numpy(), return_inverse=True)
    per_user = torch.zeros(int(owner.max()) + 1, gradient.shape[1], dtype=torch.float64)
    per_user.index_add_(0, torch.from_numpy(owner), gradient)
    if not torch.isfinite(fit.bend).all() or float(torch.linalg.eigvalsh(fit.bend)[0]) <= 0:
        return None, "the training loss has no minimum in the half-life"
    inverse = torch.linalg.inv(fit.bend)
    variance = inverse @ (per_user.T @ per_user) @ inverse

    half_life = module.decay.half_life
    learned = {n: p for n, p in module.decay.named_parameters() if p.requires_grad}
    if half_life is None or not half_life.requires_grad:
        return None, "the half-life does not depend on what is learned"
    slopes = torch.autograd.grad(half_life.log(), list(learned.values()), allow_unused=True)
    filled = [torch.zeros_like(p) if s is None else s for p, s in zip(learned.values(), slopes, strict=True)]
    slope = torch.zeros(len(fit.names), dtype=torch.float64)  # decay comes first among the names
    flat = torch.cat([s.reshape(-1) for s in filled]).double().cpu()
    slope[: len(flat)] = flat
    move = -float(slope @ inverse @ fit.gradient.sum(0))
    if abs(move) > STILL_MOVING:
        return None, f"the training loss keeps falling as the half-life {'grows' if move > 0 else 'shrinks'}"
    sd = float((slope @ variance @ slope).clamp_min(0).sqrt())
    if sd == 0 or not math.isfinite(sd):
        return None, "the half-life does not enter the training loss"
    if sd > LARGEST_SD:
        return None, f"the standard deviation of the log half-life is {sd:.2g}: the data cannot tell"
    return sd, ""

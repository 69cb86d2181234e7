"""The half-life: refitted to the training split (a sample where it is large), with an interval or why not."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halflife.batches import Batch
from halflife.decay.kernel import Kernel
from halflife.likelihood import Likelihood, Point
from halflife.recommender import Recommender

LEVEL = 0.95
Z = 1.959963984540054
LARGEST_SD = 1 / Z  # of log half-life; from here on no fading at all (1/h = 0) is within 1.96 sd of 1/h
STILL_MOVING = 0.3  # of log half-life: a Newton step so long says that the fit ran away, not that it arrived


@dataclass(frozen=True)
class Fit:
    """The free parameters at their refitted values, and what the likelihood looks like around them.

    Args:
        likelihood: of the training split.
        point: its minimum.
        gradient: slope of each impression's negative log-likelihood, (impressions, P).
        bend: Hessian of −log L, (P, P).
        gain: log-likelihood (nats) over that of the same model without decay; None where no half-life is
            free.
        held_out: of the same parameters on a split that item vectors have not learned from; None where none
            was given, or vectors or half-life are fixed.
    """

    likelihood: Likelihood
    point: Point
    gradient: Tensor
    bend: Tensor
    gain: float | None
    held_out: "Fit | None" = None


def refit(
    module: Recommender, batches: Iterable[Batch], held_out: Iterable[Batch] | None = None
) -> Fit | None:
    """Move decay, scale, bias and sink to the minimum of −log L, item vectors held as they are.

    Stochastic steps leave a half-life a few percent to either side of where the loss is least, and stay where
    they started when that is far from the ages of the log, since the slope vanishes there. So few parameters
    are free that the minimum itself can be had, from several starts.

    Args:
        module: after the fit; its parameters are changed in place.
        batches: of the training split; any order.
        held_out: of the validation split, on which a second fit is made where item vectors and a half-life
            learned, since those vectors know the training clicks; it is stated beside the first and changes
            nothing.

    Returns:
        What `estimate` needs, or None where nothing is free, or no item vectors are there to be held.
    """
    if module.interest.reads_text:
        return None
    training = module.training
    module.eval()
    vectors = module.encoder.catalogue()
    likelihood = Likelihood(module, batches, vectors)
    module.train(training)
    if not likelihood.names:
        return None
    fit = fit_likelihood(likelihood)
    put(module, fit)
    tells = module.learns_decay and module.decay.half_life is not None
    if held_out is None or not (tells and module.learns_vectors):
        return fit
    return replace(fit, held_out=fit_likelihood(Likelihood(module, held_out, vectors)))


@torch.no_grad()
def put(module: Recommender, fit: Fit) -> None:
    """Give the module the fitted values."""
    named = dict(module.named_parameters())
    for name, value in fit.likelihood.values(fit.point.theta).items():
        named[name].copy_(value)
    for name, buffer in fit.likelihood.buffers().items():
        module.get_buffer(name).copy_(buffer)


def fit_likelihood(likelihood: Likelihood) -> Fit:
    """The lowest minimum, and what the likelihood looks like around it."""
    point = likelihood.best()
    flat = likelihood.without_decay(point.theta)
    if flat is not None and flat.value < point.value:  # a minimum above that of no decay is none
        point = min(likelihood.minimise(flat.theta), flat, key=lambda p: p.value)
    gradient, bend = likelihood.exact(point.theta)
    gain = None if flat is None else flat.value - point.value
    return Fit(likelihood, point, gradient.double(), bend.double(), gain)


def estimate(module: Recommender, fit: Fit | None) -> dict[str, Any]:
    """State the half-life, its 95 % interval and how it was made, or why it is not identified.

    log h ± 1.96 · sd, with sd² = ∇ᵀ V ∇: ∇ the slope of log h in the free parameters, V their variance (see
    `sandwich`). The half-lives of groups alike. Item vectors are held as they are, so the error that the text
    brings in is not in the interval.

    Args:
        module: after `refit`.
        fit: what `refit` returned.

    Returns:
        What `decay.json` holds; `half_life_*` is null where a kernel has none or the data cannot tell it.
        `status` is `estimated`, `not_identified`, `fixed`, `not_refitted` or `no_half_life`; `how` says it in
        words.

    Source: Huber, The Behavior of Maximum Likelihood Estimates under Nonstandard Conditions (1967); clusters:
    Liang & Zeger (Biometrika 1986), section 3.
    """
    half_life = module.decay.half_life
    value = None if half_life is None else float(half_life.detach())
    out: dict[str, Any] = {
        "kernel": module.decay.label,
        "unit": module.unit,
        f"half_life_{module.unit}": value,
        "low": None,
        "high": None,
        "level": LEVEL,
        "identified": False,
        "parameters": {n: p.detach().tolist() for n, p in module.decay.named_parameters()},
    }
    if groups := module.decay.half_lives():
        out["half_lives"] = {name: float(h.detach()) for name, h in groups.items()}
        out["half_lives_sd"] = module.decay.group_sd
    if module.candidate_decay is not None and module.candidate_decay.half_life is not None:
        out["candidate_half_life_days"] = float(module.candidate_decay.half_life.detach())
    if fit is not None:
        out["parameters_effective"] = parameters_effective(fit.likelihood, fit.point.theta)
    if value is None:
        return {**out, "status": "no_half_life", "how": "the kernel has no half-life"}
    if not module.learns_decay:
        return {**out, "status": "fixed", "how": "fixed by the configuration, not estimated"}
    if fit is None:
        why = "without item vectors " if module.interest.reads_text else ""
        how = f"gradient descent alone: {why}no refit and no interval"
        return {**out, "status": "not_refitted", "how": how}
    used, every = len(fit.likelihood.user), module.impressions
    sample = f"; from {used:,} of {every:,} training impressions, evenly spread" if used < every else ""
    out["log_likelihood_over_no_decay"] = fit.gain
    variance = sandwich(fit)
    if variance is None:
        sd, why = None, "the training loss has no minimum in the half-life"
    else:
        sd, why = sd_log_half_life(module.decay, fit, variance)
    if sd is None or variance is None:
        nothing = {f"half_life_{module.unit}": None, "status": "not_identified"}
        return {**out, **nothing, "how": f"not identified: {why}{sample}"}
    how = (
        f"gradient descent, then the minimum of −log L; {LEVEL:.0%} Wald interval of the logarithm, sandwich "
        f"variance clustered by user over decay, scale, bias and sink, item vectors held fixed{sample}"
    )
    intervals = {}
    for name, h in groups.items():
        slope = slope_in(h.log(), module.decay, fit)
        if slope is not None and math.isfinite(sd_group := float((slope @ variance @ slope).sqrt())):
            intervals[name] = [float(h.detach()) * math.exp(sign * Z * sd_group) for sign in (-1, 1)]
    if intervals:
        out["half_lives_intervals"] = intervals
    if fit.held_out is not None:
        put(module, fit.held_out)
        beside = estimate(module, fit.held_out)
        put(module, fit)
        kept = (f"half_life_{module.unit}", "low", "high", "status")
        out["held_out"] = {key: beside[key] for key in kept}
    low, high = value * math.exp(-Z * sd), value * math.exp(Z * sd)
    found = {"low": low, "high": high, "sd_log_half_life": sd, "identified": True}
    return {**out, **found, "status": "estimated", "how": how}


def parameters_effective(likelihood: Likelihood, theta: Tensor) -> float:
    """How many parameters the data determine: P − tr(B⁻¹ Λ), of P free ones.

    B is the Gauss–Newton curvature of −log L, prior included, and Λ that of −log prior: tr(B⁻¹ (B − Λ)), the
    trace of a ridge's or random effect's hat matrix. A parameter without a prior counts as 1, a group's
    deviation as 1 where its clicks speak loudest and as nothing where the prior holds it. What a prior has
    learned itself, such as an estimated sd, counts as 1: taken as known, groups that do not differ were
    preferred to one half-life in 21 of 30 logs, and so in 5 (experiments/recovery).

    Args:
        likelihood: whose prior and curvature.
        theta: its minimum, (P,).

    Source: Hodges & Sargent, Counting Degrees of Freedom in Hierarchical and Other Richly-Parameterised
    Models (Biometrika 2001); Vaida & Blanchard, Conditional Akaike Information for Mixed-Effects Models
    (Biometrika 2005), for its place in the AIC; Greven & Kneib, On the Behaviour of Marginal and Conditional
    AIC in Linear Mixed Models (Biometrika 2010), for what an sd taken as known does to it; Wood, Generalized
    Additive Models (2017), section 6.1.2.
    """
    _, prior = likelihood.prior(theta)
    if not prior.any():
        return float(len(theta))
    _, _, bend = likelihood.curvature(theta)
    held = float((torch.linalg.pinv(bend, hermitian=True) * prior).sum())
    return len(theta) - held + likelihood.estimated_priors


def sandwich(fit: Fit) -> Tensor | None:
    """Variance of the free parameters, H⁻¹ (G + Λ) H⁻¹, (P, P); None where H is not that of a minimum.

    H is the Hessian of −log L, prior included. G = Σ_u s_u s_uᵀ over users, with s_u = Σ_{i of u} (g_i − ḡ):
    the gradients g_i of a user's impressions, less their mean ḡ over all impressions, which is not 0 at a
    minimum that a prior takes part in. Λ is the Hessian of −log prior: what a prior says counts as one more
    observation, so that a group which the log hardly shows is as uncertain as its prior, not certain.

    Args:
        fit: of `fit_likelihood`.
    """
    if not torch.isfinite(fit.bend).all() or float(torch.linalg.eigvalsh(fit.bend)[0]) <= 0:
        return None
    gradient = fit.gradient - fit.gradient.mean(0)
    _, owner = np.unique(fit.likelihood.user.numpy(), return_inverse=True)
    per_user = torch.zeros(int(owner.max()) + 1, gradient.shape[1], dtype=torch.float64)
    per_user.index_add_(0, torch.from_numpy(owner), gradient)
    inverse = torch.linalg.inv(fit.bend)
    _, prior = fit.likelihood.prior(fit.point.theta)
    return inverse @ (per_user.T @ per_user + prior) @ inverse


def slope_in(value: Tensor, decay: Kernel, fit: Fit) -> Tensor | None:
    """Slope of a function of the kernel's parameters in what is free, (P,); None where it has none."""
    names = fit.likelihood.names
    learned = {n: p for n, p in decay.named_parameters() if f"decay.{n}" in names}
    if not value.requires_grad or not learned:
        return None
    slopes = torch.autograd.grad(value, list(learned.values()), retain_graph=True, allow_unused=True)
    slope = torch.zeros(len(names), dtype=torch.float64)
    for name, found in zip(learned, slopes, strict=True):
        if found is not None:
            at = [i for i, n in enumerate(names) if n == f"decay.{name}"]
            slope[at] = found.reshape(-1).double().cpu()
    return slope


def sd_log_half_life(decay: Kernel, fit: Fit, variance: Tensor) -> tuple[float | None, str]:
    """Sandwich standard deviation of the log half-life, or None and the reason.

    Args:
        decay: at the values of the fit.
        fit: of `fit_likelihood`.
        variance: of `sandwich`.
    """
    slope = None if decay.half_life is None else slope_in(decay.half_life.log(), decay, fit)
    if slope is None:
        return None, "the half-life does not depend on what is learned"
    prior, _ = fit.likelihood.prior(fit.point.theta)
    move = -float(slope @ torch.linalg.solve(fit.bend, fit.gradient.sum(0) + prior))
    if abs(move) > STILL_MOVING:
        return None, f"the training loss keeps falling as the half-life {'grows' if move > 0 else 'shrinks'}"
    sd = float((slope @ variance @ slope).clamp_min(0).sqrt())
    if sd == 0 or not math.isfinite(sd):
        return None, "the half-life does not enter the training loss"
    if sd > LARGEST_SD:
        return None, f"the standard deviation of the log half-life is {sd:.2g}: the data cannot tell"
    return sd, ""

"""The half-life: refitted to the training split (a sample where it is large), with an interval or why not."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from halflife.batches import Batch
from halflife.decay.kernel import Kernel
from halflife.likelihood import Likelihood, Point
from halflife.recommender import Recommender

LEVEL = 0.95
Z = 1.959963984540054
LARGEST_SD = 1 / Z  # of log half-life; from here on no fading at all (1/h = 0) is within 1.96 sd of 1/h
FEW_USERS = 10  # below them each impression is a cluster
FLAT = (
    0.01  # nats; a direction in which a move by 1 (parameters are logarithms) costs half of it tells nothing
)
NOTHING = 1e-3  # share of a slope that may lie where nothing bends
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

    @cached_property
    def inverse(self) -> tuple[Tensor, Tensor] | None:
        """Of the Hessian: `inverse`."""
        return inverse(self.bend)

    @cached_property
    def variance(self) -> Tensor | None:
        """Of the free parameters: `sandwich`."""
        return sandwich(self)


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
    gain = None if flat is None else likelihood.no_decay() - likelihood.loss(point.theta)
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
    out |= of_groups(module.decay, fit)
    if module.candidate_decay is not None:
        out |= of_candidates(module.candidate_decay, fit)
    if fit is not None:
        out["parameters_effective"] = parameters_effective(fit.likelihood, fit.point.theta)
    if half_life is None or value is None:
        return {**out, "status": "no_half_life", "how": "the kernel has no half-life"}
    if not half_life.requires_grad:
        return {**out, "status": "fixed", "how": "fixed by the configuration, not estimated"}
    if fit is None:
        why = "without item vectors " if module.interest.reads_text else ""
        how = f"gradient descent alone: {why}no refit and no interval"
        return {**out, "status": "not_refitted", "how": how}
    used, every = len(fit.likelihood.user), module.impressions
    sample = f"; from {used:,} of {every:,} training impressions, evenly spread" if used < every else ""
    held = {n for n, p in module.decay.named_parameters() if p.requires_grad}
    held -= {n.removeprefix("decay.") for n in fit.likelihood.names}
    sample += "; half-lives of groups held as training left them, too many to refit" if held else ""
    out["log_likelihood_over_no_decay"] = fit.gain
    sd, why = sd_log_half_life(module.decay, fit)
    if sd is None:
        nothing = {f"half_life_{module.unit}": None, "status": "not_identified"}
        return {**out, **nothing, "how": f"not identified: {why}{sample}"}
    by = "clustered by user" if clustered(fit.likelihood.user) else f"by impression (under {FEW_USERS} users)"
    how = (
        f"gradient descent, then the minimum of −log L; {LEVEL:.0%} Wald interval of the logarithm, sandwich "
        f"variance {by} over decay, scale, bias and sink, item vectors held fixed{sample}"
    )
    if fit.held_out is not None:
        put(module, fit.held_out)
        beside = estimate(module, fit.held_out)
        put(module, fit)
        kept = (f"half_life_{module.unit}", "low", "high", "status")
        out["held_out"] = {key: beside[key] for key in kept}
    low, high = wald(value, sd)
    found = {"low": low, "high": high, "sd_log_half_life": sd, "identified": True}
    return {**out, **found, "status": "estimated", "how": how}


def wald(half_life: float, sd: float) -> tuple[float, float]:
    """The ends of log h ± 1.96 · sd, as half-lives."""
    return half_life * math.exp(-Z * sd), half_life * math.exp(Z * sd)


def of_groups(decay: Kernel, fit: Fit | None) -> dict[str, Any]:
    """The half-life of each group, their spread and their intervals, be the shared one told or not."""
    groups = decay.half_lives()
    if not groups:
        return {}
    out: dict[str, Any] = {
        "half_lives": {name: float(h.detach()) for name, h in groups.items()},
        "half_lives_sd": decay.group_sd,
    }
    intervals = {}
    for name, h in groups.items():
        slope = None if fit is None else slope_in(h.log(), decay, fit)
        if slope is not None and fit is not None and fit.variance is not None:
            sd = float((slope @ fit.variance @ slope).clamp_min(0).sqrt())
            if 0 < sd < math.inf:
                intervals[name] = list(wald(float(h.detach()), sd))
    return out | ({"half_lives_intervals": intervals} if intervals else {})


def of_candidates(kernel: Kernel, fit: Fit | None) -> dict[str, Any]:
    """The half-life of the candidates' own fading, with interval and status as those of clicks."""
    half_life = kernel.half_life
    if half_life is None:
        return {}
    value, name = float(half_life.detach()), "candidate_half_life_days"
    if not half_life.requires_grad:
        return {name: value, "candidate_status": "fixed"}
    if fit is None:
        return {name: value, "candidate_status": "not_refitted"}
    sd, why = sd_log_half_life(kernel, fit, "candidate_decay")
    if sd is None:
        return {name: None, "candidate_status": "not_identified", "candidate_how": f"not identified: {why}"}
    low, high = wald(value, sd)
    return {name: value, "candidate_status": "estimated", "candidate_low": low, "candidate_high": high}


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
    if fit.inverse is None:
        return None
    bends, _ = fit.inverse
    gradient = fit.gradient - fit.gradient.mean(0)
    owner = clusters(fit.likelihood.user)
    per_user = torch.zeros(int(owner.max()) + 1, gradient.shape[1], dtype=torch.float64)
    per_user.index_add_(0, owner, gradient)
    _, prior = fit.likelihood.prior(fit.point.theta)
    return bends @ (per_user.T @ per_user + prior) @ bends


def inverse(bend: Tensor) -> tuple[Tensor, Tensor] | None:
    """H⁻¹ where H bends, (P, P), and the directions in which it does not, (P, F); None where it bends down.

    Some kernels have more parameters than data can tell (only ratios of the drops of `monotone` count, and
    those that went to 0 move nothing). What rounding makes of their zeros is no curvature, and a half-life
    that does not depend on them is told none the less.
    """
    if not torch.isfinite(bend).all():
        return None
    values, vectors = torch.linalg.eigh(bend)
    flat = values.abs() <= FLAT
    if (values[~flat] < 0).any():
        return None
    return (vectors[:, ~flat] / values[~flat]) @ vectors[:, ~flat].T, vectors[:, flat]


def clustered(user: Tensor) -> bool:
    """Whether there are users enough to tell how much they differ."""
    return len(torch.unique(user)) >= FEW_USERS


def clusters(user: Tensor) -> Tensor:
    """The cluster of each impression: its user, or itself where users are too few: the scores of G users sum
    to 0 and tell of G − 1 directions at most.

    Source: Cameron & Miller, A Practitioner's Guide to Cluster-Robust Inference (JHR 2015), section VI.
    """
    if not clustered(user):
        return torch.arange(len(user))
    return torch.unique(user, return_inverse=True)[1]


def slope_in(value: Tensor, decay: Kernel, fit: Fit, of: str = "decay") -> Tensor | None:
    """Slope of a function of a kernel's parameters in what is free, (P,); None where it has none.

    Args:
        value: the function.
        decay: the kernel.
        fit: of `fit_likelihood`.
        of: what the kernel is to the module, `decay` or `candidate_decay`.
    """
    names = fit.likelihood.names
    learned = {n: p for n, p in decay.named_parameters() if f"{of}.{n}" in names}
    if not value.requires_grad or not learned:
        return None
    slopes = torch.autograd.grad(value, list(learned.values()), retain_graph=True, allow_unused=True)
    slope = torch.zeros(len(names), dtype=torch.float64)
    for name, found in zip(learned, slopes, strict=True):
        if found is not None:
            at = [i for i, n in enumerate(names) if n == f"{of}.{name}"]
            slope[at] = found.reshape(-1).double().cpu()
    return slope


def sd_log_half_life(decay: Kernel, fit: Fit, of: str = "decay") -> tuple[float | None, str]:
    """Sandwich standard deviation of the log half-life, or None and the reason.

    Args:
        decay: at the values of the fit.
        fit: of `fit_likelihood`.
        of: as of `slope_in`.
    """
    if fit.variance is None or fit.inverse is None:
        return None, "the training loss has no minimum in the half-life"
    slope = None if decay.half_life is None else slope_in(decay.half_life.log(), decay, fit, of)
    if slope is None:
        return None, "the half-life does not depend on what is learned"
    bends, flat = fit.inverse
    if float((slope @ flat).norm()) > NOTHING * float(slope.norm()):
        return None, "the training loss no longer changes with the half-life"
    prior, _ = fit.likelihood.prior(fit.point.theta)
    move = -float(slope @ bends @ (fit.gradient.sum(0) + prior))
    if abs(move) > STILL_MOVING:
        return None, f"the training loss keeps falling as the half-life {'grows' if move > 0 else 'shrinks'}"
    sd = float((slope @ fit.variance @ slope).clamp_min(0).sqrt())
    if sd == 0 or not math.isfinite(sd):
        return None, "the half-life does not enter the training loss"
    if sd > LARGEST_SD:
        return None, f"the standard deviation of the log half-life is {sd:.2g}: the data cannot tell"
    return sd, ""

"""The fitted half-life with an interval, and when there is none to state."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacfwd

from halflife.batches import Batch
from halflife.recommender import Recommender

LEVEL = 0.95
Z = 1.959963984540054
LARGEST_SD = 1.5  # of log half-life: an interval 360-fold wide says that the data cannot tell


class _Scores(nn.Module):
    """Scores as a function of the decay and interest parameters alone, item vectors given."""

    def __init__(self, module: Recommender) -> None:
        super().__init__()
        self.decay, self.interest = module.decay, module.interest

    def forward(self, history: Tensor, age: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
        return self.interest(history, self.decay(age), mask, candidates)


def estimate(module: Recommender, batches: Iterable[Batch]) -> dict[str, Any]:
    """State the half-life, its 95 % interval and how it was made, or why it is not identified.

    log h ± 1.96 · sd, with sd² the entry of H⁻¹ G H⁻¹: H the Hessian of the training loss in the scalar
    parameters of decay and interest, G = Σ_users g_u g_uᵀ the sum over users of their summed gradients' outer
    products. Item vectors are held as they are, so the error that the text brings in is not in the interval.

    Args:
        module: after the fit.
        batches: of the training split; any order.

    Returns:
        What `decay.json` holds; `half_life_*` is null where a kernel has none.

    Source: Huber, The Behavior of Maximum Likelihood Estimates under Nonstandard Conditions (1967); clusters:
    Liang & Zeger (Biometrika 1986), section 3.
    """
    unit = module.unit
    kernel = type(module.decay).__name__
    half_life = module.decay.half_life
    fitted = {f"half_life_{unit}": None if half_life is None else float(half_life.detach())}
    out: dict[str, Any] = {
        "kernel": kernel,
        "unit": unit,
        **fitted,
        "low": None,
        "high": None,
        "level": LEVEL,
    }
    learned = [n for n, p in module.decay.named_parameters() if p.requires_grad]
    out["parameters"] = {n: p.detach().tolist() for n, p in module.decay.named_parameters()}
    if half_life is None:
        return {**out, "identified": False, "how": "the kernel has no half-life"}
    if not learned:
        return {**out, "identified": False, "how": "fixed by the configuration, not estimated"}

    sd, why = _sd_log_half_life(module, batches)
    how = (
        f"gradient descent on the training loss; {LEVEL:.0%} Wald interval of the log, sandwich variance "
        "clustered "
        "by user over the scalar parameters of decay and interest, item vectors held fixed"
    )
    if sd is None:
        return {**out, "identified": False, "how": f"not identified: {why}"}
    value = float(half_life.detach())
    low, high = value * math.exp(-Z * sd), value * math.exp(Z * sd)
    return {**out, "low": low, "high": high, "sd_log_half_life": sd, "identified": True, "how": how}


def _sd_log_half_life(module: Recommender, batches: Iterable[Batch]) -> tuple[float | None, str]:
    """Sandwich standard deviation of the log half-life, or None and the reason."""
    scores = _Scores(module)
    named = {n: p.detach() for n, p in scores.named_parameters()}
    free = [n for n, p in scores.named_parameters() if p.requires_grad and p.numel() == 1]
    theta = torch.stack([named[n].reshape(()) for n in free])
    fixed = {n: p for n, p in named.items() if n not in free}

    def losses(theta: Tensor, batch: Batch, history: Tensor, candidates: Tensor) -> Tensor:
        """One loss an impression."""
        values = {n: theta[i].reshape(named[n].shape) for i, n in enumerate(free)}
        score = functional_call(
            scores, {**fixed, **values}, (history, batch.age, batch.history_mask, candidates)
        )
        one = torch.func.vmap(lambda s, y, m: module.loss(s[None], y[None], m[None]))
        return one(score, batch.label, batch.candidate_mask)

    vectors = module.encoder.catalogue()
    bend = torch.zeros(len(free), len(free), dtype=torch.float64)
    gradients, users = [], []
    for raw in batches:
        batch = raw.to(vectors.device)
        items = vectors[batch.item]
        history, candidates = items[batch.history], items[batch.candidates]
        gradients.append(jacfwd(losses)(theta, batch, history, candidates).double().cpu())
        bend += (
            hessian(lambda t, *rest: losses(t, *rest).sum())(theta, batch, history, candidates).double().cpu()
        )
        users.append(batch.user.cpu())
    gradient = torch.cat(gradients)
    gradient = gradient - gradient.mean(0)  # training stops near, not at, the minimum
    _, owner = np.unique(torch.cat(users).numpy(), return_inverse=True)
    per_user = torch.zeros(int(owner.max()) + 1, len(free), dtype=torch.float64)
    per_user.index_add_(0, torch.from_numpy(owner), gradient)

    if not torch.isfinite(bend).all() or float(torch.linalg.eigvalsh(bend)[0]) <= 0:
        return None, "the training loss has no minimum in the half-life near the fitted one"
    inverse = torch.linalg.inv(bend)
    variance = inverse @ (per_user.T @ per_user) @ inverse
    # the half-life as a function of the parameters, so that any kernel's own parametrisation will do
    values = {n: named[n] for n in free}

    def log_half_life(theta: Tensor) -> Tensor:
        own = {
            n.removeprefix("decay."): theta[i].reshape(named[n].shape)
            for i, n in enumerate(free)
            if n.startswith("decay.")
        }
        rest = {n.removeprefix("decay."): p for n, p in fixed.items() if n.startswith("decay.")}
        return functional_call(
            _HalfLife(module.decay), {f"kernel.{k}": v for k, v in {**rest, **own}.items()}, ()
        )

    slope = torch.func.grad(log_half_life)(torch.stack([values[n].reshape(()) for n in free])).double().cpu()
    sd = float((slope @ variance @ slope).clamp_min(0).sqrt())
    if sd == 0 or not math.isfinite(sd):
        return None, "the half-life does not enter the training loss"
    if sd > LARGEST_SD:
        return None, f"the standard deviation of the log half-life is {sd:.1f}: the data cannot tell"
    return sd, ""


class _HalfLife(nn.Module):
    """log half-life of a kernel, as a function of its parameters."""

    def __init__(self, kernel: nn.Module) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self) -> Tensor:
        half_life = self.kernel.half_life
        if not isinstance(half_life, Tensor):
            raise AssertionError("asked only of kernels with a half-life")
        return half_life.log()

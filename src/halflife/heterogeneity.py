"""Users who forget differently: the likelihood with a half-life for each, over how they are spread."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from halflife.likelihood import Likelihood, Point

Array = NDArray[Any]

NODES = 9  # of the quadrature over users


@dataclass(frozen=True)
class Spread(Point):
    """A minimum at which half-lives differ between users: `sd` is that of their logarithm."""

    sd: float

    @property
    def aic(self) -> float:
        """2 (parameters − log L); the spread is one of them."""
        return 2 * (self.value + len(self.theta) + 1)


def by_user(likelihood: Likelihood, point: Point) -> Spread:
    """The minimum of the marginal −log L when each user's half-life is h · e^(sd·z), z ~ Normal(0, 1).

    −Σ_u log ∫ exp(−Σ_{i of u} nll_i(θ, h·e^(sd·z))) φ(z) dz, by Gauss–Hermite quadrature. An average over
    exponentials is a power law: this is what a power law has to be compared with before it is believed.

    Args:
        likelihood: its half-life has to be free.
        point: where all users are alike; the search starts there, at sd = 0.3.

    Source: Pinheiro & Bates, Approximations to the Log-Likelihood Function in the Nonlinear Mixed-Effects
    Model (JCGS 1995), section 2.4.
    """
    nodes, mass = np.polynomial.hermite_e.hermegauss(NODES)
    log_mass = torch.from_numpy(np.log(mass / mass.sum()))
    _, owner = torch.unique(likelihood.user, return_inverse=True)
    at = likelihood.names.index(str(likelihood.half_life))

    def moved(x: Array, z: float) -> Tensor:
        theta = torch.from_numpy(x[:-1].copy())
        theta[at] += math.exp(x[-1]) * z
        return theta

    def marginal(x: Array) -> tuple[float, Array]:
        each = torch.stack([likelihood.per_impression(moved(x, z)) for z in nodes])  # (nodes, impressions)
        per_user = torch.zeros(NODES, int(owner.max()) + 1, dtype=torch.float64).index_add_(1, owner, each)
        joint = log_mass.unsqueeze(1) - per_user
        posterior = joint.softmax(0)[:, owner]
        slope = np.zeros_like(x)
        for z, weight in zip(nodes, posterior, strict=True):
            own = likelihood.slope(moved(x, z), weight).numpy()
            slope[:-1] += own
            slope[-1] += own[at] * z * math.exp(x[-1])
        return -float(joint.logsumexp(0).sum()), slope

    start = np.r_[point.theta.numpy(), math.log(0.3)]
    box = [(None, None)] * len(point.theta) + [(math.log(1e-3), math.log(3.0))]
    found = minimize(marginal, start, jac=True, method="L-BFGS-B", bounds=box, options={"maxiter": 40})
    return Spread(torch.from_numpy(found.x[:-1]), float(found.fun), math.exp(found.x[-1]))

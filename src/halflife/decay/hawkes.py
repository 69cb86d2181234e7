"""Excitation and return: interest fades at once, and comes back after the usual time."""

import torch.nn.functional as F
from torch import Tensor

from halflife.decay.kernel import LN2, Kernel, log_sum, positive_parameter, share_parameter


class Hawkes(Kernel):
    """w(a) = (1 − p) · 2^(−a/h) + p · e^(−½((a − m)/σ)²): an excitation that fades, and a bump of return.

    The half-life is the excitation's alone. The bump makes the weight rise towards the age m, at which the
    same is bought or heard again; w(0) = 1 − p up to what of the bump reaches age 0. With p = 0 it is the
    exponential.

    Args:
        half_life_days: h > 0, in days; of the excitation.
        learn: whether h is learned.
        share: p in [0, 1), share of the weight; the height of the bump. Above 0 to be learned.
        learn_share: whether p is learned.
        peak_days: m > 0, in days; the age at which the bump is highest.
        learn_peak: whether m is learned.
        width_days: σ > 0, in days; standard deviation of the bump.
        learn_width: whether σ is learned.

    Shape: any, kept.

    Raises:
        InputError: when h, m or σ is not a number above 0, or p is out of range.

    Source: Wang et al., Modeling Item-Specific Temporal Dynamics of Repeat Consumption for Recommender
    Systems (SLRC; WWW 2019), whose Hawkes kernel is π · Exp(a | β) + (1 − π) · Normal(a | μ, σ). There, only
    past clicks on the candidate itself excite it, with parameters of each item's own; here every past click
    does, as far as it resembles the candidate, with parameters that all share. Heights replace densities, so
    that a width can change without the weight at its peak.

    >>> import torch
    >>> kernel = Hawkes(2.0, False, share=0.5, learn_share=False, peak_days=30.0, learn_peak=False,
    ...                 width_days=3.0, learn_width=False)
    >>> kernel(torch.tensor([0.0, 2.0, 15.0, 30.0])).exp()
    tensor([0.5000, 0.2500, 0.0028, 0.5000])
    """

    monotone = False
    starts_at_one = False

    def __init__(
        self,
        half_life_days: float,
        learn: bool,
        share: float,
        learn_share: bool,
        peak_days: float,
        learn_peak: bool,
        width_days: float,
        learn_width: bool,
    ) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        self.share_logit = share_parameter("decay.share", share, "share of the weight", learn_share)
        self.log_peak = positive_parameter("decay.peak_days", peak_days, "days", learn_peak)
        self.log_width = positive_parameter("decay.width_days", width_days, "days", learn_width)

    @property
    def half_life(self) -> Tensor:
        """The excitation's half-life."""
        return self.log_half_life.exp()

    @property
    def share(self) -> Tensor:
        """p, a scalar with gradient."""
        return self.share_logit.sigmoid()

    @property
    def peak(self) -> Tensor:
        """m, in the unit of the ages, a scalar with gradient."""
        return self.log_peak.exp()

    @property
    def width(self) -> Tensor:
        """σ, in the unit of the ages, a scalar with gradient."""
        return self.log_width.exp()

    def log_weight(self, age: Tensor) -> Tensor:
        excitation = F.logsigmoid(-self.share_logit) - LN2 * age / self.half_life
        bump = F.logsigmoid(self.share_logit) - ((age - self.peak) / self.width).square() / 2
        return log_sum(excitation, bump)

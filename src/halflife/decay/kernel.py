"""The kernel contract: age in, log-weight out."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halflife.batches import Batch
from halflife.errors import InputError, number, whole
from halflife.store import Store

LARGEST = 64
"""Numbers of one parameter that a refit moves; larger ones (a number a user) stay as training left them."""

LN2 = math.log(2.0)

LEAST_WEIGHT = 1e-6
"""What stands for a weight of exactly 0, whose logarithm and gradient would not be finite."""

LARGEST_AGE = 1e9
"""Where ages end, so that padding of age +∞ has a finite log-weight and no NaN in its gradient."""


class Kernel(nn.Module):
    """How much a past click still weighs at a given age: log w(age) ≤ 0, with w(0) = 1.

    A kernel never normalises over a history: that is the interest model's choice, since it changes what can
    be learned. Its scale is `half_life_days`, the age at which the decaying part of a weight has halved,
    whatever the family, so that one number means one thing in every sweep. Where ages are ranks
    (`data.age=rank`), the same number is a rank.

    Subclasses implement `log_weight`, and register what they learn with `positive_parameter`. What deviates
    from w > 0, w(0) = 1 or never rising says so in the flags below; log w(age) ≤ 0 and finite holds for all.
    A kernel that reads more of a history than ages overrides `of`, and `of_candidates` where it can serve as
    `decay.candidate`.
    """

    signed = False
    """True for a kernel whose weights may be negative: `log_weight` is then that of the absolute weight."""

    monotone = True
    """False for a kernel whose weight may rise with age."""

    starts_at_one = True
    """False for a kernel with w(0) ≠ 1."""

    bounded = True
    """False for a kernel that may give a click of a history more weight than 1, in `of` alone."""

    clicks_only = False
    """True for a kernel that reads what only a click has, such as its kind: it cannot fade candidates."""

    ranks = False
    """True for a kernel that reads only the order of the ages in a row: its half-life is in ranks."""

    @property
    def half_life(self) -> Tensor | None:
        """The half-life in the unit of the ages, a scalar with gradient, or None where a kernel has none."""
        return None

    @property
    def floor(self) -> Tensor | float:
        """The long-term part of the weight that never decays, in [0, 1); the half-life leaves it out."""
        return 0.0

    def log_weight(self, age: Tensor) -> Tensor:
        """log w(age), of the shape of `age`.

        Args:
            age: non-negative ages, in days (or ranks), any shape, float.
        """
        raise NotImplementedError

    def sign(self, age: Tensor) -> Tensor:
        """The sign of the weight, ±1, of the shape of `age`: w = sign · exp(log_weight)."""
        return torch.ones_like(age)

    def bind(self, store: Store) -> None:
        """Learn from the Store, before training, what a kernel needs to know of it, such as how many
        categories there are. Most need nothing.
        """

    def of(self, batch: Batch) -> Tensor:
        """log w of each click of the histories of a batch, (B, H); anything finite where padded."""
        log_weight: Tensor = self(batch.age)
        return log_weight

    def sign_of(self, batch: Batch) -> Tensor:
        """The sign of each weight that `of` gives, ±1, (B, H)."""
        return self.sign(batch.age)

    def of_candidates(self, batch: Batch) -> Tensor:
        """log w of each candidate of a batch at its own age, (B, C): a kernel as `decay.candidate`."""
        log_weight: Tensor = self(batch.candidate_age)
        return log_weight

    def log_prior(self) -> Tensor:
        """Log density of what is learned hierarchically, a scalar with gradient; the fit adds it to the
        log-likelihood, in which an impression counts as one observation.
        """
        return torch.zeros(())

    def update_prior(self, variance: Mapping[str, Tensor]) -> float:
        """Move what the prior learns from the data once the parameters are fitted.

        Args:
            variance: of each of the kernel's parameters at the fit, by its name: the diagonal of the inverse
                of the Hessian of the loss that the prior is part of.

        Returns:
            How far, as a logarithm; 0 where there is nothing to learn. The fit is repeated until it is small.
        """
        return 0.0

    def half_lives(self) -> dict[str, Tensor]:
        """The half-life of each group by its name, in the unit of the ages, with gradient; empty where there
        is but one.
        """
        return {}

    @property
    def estimated_priors(self) -> int:
        """How many numbers `update_prior` has learned: parameters that no gradient moves."""
        return 0

    @property
    def label(self) -> str:
        """What outputs call it: the name of its file, or of what it is made of."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def group_sd(self) -> float | None:
        """Standard deviation of log half-life between groups; None where there is but one group."""
        return None

    def forward(self, age: Tensor) -> Tensor:
        """A kernel is its log-weight: `log_weight`, in float32 at least, returned in the type of `age`.

        Half-precision ages are widened first: their logarithms and powers would lose all digits. The result
        is finite in their type too (float16 ends at −65504), also for padding, whose age may be +∞: what it
        weighs is the interest model's to mask.
        """
        if age.dtype not in (torch.float16, torch.bfloat16):
            return self.log_weight(age.clamp(max=LARGEST_AGE))
        log_weight = self.log_weight(age.float().clamp(max=LARGEST_AGE))
        return log_weight.clamp(min=torch.finfo(age.dtype).min).to(age.dtype)


def trainable(name: str, start: Tensor, learn: bool) -> nn.Parameter:
    """A parameter that the optimizer moves when `learn` is true.

    Raises:
        InputError: when `learn` is neither true nor false; a mistyped word would otherwise count as true.

    >>> trainable("decay.alpha", torch.zeros(1), "flase")
    Traceback (most recent call last):
    halflife.errors.InputError: learning decay.alpha must be true or false, got flase; set its key so
    """
    if not isinstance(learn, bool):
        raise InputError(f"learning {name} must be true or false, got {learn}; set its key so")
    return nn.Parameter(start, requires_grad=learn)


def positive_parameter(name: str, value: float, unit: str, learn: bool) -> nn.Parameter:
    """A scalar > 0 held as its logarithm, so that a gradient step never leaves the domain.

    Args:
        name: the setting as the user typed it, for the message.
        value: the start (or fixed) value, > 0.
        unit: of the value, for the message.
        learn: whether the optimizer moves it.

    Returns:
        The parameter log(value), float32, scalar.

    Raises:
        InputError: when the value is not a number above 0, or `learn` neither true nor false.

    >>> round(positive_parameter("decay.half_life_days", 5.0, "days", learn=True).exp().item(), 3)
    5.0
    """
    start = number(name, value, unit, above=0)
    return trainable(name, torch.tensor(math.log(start)), learn)


def share_parameter(name: str, value: float, unit: str, learn: bool) -> nn.Parameter:
    """A scalar in [0, 1) held as its logit, so that a gradient step never leaves the domain.

    Args:
        name: the setting as the user typed it, for the message.
        value: the start (or fixed) value, in [0, 1); above 0 to be learned, since the logit of 0 is −∞.
        unit: of the value, for the message.
        learn: whether the optimizer moves it.

    Returns:
        The parameter logit(value), float32, scalar.

    Raises:
        InputError: when the value is out of range, or 0 and to be learned, or `learn` neither true nor false.

    >>> round(share_parameter("decay.floor", 0.25, "share of the weight", learn=True).sigmoid().item(), 3)
    0.25
    """
    start = number(name, value, unit, at_least=0, hint="give a number from 0 up to, but without, 1")
    if start >= 1 or (learn and start == 0):
        rule = "above 0 and below 1 to be learned" if learn else "at least 0 and below 1"
        raise InputError(f"{name} must be a number {rule} ({unit}), got {value}; give a number {rule}")
    return trainable(name, torch.tensor(start).logit(), learn)


def count(name: str, value: Any, at_least: int) -> int:
    """Check that a setting is a whole number, and return it.

    Raises:
        InputError: when the value is not a whole number, or below `at_least`.

    >>> count("decay.buckets", 1, at_least=2)
    Traceback (most recent call last):
    halflife.errors.InputError: decay.buckets must be a whole number (count), got 1; give 2 or more
    """
    return whole(name, value, "count", at_least=at_least)


def inner_kernel(kernel: Callable[..., Kernel], half_life_days: float, learn: bool) -> Kernel:
    """The kernel inside another one, of the half-life that the user gave to the outer one.

    Args:
        kernel: makes a kernel from `half_life_days` and `learn`; a partial of its class.
        half_life_days: h > 0, in days.
        learn: whether h is learned.

    Raises:
        InputError: when h is not a number above 0, the kernel takes none or was given another one.
    """
    number("decay.half_life_days", half_life_days, "days", above=0)
    if not isinstance(kernel, partial) or not isinstance(kernel.func, type):
        raise InputError(
            f"decay.kernel must be a kernel (a choice of the group decay), got {kernel}; "
            "choose one as decay@decay.kernel=exponential"
        )
    if "half_life_days" not in signature(kernel.func).parameters:
        raise InputError(
            f"decay.kernel must be a kernel of half_life_days (days), got {kernel.func.__name__}; "
            "choose another one as decay@decay.kernel=exponential"
        )
    for key, outer in (("half_life_days", half_life_days), ("learn", learn)):
        if kernel.keywords.get(key, outer) != outer:
            raise InputError(
                f"decay.kernel.{key} must be what decay.{key} is ({outer}), got {kernel.keywords[key]}; "
                f"set decay.{key} instead"
            )
    inner: Kernel = kernel(half_life_days=half_life_days, learn=learn)
    return inner


def log_expm1(x: Tensor) -> Tensor:
    """log(eˣ − 1) for x > 0, without overflow at large x or cancellation at small x.

    >>> log_expm1(torch.tensor([0.001, 1.0, 50.0]))
    tensor([-6.9073,  0.5413, 50.0000])
    """
    return x + torch.log(-torch.expm1(-x))


def log_sum(left: Tensor, right: Tensor) -> Tensor:
    """log(eˣ + eʸ), with a second derivative that is finite however far the two lie apart.

    `torch.logaddexp` has none there, and the half-life's interval is made of second derivatives.

    >>> log_sum(torch.tensor([0.0, -1e9]), torch.tensor([0.0, 1.0]))
    tensor([0.6931, 1.0000])
    """
    return torch.stack(torch.broadcast_tensors(left, right)).logsumexp(0)


def log_lomax(log_age: Tensor, tail: Tensor, log_fall: Tensor | float) -> Tensor:
    """−s · log(1 + x · (e^(l/s) − 1)): the log-weight of a power law that has fallen by e^(−l) at x = 1.

    As a softplus of logarithms: the scale that (e^(l/s) − 1) stands for underflows at a small s.

    Args:
        log_age: log x, of the age over the age at which it has fallen so far.
        tail: s > 0.
        log_fall: l > 0; ln 2 where that age is a half-life.

    >>> log_lomax(torch.tensor([0.0]), torch.tensor(1.0), LN2).exp()
    tensor([0.5000])
    """
    return -tail * F.softplus(log_age + log_expm1(log_fall / tail))


def above_floor(decaying: Tensor, floor_logit: Tensor) -> Tensor:
    """log(c + (1 − c) · w), from log w and the logit of the floor c."""
    return log_sum(F.logsigmoid(floor_logit), F.logsigmoid(-floor_logit) + decaying)


def log_ratio(age: Tensor, scale: Tensor) -> Tensor:
    """log(age / scale), where age 0 stands for the smallest positive number.

    The logarithm of 0 would be −∞ and its gradient NaN. What a power of the ratio then makes of age 0 is only
    near its limit, so a kernel writes the exact value there with `torch.where`.

    >>> log_ratio(torch.tensor([0.0, 2.0]), torch.tensor(2.0))
    tensor([-88.0297,   0.0000])
    """
    return age.clamp(min=torch.finfo(age.dtype).tiny).log() - scale.log()

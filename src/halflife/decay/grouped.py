"""A half-life for each group of clicks or readers, drawn towards the one that all share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import embedding

from halflife.batches import Batch
from halflife.decay.kernel import LARGEST, Kernel, inner_kernel, trainable
from halflife.errors import InputError, choice, flag, number
from halflife.store import Store

MOST_NAMES = 300
"""Groups whose half-lives are told one by one; of more, quantiles are."""

QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]

LEAST_SD = 0.01
"""Where an estimated sd ends: groups that differ by a hundredth do not differ."""


class Grouped(Kernel):
    """w(a) = kernel(a / e^(δ_g)) for a click of group g, with δ_g ~ Normal(0, sd²): half-lives h·e^(δ_g).

    Since every kernel's scale is its half-life, dividing ages by e^δ stretches the curve to that half-life,
    and any kernel can be grouped. Half-lives are log-normal around h, the shared one: a group with few clicks
    stays near it. `forward` and `half_life` are those of δ = 0.

    The fit maximises the log-likelihood plus `log_prior` over h and all δ_g, at a given sd. It cannot find
    sd on the way: the joint density grows without bound as sd and every δ_g go to 0 together, and in units of
    sd (δ = sd·z) it prefers a large sd, where nothing shrinks. With `estimate_sd`, sd is therefore estimated
    from the marginal likelihood (empirical Bayes): `update_prior` makes one step, given how uncertain each
    δ_g is where the fit arrived, and fit and step alternate until sd stays. A few groups tell little of sd.

    Args:
        half_life_days: h > 0, in days; the shared half-life.
        learn: whether h is learned.
        by: `category` of the clicked item; `kind` of the event; `user`; or `activity`, buckets of the user's
            past clicks at the impression: 1, 2 to 3, 4 to 7, and so on.
        learn_groups: whether the δ_g are learned; else all groups share h.
        sd: > 0, of log half-life between groups; at 0.7, two of three lie within a factor of 2 of h.
        estimate_sd: whether sd is where estimation starts, rather than given.
        kernel: makes the kernel from `half_life_days` and `learn`, its other settings given.

    Shape: `of`: histories (B, H), kept.

    Raises:
        InputError: when sd is not a number above 0, `by` is none of the four, or the kernel has no half-life.

    Source: Gelman & Hill, Data Analysis Using Regression and Multilevel/Hierarchical Models (2007), part 2,
    for groups that share a prior; Chung, Rabe-Hesketh, Dorie, Gelman & Liu, A Nondegenerate Penalized
    Likelihood Estimator for Variance Parameters in Multilevel Models (Psychometrika 2013), for how the joint
    mode fails; the step of sd is MacKay, Bayesian Interpolation (Neural Computation 1992).

    >>> from functools import partial
    >>> from halflife.decay.exponential import Exponential
    >>> kernel = Grouped(5.0, False, "kind", learn_groups=False, sd=0.5, estimate_sd=False,
    ...                  kernel=partial(Exponential))
    >>> kernel(torch.tensor([0.0, 5.0])).exp()
    tensor([1.0000, 0.5000])
    """

    log_sd: Tensor

    def __init__(
        self,
        half_life_days: float,
        learn: bool,
        by: str,
        learn_groups: bool,
        sd: float,
        estimate_sd: bool,
        kernel: Callable[..., Kernel],
    ) -> None:
        super().__init__()
        self.by = choice("decay.by", by, ["category", "kind", "user", "activity"])
        self.kernel = inner_kernel(kernel, half_life_days, learn)
        if self.kernel.half_life is None:
            raise InputError(
                f"decay.kernel must be a kernel with a half-life (days), got {type(self.kernel).__name__}; "
                "choose another one as decay@decay.kernel=exponential"
            )
        self.learn_groups = learn_groups
        self.deviation = trainable("decay.learn_groups", torch.zeros(1), learn_groups)
        log_sd = math.log(number("decay.sd", sd, "of log half-life", above=0))
        self.register_buffer("log_sd", torch.tensor(log_sd))
        self.estimate_sd = flag("decay.estimate_sd", estimate_sd)
        self.names = ["all"]
        self.signed, self.monotone = self.kernel.signed, self.kernel.monotone
        self.starts_at_one, self.bounded = self.kernel.starts_at_one, self.kernel.bounded
        self.clicks_only = by == "kind" or self.kernel.clicks_only

    @property
    def half_life(self) -> Tensor | None:
        """The shared half-life."""
        return self.kernel.half_life

    @property
    def floor(self) -> Tensor | float:
        return self.kernel.floor

    @property
    def estimated_priors(self) -> int:
        return int(self.estimate_sd and self.learn_groups) + self.kernel.estimated_priors

    @property
    def label(self) -> str:
        return f"{self.kernel.label} by {self.by}"

    @property
    def group_sd(self) -> float:
        return math.exp(self.log_sd.item())

    def bind(self, store: Store) -> None:
        """Take the number and names of the groups from the Store; every group starts at the shared
        half-life.
        """
        if self.by == "activity":
            past = store.past_clicks
            doublings = range(1, max(1, int(past.max()).bit_length()))
            self.names = ["1 click", *(f"{2**k} to {2 ** (k + 1) - 1} clicks" for k in doublings)]
        elif self.by == "user":
            self.names = store.users["user_id"].to_list()
        else:
            self.names = list(store.about["kinds" if self.by == "kind" else "categories"])
        if self.estimate_sd and len(self.names) > LARGEST:
            raise InputError(
                f"decay.estimate_sd must be false for more than {LARGEST} groups (all that a refit moves), "
                f"got true with {len(self.names):,} by {self.by}; set decay.sd instead"
            )
        groups = torch.zeros(len(self.names), device=self.deviation.device)
        self.deviation = trainable("decay.learn_groups", groups, self.learn_groups)
        self.kernel.bind(store)

    def _by_user(self, batch: Batch) -> Tensor:
        """The group of each impression, (B, 1)."""
        if self.by == "user":
            return batch.user.unsqueeze(1)
        doublings = 2 ** torch.arange(1, len(self.names), device=batch.past_clicks.device)
        return torch.bucketize(batch.past_clicks.contiguous(), doublings, right=True).unsqueeze(1)

    def _stretched(self, age: Tensor, group: Tensor) -> Tensor:
        # embedding, not deviation[…]: the gradient of indexing adds up in whatever order the threads come
        deviation = embedding(group, self.deviation.unsqueeze(1)).squeeze(-1)
        return age * torch.exp(-deviation)

    def _clicks(self, batch: Batch) -> Batch:
        """The batch with the ages of its clicks stretched."""
        if self.by == "kind":
            group = batch.kind
        elif self.by == "category":
            group = batch.category[batch.history]
        else:
            group = self._by_user(batch)
        return replace(batch, age=self._stretched(batch.age, group))

    def log_weight(self, age: Tensor) -> Tensor:
        return self.kernel.log_weight(age)

    def sign(self, age: Tensor) -> Tensor:
        return self.kernel.sign(age)

    def of(self, batch: Batch) -> Tensor:
        return self.kernel.of(self._clicks(batch))

    def sign_of(self, batch: Batch) -> Tensor:
        return self.kernel.sign_of(self._clicks(batch))

    def of_candidates(self, batch: Batch) -> Tensor:
        group = batch.category[batch.candidates] if self.by == "category" else self._by_user(batch)
        age = self._stretched(batch.candidate_age, group)
        return self.kernel.of_candidates(replace(batch, candidate_age=age))

    def log_prior(self) -> Tensor:
        """Σ_g log Normal(δ_g; 0, sd²)."""
        scaled = self.deviation * torch.exp(-self.log_sd)
        groups = len(self.deviation)
        constant = groups * (self.log_sd + math.log(2 * math.pi) / 2)
        return -scaled.square().sum() / 2 - constant + self.kernel.log_prior()

    def update_prior(self, variance: Mapping[str, Tensor]) -> float:
        """sd² ← Σ δ_g² / γ, with γ = Σ_g (1 − Var δ_g / sd²): as many groups as the data determine."""
        inner = {n.removeprefix("kernel."): v for n, v in variance.items() if n.startswith("kernel.")}
        moved = self.kernel.update_prior(inner)
        if not self.estimate_sd or "deviation" not in variance:
            return moved
        with torch.no_grad():
            sd2 = (2 * self.log_sd).exp()
            determined = (1 - variance["deviation"].to(sd2) / sd2).clamp(min=0).sum()
            new = self.deviation.square().sum() / determined.clamp(min=1e-9)
            log_sd = (new.clamp(min=LEAST_SD**2).log() / 2).clamp(self.log_sd - 1, self.log_sd + 1)
            moved = max(moved, (log_sd - self.log_sd).abs().item())
            self.log_sd.copy_(log_sd)
        return moved

    def half_lives(self) -> dict[str, Tensor]:
        """h·e^(δ_g) by the group's name; of more than `MOST_NAMES` groups, quantiles by theirs."""
        if self.half_life is None:
            raise AssertionError("a kernel without half-life is refused above")
        each = self.half_life * self.deviation.exp()
        if len(each) <= MOST_NAMES:
            found = dict(zip(self.names, each.unbind(), strict=True))
        else:
            at = torch.quantile(each, each.new_tensor(QUANTILES)).detach().unbind()
            found = {f"quantile {q:g}": v for q, v in zip(QUANTILES, at, strict=True)}
        return {**self.kernel.half_lives(), **found}

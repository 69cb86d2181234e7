"""A floor under any kernel: what a click still weighs when all else has faded."""

from collections.abc import Callable, Mapping

from torch import Tensor

from halflife.batches import Batch
from halflife.decay.kernel import Kernel, above_floor, inner_kernel, share_parameter
from halflife.errors import InputError
from halflife.store import Store


class Floor(Kernel):
    """w(a) = c + (1 − c) · kernel(a), for any kernel of positive weights.

    The half-life is the decaying part's: c is left out of it. What else the kernel promises or lacks, such as
    w(0) = 1, holds with a floor as well.

    Args:
        half_life_days: h > 0, in days; of the decaying part.
        learn: whether h is learned.
        floor: c in [0, 1), a share of the weight; what never fades. Above 0 to be learned.
        learn_floor: whether c is learned.
        kernel: makes the decaying part from `half_life_days` and `learn`, its other settings given.

    Shape: any, kept.

    Raises:
        InputError: when c is out of range, or the kernel is signed or takes no half_life_days.

    Source: Rubin, Hinton & Wenzel, The Precise Time Course of Retention (Journal of Experimental Psychology:
    Learning, Memory, and Cognition 1999), whose retention falls to a constant that it keeps.

    >>> import torch
    >>> from functools import partial
    >>> from halflife.decay.power import Power
    >>> lomax = partial(Power, alpha=2.0, learn_alpha=False)
    >>> kernel = Floor(5.0, learn=False, floor=0.2, learn_floor=False, kernel=lomax)
    >>> kernel(torch.tensor([0.0, 5.0, 1e9])).exp()
    tensor([1.0000, 0.6000, 0.2000])
    """

    def __init__(
        self,
        half_life_days: float,
        learn: bool,
        floor: float,
        learn_floor: bool,
        kernel: Callable[..., Kernel],
    ) -> None:
        super().__init__()
        self.kernel = inner_kernel(kernel, half_life_days, learn)
        self.floor_logit = share_parameter("decay.floor", floor, "share of the weight", learn_floor)
        if self.kernel.signed:
            raise InputError(
                f"decay.kernel must be a kernel of positive weights, got {type(self.kernel).__name__}; "
                "choose another one, since a floor under negative weights is none"
            )
        self.monotone, self.starts_at_one = self.kernel.monotone, self.kernel.starts_at_one
        self.bounded, self.clicks_only = self.kernel.bounded, self.kernel.clicks_only

    @property
    def half_life(self) -> Tensor | None:
        return self.kernel.half_life

    @property
    def floor(self) -> Tensor:
        """c and the floor of the decaying part, if that has one too, a scalar with gradient."""
        own = self.floor_logit.sigmoid()
        return own + (1 - own) * self.kernel.floor

    def _raised(self, decaying: Tensor) -> Tensor:
        return above_floor(decaying, self.floor_logit)

    def log_weight(self, age: Tensor) -> Tensor:
        return self._raised(self.kernel.log_weight(age))

    def of(self, batch: Batch) -> Tensor:
        return self._raised(self.kernel.of(batch))

    def of_candidates(self, batch: Batch) -> Tensor:
        return self._raised(self.kernel.of_candidates(batch))

    def bind(self, store: Store) -> None:
        self.kernel.bind(store)

    def log_prior(self) -> Tensor:
        return self.kernel.log_prior()

    def update_prior(self, variance: Mapping[str, Tensor]) -> float:
        return self.kernel.update_prior(
            {n.removeprefix("kernel."): v for n, v in variance.items() if n.startswith("kernel.")}
        )

    def half_lives(self) -> dict[str, Tensor]:
        return self.kernel.half_lives()

    @property
    def estimated_priors(self) -> int:
        return self.kernel.estimated_priors

    @property
    def label(self) -> str:
        return f"{self.kernel.label} above a floor"

    @property
    def group_sd(self) -> float | None:
        return self.kernel.group_sd

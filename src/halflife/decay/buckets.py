"""Free-form decay: one weight for each bucket of ages."""

import torch
from torch import Tensor

from halflife.decay.kernel import Kernel, count, positive_parameter, trainable
from halflife.errors import number


class Buckets(Kernel):
    """log w(a) = b[j(a)] − max b: a step for each of n log-spaced buckets of ages, of any height.

    The first bucket holds all ages below `first_days`, the last all from `last_days`. Heights count only by
    their differences, and the highest weighs 1. Nothing makes them fall: it has no half-life and w(0) ≠ 1.

    Args:
        half_life_days: h > 0, in days; of the hyperbola where the steps start, not of what is learned.
        learn: whether the steps are learned.
        buckets: n ≥ 3, how many.
        first_days: > 0, in days; where the first bucket ends.
        last_days: > first_days, in days; where the last bucket begins.

    Shape: any, kept.

    Raises:
        InputError: when h or an edge is not a number above 0, the edges are not in order, or n is not a whole
            number above 2.

    Source: Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
    Generative Recommendations (HSTU; ICML 2024): the learned relative attention bias, whose time part is
    looked up by the logarithm of the time between two actions.

    >>> kernel = Buckets(2.0, False, buckets=8, first_days=0.5, last_days=32.0)
    >>> kernel.edges
    tensor([ 0.5000,  1.0000,  2.0000,  4.0000,  8.0000, 16.0000, 32.0000])
    >>> kernel(torch.tensor([0.1, 5.0, 7.0, 1000.0]))
    tensor([ 0.0000, -1.2247, -1.2247, -2.7154])
    """

    monotone = False
    starts_at_one = False
    edges: Tensor

    def __init__(
        self, half_life_days: float, learn: bool, buckets: int, first_days: float, last_days: float
    ) -> None:
        super().__init__()
        half_life = number("decay.half_life_days", half_life_days, "days", above=0)
        many = count("decay.buckets", buckets, at_least=3)
        log_first = positive_parameter("decay.first_days", first_days, "days", learn=False).item()
        hint = "give an age above decay.first_days"
        last = number("decay.last_days", last_days, "days", above=first_days, hint=hint)
        log_last = torch.tensor(last).log().item()
        self.register_buffer("edges", torch.linspace(log_first, log_last, many - 1).exp())
        middles = torch.cat([self.edges[:1] / 2, (self.edges[1:] * self.edges[:-1]).sqrt(), self.edges[-1:]])
        self.heights = trainable("decay.buckets", -torch.log1p(middles / half_life), learn)

    def log_weight(self, age: Tensor) -> Tensor:
        bucket = torch.bucketize(age.detach(), self.edges.to(age.dtype), right=True)
        return (self.heights - self.heights.max())[bucket].to(age.dtype)

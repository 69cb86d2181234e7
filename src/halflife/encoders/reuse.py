"""A refreshing cache for a model that trains: young vectors are used again, without gradient."""

import torch
from torch import Tensor, nn

from halflife.errors import whole


class Reuse(nn.Module):
    """Vectors of items encoded in the last N steps, and when that was.

    In step t an item whose vector is of step s is not encoded again where t − s ≤ N(t), with
    N(t) = steps · min(1, t / rise_steps), rounded down: little is reused while the model
    moves fast.
    A reused vector is as old as that and passes no gradient; with 0 steps nothing is reused.

    Args:
        items: of the catalogue.
        width: of the vectors.
        steps: N in the long run, at least 1.
        rise_steps: optimizer steps until N is there, at least 1.

    Source: Xiao et al., SpeedyFeed (KDD 2022), section 4.3, whose schedule is a chance of reuse.
    """

    kept: Tensor
    since: Tensor
    now: Tensor

    def __init__(self, items: int, width: int, steps: int, rise_steps: int) -> None:
        super().__init__()
        self.steps = whole("model.reuse_steps", steps, "steps", at_least=1)
        self.rise_steps = whole("model.reuse_rise_steps", rise_steps, "steps", at_least=1)
        # part of the state: a resumed run reuses what the run that was never stopped would have
        self.register_buffer("kept", torch.zeros(items, width))
        self.register_buffer("since", torch.full((items,), -1))
        self.register_buffer("now", torch.zeros((), dtype=torch.int64))

    def stale(self, item: Tensor) -> Tensor:
        """Which of these items must be encoded; (U,) → (U,) bool, one at least True."""
        limit = self.steps * min(self.rise_steps, int(self.now)) // self.rise_steps
        since = self.since[item]
        stale = (since < 0) | (self.now - since > limit)
        # with nothing encoded a process of many would have no gradient, and the others would wait for it
        stale[since.argmin()] = True
        return stale

    def joined(self, item: Tensor, stale: Tensor, fresh: Tensor) -> Tensor:
        """Vectors of all these items, those just encoded with gradient; keeps the latter for later.

        Shape: item (U,), stale (U,), fresh (those stale, width) → (U, width).
        """
        vectors = self.kept[item].index_copy(0, stale.nonzero().squeeze(1), fresh.float())
        self.kept[item[stale]] = fresh.detach().float()
        self.since[item[stale]] = self.now
        return vectors

    def step(self) -> None:
        """The optimizer has made a step."""
        self.now += 1

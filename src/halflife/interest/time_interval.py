"""Learned embeddings of the time between clicks: a free-form rival of the kernels."""

import math

import torch
from torch import Tensor, nn

from halflife.decay.kernel import count
from halflife.interest.compose import LOWEST, Interest, places, projection, wide


class TimeInterval(Interest):
    """The newest click n asks the history: u = Σ_i a_i (V v_i + R^v[r_i] + P^v[n−i]).

    a is the softmax over i of (Q v_n)·(K v_i + R^k[r_i] + P^k[n−i]) / √dim.

    r_i = min(k, round((t_n − t_i) / g)) is the interval to the newest click in units of the reader's own
    shortest gap g > 0 between clicks. R and P are learned embeddings and start at 0; Q, K and V start as the
    identity. Time is what lies between clicks: how long ago the newest one was is nowhere in it, so that
    absence changes no score. It reads no kernel: one beside it could not be told from R.

    Args:
        dim: of the item vectors.
        scale: where the learned scale starts, > 0.
        intervals: k ≥ 1; longer intervals count as this one.
        positions: ≥ 1; clicks farther behind the newest share the last place.

    Raises:
        InputError: when scale is not a number above 0, or k or positions not a whole number above 0.

    Source: Li, Wang & McAuley, Time Interval Aware Self-Attention for Sequential Recommendation (TiSASRec;
    WSDM 2020), its personalised intervals, clipped, in keys and values. One block of one head, of which the
    last row is all that a prediction reads; its feed-forward part, norms and dropout are left out, so that
    models differ in how time enters them.
    """

    own_time = True

    def __init__(self, dim: int, scale: float, intervals: int, positions: int) -> None:
        super().__init__(scale)
        self.intervals = count("interest.intervals", intervals, at_least=1)
        self.positions = count("interest.positions", positions, at_least=1)
        self.query, self.key, self.value = projection(dim), projection(dim), projection(dim)
        self.interval_key, self.interval_value = _zeros(intervals + 1, dim), _zeros(intervals + 1, dim)
        self.position_key, self.position_value = _zeros(positions, dim), _zeros(positions, dim)

    def forward(
        self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor, age: Tensor
    ) -> Tensor:
        interval, place = relative_intervals(age, mask, self.intervals), places(mask, self.positions)
        newest = (mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, history.shape[2])
        key = self.key(history) + self.interval_key(interval) + self.position_key(place)
        value = self.value(history) + self.interval_value(interval) + self.position_value(place)
        query = self.query(history.gather(1, newest))
        logit = (query * key).sum(2) / math.sqrt(history.shape[2])
        share = wide(logit).masked_fill(~mask, LOWEST).softmax(1) * mask
        return self.score(torch.einsum("bh,bhd->bd", share, value), candidates)


def _zeros(places: int, dim: int) -> nn.Embedding:
    embedding = nn.Embedding(places, dim)
    nn.init.zeros_(embedding.weight)
    return embedding


def relative_intervals(age: Tensor, mask: Tensor, longest: int) -> Tensor:
    """Time from each click to the newest, in units of the shortest gap above 0 between clicks of the history.

    Args:
        age: oldest first, padded behind, in any unit, since it cancels.
        mask: True where real.
        longest: longer ones are cut to it.

    Shape: (B, H) → (B, H), int64; 0 where padded, and everywhere where all clicks share one time.

    >>> age, mask = torch.tensor([[9.0, 4.0, 3.5, 3.5]]), torch.tensor([[True, True, True, True]])
    >>> relative_intervals(age, mask, longest=10)
    tensor([[10,  1,  0,  0]])
    """
    age = age.masked_fill(~mask, torch.inf)
    since = (age - age.amin(1, keepdim=True)).masked_fill(~mask, 0)
    gap = since[:, :-1] - since[:, 1:]
    gap = torch.where(mask[:, 1:] & (gap > 0), gap, torch.inf)
    unit = nn.functional.pad(gap, (0, 1), value=torch.inf).amin(1, keepdim=True)
    return (since / unit).round().clamp(max=longest).long()

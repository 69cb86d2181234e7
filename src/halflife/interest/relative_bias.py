"""Learned biases of age and place in pointwise attention: a free-form rival of the kernels."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, silu

from halflife.decay.kernel import count
from halflife.errors import number
from halflife.interest.compose import Interest, places, projection


class RelativeBias(Interest):
    """Each candidate asks the history: u_c = Σ_i silu(q(v_c)·k(v_i) + T[j(age_i)] + P[n−i]) v_i.

    silu(x) = x·σ(x), pointwise: nothing is normalised. T is a learned bias for each log-spaced bucket of
    ages, P one for each place behind the newest click n. An age reaches to the moment of prediction, so that
    absence changes the score, by whatever T has learned. T starts at 1, where silu is nearly straight and a
    click that matches counts at once; P starts at 0, q and k as the identity. It reads no kernel: one beside
    it could not be told from T.

    Args:
        dim: of the item vectors.
        scale: where the learned scale starts, > 0.
        buckets: ≥ 3, how many; the first holds all ages below `first_days`, the last all from `last_days`.
        first_days: > 0, in days; where the first bucket ends.
        last_days: > first_days, in days; where the last bucket begins.
        positions: ≥ 1; clicks farther behind the newest share the last place.

    Raises:
        InputError: when scale or an edge is not a number above 0, the edges are not in order, buckets is not
            a whole number above 2 or positions not one above 0.

    Source: Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
    Generative Recommendations (HSTU; ICML 2024), eq. 2, with the candidate as the query, as in its ranking.
    One layer and one head; its gate U, norms and stack are left out, so that models differ in how time enters
    them.
    """

    own_time = True
    edges: Tensor

    def __init__(
        self, dim: int, scale: float, buckets: int, first_days: float, last_days: float, positions: int
    ) -> None:
        super().__init__(scale)
        many = count("interest.buckets", buckets, at_least=3)
        first = number("interest.first_days", first_days, "days", above=0)
        hint = "give an age above interest.first_days"
        last = number("interest.last_days", last_days, "days", above=first, hint=hint)
        self.positions = count("interest.positions", positions, at_least=1)
        self.query, self.key = projection(dim), projection(dim)
        edges = torch.linspace(math.log(first), math.log(last), many - 1).exp()
        self.register_buffer("edges", edges)
        self.time = nn.Parameter(torch.ones(many))
        self.position = nn.Parameter(torch.zeros(positions))

    def forward(
        self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor, age: Tensor
    ) -> Tensor:
        bucket = torch.bucketize(age.contiguous(), self.edges.to(age.dtype), right=True)
        bias = _of(self.time, bucket) + _of(self.position, places(mask, self.positions))
        logit = torch.einsum("bcd,bhd->bch", self.query(candidates), self.key(history))
        share = silu(logit + bias.unsqueeze(1)) * mask.unsqueeze(1)
        similarity = torch.einsum("bhd,bcd->bch", history, candidates)
        return self.log_scale.exp() * (share * similarity).sum(2) + self.bias


def _of(table: Tensor, place: Tensor) -> Tensor:
    """table[place], whose gradient adds up in the same order every time."""
    return embedding(place, table.unsqueeze(1)).squeeze(-1)

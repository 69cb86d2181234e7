"""A mixture of exponentials: a fast and a slow interest at once."""

import math

import torch
from torch import Tensor

from halflife.decay.kernel import LN2, Kernel, count, positive_parameter, trainable
from halflife.errors import number


class ExpMixture(Kernel):
    """w(a) = Σₖ πₖ e^(−ρₖ·t*·a/h), where t* solves Σₖ πₖ e^(−ρₖ·t*) = 1/2, so that w(h) = 1/2.

    The relative rates ρ start log-spaced, so that the components' half-lives lie between h/spread and
    h·spread before t* scales them; the shares π start equal and stay on the simplex (a softmax). t* is found
    on a grid that is refined without gradient; one Newton step from there carries the gradient, which makes
    it the one of the implicit function theorem (of first order: second derivatives through it are not exact).
    Only the ratios of the rates count: their common factor is h's.

    Args:
        half_life_days: h > 0, in days; of the whole mixture.
        learn: whether h is learned.
        components: K ≥ 1, how many exponentials.
        spread: > 1, no unit; the slowest component's half-life over the middle one's.
        learn_rates: whether ρ is learned.
        learn_shares: whether π is learned.

    Shape: any, kept; K times the memory inside.

    Raises:
        InputError: when h is not a number above 0, K is not a whole number above 0, or the spread is not
            above 1.

    Source: Rubin, Hinton & Wenzel, The Precise Time Course of Retention (Journal of Experimental Psychology:
    Learning, Memory, and Cognition 1999), fit a sum of exponentials. That h is the scale is ours.

    >>> kernel = ExpMixture(5.0, False, components=2, spread=10.0, learn_rates=False, learn_shares=False)
    >>> kernel(torch.tensor([0.0, 5.0])).exp()
    tensor([1.0000, 0.5000])
    """

    def __init__(
        self,
        half_life_days: float,
        learn: bool,
        components: int,
        spread: float,
        learn_rates: bool,
        learn_shares: bool,
    ) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        many = count("decay.components", components, at_least=1)
        reach = math.log(number("decay.spread", spread, "no unit", above=1))
        log_rates = torch.linspace(reach, -reach, many) if many > 1 else torch.zeros(1)
        self.log_rates = trainable("decay.spread", log_rates, learn_rates)
        self.share_logits = trainable("decay.components", torch.zeros(many), learn_shares)

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    @property
    def component_half_lives(self) -> Tensor:
        """The half-life of each exponential, in the unit of the ages, (K,), fastest first at the start."""
        rates = self.log_rates.exp()
        return LN2 * self.half_life / (rates * self._halving(rates))

    @property
    def shares(self) -> Tensor:
        """π, the share of each exponential in the weight of a click at age 0, (K,), summing to 1."""
        return self.share_logits.softmax(dim=0)

    def _log_mixture(self, rates: Tensor, time: Tensor) -> Tensor:
        return torch.logsumexp(self.share_logits.log_softmax(dim=0) - rates * time.unsqueeze(-1), dim=-1)

    def _halving(self, rates: Tensor) -> Tensor:
        """t*, a scalar with gradient."""
        with torch.no_grad():
            # It lies between the fastest and the slowest component's own half-life. Each pass narrows that to
            # one of 64 cells of a logarithmic grid, all evaluated at once.
            low, high = (LN2 / rates.max()).log(), (LN2 / rates.min()).log()
            steps = torch.linspace(0, 1, 65, dtype=rates.dtype, device=rates.device)
            for _ in range(4):
                grid = low + (high - low) * steps
                passed = (self._log_mixture(rates, grid.exp()) > -LN2).sum().clamp(1, 64).unsqueeze(0)
                low, high = (
                    grid.index_select(0, passed - 1).squeeze(0),
                    grid.index_select(0, passed).squeeze(0),
                )
            time = ((low + high) / 2).exp()
            slope = -((self.share_logits - rates * time).softmax(dim=0) * rates).sum()
        return time - (self._log_mixture(rates, time) + LN2) / slope

    def log_weight(self, age: Tensor) -> Tensor:
        rates = self.log_rates.exp()
        return self._log_mixture(rates, self._halving(rates) * age / self.half_life)

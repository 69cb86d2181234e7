"""Base-level activation: the clicks on one item add up, each fading as a power of its age."""

import torch
import torch.nn.functional as F
from torch import Tensor

from halflife.batches import Batch
from halflife.decay.kernel import LARGEST_AGE, LN2, Kernel, log_lomax, log_ratio, positive_parameter


class Actr(Kernel):
    """w_j = e^(B/s) / n for each of the n clicks on an item, with B = log Σ_j (1 + a_j/τ)^(−α).

    All clicks of a history on one item together weigh e^(B/s), however many they are: an item that was met
    often, or just now, is active. s = 1 leaves the plain sum over clicks; a small s lets the most active item
    take it all, a large s levels them. τ = h / (2^(s/α) − 1), so that an item clicked once keeps w(0) = 1 and
    w(h) = 1/2 whatever α and s. On ages alone (`forward`) every click is on an item of its own: only α/s
    counts. The sum runs over the history as it is, cut to `data.max_history`.

    Args:
        half_life_days: h > 0, in days; of an item clicked once.
        learn: whether h is learned.
        alpha: α > 0, no unit; ACT-R's decay d.
        learn_alpha: whether α is learned; told apart from s by repeated items alone.
        temperature: s > 0, no unit.
        learn_temperature: whether s is learned.

    Shape: any, kept; `of` reads which clicks of a row are on one item, in memory O(batch · history).

    Raises:
        InputError: when h, α or s is not a number above 0.

    Source: Anderson & Schooler, Reflections of the Environment in Memory (Psychological Science 1991), for
    B = log Σ t_j^(−d); in recommenders Reiter-Haas et al., Predicting Music Relistening Behavior Using the
    ACT-R Framework (RecSys 2021), and Tran et al., Transformers Meet ACT-R (PISA; RecSys 2024), where
    activations weigh the tracks of a session. t_j^(−d) is infinite at age 0; the shift by τ, and that h is
    the scale, are ours.

    >>> kernel = Actr(5.0, False, alpha=0.5, learn_alpha=False, temperature=1.0, learn_temperature=False)
    >>> kernel(torch.tensor([0.0, 5.0, 25.0])).exp()
    tensor([1.0000, 0.5000, 0.2500])
    """

    bounded = False

    def __init__(
        self,
        half_life_days: float,
        learn: bool,
        alpha: float,
        learn_alpha: bool,
        temperature: float,
        learn_temperature: bool,
    ) -> None:
        super().__init__()
        self.log_half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn)
        self.log_alpha = positive_parameter("decay.alpha", alpha, "no unit", learn_alpha)
        self.log_temperature = positive_parameter(
            "decay.temperature", temperature, "no unit", learn_temperature
        )

    @property
    def half_life(self) -> Tensor:
        return self.log_half_life.exp()

    @property
    def alpha(self) -> Tensor:
        """α, the exponent of each click's age, a scalar with gradient."""
        return self.log_alpha.exp()

    @property
    def temperature(self) -> Tensor:
        """s, a scalar with gradient."""
        return self.log_temperature.exp()

    def _log_power(self, age: Tensor) -> Tensor:
        """−α · log(1 + a/τ)."""
        faded = log_lomax(log_ratio(age, self.half_life), self.alpha, LN2 * self.temperature)
        return torch.where(age > 0, faded, 0.0)

    def log_weight(self, age: Tensor) -> Tensor:
        return self._log_power(age) / self.temperature

    def of(self, batch: Batch) -> Tensor:
        age = (batch.age.float() if batch.age.element_size() < 4 else batch.age).clamp(max=LARGEST_AGE)
        slot = same_item(batch.history.masked_fill(~batch.history_mask, -1))
        log_power, zeros = self._log_power(age), torch.zeros_like(age)
        # Relative to the item's heaviest click the sum is at least 1, and nothing underflows.
        heaviest = zeros.scatter_reduce(1, slot, log_power.detach(), "amax", include_self=False)
        heaviest = heaviest.gather(1, slot)
        total = zeros.scatter_add(1, slot, (log_power - heaviest).exp())
        clicks = zeros.scatter_add(1, slot, torch.ones_like(age))
        activation = heaviest + total.gather(1, slot).log()
        log_weight = activation / self.temperature - clicks.gather(1, slot).log()
        return log_weight.to(batch.age.dtype)


def same_item(history: Tensor) -> Tensor:
    """A number for each place of a row, below its length, that places of the same item share.

    Shape: (B, H) int64, kept. Sorting keeps memory O(B · H); comparing all pairs would need H² at each row.

    >>> same_item(torch.tensor([[7, 3, 7, 9], [5, 5, 5, 5]]))
    tensor([[1, 0, 1, 2],
            [0, 0, 0, 0]])
    """
    ordered, place = history.sort(dim=1)
    number = F.pad((ordered.diff(dim=1) != 0).cumsum(1), (1, 0))
    return torch.empty_like(place).scatter(1, place, number)

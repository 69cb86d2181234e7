"""A Fourier series in the logarithm of the age: any shape, rhythms and negative weights included."""

import math

import torch
from torch import Tensor

from halflife.decay.kernel import LARGEST_AGE, LEAST_WEIGHT, Kernel, count, positive_parameter, trainable


class Fourier(Kernel):
    """w(a) = Σₖ (cₖ cos 2πfₖt − sₖ sin 2πfₖt) / Σₖ √(cₖ² + sₖ²), with t = log₂(1 + a/u), fₖ = k / (2(K−1)).

    Signed: a click may speak against an item for a while. The division keeps |w| ≤ 1; the overall size of the
    coefficients has no meaning. It has no half-life and w(0) ≠ 1. The series starts near the hyperbola of
    half-life `half_life_days`, and repeats itself, mirrored, past an age of u·2^(K−1). An absolute weight
    below `kernel.LEAST_WEIGHT` is given as that, without gradient: there the weight changes its sign.

    Args:
        half_life_days: h > 0, in days; of the hyperbola where the series starts, not of what is learned.
        learn: whether the coefficients c and s are learned.
        frequencies: K ≥ 2, how many; the highest has a period of two doublings of the age.
        unit_days: u > 0, in days; finer ages hardly differ.
        learn_unit: whether u is learned.

    Shape: any, kept; K times the memory inside.

    Raises:
        InputError: when h or u is not a number above 0, or K is not a whole number above 1.

    Source: Wang et al., Toward Dynamic User Intention: Temporal Evolutionary Effects of Item Relations in
    Sequential Recommendation (KDA; TOIS 2021): an inverse Fourier transform over the logarithm of the time,
    with learned coefficients. KDA clamps the weight to [0, 1] and starts from the gaps seen in the data; here
    it stays signed and starts from the hyperbola.

    >>> kernel = Fourier(2.0, False, frequencies=24, unit_days=0.01, learn_unit=False)
    >>> age = torch.tensor([0.0, 2.0])
    >>> weight = kernel.sign(age) * kernel(age).exp()
    >>> round((weight[1] / weight[0]).item(), 2)
    0.5
    """

    signed = True
    monotone = False
    starts_at_one = False

    def __init__(
        self, half_life_days: float, learn: bool, frequencies: int, unit_days: float, learn_unit: bool
    ) -> None:
        super().__init__()
        half_life = positive_parameter("decay.half_life_days", half_life_days, "days", learn=False).exp()
        self.log_unit = positive_parameter("decay.unit_days", unit_days, "days", learn_unit)
        top = count("decay.frequencies", frequencies, at_least=2) - 1
        # The hyperbola over t = 0 … top, mirrored: an even sequence has no jump, so no ringing and no sines.
        ages = (torch.arange(top + 1, dtype=torch.float64).exp2() - 1) * unit_days
        curve = 1 / (1 + ages / half_life.detach().double())
        cosines = torch.fft.rfft(torch.cat([curve, curve[1:-1].flip(0)])).real / top
        cosines[[0, -1]] /= 2
        self.cosines = trainable("decay.frequencies", cosines.float(), learn)
        self.sines = trainable("decay.frequencies", torch.zeros(top), learn)

    def _weight(self, age: Tensor) -> Tensor:
        time = torch.log1p(age / self.log_unit.exp()) / math.log(2)
        order = torch.arange(len(self.cosines), dtype=age.dtype, device=age.device)
        phase = time.unsqueeze(-1) * order * (math.pi / (len(order) - 1))
        # A constant has no sine. The square root's gradient at 0 is infinite, so it starts a hair above.
        amplitudes = torch.sqrt(self.cosines[1:].square() + self.sines.square() + 1e-20)
        # products with vectors, since the refit takes slopes in all coefficients at once
        series = phase.cos() @ self.cosines.to(age.dtype) - phase[..., 1:].sin() @ self.sines.to(age.dtype)
        return series / (self.cosines[0].abs() + amplitudes.sum())

    def log_weight(self, age: Tensor) -> Tensor:
        return self._weight(age).abs().clamp(LEAST_WEIGHT, 1.0).log()

    def sign(self, age: Tensor) -> Tensor:
        with torch.no_grad():
            wide = self._weight((age.float() if age.element_size() < 4 else age).clamp(max=LARGEST_AGE))
            return torch.where(wide < 0, -1.0, 1.0).to(age.dtype)

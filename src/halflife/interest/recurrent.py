"""A recurrent interest: clicks are read in order, and what is remembered fades between them."""

import torch
from torch import Tensor, nn

from halflife.errors import choice
from halflife.interest.compose import Interest


class Recurrent(Interest):
    """h_i = GRU(v_i, γ_i h_(i−1)) with γ_i = w_(i−1) / w_i, and u = w_n h_n after the newest click n.

    γ is what is left at click i of a weight that had survived until click i − 1: the kernel's own conditional
    survival, so neither ages nor a second call of the kernel are needed. The γ telescope: under a GRU that
    only adds up, u = Σ_i w_i v_i. Where a newer click weighs less than an older one (a kernel that rises,
    half-lives by category) γ is 1. The GRU's own gate forgets by order besides, so the half-life is what time
    adds to that; it starts with the gate leaning to keep, and with the item's vector as what is to be
    remembered.

    Args:
        dim: of the item vectors, and of the state.
        composition: `scale`, since weights multiply the state and nothing is normalised.
        scale: where the learned scale starts, > 0.

    Raises:
        InputError: when the composition is not `scale`, or scale not a number above 0.

    Source: Che et al., Recurrent Neural Networks for Multivariate Time Series with Missing Values (GRU-D;
    Scientific Reports 2018), the hidden state decay of its trainable decays, with the kernel for their
    exponential; fading behind the newest click is ours. The unit is Cho et al. (EMNLP 2014), eq. 5 to 8; that
    its gate leans is Jozefowicz, Zaremba & Sutskever (ICML 2015).
    """

    compositions = ("scale",)

    def __init__(self, dim: int, composition: str, scale: float) -> None:
        super().__init__(scale)
        choice("interest.composition", composition, self.compositions)
        self.inputs = nn.Linear(dim, 3 * dim)
        self.gates = nn.Linear(dim, 2 * dim, bias=False)
        self.memory = nn.Linear(dim, dim, bias=False)
        with torch.no_grad():
            self.inputs.bias.zero_()
            self.inputs.bias[dim : 2 * dim] = 1.0
            self.inputs.weight[2 * dim :] = torch.eye(dim)

    def forward(
        self, history: Tensor, log_weight: Tensor, mask: Tensor, candidates: Tensor, age: Tensor
    ) -> Tensor:
        log_weight = log_weight.masked_fill(~mask, 0)
        change = nn.functional.pad(log_weight[:, :-1] - log_weight[:, 1:], (1, 0))
        survival = change.clamp(max=0).exp()
        state = torch.zeros_like(history[:, 0])
        steps = (self.inputs(history), survival.unsqueeze(2), mask.unsqueeze(2))
        for inputs, survives, real in zip(*(s.unbind(1) for s in steps), strict=True):
            state = torch.where(real, self._unit(inputs, survives * state), state)
        newest = (mask.sum(1, keepdim=True) - 1).clamp(min=0)
        return self.score(state * log_weight.gather(1, newest).exp(), candidates)

    def _unit(self, inputs: Tensor, state: Tensor) -> Tensor:
        """One step of a GRU, its input already projected; (B, 3 dim) and (B, dim) → (B, dim)."""
        # written out: the fused unit has no second derivative on a GPU
        from_click = inputs.chunk(3, -1)
        from_state = self.gates(state).chunk(2, -1)
        reset = torch.sigmoid(from_click[0] + from_state[0])
        keep = torch.sigmoid(from_click[1] + from_state[1])
        new = torch.tanh(from_click[2] + self.memory(reset * state))
        return keep * state + (1 - keep) * new

"""AdaLoRA's rank budget, driven by the training loop."""

from typing import Any

import torch
from torch import Tensor


class RankSchedule:
    """Which ranks of an AdaLoRA model are alive, from all of them to the target.

    Of T steps in all, the budget stays whole for `warmup` · T, falls as a cube until `final` · T before the
    end, and then stays what it is.

    Args:
        model: PEFT's AdaLoRA model, inside the one that `get_peft_model` returns.
        warmup, final: fractions of all steps.
        orthogonal: weight of the penalty ‖PᵀP − I‖ + ‖QQᵀ − I‖, averaged over matrices.

    Source: Zhang et al., AdaLoRA (ICLR 2023), eq. 4 for the penalty, eq. 12 for the budget.
    """

    def __init__(self, model: Any, warmup: float, final: float, orthogonal: float) -> None:
        self.model, self.warmup, self.final, self.orthogonal = model, warmup, final, orthogonal
        self.config = model.peft_config["default"]

    def plan(self, steps: int) -> None:
        """Lay the schedule over so many optimizer steps."""
        steps = max(steps, 2)
        self.config.total_step = steps
        self.config.tfinal = min(
            int(self.final * steps), steps - 2
        )  # ranks are scored before any is silenced
        self.config.tinit = min(int(self.warmup * steps), steps - self.config.tfinal - 1)

    def step(self, done: int) -> None:
        """Behind the optimizer's step, gradients still there: score the ranks, and silence the least useful.

        Args:
            done: optimizer steps taken, this one included.
        """
        self.model.update_and_allocate(done)

    def penalty(self) -> Tensor:
        """What the loss gains for singular vectors that are not orthogonal."""
        norms = []
        for name, p in self.model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                product = p @ p.T if "lora_A" in name else p.T @ p
                norms.append(torch.linalg.norm(product - torch.eye(len(product), device=p.device)))
        return self.orthogonal * torch.stack(norms).mean()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: the ranks' scores, and which are alive."""
        allocator = self.model.rankallocator
        return {
            "sensitivity": allocator.exp_avg_ipt,
            "uncertainty": allocator.exp_avg_unc,
            "ipt": allocator.ipt,
            "alive": self.config.rank_pattern,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        allocator = self.model.rankallocator
        allocator.exp_avg_ipt, allocator.exp_avg_unc = state["sensitivity"], state["uncertainty"]
        allocator.ipt, self.config.rank_pattern = state["ipt"], state["alive"]

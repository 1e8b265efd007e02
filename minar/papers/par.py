"""PAR: one step draws the same place in every region, because tokens far apart depend little on each other.

The first token of each region is drawn alone; then N/n - 1 steps of n. At the seam n slots have one token to read:
the first reads it, the others read a learned transition token each. The plan is `minar.plan.region_groups`.

Wang et al., "Parallelized Autoregressive Visual Generation", 2024.
"""

import torch
from torch import Tensor, nn

from minar.lab.checkpoint import register
from minar.next_step import NextStepAR
from minar.plan import Plan
from minar.transformer import Transformer


@register
class PAR(NextStepAR):
    """NextStepAR with per_side^2 - 1 transition tokens. The official model has no `target`: there it stays zero."""

    def __init__(
        self,
        trunk: Transformer,
        embed: nn.Module,
        cond: nn.Module,
        head: nn.Module,
        grid: tuple[int, int],
        per_side: int,
    ):
        super().__init__(trunk, embed, cond, head, grid)
        self.per_side = per_side
        self.transition = nn.Embedding(per_side**2 - 1, trunk.width)
        nn.init.normal_(self.transition.weight, std=0.02)

    def read(self, tokens: Tensor, prefix: Tensor, plan: Plan, slots: slice) -> tuple[Tensor, Tensor]:
        """See NextStepAR. Transition tokens stand nowhere."""
        x, rope = super().read(tokens, prefix, plan, slots)
        slot = torch.arange(slots.start, slots.stop, device=x.device)
        which = slot - self.per_side**2 - 1  # the seam is the first step of n slots; its first slot reads a token
        seam = (which >= 0) & (which < self.per_side**2 - 1)
        learned = self.transition(which.clamp(0, self.per_side**2 - 2)) + self.target(plan.at(slots))
        rope = torch.where(seam[:, None, None], 0.0, rope)
        return torch.where(seam[:, None], learned, x), rope

    def check_plan(self, plan: Plan, batch: int) -> None:
        """See NextStepAR; and the plan must be of region_groups with as many regions."""
        super().check_plan(plan, batch)
        n = self.per_side**2
        if plan.sizes != (1,) * n + (n,) * (self.n_tokens // n - 1):
            raise ValueError(f"PAR with {n} regions needs the plan region_groups(*grid, {self.per_side})")

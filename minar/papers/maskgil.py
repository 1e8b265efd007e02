"""MaskGIL: LlamaGen's transformer that looks both ways, trained as MaskGIT is, drawn in 8 steps.

Where `MaskedAR` learns the likelihood of a plan, this loss takes any share of tokens away, grades all tokens, hidden
or not, and asks for a little doubt. Decode with `maskgit.decode(model, cond, arccos_sizes(N, 8), ramp(3.0))`.

Xin et al., "Resurrect Mask AutoRegressive Modeling for Efficient and Scalable Image Generation", 2025. Two things
differ from the released code: the condition stands first, and rotary angles are those of the grid.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.checks import check_number
from minar.lab.checkpoint import register
from minar.masked import MaskedAR
from minar.plan import Plan
from minar.transformer import Transformer


@register
class MaskGIL(MaskedAR):
    """smoothing: share of the target that goes to all V codes alike, in [0, 1); the paper takes 0.1."""

    def __init__(
        self,
        trunk: Transformer,
        embed: nn.Module,
        cond: nn.Module,
        head: nn.Module,
        grid: tuple[int, int],
        smoothing: float = 0.1,
    ):
        super().__init__(trunk, embed, cond, head, grid)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}: at 1 the tokens would not matter")
        self.smoothing = smoothing

    def forward(
        self, tokens: Tensor, cond: Tensor, plan: Plan, p_drop: float = 0.1, inputs: Tensor | None = None
    ) -> Tensor:
        """The training loss, (): smoothed cross-entropy in nats, mean over all tokens. The plan's steps do not matter.

        inputs: what is read instead of the tokens, also by position.
        """
        self.check(tokens, cond, plan)
        target = plan.permute(tokens)
        read = target if inputs is None else plan.permute(inputs)
        known = ~random_mask(*target.shape, target.device)
        h = self.look(read, self.prefix(self.cond.drop(cond, p_drop)), plan, known)
        logits = self.head.logits(h).flatten(0, 1)
        return F.cross_entropy(logits, target.flatten(), label_smoothing=self.smoothing)


def random_mask(batch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """What is hidden, (B, N) bool: the share 2 / pi arccos(u), u uniform in [0, 1), at random places in each row.

    It is rounded up, so each row hides at least one token: there is always something to learn.
    """
    share = torch.rand(batch, 1, device=device).acos() / (math.pi / 2)  # in (0, 1]
    rank = torch.rand(batch, n, device=device).argsort(-1)
    return rank < (share * n).ceil().clamp(1, n)


def ramp(scale: float) -> Callable[[Plan, int], float]:
    """Guidance that rises linearly: 1 (none) in the first step, 1 + scale in the last. For cfg.

    The paper writes (1 + w) cond - w null, so its w rises from 0 to `scale`. Raises ValueError for scale < 0.
    """
    check_number("scale", scale, 0)
    return lambda plan, s: 1 + scale * s / max(plan.n_steps - 1, 1)

"""Next-scale prediction: one step draws a whole grid of tokens, and each grid is finer than the one before. VAR.

A slot does not read a token: it reads the picture that all scales before its own make together.
Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction", 2024.
"""

import copy

import torch
from torch import Tensor, nn

from minar.checks import can_look
from minar.generate import generate
from minar.multi_scale import MultiScaleQuantizer
from minar.next_step import NextStepAR
from minar.plan import Plan, scales
from minar.transformer import Transformer


class NextScaleAR(NextStepAR):
    """trunk, cond, head: see ARModel. quantizer: a trained one; the model keeps a frozen copy. Plan: scales(sides).

    Slots of the first scale read the condition. A slot of a later one reads the picture so far (`so_far`) at its own
    scale and place, projected to the width. To both are added what its place (`target`) and its scale (`level`) mean.

    VAR has no rotary angles. Here a slot of any scale stands on the finest grid (`grid`), where the centre of its cell
    lies: so slots of two scales that paint the same spot are near each other, and one table of angles serves all.
    Raises ValueError if the head has another vocabulary than the quantizer.
    """

    def __init__(self, trunk: Transformer, cond: nn.Module, head: nn.Module, quantizer: MultiScaleQuantizer):
        if getattr(head, "vocab", quantizer.vocab) != quantizer.vocab:
            raise ValueError(f"the head draws {head.vocab} codes, the quantizer has {quantizer.vocab}: make equal")
        embed = nn.Linear(quantizer.channels, trunk.width)
        super().__init__(trunk, embed, cond, head, (1, quantizer.n_tokens))  # a target for each slot of each scale
        self.grid = (quantizer.sides[-1], quantizer.sides[-1])
        self.quantizer = copy.deepcopy(quantizer).requires_grad_(False)
        self.level = nn.Embedding(len(quantizer.sides), trunk.width)
        nn.init.normal_(self.level.weight, std=0.02)
        self.register_buffer("place", places(quantizer.sides), persistent=False)  # (N,), slot -> place on the grid

    def read(self, tokens: Tensor, prefix: Tensor, plan: Plan, slots: slice) -> tuple[Tensor, Tensor]:
        """See NextStepAR. Rotary angles say where the slot's own token goes, which is also where it reads."""
        n_scales = sum(start < slots.stop for start in plan.starts)  # the later ones are neither asked for nor known
        so_far = self.quantizer.so_far(tokens, n_scales)[:, slots]
        content = self.embed(so_far.type_as(self.target.weight))
        if slots.start < plan.starts[1]:
            content = torch.where(plan.step[slots, None] == 0, prefix[:, -1:], content)
        place = plan.at(slots)
        return content + self.target(place) + self.level(plan.step[slots]), self.rope(place)

    def rope(self, place: Tensor) -> Tensor:
        """Rotary angles of (..., T) places in the pyramid; -1 stands nowhere."""
        return super().rope(torch.where(place < 0, -1, self.place[place]))

    def generate(self, cond: Tensor, **options) -> Tensor:
        """Draw the tokens of one pyramid for each condition, (B, N). options: those of `minar.generate`."""
        return generate(self, cond, scales(self.quantizer.sides), **options)

    def check_plan(self, plan: Plan, batch: int) -> None:
        """See ARModel. One plan fits: `scales` of the quantizer's sides."""
        fits = plan.sizes == self.quantizer.sizes and plan.pos.dim() == 1
        if fits and can_look(plan.pos, wait=False):
            fits = torch.equal(plan.pos, torch.arange(plan.n))
        if not fits:
            sides = self.quantizer.sides
            raise ValueError(f"the tokens are a pyramid {sides}: give the plan scales({sides}), got steps {plan.sizes}")


def places(sides: tuple[int, ...]) -> Tensor:
    """For each slot of the pyramid, the place on the finest grid that holds the centre of its cell, (N,) long."""
    finest, found = sides[-1], []
    for side in sides:
        line = (2 * torch.arange(side) + 1) * finest // (2 * side)  # (side,)
        found.append((line[:, None] * finest + line).flatten())
    return torch.cat(found)

"""Averages and bicubic enlargements of small maps as products with fixed matrices.

Both are linear, row by row and then column by column, so a matrix of a few numbers says all. PyTorch's own kernels
give each *place* of the result a thread: on maps of 16 x 16 that leaves a large card idle (half of VAR's time with 64
pictures), and Apple's GPU has no averages whose sides do not divide.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Resize(nn.Module):
    """Between the sides of a pyramid and the last of them: what adaptive_avg_pool2d and interpolate (bicubic) give."""

    def __init__(self, sides: tuple[int, ...]):
        super().__init__()
        self.sides = tuple(sides)
        whole = self.sides[-1]
        matrices = torch.zeros(2, len(sides), whole, whole, device="cpu")
        for k, side in enumerate(self.sides):
            matrices[0, k, :side] = _matrix(lambda x, s=side: F.adaptive_avg_pool2d(x, (s, 1)), whole)
            matrices[1, k, :, :side] = _matrix(lambda x: F.interpolate(x, size=(whole, 1), mode="bicubic"), side)
        self.known = matrices
        self.matrices = matrices.to(torch.empty(0).device)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """The matrices go where the module goes. They are no buffer: half precision would round them."""
        self.matrices = self.known.to(fn(self.known).device)
        return super()._apply(fn, recurse)

    def down(self, x: Tensor, k: int) -> Tensor:
        """(B, C, whole, whole) float32 averaged down to (B, C, side_k, side_k)."""
        side, whole = self.sides[k], self.sides[-1]
        return x if side == whole else _both_ways(x, self.matrices[0, k, :side])

    def up(self, x: Tensor, k: int) -> Tensor:
        """(B, C, side_k, side_k) float32 enlarged to (B, C, whole, whole)."""
        side, whole = self.sides[k], self.sides[-1]
        return x if side == whole else _both_ways(x, self.matrices[1, k, :, :side])


def _matrix(resize: Callable[[Tensor], Tensor], side: int) -> Tensor:
    """The matrix (new, side) of a linear map of columns."""
    return resize(torch.eye(side, device="cpu")[None, :, :, None])[0, :, :, 0].T


def _both_ways(x: Tensor, matrix: Tensor) -> Tensor:
    """matrix x matrix^T. (B, C, old, old) -> (B, C, new, new)."""
    return F.linear(F.linear(x.mT, matrix).mT, matrix)

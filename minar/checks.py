"""Checks at the public doors: one line that says what was given, what was expected, and what to do.

Ranges are looked at only where that costs nothing: on the CPU, and never while a graph is being compiled
(on a GPU each look would make the host wait for the device; `fit` looks once at the whole data set instead).
"""

import math

import torch
from torch import Tensor


def can_look(x: Tensor, wait: bool) -> bool:
    return (x.device.type == "cpu" or (wait and x.is_cuda)) and x.numel() > 0 and not torch.compiler.is_compiling()


def check_ids(name: str, ids: Tensor, n: int, dims: int, wait: bool = False) -> None:
    """Integers in 0 .. n-1 with `dims` dimensions: tokens (B, t), labels (B,). wait: look on a GPU, too."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.long:
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(f"{name} must be a tensor of torch.long, got {kind}: convert with .long()")
    if ids.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimension(s), got shape {tuple(ids.shape)}")
    if can_look(ids, wait):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= n:
            raise ValueError(f"{name} must lie in 0..{n - 1}, got values from {low} to {high}")


def check_images(images: Tensor, channels: int, factor: int, wait: bool = False) -> None:
    """Float images (B, channels, H, W) in [-1, 1] whose sides the encoder can divide by `factor`."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor, got {kind}: for bytes use images / 127.5 - 1")
    if images.dim() != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}")
    if images.shape[1] != channels:
        raise ValueError(f"this model reads {channels} channel(s), got {images.shape[1]} in {tuple(images.shape)}")
    if images.shape[2] % factor or images.shape[3] % factor:
        raise ValueError(f"height and width must be multiples of {factor}, got {(*images.shape[2:],)}: pad or resize")
    if can_look(images, wait):
        low, high = images.aminmax()
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(f"images must lie in [-1, 1], got {low:.3g} to {high:.3g}: for 0..1 use 2 * images - 1")


def check_plan(pos: Tensor, sizes: tuple[int, ...]) -> None:
    """Raise TypeError or ValueError unless pos and sizes make a plan."""
    if not isinstance(pos, Tensor) or pos.dtype != torch.long:
        raise TypeError(f"pos must be a tensor of torch.long, got {getattr(pos, 'dtype', type(pos).__name__)}")
    if pos.dim() not in (1, 2):
        raise ValueError(f"pos must be (N,) or (B, N), got {tuple(pos.shape)}")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"each step needs at least one slot, got sizes {tuple(sizes)}")
    if sum(sizes) != pos.shape[-1]:
        raise ValueError(f"steps of {sum(sizes)} slots in all do not fit {pos.shape[-1]} positions")
    if can_look(pos, wait=False):
        odd = (pos.sort(-1).values != torch.arange(pos.shape[-1])).reshape(-1, pos.shape[-1]).any(-1)
        if odd.any():
            row = f"row {int(odd.nonzero()[0])} of pos" if pos.dim() == 2 else "pos"
            raise ValueError(f"{row} must hold 0..{pos.shape[-1] - 1} once each: some overlap or are missing")


def check_number(name: str, value: float, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """A finite number between low and high, both allowed unless open_low."""
    if not (math.isfinite(value) and low <= value <= high and not (open_low and value == low)):
        bracket = "(" if open_low else "["
        raise ValueError(f"{name} must be a number in {bracket}{low}, {high}], got {value}")

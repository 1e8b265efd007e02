"""Token maps: integers as colours."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from torch import Tensor

from minar.lab.plots.images import show_images
from minar.lab.plots.style import Picture


def show_tokens(
    tokens: Tensor,
    grid: tuple[int, int],
    vocab: int | None = None,
    codebook: Tensor | None = None,
    titles: Sequence[str] | None = None,
    title: str | None = None,
) -> Picture:
    """Token maps as colours. tokens: integers (B, N) or (N,), with N = h * w for grid = (h, w), in raster order.

    With `codebook` (V, C), codes that lie close get colours that lie close: its first three principal components are
    red, green, blue. Without, the colour is the number of the code, in viridis from 0 to `vocab` - 1.
    """
    tokens = torch.as_tensor(tokens).detach().cpu()
    tokens = tokens[None] if tokens.dim() == 1 else tokens
    h, w = grid
    if tokens.is_floating_point() or tokens.dim() != 2 or tokens.shape[1] != h * w:
        given = f"{tokens.dtype} {tuple(tokens.shape)}"
        raise ValueError(f"tokens must be integers of shape (B, {h * w}) for a {h}x{w} grid, got {given}")
    size = len(codebook) if codebook is not None else vocab or int(tokens.max()) + 1
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
        raise ValueError(f"tokens must lie in 0..{size - 1}, got {int(tokens.min())} to {int(tokens.max())}")

    table = viridis(size) if codebook is None else codebook_colours(codebook)
    colours = table[tokens].unflatten(1, (h, w)).permute(0, 3, 1, 2)  # (B, 3, h, w)
    return show_images(colours * 2 - 1, titles=titles, scale=max(1, 128 // max(h, w)), title=title)


def viridis(n: int) -> Tensor:
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 1, n))
    return torch.tensor(colours[:, :3], dtype=torch.float)


def codebook_colours(codebook: Tensor) -> Tensor:
    """(V, C) to colours (V, 3) in [0, 1] by the first principal components; without spread a component is grey."""
    points = codebook.detach().float().cpu()
    points = points - points.mean(0)
    n = min(3, *points.shape)
    axes = torch.linalg.svd(points, full_matrices=False).Vh[:n]
    sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # a component has no sign of its own
    scores = points @ (axes * sign).T
    scores = scores / scores.std(0, correction=0).clamp_min(1e-8)
    colours = torch.full((len(points), 3), 0.5)
    colours[:, :n] = 0.08 + 0.87 * torch.sigmoid(1.5 * scores)  # an outlier must not leave the others one grey
    return colours

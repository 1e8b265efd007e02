"""Grids of images: as an array, and as a figure with labels."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minar.lab.plots.style import PAD, STYLE, WIDEST, Picture, picture


def image_grid(
    images: Tensor, columns: int | None = None, scale: int = 1, gap: int | tuple[int, int] = 2
) -> np.ndarray:
    """Images (B, C, H, W) in [-1, 1], C 1 or 3, as one white-ruled uint8 array (height, width, 3), row by row.

    Every pixel becomes `scale` x `scale` pixels. `gap` is in final pixels, or (between rows, between columns). Without
    `columns` the grid is as square as it can be. Values a little outside [-1, 1] are cut.
    """
    check_layout(columns, scale)
    tiles = to_bytes(images)
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    n, height, width, _ = tiles.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    down, across = (gap, gap) if isinstance(gap, int) else gap

    n_rows = math.ceil(n / columns)
    grid = np.full((n_rows * (height + down) - down, columns * (width + across) - across, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + down), i % columns * (width + across)
        grid[top : top + height, left : left + width] = tile
    return grid


def name_rows(grid: np.ndarray, names: list[str]) -> np.ndarray:
    """The grid with a white strip at its left that names its rows, which are of equal height: uint8 (H, W, 3) again."""
    font = ImageFont.load_default()
    width, step = 12 + max(int(font.getlength(name)) for name in names), len(grid) / len(names)
    strip = Image.new("RGB", (width, len(grid)), "white")
    for i, name in enumerate(names):
        ImageDraw.Draw(strip).text((width - 6, (i + 0.5) * step), name, "black", font, anchor="rm")
    return np.concatenate([np.asarray(strip), grid], 1)


def check_layout(columns: int | None, scale: int) -> None:
    for name, value in {"columns": columns, "scale": scale}.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")


def to_bytes(images: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] to uint8 (B, H, W, 3). Raises for another dtype, shape, or NaN."""
    images = torch.as_tensor(images).detach()
    if not images.is_floating_point():
        raise TypeError(f"images must be float in [-1, 1], got {images.dtype}: for bytes use images / 127.5 - 1")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must have shape (B, 1 or 3, H, W), got {tuple(images.shape)}: one image needs [None]")
    images = images.float().cpu()
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinity, nothing can be drawn: look at the loss, or where they come from")
    images = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()


@matplotlib.rc_context(STYLE)
def show_images(
    images: Tensor,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    scale: int = 2,
    title: str | None = None,
    rows: Sequence[str] | None = None,
) -> Picture:
    """Images (B, C, H, W) in [-1, 1] on a grid, each pixel a square of `scale` screen pixels, or fewer if 900 are full.

    `titles`: one above each image, or one above each column. `rows`: one label left of each row; they also say how many
    rows there are. Raises ValueError where the images do not fit, or where the number of titles or rows is wrong.
    """
    check_layout(columns, scale)
    n, height, width, _ = to_bytes(images).shape
    if rows and columns is None:
        columns = math.ceil(n / len(rows))

    margin = max(map(text_width, rows)) + 10 if rows else 0
    widest_title = max(map(text_width, titles)) if titles else 0
    scale, columns = fit(n, width, widest_title, columns, scale, WIDEST - margin - 2 * PAD)
    n_rows = math.ceil(n / columns)
    if rows and len(rows) != n_rows:
        raise ValueError(
            f"{len(rows)} row labels for {n_rows} row(s) of {columns}: give columns={math.ceil(n / len(rows))}"
        )
    if titles and len(titles) not in (n, columns):
        raise ValueError(f"{len(titles)} titles for {n} images in {columns} columns: give one each, or one a column")

    each = bool(titles) and len(titles) == n
    line = 20
    down, across = (line + 6 if each else 4), max(4, widest_title - width * scale + 12)
    grid = image_grid(images, columns, scale, (down, across))
    side = (across - 4) // 2 if titles else 0  # half of a wide title hangs over at both ends
    top = PAD + (line if titles else 0) + (28 if title else 0)
    left = PAD + margin + side

    grid_width = max(grid.shape[1], text_width(title, 12) - margin - 2 * side) if title else grid.shape[1]
    fig = picture(left + grid_width + side + PAD, top + grid.shape[0] + PAD, layout=None)
    full_width, full_height = fig.size_px

    def at(x, y):  # from pixels, counted from the top left
        return x / full_width, 1 - y / full_height

    ax = fig.add_axes((*at(left, top + grid.shape[0]), grid.shape[1] / full_width, grid.shape[0] / full_height))
    ax.imshow(grid, aspect="auto")
    ax.set_axis_off()
    if title:
        fig.text(*at(PAD, PAD), title, fontsize=12, ha="left", va="top")
    for i, text in enumerate(titles or []):
        x = left + i % columns * (width * scale + across) + width * scale / 2
        y = top + i // columns * (height * scale + down) - 5
        fig.text(*at(x, y), text, fontsize=10, ha="center", va="baseline")
    for i, text in enumerate(rows or []):
        y = top + i * (height * scale + down) + height * scale / 2
        fig.text(*at(PAD + margin - 10, y), text, fontsize=10, ha="right", va="center")
    return fig


def text_width(text: str, size: int = 10) -> int:
    """Pixels that a label of `size` points needs."""
    label = picture(10, 10, layout=None).text(0, 0, text, fontsize=size)
    return math.ceil(label.get_window_extent().width)


def fit(n: int, width: int, title: int, columns: int | None, scale: int, room: int) -> tuple[int, int]:
    """The largest scale up to `scale`, and columns, with which images of this width stay inside the room.

    Without `columns` it looks for the most that fit and divide n, so that no row is left half empty.
    """
    while True:
        cell = max(width * scale + 4, title + 12)
        most = (room + 4) // cell
        if columns is None and most >= 1:
            most = min(most, n)
            whole = max(d for d in range(1, most + 1) if n % d == 0)
            return scale, whole if 2 * whole >= most else math.ceil(n / math.ceil(n / most))
        if columns is not None and min(columns, n) <= most:
            return scale, min(columns, n)
        if scale == 1:
            raise ValueError(
                f"{columns or 1} column(s) of {width}-pixel images with these labels need more than {WIDEST} pixels: "
                f"use {f'columns={most}' if most else 'smaller images or shorter labels'}"
            )
        scale -= 1

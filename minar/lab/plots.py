"""Pictures for notebooks, in one calm style: image grids, token maps, curves, bars, heat maps, small animations.

Every function takes tensors (images in [-1, 1], maps of integers) and returns a figure that nobody has drawn yet. As
the last expression of a cell it shows once; assigned, it does not show. `.savefig(path)` writes it.
"""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image
from torch import Tensor

DPI = 80
WIDEST = 900  # pixels, what a page of text can hold
PAD = 6
INK = "#333333"
LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito, by contrast
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
STYLE = {
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.1,
    "font.size": 11,
    "text.color": INK,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "legend.frameon": False,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
}


class Picture(Figure):
    """A figure that a notebook shows as PNG by itself. pyplot does not know it, so it is never drawn twice."""

    def _ipython_display_(self):
        # not _repr_png_: once pyplot is imported its own formatter wins, and cuts and resamples the picture
        from IPython.display import display

        png = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(png, format="png", dpi=DPI)
        image = base64.b64encode(png.getvalue()).decode()
        width, height = self.size_px
        display({"image/png": image, "text/plain": f"<Picture {width}x{height}>"}, raw=True)

    @property
    def size_px(self) -> tuple[int, int]:
        return tuple(round(float(inches) * DPI) for inches in self.get_size_inches())


def picture(width: int, height: int, layout: str | None = "constrained") -> Picture:
    """An empty figure of that many pixels. Wrap what draws on it in `matplotlib.rc_context(STYLE)`."""
    return Picture(figsize=(width / DPI, height / DPI), dpi=DPI, layout=layout)


@matplotlib.rc_context(STYLE)
def blank(
    width: int = 640, height: int = 360, title: str = "", xlabel: str = "", ylabel: str = ""
) -> tuple[Picture, Axes]:
    """A figure of that many pixels and its axes, in the style of the others, for a plot that no function here draws."""
    fig = picture(width, height)
    ax = fig.add_subplot()
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return fig, ax


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


@matplotlib.rc_context(STYLE)
def show_curve(
    x: Any,
    curves: dict[str, Any],
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
) -> Picture:
    """Lines over x (n,). Each curve is n values, or a tuple (mean, spread) of n each, drawn as mean with a band.

    Up to twelve points are marked one by one. Raises ValueError for a curve of another length than x.
    """
    x = to_array(x)
    fig = picture(640, 360)
    ax = fig.add_subplot()
    for i, (name, values) in enumerate(curves.items()):
        colour, marker = LINES[i % len(LINES)], MARKERS[i % len(MARKERS)] if len(x) <= 12 else ""
        mean, spread = values if is_band(values) else (values, None)
        mean = to_array(mean)
        if mean.shape != x.shape:
            raise ValueError(f"curve {name!r} must have {x.size} values like x, got shape {mean.shape}")
        ax.plot(x, mean, color=colour, marker=marker, label=name)
        if spread is not None:
            spread = to_array(spread)
            ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if log_x:
        log_axis(ax.xaxis)
    if log_y:
        log_axis(ax.yaxis)
    if log_x and len(x) <= 12:
        ax.set_xticks(x)
    if len(curves) > 1 or any(curves):
        ax.legend()
    return fig


def log_axis(axis: Axis) -> None:
    """A logarithmic axis with plain numbers, because 2 x 10^1 is not how one reads seconds or steps."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def is_band(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) == 2 and np.ndim(to_array(values[0])) > 0


def to_array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().float().cpu()
    elif isinstance(values, list | tuple):
        values = [float(v) if isinstance(v, Tensor) and v.dim() == 0 else v for v in values]
    return np.asarray(values, dtype=float)


@matplotlib.rc_context(STYLE)
def show_bars(
    heights: Any, labels: Sequence[str] | None = None, xlabel: str = "", ylabel: str = "", title: str = ""
) -> Picture:
    """Bars (n,), such as how often each code of a codebook is used (`tokens.flatten().bincount(minlength=V)`)."""
    heights = to_array(heights)
    fig = picture(640, 300)
    ax = fig.add_subplot()
    many = len(heights) > 60  # bars that touch, or their edges would be all one sees
    ax.bar(np.arange(len(heights)), heights, width=1.0 if many else 0.6, color=LINES[0], linewidth=0)
    if labels is not None:
        ax.set_xticks(np.arange(len(heights)), labels)
    ax.grid(axis="x", visible=False)
    ax.margins(x=0.01 if many else 0.05)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return fig


@matplotlib.rc_context(STYLE)
def show_map(array: Any, title: str = "", xlabel: str = "", ylabel: str = "") -> Picture:
    """A heat map of (rows, columns) with a colour bar, such as attention (who looks at whom) or a gradient."""
    array = to_array(array)
    if array.ndim != 2:
        raise ValueError(f"a map must have shape (rows, columns), got {array.shape}")
    fig = picture(440, 360)
    ax = fig.add_subplot()
    image = ax.imshow(array)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.locator_params(integer=True)
    bar = fig.colorbar(image, ax=ax, shrink=0.9, pad=0.03)
    bar.outline.set_visible(False)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return fig


def apng(frames: Sequence[np.ndarray], path: str | Path | None = None, ms: int = 120) -> bytes:
    """An animated PNG of uint8 (H, W, 3) frames, shown `ms` each, also written to `path` if given.

    The final picture comes first and stays for 1500 ms: it is what a viewer shows that does not animate.
    """
    frames = [np.asarray(frame) for frame in frames]
    if not frames:
        raise ValueError("no frames to animate")
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != frames[0].shape or frame.shape[2] != 3:
            raise ValueError(
                f"frames must be uint8 (H, W, 3) of one size, got {frame.dtype} {frame.shape}: image_grid makes them"
            )
    images = [Image.fromarray(frame) for frame in frames]
    out = io.BytesIO()
    images[-1].save(out, "PNG", save_all=True, append_images=images, duration=[1500] + [ms] * len(images), loop=0)
    if path is not None:
        Path(path).write_bytes(out.getvalue())
    return out.getvalue()


def show_apng(frames: Sequence[np.ndarray], ms: int = 120) -> Any:
    """The animation of `apng` as an IPython Image, for the last line of a cell."""
    from IPython.display import Image as Shown  # only a notebook has it

    return Shown(data=apng(frames, ms=ms), format="png")

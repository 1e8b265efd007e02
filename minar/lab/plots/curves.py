"""Curves, bars and heat maps."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from minar.lab.plots.style import LINES, STYLE, Picture, picture

MARKERS = ["o", "s", "^", "D", "v", "P", "X"]


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
        ax.set_xticks(x, [f"{v:.0f}" if v == round(v) else f"{v:.2g}" for v in x])
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

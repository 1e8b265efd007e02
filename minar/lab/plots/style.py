"""The one style of all figures, and a figure that a notebook shows as it is."""

import base64
import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 80
WIDEST = 900  # pixels, what a page of text can hold
PAD = 6
INK = "#333333"
LINES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito, by contrast
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

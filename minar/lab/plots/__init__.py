"""Pictures for notebooks, in one calm style: image grids, token maps, curves, bars, heat maps, plans, small animations.

Every function takes tensors (images in [-1, 1], maps of integers) and returns a figure that nobody has drawn yet. As
the last expression of a cell it shows once; assigned, it does not show. `.savefig(path)` writes it.
"""

from minar.lab.plots.animation import apng, show_apng
from minar.lab.plots.curves import show_bars, show_curve, show_map
from minar.lab.plots.images import image_grid, name_rows, show_images
from minar.lab.plots.plans import show_mask, show_plan
from minar.lab.plots.style import Picture, blank, picture
from minar.lab.plots.tokens import show_tokens

__all__ = [
    "Picture",
    "apng",
    "blank",
    "image_grid",
    "name_rows",
    "picture",
    "show_apng",
    "show_bars",
    "show_curve",
    "show_images",
    "show_map",
    "show_mask",
    "show_plan",
    "show_tokens",
]

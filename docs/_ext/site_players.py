"""The data of the plan player: real plans of minar.plan, and the picture that they uncover."""

import base64
import io
import json

import matplotlib
import numpy as np
import torch
from PIL import Image
from site_sources import DOCS, write
from sphinx.application import Sphinx

from minar import plan
from minar.lab import data

SIDE = 8  # of the grid of tokens, as in most lessons
PICTURE = "sunset"  # a twemoji that fills the square
COLOURS = 24
PLANS = {  # name: the call that makes it, what to look at
    "raster": (
        "raster(8, 8)",
        "Row by row, one token a step, as a language model writes. 64 tokens cost 64 runs of the network.",
    ),
    "rows": (
        "rows(8, 8, 4)",
        "Four neighbours a step: 16 runs, but neighbours depend on each other most, and here they are drawn without "
        "knowing of each other.",
    ),
    "PAR, 4 regions": (
        "region_groups(8, 8, 2)",
        "The same place in each of four regions, far from each other. The first token of each region comes alone, "
        "since the first tokens set the scene.",
    ),
    "PAR, 16 regions": (
        "region_groups(8, 8, 4)",
        "Sixteen regions of 2 x 2 tokens: as many steps as with four regions here, because each region's first token "
        "comes alone.",
    ),
    "random order": (
        "random_order(8, 8)",
        "Any order, one token a step. A model that is told which place comes next can learn all orders at once.",
    ),
    "random sets": (
        "random_sets(8, 8, 8)",
        "Random places in few steps that grow along a cosine: little at first, while nothing is known, then more and "
        "more. MaskGIT's schedule.",
    ),
    "halton": (
        "halton(8, 8, 8)",
        "Few steps again, but the places of each follow the Halton sequence, so that they stand far apart.",
    ),
    "completing": (
        "completing(torch.arange(64) % 8 < 4, 6)",
        "Inpainting: the left half is known and makes the first step; the rest follows in six growing sets.",
    ),
    "scales": (
        "scales((1, 2, 3, 4, 6, 8))",
        "Next-scale prediction: a step is a whole grid, coarse to fine. More tokens than one grid has, in six runs.",
    ),
}


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", lambda app, config: write(DOCS / "_static" / "plans.js", script().encode()))
    app.connect("html-page-context", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_files(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Only pages with a player load it."""
    if 'class="plan-player"' in context.get("body", ""):
        app.add_js_file("plans.js")
        app.add_js_file("plan-player.js")


def script() -> str:
    """A script, not JSON: a page that is opened as a file may not fetch."""
    plans = {name: describe(call, text) for name, (call, text) in PLANS.items()}
    known = {"plans": plans, "colours": colours(), "picture": picture()}
    return f"// Made from minar.plan when the site is built.\nconst MINAR = {json.dumps(known, indent=1)};\n"


def describe(call: str, text: str) -> dict:
    """sides: of the grids. steps: of each token, grid after grid, row by row: when is it drawn?"""
    torch.manual_seed(0)
    drawn = eval(call, {"torch": torch, **vars(plan)})  # so that the call that is shown is the one that was made
    steps = drawn.unpermute(drawn.step[None])[0]
    sides = [SIDE] if drawn.n == SIDE**2 else [round(size**0.5) for size in drawn.sizes]
    return {"call": call, "text": text, "sides": sides, "sizes": list(drawn.sizes), "steps": steps.tolist()}


def colours() -> list[str]:
    """Early is dark and late is bright, as in the figures of the lessons."""
    return [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps["viridis"](np.linspace(0, 1, COLOURS))]


def picture() -> str:
    """A small picture as the address of an image."""
    emoji = data.emoji("twemoji")
    image = emoji.images[emoji.captions.index(PICTURE)]
    pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()

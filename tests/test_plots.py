"""Pictures: the pixels that must be exact, the width of a page, and one line for every wrong input."""

import io

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from minar.lab.plots import (
    apng,
    image_grid,
    name_rows,
    show_apng,
    show_bars,
    show_curve,
    show_images,
    show_map,
    show_mask,
    show_plan,
    show_tokens,
)
from minar.lab.plots.style import WIDEST
from minar.lab.plots.tokens import codebook_colours
from minar.plan import random_order, raster, region_groups, scales


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def drawn(figure):
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return np.asarray(Image.open(out).convert("RGB"))


def test_image_grid_keeps_every_pixel():
    images = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    grid = image_grid(images, columns=3, scale=2, gap=1)
    assert grid.shape == (9, 14, 3) and grid.dtype == np.uint8
    assert (grid[:4, :4] == 0).all() and (grid[:4, 5:9] == 128).all() and (grid[5:, :4] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_show_images_draws_native_pixels(channels):
    images = noise(6, channels, 5, 7)
    picture = drawn(show_images(images, columns=3, scale=3, titles=list("abcdef"), rows=["top", "bottom"], title="t"))
    for image in images:
        tile = image_grid(image[None], scale=3, gap=0)
        windows = np.lib.stride_tricks.sliding_window_view(picture, tile.shape)[:, :, 0]
        assert (windows == tile).all((2, 3, 4)).any()


def test_show_images_stays_on_the_page():
    for shape, options in [
        ((64, 3, 32, 32), {}),
        ((3, 3, 256, 256), {"columns": 3, "scale": 4}),
        ((10, 1, 28, 28), {"rows": ["a rather long label"], "scale": 8}),
        ((2, 3, 256, 256), {"titles": ["a rather long title of a picture", "b"]}),
    ]:
        width, _ = show_images(noise(*shape), **options).size_px
        assert width <= WIDEST


def test_show_images_leaves_no_row_half_empty():
    images = noise(64, 1, 32, 32)
    assert show_images(images).size_px == show_images(images, columns=8).size_px


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {}, "127.5"),
        (torch.zeros(3, 4, 4), {}, r"\[None\]"),
        (torch.zeros(2, 2, 4, 4), {}, "1 or 3"),
        (torch.full((1, 1, 4, 4), torch.nan), {}, "NaN"),
        (torch.zeros(8, 3, 256, 256), {"columns": 8}, "columns=3"),
        (torch.zeros(1, 1, 4, 1000), {}, "smaller images"),
        (torch.zeros(4, 1, 4, 4), {"titles": ["a", "b", "c"], "columns": 2}, "3 titles for 4 images"),
        (torch.zeros(4, 1, 4, 4), {"rows": ["a", "b"], "columns": 1}, "2 row labels for 4 row"),
        (torch.zeros(4, 1, 4, 4), {"scale": 0}, "scale"),
        (torch.zeros(4, 1, 4, 4), {"columns": 0}, "columns"),
    ],
)
def test_show_images_says_what_is_wrong(images, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        show_images(images, **options)


def test_near_codes_get_near_colours():
    centres = torch.eye(4, 16) * 10
    codebook = centres.repeat_interleave(8, 0) + 0.1 * noise(32, 16)
    colours = codebook_colours(codebook)
    distance = torch.cdist(colours, colours)
    same = torch.arange(32)[:, None] // 8 == torch.arange(32) // 8
    assert colours.shape == (32, 3) and 0 <= colours.min() <= colours.max() <= 1
    assert distance[same].max() < 0.1 < distance[~same].min()


def test_a_codebook_without_spread_is_grey():
    assert codebook_colours(torch.ones(5, 1)).sub(0.5).abs().max() < 0.1


@pytest.mark.parametrize("codebook", [None, noise(16, 2)])
def test_show_tokens(codebook):
    tokens = torch.arange(12)
    assert len(np.unique(drawn(show_tokens(tokens, (3, 4), vocab=16, codebook=codebook)).reshape(-1, 3), axis=0)) == 13
    with pytest.raises(ValueError, match="3x3 grid"):
        show_tokens(tokens, (3, 3))
    with pytest.raises(ValueError, match=r"0\.\.15, got 0 to 99"):
        show_tokens(tokens.clone().fill_(99).scatter(0, torch.tensor([0]), 0), (3, 4), vocab=16, codebook=codebook)


def test_show_plan_colours_each_step_and_numbers_small_grids():
    plan = region_groups(4, 4, 2)
    figure = show_plan(plan, (4, 4))
    shown = figure.axes[0].images[0].get_array()
    assert shown.tolist() == [[0, 4, 1, 4], [5, 6, 5, 6], [2, 4, 3, 4], [5, 6, 5, 6]]
    assert [t.get_text() for t in figure.axes[0].texts] == [str(s) for row in shown.tolist() for s in row]
    assert not show_plan(raster(16, 16), (16, 16)).axes[0].texts
    for n in (1, 2, 4):
        plans = {f"plan {i}": random_order(4, 4, 3) for i in range(n)}
        width, _ = show_plan(plans, (4, 4), title="side by side").size_px
        assert width <= WIDEST and drawn(show_plan(plans, (4, 4))).std() > 10
    with pytest.raises(ValueError, match="has 16 slots, a 3x4 grid has 12 places"):
        show_plan(plan, (3, 4))


def test_show_plan_draws_all_grids_of_a_pyramid():
    figure = show_plan({"raster": raster(4, 4), "scales": scales((1, 2, 4))}, (4, 4), sides=(1, 2, 4))
    shown = np.nan_to_num(figure.axes[1].images[0].get_array().filled(np.nan), nan=-1).astype(int)
    assert shown.tolist() == [[0, -1, 1, 1], [-1, -1, 1, 1], [-1] * 4, *[[2] * 4] * 4]
    alone = show_plan(scales((1,)), (4, 4), sides=(1,))
    assert alone.axes[0].images[0].get_array().tolist() == [[0]]
    with pytest.raises(ValueError, match="has 21 slots"):
        show_plan(scales((1, 2, 4)), (4, 4), sides=(1, 2))


def test_show_mask_hides_what_a_slot_does_not_see():
    plan = region_groups(4, 4, 2)
    shown = show_mask(plan, title="mask").axes[0].images[0].get_array()
    assert (np.ma.getmaskarray(np.ma.masked_invalid(shown)) == ~plan.mask(0, 16).numpy()).all()
    assert drawn(show_mask({"a": plan, "b": raster(4, 4)})).std() > 10


def test_curves_bars_and_maps_draw():
    x = [1, 2, 4]
    mean = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    for figure in (
        show_curve(x, {"plain": [1, 2, 3], "band": (mean, mean / 10)}, "x", "y", "t", log_x=True, log_y=True),
        show_curve(torch.arange(100), {"": torch.rand(100)}),
        show_curve([0, 1], {"two points": (torch.tensor(1.0), torch.tensor(2.0))}),
        show_bars(torch.arange(100)),
        show_bars([1, 2], labels=["a", "b"]),
        show_map(torch.eye(4), "t", "x", "y"),
    ):
        assert drawn(figure).std() > 1
    with pytest.raises(ValueError, match="'short' must have 3 values"):
        show_curve(x, {"short": [1, 2]})
    with pytest.raises(ValueError, match="rows, columns"):
        show_map([1, 2])


def test_nothing_is_left_open():
    show_map(torch.eye(4))
    assert pyplot.get_fignums() == []


def test_apng_shows_the_final_picture_first(tmp_path):
    frames = [np.full((4, 6, 3), value, np.uint8) for value in (0, 100, 200)]
    path = tmp_path / "steps.png"
    data = apng(frames, path, ms=50)
    assert path.read_bytes() == data

    animation = Image.open(path)
    values, times = [], []
    for i in range(animation.n_frames):
        animation.seek(i)
        values.append(animation.convert("RGB").getpixel((0, 0))[0])
        times.append(animation.info["duration"])
    assert values == [200, 0, 100, 200] and times == [1500, 50, 50, 50]


def test_apng_says_what_is_wrong():
    with pytest.raises(ValueError, match="no frames"):
        apng([])
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\).*float"):
        apng([np.zeros((4, 4, 3))])


def test_show_apng():
    display = pytest.importorskip("IPython.display")
    shown = show_apng([np.zeros((4, 4, 3), np.uint8)])
    assert isinstance(shown, display.Image) and shown.format == "png"


def test_rows_of_a_grid_have_names():
    grid = image_grid(torch.zeros(6, 1, 20, 20), columns=3)
    named = name_rows(grid, ["above", "below"])
    assert named.dtype == np.uint8 and len(named) == len(grid) and (named[:, -grid.shape[1] :] == grid).all()
    strip = named[:, : -grid.shape[1]]
    assert all((half < 128).any() for half in (strip[:20], strip[-20:])), "each half holds black letters"

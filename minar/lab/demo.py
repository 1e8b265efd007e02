"""`minar demo`: pictures of every class from the shipped models, in each way of decoding, and what each costs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minar.generate import generate
from minar.lab import plots
from minar.lab.data import FASHION_NAMES
from minar.lab.shipped import shipped
from minar.model import ARModel
from minar.multi_scale import MultiScaleQuantizer
from minar.plan import Plan, cosine_sizes, halton, random_order, raster, region_groups, scales
from minar.vqvae import VQVAE

GREY = 0.2


@dataclass(frozen=True)
class Way:
    """A way of decoding: draw(labels, use_cache, generator) -> (B, N) tokens, in the steps of a plan."""

    name: str
    plan: Plan
    draw: Callable[..., Tensor]
    tokenizer: VQVAE
    cached: bool = True

    @property
    def slots(self) -> int:
        """How many the network computes for a picture. Without a cache all in each run, the class token too."""
        return self.plan.n if self.cached else self.plan.n_steps * (self.plan.n + 1)


def ways(cfg: float) -> list[Way]:
    """Every way that has a shipped model."""
    flat, pyramid = shipped("fashion-vqvae"), shipped("fashion-scales")
    gpt, par, arpg, masked, var = (shipped(f"fashion-{name}") for name in ("gpt", "par", "arpg", "masked", "var"))
    h, w = gpt.grid
    some = Plan(random_order(h, w, generator=stream(0)).pos, cosine_sizes(h * w, 16))

    def follow(name: str, model: ARModel, plan: Plan) -> Way:
        return Way(name, plan, partial(generate, model, plan=plan, cfg=cfg), flat, model.cached)

    return [
        Way("raster", raster(h, w), partial(gpt.generate, cfg=cfg), flat),
        follow("4 regions", par, region_groups(h, w, par.per_side)),
        follow("any order", arpg, some),
        follow("masked", masked, halton(h, w, 8)),
        Way("next scale", scales(pyramid.quantizer.sides), partial(var.generate, cfg=cfg), pyramid),
    ]


def demo(labels: list[int], seed: int = 0, cfg: float = 1.5, samples: int = 2, out: str | Path = "minar-demo") -> None:
    """Draw `samples` pictures of each label (0..9) in each way; write pictures.png and appearing.png into `out`.

    Raises ValueError for a label or guidance scale out of range, OSError if `out` cannot be written.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    labels, all_ways = torch.tensor(labels), ways(cfg)
    print(f"{len(labels)} classes x {samples} pictures, guidance {cfg:g}, seed {seed}, on the CPU\n")
    firsts = compare(all_ways, labels, seed)

    images = []
    for way, first in zip(all_ways, firsts, strict=True):
        more = [way.draw(labels, generator=stream(seed + 1 + i)) for i in range(samples - 1)]
        images.append(way.tokenizer.decode(torch.cat([first, *more])))
    names = [FASHION_NAMES[int(y)] for y in labels]
    pictures(images, all_ways, names).savefig(out / "pictures.png")
    plots.apng(appearing(all_ways, firsts), out / "appearing.png", ms=120)
    print(f"\nwrote {out / 'pictures.png'}    {len(all_ways) * len(labels) * samples} pictures that nobody took")
    print(f"wrote {out / 'appearing.png'}   an animation of them appearing, run by run; open it in a browser")
    print("\nnext: .venv/bin/jupyter lab notebooks, lessons 03, 07, 08, 09 and 11: what you just saw")
    print("      minar sample --class bag --samples 16    or    minar train --help")


def compare(all_ways: list[Way], labels: Tensor, seed: int) -> list[Tensor]:
    """One picture of each label in each way. Says what each cost, returns the tokens."""
    n = all_ways[0].plan.n
    print("one picture of each class                 runs   slots computed   seconds")
    naive, took = timed(lambda: all_ways[0].draw(labels, use_cache=False, generator=stream(seed)))
    line("raster, without a cache", n, n * (n + 1) // 2, took)
    drawn = []
    for way in all_ways:
        tokens, took = timed(lambda draw=way.draw: draw(labels, generator=stream(seed)))
        kept = "with a KV cache" if way.cached else "no cache possible"
        line(f"{way.name}, {kept}", way.plan.n_steps, way.slots, took)
        drawn.append(tokens)
    differ = int((drawn[0] != naive).sum())
    # a draw that falls within a rounding error of two tokens may go either way: then say so, do not hide it
    same = "are equal" if differ == 0 else f"differ by rounding in {differ} of {naive.numel()} places"
    print(f"raster tokens with and without a cache {same}")
    return drawn


def line(name: str, runs: int, slots: int, seconds: float) -> None:
    print(f"  {name:36} {runs:5}   {slots:14,}   {seconds:7.2f}")


def pictures(images: list[Tensor], all_ways: list[Way], names: list[str]) -> plots.Picture:
    """A column for each class and a band for each way; of a single class, one row for each way."""
    if len(names) == 1:
        rows = [way.name for way in all_ways]
        return plots.show_images(torch.cat(images), rows=rows, title=f"{names[0]}, in five ways")
    samples = len(images[0]) // len(names)
    rows = [row for way in all_ways for row in (way.name, *[""] * (samples - 1))]
    title = "Five ways to draw"
    return plots.show_images(torch.cat(images), titles=names, columns=len(names), rows=rows, title=title)


def appearing(all_ways: list[Way], drawn: list[Tensor], every: int = 2) -> list:
    """Frames with a row for each way, `every` runs of the network apart; what is not drawn yet is grey."""
    runs = max(way.plan.n_steps for way in all_ways)
    stages = [so_far(way, tokens) for way, tokens in zip(all_ways, drawn, strict=True)]
    frames = []
    for run in range(0, runs + every, every):
        now = [stage[min(run, len(stage) - 1)] for stage in stages]
        grid = plots.image_grid(torch.cat(now), columns=len(drawn[0]), scale=2)
        frames.append(plots.name_rows(grid, [way.name for way in all_ways]))
    return frames


def so_far(way: Way, tokens: Tensor) -> list[Tensor]:
    """The pictures of (B, N) tokens after 0, 1, ... all runs of the network."""
    if isinstance(way.tokenizer.quantizer, MultiScaleQuantizer):
        decoded = [way.tokenizer.decoder(p) for p in way.tokenizer.quantizer.pictures(tokens)]
        return [torch.full_like(decoded[0], GREY), *decoded]
    encoder, plan, stages = way.tokenizer.encoder, way.plan, []
    side, f = round(plan.n**0.5), encoder.factor
    empty = way.tokenizer.encode(torch.full((1, encoder.in_channels, side * f, side * f), -1.0))
    for run in range(plan.n_steps + 1):
        known = torch.zeros(plan.n, dtype=torch.bool)
        known[plan.pos[: plan.starts[run]]] = True
        shown = known.view(side, side).repeat_interleave(f, 0).repeat_interleave(f, 1)
        stages.append(torch.where(shown, way.tokenizer.decode(torch.where(known, tokens, empty)), GREY))
    return stages


def timed(f: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return f(), time.perf_counter() - start


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write (B, C, H, W) pictures in [-1, 1] as one PNG, each picture about 96 pixels wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(plots.image_grid(images, columns, scale=max(3, 96 // images.shape[3]))).save(path)

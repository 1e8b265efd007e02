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
from minar.plan import Plan, raster, region_groups
from minar.vqvae import VQVAE

GREY = 0.2


@dataclass(frozen=True)
class Way:
    """A way of decoding: draw(labels, use_cache, generator) -> (B, N) tokens, in the steps of a plan."""

    name: str
    plan: Plan
    draw: Callable[..., Tensor]


def ways(cfg: float) -> list[Way]:
    """Every way that has a shipped model."""
    gpt, par = shipped("fashion-gpt"), shipped("fashion-par")
    regions = region_groups(*par.grid, par.per_side)
    return [
        Way("raster", raster(*gpt.grid), partial(gpt.generate, cfg=cfg)),
        Way("4 regions", regions, partial(generate, par, plan=regions, cfg=cfg)),
    ]


def demo(labels: list[int], seed: int = 0, cfg: float = 1.5, samples: int = 2, out: str | Path = "minar-demo") -> None:
    """Draw `samples` pictures of each label (0..9) in each way; write pictures.png and appearing.png into `out`.

    Raises ValueError for a label or guidance scale out of range, OSError if `out` cannot be written.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, labels, all_ways = shipped("fashion-vqvae"), torch.tensor(labels), ways(cfg)
    print(f"{len(labels)} classes x {samples} pictures, guidance {cfg:g}, seed {seed}, on the CPU\n")
    firsts = compare(all_ways, labels, seed)

    images = []
    for way, first in zip(all_ways, firsts, strict=True):
        more = [way.draw(labels, generator=stream(seed + 1 + i)) for i in range(samples - 1)]
        images.append(tokenizer.decode(torch.cat([first, *more])))
    names = [FASHION_NAMES[int(y)] for y in labels]
    pictures(images, all_ways, names).savefig(out / "pictures.png")
    plots.apng(appearing(tokenizer, all_ways, firsts), out / "appearing.png", ms=120)
    print(f"\nwrote {out / 'pictures.png'}    {len(all_ways) * len(labels) * samples} pictures that nobody took")
    print(f"wrote {out / 'appearing.png'}   an animation of them appearing, run by run; open it in a browser")
    print("\nnext: .venv/bin/jupyter lab notebooks, lessons 03 and 07, which build what you just saw")
    print("      minar sample --class bag --samples 16    or    minar train --help")


def compare(all_ways: list[Way], labels: Tensor, seed: int) -> list[Tensor]:
    """One picture of each label in each way. Says what each cost, returns the tokens."""
    n = all_ways[0].plan.n
    print(f"one picture of each class, {n} tokens      runs   slots computed   seconds")
    naive, took = timed(lambda: all_ways[0].draw(labels, use_cache=False, generator=stream(seed)))
    line("raster, without a cache", n, n * (n + 1) // 2, took)
    drawn = []
    for way in all_ways:
        tokens, took = timed(lambda draw=way.draw: draw(labels, generator=stream(seed)))
        line(f"{way.name}, with a KV cache", way.plan.n_steps, n, took)
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
        return plots.show_images(torch.cat(images), rows=rows, title=f"{names[0]}, drawn token by token")
    samples = len(images[0]) // len(names)
    rows = [row for way in all_ways for row in (way.name, *[""] * (samples - 1))]
    title = "Drawn token by token, and four tokens at once"
    return plots.show_images(torch.cat(images), titles=names, columns=len(names), rows=rows, title=title)


def appearing(tokenizer: VQVAE, all_ways: list[Way], drawn: list[Tensor], every: int = 2) -> list:
    """Frames of all ways side by side, `every` runs of the network apart; what is not drawn yet is grey."""
    runs = max(way.plan.n_steps for way in all_ways)
    columns, frames = min(len(drawn[0]), 5), []
    side = round(all_ways[0].plan.n ** 0.5) * tokenizer.encoder.factor
    empty = tokenizer.encode(torch.full((1, tokenizer.encoder.in_channels, side, side), -1.0))
    for run in range(0, runs + 1, every):
        pairs = zip(all_ways, drawn, strict=True)
        halves = [known_so_far(tokenizer, way.plan, tokens, empty, run) for way, tokens in pairs]
        rows = [torch.cat(parts) for parts in zip(*(half.split(columns) for half in halves), strict=True)]
        frames.append(plots.image_grid(torch.cat(rows), columns=columns * len(all_ways), scale=2))
    return frames


def known_so_far(tokenizer: VQVAE, plan: Plan, tokens: Tensor, empty: Tensor, run: int) -> Tensor:
    """Pictures of (B, N) tokens after so many runs of the network; behind them the (1, N) tokens of an empty one."""
    side, f = round(plan.n**0.5), tokenizer.encoder.factor
    known = torch.zeros(plan.n, dtype=torch.bool)
    known[plan.pos[: plan.starts[min(run, plan.n_steps)]]] = True
    shown = known.view(side, side).repeat_interleave(f, 0).repeat_interleave(f, 1)
    return torch.where(shown, tokenizer.decode(torch.where(known, tokens, empty)), GREY)


def timed(f: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return f(), time.perf_counter() - start


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write (B, C, H, W) pictures in [-1, 1] as one PNG, each picture about 96 pixels wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(plots.image_grid(images, columns, scale=max(3, 96 // images.shape[3]))).save(path)

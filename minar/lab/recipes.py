"""Recipes: for each data set a tokenizer and a model that fit it, and how long to train them.

They are starting points that work, not the best there is: each number can be changed on the command line or by hand.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minar.condition import ClassLabel
from minar.gpt import GPT
from minar.heads import CategoricalHead
from minar.lab import checkpoint, data
from minar.lab.profile import device as choose_device
from minar.lab.train import fit
from minar.multi_scale import MultiScaleQuantizer
from minar.next_scale import NextScaleAR
from minar.plan import scales
from minar.quantizers import VectorQuantizer
from minar.transformer import Transformer
from minar.vqvae import VQVAE, Decoder, Encoder


@dataclass(frozen=True)
class Recipe:
    """Sizes of both models and lengths of both trainings."""

    width: int  # of the tokenizer
    mults: tuple[int, ...]  # one stage each; every stage but the last halves the picture
    vocab: int
    trunk: tuple[int, int, int]  # width, layers, heads
    steps: tuple[int, int]  # tokenizer, model
    time: str
    batch: int = 128
    mirror: bool = False  # are mirrored pictures pictures of the same thing?

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens down and across a picture, whose finest grid this is if it is a pyramid."""
        factor = 2 ** (len(self.mults) - 1)
        return height // factor, width // factor

    def tokenizer(self, channels: int, sides: tuple[int, ...] | None = None) -> VQVAE:
        """sides: those of a pyramid; without them each picture is one grid of tokens."""
        encoder = Encoder(channels, 8, self.width, self.mults)
        decoder = Decoder(channels, 8, self.width, self.mults)
        quantizer = MultiScaleQuantizer(self.vocab, 8, sides) if sides else VectorQuantizer(self.vocab, 8)
        return VQVAE(encoder, decoder, quantizer)

    def gpt(self, n_classes: int, grid: tuple[int, int]) -> GPT:
        return GPT(Transformer(*self.trunk), self.vocab, n_classes, grid)

    def next_scale(self, n_classes: int, quantizer: MultiScaleQuantizer) -> NextScaleAR:
        width = self.trunk[0]
        parts = Transformer(*self.trunk), ClassLabel(n_classes, width), CategoricalHead(width, self.vocab)
        return NextScaleAR(*parts, quantizer)


SECOND = {False: "gpt", True: "next-scale"}  # the folder of the model that draws
GPU = "for a GPU; not timed yet"
RECIPES = {
    "digits": Recipe(32, (1, 2), 128, (96, 4, 3), (400, 800), "2 minutes on two CPU cores", batch=64),
    "fashion": Recipe(
        24, (1, 2, 2), 1024, (128, 4, 4), (1200, 2500), "about 30 minutes on two CPU cores", batch=64, mirror=True
    ),
    "fashion-full": Recipe(40, (1, 2, 2), 1024, (192, 5, 6), (10000, 8000), GPU, batch=256, mirror=True),
    "emoji": Recipe(32, (1, 2), 512, (128, 4, 4), (4000, 5000), GPU),
    "folder": Recipe(32, (1, 2, 2), 1024, (192, 5, 6), (3000, 6000), GPU, mirror=True),
}


def recipe(name: str) -> Recipe:
    """The recipe of a data set; "folder:PATH" has one for all folders."""
    kind = name.split(":")[0]
    if kind not in RECIPES:
        raise ValueError(f"unknown data set {name!r}; choose one of: {', '.join(RECIPES)} (folder:PATH)")
    return RECIPES[kind]


def train(
    name: str,
    out: str | Path,
    share: float = 1.0,
    device: str = "auto",
    seed: int = 0,
    next_scale: bool = False,
) -> None:
    """Train both models on the data set `name`: `out`/tokenizer, `out`/gpt, and the names of the classes.

    share: part of the recipe's steps (0.1 for a first look). next_scale: a tokenizer whose pictures are pyramids, and
    instead of the GPT a model that draws scale by scale, `out`/next-scale. Called again, it goes on where it was.
    """
    if share <= 0:
        raise ValueError(f"share must be above 0, got {share}")
    r, out = recipe(name), Path(out)
    kind, other = SECOND[next_scale], SECOND[not next_scale]
    if (out / other).exists():
        raise ValueError(f"{out} holds a {other} and its tokenizer: choose another --out for a {kind}")
    images, labels, names = data.load(name)[:3]
    steps = [max(1, round(share * n)) for n in r.steps]
    out.mkdir(parents=True, exist_ok=True)
    (out / "names.json").write_text(json.dumps(names))

    torch.manual_seed(seed)
    grid = r.grid(*images.shape[2:])
    tokenizer = r.tokenizer(images.shape[1], pyramid_sides(*grid) if next_scale else None)
    print(f"recipe: {r.time}" + (f", times {share:g}" if share != 1 else ""))
    print(f"{len(images):,} pictures; tokenizer, {count(tokenizer)} parameters, {steps[0]:,} steps of {r.batch}")
    fit(tokenizer, (images,), steps[0], r.batch, seed=seed, device=device, out=out / "tokenizer")

    tokens = tokenise(tokenizer, images, device)
    if r.mirror:
        tokens, labels = torch.cat([tokens, tokenise(tokenizer, images.flip(3), device)]), labels.repeat(2)
    model = r.next_scale(len(names), tokenizer.quantizer) if next_scale else r.gpt(len(names), grid)
    plan = scales(tokenizer.quantizer.sides) if next_scale else None
    print(f"{tokens.shape[1]} tokens a picture; {kind}, {count(model)} parameters, {steps[1]:,} steps of {r.batch}")
    fit(model, (tokens, labels), steps[1], r.batch, seed=seed, device=device, out=out / kind, plan=plan)
    print(f"done: minar sample --models {out}")


def pyramid_sides(h: int, w: int) -> tuple[int, ...]:
    """Sides of the scales for a latent of h x w: 1, 2, 3, 4, 6, 8, 12, ... below h, and h. ValueError unless h is w."""
    if h != w:
        raise ValueError(f"a pyramid needs square pictures, these have {h} x {w} tokens")
    sides = {2**k for k in range(h.bit_length())} | {3 * 2**k for k in range(h.bit_length())}
    return (*sorted(side for side in sides if side < h), h)


@torch.no_grad()
def tokenise(tokenizer: VQVAE, images: Tensor, device: str = "auto", batch: int = 256) -> Tensor:
    """Every picture's tokens, (n, N) on the CPU."""
    where = choose_device(device)
    tokenizer.to(where)
    return torch.cat([tokenizer.encode(part.to(where)).cpu() for part in images.split(batch)])


def models(folder: str | Path) -> tuple[VQVAE, GPT | NextScaleAR, tuple[str, ...]]:
    """What `train` left in a folder: tokenizer, GPT or next-scale model, and the names of the classes."""
    folder = Path(folder)
    if not (folder / "names.json").is_file():
        raise FileNotFoundError(f"{folder} holds no trained models: minar train DATA --out {folder}")
    names = tuple(json.loads((folder / "names.json").read_text()))
    second = SECOND[(folder / SECOND[True]).exists()]
    parts = (checkpoint.load(folder / part / "model.safetensors") for part in ("tokenizer", second))
    return (*parts, names)


def count(model: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"

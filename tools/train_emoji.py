"""Trains the colour models that come with the package: python tools/train_emoji.py

A tokenizer whose pictures are pyramids, and a model that draws emoji scale by scale, of 8 kinds in 4 styles: label =
4 * kind + style. Seven minutes on one H200. What is there is not made again: delete a file to train it.
"""

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout with nothing installed will do

from minar import VQVAE, NextScaleAR  # noqa: E402
from minar.lab import checkpoint, data, metrics, plots  # noqa: E402
from minar.lab.profile import device  # noqa: E402
from minar.lab.recipes import Recipe, pyramid_sides, tokenise  # noqa: E402
from minar.lab.train import fit  # noqa: E402
from minar.plan import scales  # noqa: E402

RECIPE = Recipe(32, (1, 2), 1024, (256, 6, 4), (5000, 12000), "7 minutes on one H200")
SIDES = pyramid_sides(16, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data", help="folder of both models")
    parser.add_argument("--share", type=float, default=1.0, help="part of the steps")
    parser.add_argument("--grid", type=Path, metavar="PNG", help="draw one of each kind and style")
    options = parser.parse_args()
    train, test = data.emoji("all", "train"), data.emoji("all", "test")

    tokenizer = get_tokenizer(options.out / "emoji-scales.safetensors", train.images, options.share)
    where = next(tokenizer.parameters()).device
    rebuilt = torch.cat([tokenizer.reconstruct(x.to(where)).cpu() for x in test.images.split(200)])
    print(f"{metrics.psnr(rebuilt, test.images):.1f} dB on things that were not seen")

    model = get_model(options.out / "emoji-var.safetensors", tokenizer, train, options.share)
    for name, part in (("seen", train), ("not seen", test)):
        some = torch.arange(0, len(part.labels), len(part.labels) // 400)  # they stand style by style
        tokens, kinds = tokenise(tokenizer, part.images[some]), 4 * part.labels[some] + part.style[some]
        print(f"{metrics.bits_per_token(model, tokens, kinds, 64, scales(SIDES)):.2f} bits a token on things {name}")
    if options.grid:
        draw(tokenizer, model, train.names, options.grid)


def get_tokenizer(path: Path, images: torch.Tensor, share: float) -> VQVAE:
    """The one that is there; else it is trained."""
    if not path.exists():
        torch.manual_seed(0)
        tokenizer = RECIPE.tokenizer(3, SIDES)
        fit(tokenizer, (images,), max(1, round(RECIPE.steps[0] * share)), RECIPE.batch)
        save(path, tokenizer)
    return checkpoint.load(path, device())


def get_model(path: Path, tokenizer: VQVAE, train: data.Emoji, share: float) -> NextScaleAR:
    """The same for the model."""
    if not path.exists():
        torch.manual_seed(0)
        model = RECIPE.next_scale(4 * len(train.names), tokenizer.quantizer)
        tokens, kinds = tokenise(tokenizer, train.images), 4 * train.labels + train.style
        fit(model, (tokens, kinds), max(1, round(RECIPE.steps[1] * share)), 64, plan=scales(SIDES))
        save(path, model)
    return checkpoint.load(path, device())


def draw(tokenizer: VQVAE, model: NextScaleAR, names: tuple[str, ...], path: Path) -> None:
    """A row for each style, a column for each kind. Without guidance: see lesson 11."""
    where = next(model.parameters()).device
    kinds = torch.arange(4 * len(names)).view(-1, 4).T.flatten().to(where)
    generator = torch.Generator(where).manual_seed(3)
    pictures = tokenizer.decode(model.generate(kinds, top_p=0.9, generator=generator))
    titles = [name.split(" ")[0] for name in names]
    plots.show_images(pictures, titles, columns=len(names), rows=list(data.EMOJI_STYLES), scale=3).savefig(path)


def save(path: Path, model: torch.nn.Module) -> None:
    checkpoint.save(path, model.cpu(), torch.float16, eight_bits=True)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

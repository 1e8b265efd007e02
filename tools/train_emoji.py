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

from minar import (  # noqa: E402
    VQVAE,
    CategoricalHead,
    ClassLabel,
    Decoder,
    Encoder,
    MultiScaleQuantizer,
    NextScaleAR,
    Transformer,
)
from minar.lab import checkpoint, data, metrics, plots  # noqa: E402
from minar.lab.recipes import pyramid_sides, tokenise  # noqa: E402
from minar.lab.train import fit  # noqa: E402
from minar.plan import scales  # noqa: E402

SIDES, WIDTH, LAYERS = pyramid_sides(16, 16), 256, 6


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
        tokenizer = VQVAE(Encoder(3, 8, 32, (1, 2)), Decoder(3, 8, 32, (1, 2)), MultiScaleQuantizer(1024, 8, SIDES))
        fit(tokenizer, (images,), max(1, round(5000 * share)), 128)
        save(path, tokenizer)
    return load(path)


def get_model(path: Path, tokenizer: VQVAE, train: data.Emoji, share: float) -> NextScaleAR:
    """The same for the model."""
    if not path.exists():
        torch.manual_seed(0)
        trunk, head = Transformer(WIDTH, LAYERS, 4), CategoricalHead(WIDTH, tokenizer.quantizer.vocab)
        model = NextScaleAR(trunk, ClassLabel(32, WIDTH), head, tokenizer.quantizer)
        tokens, kinds = tokenise(tokenizer, train.images), 4 * train.labels + train.style
        fit(model, (tokens, kinds), max(1, round(12000 * share)), 64, plan=scales(SIDES))
        save(path, model)
    return load(path)


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


def load(path: Path) -> torch.nn.Module:
    return checkpoint.load(path).to("cuda" if torch.cuda.is_available() else "cpu").eval()


if __name__ == "__main__":
    main()

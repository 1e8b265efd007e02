"""Trains the colour models that come with the package: python tools/train_emoji.py

A tokenizer whose pictures are pyramids, and a model that draws emoji scale by scale, of 8 kinds in 4 styles: label =
4 * kind + style. One GPU, some four minutes.
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
from minar.lab import checkpoint, data, metrics  # noqa: E402
from minar.lab.recipes import pyramid_sides, tokenise  # noqa: E402
from minar.lab.train import fit  # noqa: E402
from minar.plan import scales  # noqa: E402

SIDES, WIDTH = pyramid_sides(16, 16), 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "data", help="folder for both files")
    parser.add_argument("--share", type=float, default=1.0, help="part of the steps")
    options = parser.parse_args()
    train, test = data.emoji("all", "train"), data.emoji("all", "test")

    torch.manual_seed(0)
    tokenizer = VQVAE(Encoder(3, 8, 32, (1, 2)), Decoder(3, 8, 32, (1, 2)), MultiScaleQuantizer(1024, 8, SIDES))
    fit(tokenizer, (train.images,), max(1, round(5000 * options.share)), 128)
    save(options.out / "emoji-scales.safetensors", tokenizer)
    where = next(tokenizer.parameters()).device
    rebuilt = torch.cat([tokenizer.reconstruct(x.to(where)).cpu() for x in test.images.split(200)])
    print(f"{metrics.psnr(rebuilt, test.images):.1f} dB on things that were not seen")

    torch.manual_seed(0)
    parts = Transformer(WIDTH, 5, 4), ClassLabel(32, WIDTH), CategoricalHead(WIDTH, tokenizer.quantizer.vocab)
    model, kinds = NextScaleAR(*parts, tokenizer.quantizer), 4 * train.labels + train.style
    fit(model, (tokenise(tokenizer, train.images), kinds), max(1, round(6000 * options.share)), 64, plan=scales(SIDES))
    save(options.out / "emoji-var.safetensors", model)
    for name, part in (("seen", train), ("not seen", test)):
        tokens, labels = tokenise(tokenizer, part.images[:400]), 4 * part.labels[:400] + part.style[:400]
        print(f"{metrics.bits_per_token(model, tokens, labels, 64, scales(SIDES)):.2f} bits a token on things {name}")


def save(path: Path, model: torch.nn.Module) -> None:
    checkpoint.save(path, model.cpu(), torch.float16, eight_bits=True)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

"""Train the classifier whose features judge Fashion pictures, and ship it: data/judge.safetensors.

python tools/train_judge.py          # all of Fashion-MNIST is needed: minar.lab.data.fashion(full=True)
"""

import argparse

import torch

from minar.lab import checkpoint, data
from minar.lab.judge import Judge
from minar.lab.train import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--out", default=data.path("README.md").with_name("judge.safetensors"))
    args = parser.parse_args()
    train, test = data.fashion("train", full=True), data.fashion("test", full=True)
    torch.manual_seed(0)
    model = Judge()
    fit(model, (data.crop28(train.images), train.labels), args.steps, batch=256, lr=2e-3)
    with torch.no_grad():
        device = next(model.parameters()).device
        parts = [model.logits(data.crop28(x.to(device))).argmax(1).cpu() for x in test.images.split(500)]
    print(f"test accuracy {(torch.cat(parts) == test.labels).float().mean():.4f}")
    checkpoint.save(args.out, model, torch.float16)


if __name__ == "__main__":
    main()

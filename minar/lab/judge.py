"""The judge: a small Fashion-MNIST classifier whose features measure how far drawn pictures are from real ones.

Its distance is good for comparing models of this course with each other. It is not FID, which uses Inception's
features of 299 px colour photographs, and must not be compared with one.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.lab import checkpoint, data
from minar.lab.metrics import Distance, frechet

NAME = "Frechet distance (minar's Fashion judge, 64 features, 28 px)"


@checkpoint.register
class Judge(nn.Module):
    """(B, 1, 28, 28) in [-1, 1] -> 64 features -> 10 classes."""

    def __init__(self, width: int = 32, n_features: int = 64, n_classes: int = 10):
        super().__init__()
        self.width, self.n_features, self.n_classes = width, n_features, n_classes
        sizes = [1, width, width, 2 * width, 2 * width, 2 * width]
        strides = [1, 2, 1, 2, 1]  # 28 px -> 7 px
        layers = []
        for a, b, stride in zip(sizes[:-1], sizes[1:], strides):
            layers += [nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.GroupNorm(8, b), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.embed = nn.Linear(2 * width, n_features)
        self.head = nn.Linear(n_features, n_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) -> (B, 64)."""
        return self.embed(self.trunk(images).mean((2, 3)))

    def logits(self, images: Tensor) -> Tensor:
        return self.head(F.silu(self.features(images)))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """() loss: cross-entropy of the class. Half of each batch is mirrored: a left shoe is a shoe, too."""
        flip = (torch.rand(len(images), device=images.device) < 0.5)[:, None, None, None]
        return F.cross_entropy(self.logits(torch.where(flip, images.flip(3), images)), labels, label_smoothing=0.1)


@lru_cache
def judge(device: str = "cpu") -> Judge:
    return checkpoint.load(data.path("judge.safetensors"), device)


@torch.no_grad()
def features(images: Tensor, batch: int = 500) -> Tensor:
    """Features of (B, 1, 32, 32) pictures in [-1, 1], read at the central 28x28. Returns (B, 64) on the CPU."""
    if images.dim() != 4 or images.shape[1] != 1:
        raise ValueError(f"the Fashion judge reads (B, 1, 32, 32), got {tuple(images.shape)}")
    model = judge(str(images.device))
    return torch.cat([model.features(data.crop28(part).float()).cpu() for part in images.split(batch)])


@torch.no_grad()
def accuracy(images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of pictures that the judge takes for what they were asked to be."""
    model = judge(str(images.device))
    guess = torch.cat([model.logits(data.crop28(part).float()).argmax(1) for part in images.split(batch)])
    return float((guess.cpu() == labels.cpu()).float().mean())


def fashion_distance(images: Tensor, full: bool = False) -> Distance:
    """How far pictures are from Fashion-MNIST's training pictures, beside what as many real test pictures score.

    images: (n, 1, 32, 32), n at most the number of test pictures (1,000; 10,000 with full=True).
    """
    real, floor = _reference(full, str(images.device))
    n = len(images)
    if n > len(floor):
        raise ValueError(f"at most {len(floor)} pictures can be judged beside an equal floor, got {n}")
    return Distance(frechet(features(images), real), frechet(floor[:n], real), f"{NAME}, n = {n}")


@lru_cache
def _reference(full: bool, device: str) -> tuple[Tensor, Tensor]:
    train, test = (data.fashion(split, full=full).images.to(device) for split in ("train", "test"))
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    return features(train), features(test[order.to(device)])

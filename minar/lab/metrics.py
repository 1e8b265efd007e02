"""How good: likelihood in bits, use of the codebook, PSNR, and a Frechet distance with its floor beside it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minar.plan import Plan


@torch.no_grad()
def bits_per_token(
    model: nn.Module, tokens: Tensor, labels: Tensor, batch: int = 256, plan: Plan | None = None
) -> float:
    """Mean negative log-likelihood of (n, N) tokens given their labels, in bits: log2 V for a model that knows nothing.

    plan: for a model that follows one; what is drawn in one step counts as independent, because it is drawn so.
    Comparable between models of one tokenizer only: another tokenizer is another language.
    """
    device = next(model.parameters()).device
    pairs = zip(tokens.to(device).split(batch), labels.to(device).split(batch), strict=True)
    if plan is None:
        parts = [model(t, y, p_drop=0.0) * len(t) for t, y in pairs]
    else:
        plan = plan.to(device)
        parts = [model.nll(t, y, plan).mean() * len(t) for t, y in pairs]
    return float(torch.stack(parts).sum()) / len(tokens) / math.log(2)


def bits_per_pixel(bits: float, n_tokens: int, pixels: int) -> float:
    """Bits per token spread over the pixels that the tokens stand for."""
    return bits * n_tokens / pixels


def usage(hits: Tensor) -> float:
    """Share of the codes that were used at all."""
    return float((hits > 0).float().mean())


def perplexity(hits: Tensor) -> float:
    """exp of the entropy of the codes' use: V if all are used alike, 1 if one code does everything."""
    p = hits.cpu().double() / max(1, int(hits.sum()))
    return float(torch.exp(-(p * p.clamp_min(1e-300).log()).sum()))


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1]: each image's own, then the mean over (B, C, H, W)."""
    error = (a.float() - b.float()).square().flatten(1).mean(1).clamp_min(1e-10)
    return float((10 * torch.log10(4 / error)).mean())


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between the Gaussians that fit two sets of features, (n, F) and (m, F).

    |mean difference|^2 + tr(Sa + Sb - 2 (Sa Sb)^1/2), in float64 on the CPU. Heusel et al., 2017, use Inception's
    features and call it FID; with any other features it is another number. It falls as n grows: compare equal n.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"needs two sets of 2 or more equally wide rows, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.cpu().double(), b.cpu().double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = matrix_root(cov_a)
    cross = matrix_root(root @ cov_b @ root)
    gap = (a.mean(0) - b.mean(0)).square().sum()
    return float(gap + cov_a.trace() + cov_b.trace() - 2 * cross.trace())


def matrix_root(m: Tensor) -> Tensor:
    """Square root of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh((m + m.T) / 2)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


class Distance(NamedTuple):
    """A Frechet distance that carries its name and its floor: what real pictures score against other real pictures."""

    value: float
    floor: float
    name: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.2f} (real against real: {self.floor:.2f})"

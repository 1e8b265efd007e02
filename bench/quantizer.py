"""The quantizer: look-up and training step, against distances that are all held at once."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.measure import paired, peak_bytes, report
from bench.peers import vector_quantize
from minar import VectorQuantizer
from minar.quantizers import nearest

CASES = {"cpu": [(2048, 64, 1024), (2048, 64, 8192)], "cuda": [(16384, 8, 16384), (16384, 256, 16384)]}  # N, d, K


class AllAtOnce(nn.Module):
    """The textbook quantizer: an N x K matrix of distances, and an N x K one-hot matrix to look codes up."""

    def __init__(self, vocab: int, channels: int):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(vocab, channels))

    def forward(self, z: Tensor) -> Tensor:
        rows = z.flatten(2).transpose(1, 2).flatten(0, 1)
        tokens = torch.cdist(rows, self.codebook).argmin(1)
        chosen = F.one_hot(tokens, len(self.codebook)).type_as(rows) @ self.codebook
        return F.mse_loss(chosen, rows.detach()) + 0.25 * F.mse_loss(rows, chosen.detach())


def run(
    device: torch.device, repeats: int = 5, path: Path | None = None, cases: list | None = None, peers: bool = False
) -> str:
    rows = []
    for n, channels, vocab in cases or CASES[device.type]:
        torch.manual_seed(0)
        ours, textbook = VectorQuantizer(vocab, channels).to(device), AllAtOnce(vocab, channels).to(device)
        ours.codebook.data.copy_(textbook.codebook.data)
        z = torch.randn(16, channels, n // 16, 1, device=device, requires_grad=True)
        flat = z.detach().flatten(2).transpose(1, 2).flatten(0, 1)
        mine, theirs = nearest(flat, ours.codebook.detach()), torch.cdist(flat, textbook.codebook.detach()).argmin(1)
        same = (mine == theirs).float().mean().item()
        calls = {
            "look-up": lambda f=flat, q=ours: nearest(f, q.codebook.detach()),
            "cdist + argmin": lambda f=flat, q=textbook: torch.cdist(f, q.codebook.detach()).argmin(1),
            "training step": lambda z=z, q=ours: q(z).loss.backward(),
            "textbook step": lambda z=z, q=textbook: q(z).backward(),
        }
        if peers:
            theirs = vector_quantize(channels, ours.codebook.detach(), z)
            calls |= {f"vq {what}": f for what, f in theirs.items()}
        seconds = paired(calls, device, repeats)
        for way, other in (("look-up", "cdist + argmin"), ("training step", "textbook step")):
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            peak = peak_bytes(calls[way], device)
            rows.append(
                {
                    "vectors": n,
                    "d": channels,
                    "codes": vocab,
                    "what": way,
                    "ms": 1e3 * seconds[way],
                    "textbook ms": 1e3 * seconds[other],
                    "textbook / it": seconds[other] / seconds[way],
                    "vq / it": seconds[f"vq {way}"] / seconds[way] if peers else None,
                    "extra GB": (peak - before) / 1e9 if peak else None,
                    "same codes %": 100 * same,
                }
            )
    return report(rows, device, path)

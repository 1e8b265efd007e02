"""Training: tokens per second and peak memory of `fit` on LlamaGen-B's shape (6 x 384 on a CPU)."""

from pathlib import Path

import torch

from bench.measure import once, peak_bytes, report
from minar import GPT, Transformer
from minar.lab.train import fit

SHAPES = {
    "cpu": ("6x384", 384, 6, 6, 1024, 4),
    "cuda": ("B", 768, 12, 12, 16384, 64),
}  # width, layers, heads, codes, rows


def run(device: torch.device, repeats: int = 20, path: Path | None = None) -> str:
    """`repeats` steps of 256 tokens a row, after as many to warm up; compiled as well where there is a GPU."""
    name, width, layers, heads, vocab, batch = SHAPES[device.type]
    tokens, label = torch.randint(vocab, (4 * batch, 256)), torch.randint(10, (4 * batch,))
    rows = []
    for compiled in (False, True) if device.type == "cuda" else (False,):
        torch.manual_seed(0)
        model = GPT(Transformer(width, layers, heads), vocab, 10, (16, 16))

        def steps(n: int, model: GPT = model, compiled: bool = compiled) -> None:
            fit(model, (tokens, label), n, batch, device=device.type, progress=False, compiled=compiled)

        steps(repeats)
        short, long = once(lambda f=steps: f(repeats), device), once(lambda f=steps: f(3 * repeats), device)
        seconds = (long - short) / (2 * repeats)  # what starting and recording take stands in both
        peak = peak_bytes(lambda f=steps: f(repeats), device)
        rows.append(
            {
                "model": name,
                "compiled": str(compiled),
                "ms per step": 1e3 * seconds,
                "tokens/s": batch * 256 / seconds,
                "peak GB": peak / 1e9 if peak else None,
            }
        )
    return report(rows, device, path, parameters=sum(p.numel() for p in model.parameters()))

"""Decoding: naive, with a KV cache, and fast, with the check that their tokens are equal before any speed counts.

256 tokens with guidance, so two rows a picture. `x floor` is the time over what reading the weights and the live keys
and values takes at the bandwidth measured in the same run; `memory` is the peak over weights, keys, values and one set
of logits.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from bench.measure import paired, peak_bytes, read_bandwidth, report
from bench.peers import hugging_face
from minar import CategoricalHead, ClassLabel, NextStepAR, Transformer, fast, generate
from minar.plan import Plan, raster, region_groups

SHAPES = {  # width, layers, heads, codes
    "6x384": (384, 6, 6, 1024),
    "B": (768, 12, 12, 16384),
    "L": (1024, 24, 16, 16384),
    "XL": (1280, 36, 20, 16384),
}
CASES = {
    "cpu": [("6x384", 1)],
    "cuda": [("B", 1), ("B", 8), ("B", 64), ("B", 256), ("L", 1), ("L", 64), ("XL", 1)],
}
NAIVE = {("6x384", 1), ("B", 1)}  # elsewhere it would take minutes
CFG = 1.5


def run(
    device: torch.device, repeats: int = 3, path: Path | None = None, cases: list | None = None, peers: bool = False
) -> str:
    """One row for each shape, batch and way; PAR's plans beside raster at batch 1. peers: Hugging Face, too."""
    bandwidth, rows, checked = read_bandwidth(device), [], set()
    for name, batch in cases or CASES[device.type]:
        if name not in checked:
            check(build(name, device), device)  # a model of its own: its recordings go with it
            checked.add(name)
        model = build(name, device)
        if device.type == "cuda":
            model.bfloat16()
        plans = {"raster": raster(16, 16)}
        if batch == 1:
            plans |= {"4 regions": region_groups(16, 16, 2), "16 regions": region_groups(16, 16, 4)}
        for plan_name, plan in plans.items():
            naive = (name, batch) in NAIVE and plan_name == "raster"
            rows += case(model, f"{name} {plan_name}", batch, plan, naive, device, repeats, bandwidth, peers)
        del model
        report(rows, device, path, read_gb_per_s=bandwidth / 1e9)  # so that a stop loses nothing
        print(f"{name} x {batch}: done", file=sys.stderr, flush=True)
    return report(rows, device, path, read_gb_per_s=bandwidth / 1e9)


def case(
    model, name: str, batch: int, plan: Plan, naive: bool, device, repeats: int, bandwidth: float, peers: bool
) -> list[dict]:
    label = (torch.arange(batch) % 10).to(device)
    calls = {
        "cached": lambda: generate(model, label, plan, CFG),
        "fast": lambda: fast.generate(model, label, plan, CFG),
    }
    if naive:
        calls = {"naive": lambda: generate(model, label, plan, CFG, use_cache=False)} | calls
    if peers and plan.n_steps == plan.n:
        calls |= hugging_face(model, batch)
    seconds = paired(calls, device, repeats)
    floor, held = memory_floor(model, batch, plan)
    rows = []
    for way, taken in seconds.items():
        peak = peak_bytes(calls[way], device)
        rows.append(
            {
                "case": name,
                "batch": batch,
                "way": way,
                "steps": plan.n_steps,
                "s": taken,
                "pictures/s": batch / taken,
                "naive / it": seconds["naive"] / taken if naive else None,
                "it / fast": taken / seconds["fast"],
                "x floor": taken / (floor / bandwidth),
                "memory": peak / held if peak else None,
            }
        )
    return rows


def build(name: str, device: torch.device, grid: tuple[int, int] = (16, 16)) -> NextStepAR:
    width, layers, heads, vocab = SHAPES[name]
    torch.manual_seed(0)
    head = CategoricalHead(width, vocab)
    nn.init.normal_(head.weight, std=0.02)
    trunk, embed, cond = Transformer(width, layers, heads), nn.Embedding(vocab, width), ClassLabel(10, width)
    return NextStepAR(trunk, embed, cond, head, grid).to(device).eval()


@torch.no_grad()
def check(model: NextStepAR, device: torch.device) -> None:
    """Greedy tokens in float32: the first 16 steps naively, then cached against fast over the whole picture."""
    label, plan = torch.tensor([1, 2], device=device), raster(16, 16)
    cached = generate(model, label, plan, CFG, temperature=0)
    assert torch.equal(fast.generate(model, label, plan, CFG, temperature=0), cached), "fast draws other tokens"
    prefix = model.prefix(label, guided=True)
    for s in range(16):
        alone = model.draw(cached, prefix, plan.to(device), s, None, CFG, temperature=0)
        assert torch.equal(alone[:, 0], cached[:, s]), f"with a cache token {s} is another"


def memory_floor(model: NextStepAR, batch: int, plan: Plan) -> tuple[int, int]:
    """Bytes that must be read in all, and bytes that must be held."""
    size = model.head.weight.element_size()
    weights = sum(p.numel() for p in (*model.trunk.parameters(), *model.head.parameters())) * size
    slot = 2 * model.trunk.n_layers * model.trunk.width * size * 2 * batch  # keys and values, two rows a picture
    live = sum(plan.starts[s + 1] for s in range(plan.n_steps))
    everything = sum(p.numel() for p in model.parameters()) * size
    logits = 2 * batch * max(plan.sizes) * model.head.vocab * 4
    return weights * plan.n_steps + slot * live, everything + slot * plan.n + logits

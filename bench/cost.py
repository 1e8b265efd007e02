"""How the time of a picture grows with its tokens: the slope of log seconds over log tokens, 1 if each costs the same.

Without a cache each token computes all before it again: the slope is 2, or more where attention counts.
"""

import math
from pathlib import Path

import torch

from bench.decode import build
from bench.measure import paired, report
from minar import fast, generate
from minar.plan import raster

SIDES = {"cpu": (8, 16), "cuda": (16, 32)}


def run(device: torch.device, repeats: int = 3, path: Path | None = None, sides: tuple[int, int] | None = None) -> str:
    sides, seconds = sides or SIDES[device.type], {}
    for side in sides:
        model = build("6x384", device, (side, side))
        plan, label = raster(side, side), torch.tensor([1], device=device)
        calls = {
            "naive": lambda m=model, y=label, p=plan: generate(m, y, p, 1.5, use_cache=False),
            "cached": lambda m=model, y=label, p=plan: generate(m, y, p, 1.5),
            "fast": lambda m=model, y=label, p=plan: fast.generate(m, y, p, 1.5),
        }
        seconds[side] = paired(calls, device, repeats)
    few, many = sides
    rows = [
        {
            "way": way,
            f"s, {few**2} tokens": seconds[few][way],
            f"s, {many**2} tokens": seconds[many][way],
            "slope": math.log(seconds[many][way] / seconds[few][way]) / math.log(many**2 / few**2),
        }
        for way in seconds[few]
    ]
    return report(rows, device, path)

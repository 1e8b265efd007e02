"""RAR: random orders at first, raster in the end. A line of the training loop; the model and its sampler stay.

Each image is put into a random order with a probability that falls from 1 to 0 while training goes on. So each token
is learned from both sides, and decoding is plain raster decoding with a cache. RAR's target-aware position embedding
is `target` of NextStepAR: in a random order a slot cannot know otherwise which token it has to predict.

Yu et al., "Randomized Autoregressive Visual Generation", 2024.
"""

from collections.abc import Callable

import torch

from minar.checks import check_number
from minar.plan import Plan, random_order, raster


def annealed(grid: tuple[int, int], start: float = 0.5, end: float = 0.75) -> Callable[[int, float], Plan]:
    """What `fit(plan=...)` takes: plan(batch, done) draws an order for each row, one token a step.

    A row's order is random with the probability `share_random(done, start, end)`, else it is raster. start, end:
    shares of all steps, 0 <= start <= end <= 1, or ValueError. The defaults are those of the official training: 125k
    and 187.5k of 250k steps. (0, 0) is always raster, (1, 1) always random. Draws come from torch's global stream on
    the CPU, which `fit` seeds at each step.
    """
    check_number("start", start, 0, 1)
    check_number("end", end, start, 1)
    in_raster = raster(*grid)

    def plan(batch: int, done: float) -> Plan:
        shuffled = random_order(*grid, batch)
        is_random = torch.rand(batch, 1) < share_random(done, start, end)
        return Plan(torch.where(is_random, shuffled.pos, in_raster.pos), in_raster.sizes)

    return plan


def share_random(done: float, start: float = 0.5, end: float = 0.75) -> float:
    """Probability that a row's order is random when the share `done` of all steps, in [0, 1], is taken.

    1 up to `start`, then falling linearly, 0 from `end` on. Where both are the same, it falls at once.
    """
    check_number("done", done, 0, 1)
    if done < start:
        return 1.0
    return (end - done) / (end - start) if done < end else 0.0

"""Training: one loop for tokenizers and transformers, on one device or many.

`fit` calls `model(*rows)`, which is the loss. Whatever is random in a step (the rows, dropped labels, restarted
codes) is drawn from a stream seeded by that step, so that a run that was killed goes on as if it had not been.
"""

import inspect
import math
import os
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minar.lab import checkpoint, resume
from minar.lab.codebook import Gardener
from minar.lab.log import Log
from minar.lab.profile import device as choose_device
from minar.lab.replay import Replay
from minar.plan import Plan


def fit(
    model: nn.Module,
    data: tuple[Tensor, ...],
    steps: int,
    batch: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    ema: float = 0.999,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    save_every: float = 60.0,
    log_every: int = 50,
    progress: bool = True,
    plan: Plan | Callable[[int, float], Plan] | None = None,
    compiled: bool = False,
) -> list[dict]:
    """Train the model in place, leave its averaged (EMA) weights in it, and return the log, one dict per line.

    data: tensors with equal first dimensions, (images,) or (tokens, labels). batch: rows per step, all processes
    together. AdamW; warm-up over the first twentieth, then a cosine to zero; gradients clipped at norm 1; bf16
    autocast on CUDA. out: a folder for log.jsonl, the state of training every `save_every` seconds, and in the end
    model.safetensors; called again with the same folder, fit goes on where it was. Under torchrun each process
    takes its share of the batch. plan: for a model that follows one (ARModel); or a function plan(rows, done) that
    draws one for so many rows, anew at each step. done: the share of all steps already taken, in [0, 1), so that
    what changes on the way (minar.papers.rar) survives a resume. compiled: with torch.compile, which takes a
    minute to begin with. Raises FloatingPointError where the loss stops being a number.
    """
    recipe = {"steps": steps, "batch": batch, "lr": lr, "weight_decay": weight_decay, "ema": ema, "seed": seed}
    recipe["data"] = check_data(model, data, batch)
    if plan is not None:
        recipe["plan"] = check_plan(model, plan, batch)
    rank, world, device = place(device)
    plan = plan.to(device) if isinstance(plan, Plan) else plan
    model.to(device).train()
    data = tuple(x.to(device) for x in data)
    run = Run(model, recipe)
    out = Path(out) if out else None
    if out and (out / resume.STATE).exists():
        resume.restore(run, out / resume.STATE)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False) if world > 1 else model
    if compiled:
        wrapped = torch.compile(wrapped, dynamic=False)
    gradients = partial(run.gradients, wrapped)
    if device.type == "cuda" and world == 1:
        gradients = Replay(gradients, model)
    log = Log(out / "log.jsonl" if out and rank == 0 else None, run.step)
    saved = time.monotonic()

    bar = tqdm(total=steps, initial=run.step, disable=not progress or rank > 0, desc=type(model).__name__)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), bar:
        while run.step < steps:
            torch.manual_seed(stream(seed, run.step * world + rank))
            rows = pick_rows(len(data[0]), batch, run.step, seed)[rank::world].to(device)
            part = tuple(x[rows] for x in data)
            run.gardener.tend(run, part)
            if plan is not None:
                part += (plan(len(rows), run.step / steps).to(device) if callable(plan) else plan,)
            log.count(gradients(*part), batch)
            run.update()
            bar.update()
            if run.step % log_every == 0 or run.step == steps:
                bar.set_postfix(log.line(run))
            if out and rank == 0 and (run.step == steps or time.monotonic() - saved >= save_every):
                log.mean(run.step)  # raises: a state that is no number would fail again at each resume
                resume.save(run, out / resume.STATE)
                saved = time.monotonic()

    run.finish()
    if out and rank == 0:
        checkpoint.save(out / "model.safetensors", model)
    return log.lines


class Run:
    """All that changes while training: the weights, their running average, the optimizer, and the step."""

    def __init__(self, model: nn.Module, recipe: dict):
        self.model, self.recipe, self.step = model, recipe, 0
        self.named = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.average = {k: p.detach().clone() for k, p in self.named.items()}
        fused = next(iter(self.named.values())).is_cuda
        self.optimizer = torch.optim.AdamW(self._groups(), lr=recipe["lr"], betas=(0.9, 0.95), fused=fused)
        self.gardener = Gardener(model)

    def gradients(self, wrapped: nn.Module, *part: Tensor) -> Tensor:
        """Fresh gradients of the loss, which is returned. wrapped: the model, or what makes it work with others."""
        self.optimizer.zero_grad()
        device = part[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = wrapped(*part)
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """One step along the gradients: clipping, AdamW, and the average."""
        nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        decay = min(self.recipe["ema"], (1 + self.step) / (10 + self.step))  # a young average forgets its random start
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.named.values()], 1 - decay)
        self.step += 1

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        warm = max(1, self.recipe["steps"] // 20)
        if self.step < warm:
            return self.recipe["lr"] * (self.step + 1) / warm
        done = (self.step - warm) / max(1, self.recipe["steps"] - warm)
        return self.recipe["lr"] * (1 + math.cos(math.pi * done)) / 2

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averaged weights into the model."""
        for k, p in self.named.items():
            p.copy_(self.average[k])
        self.model.eval()

    def _groups(self) -> list[dict]:
        """Weight decay for matrices alone: gains and biases are no place for it, and codes must stay on the data."""
        decays = {k: p.dim() >= 2 and not k.endswith("codebook") for k, p in self.named.items()}
        matrices = [p for k, p in self.named.items() if decays[k]]
        others = [p for k, p in self.named.items() if not decays[k]]
        return [
            {"params": matrices, "weight_decay": self.recipe["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]


def check_data(model: nn.Module, data: tuple[Tensor, ...], batch: int) -> list[list[int]]:
    """Look once at the whole data set, so that no step has to. Returns its shapes."""
    if isinstance(data, Tensor) or not data:
        given = f"a {type(data).__name__}" if isinstance(data, Tensor) else "an empty tuple"
        raise TypeError(f"data must be a tuple of tensors, (images,) or (tokens, labels), got {given}")
    if len({len(x) for x in data}) > 1 or len(data[0]) == 0:
        raise ValueError(f"data must have equal, non-zero first dimensions, got {[len(x) for x in data]}")
    world = int(os.environ.get("WORLD_SIZE", 1))
    if batch < 1 or batch % world:
        raise ValueError(f"batch must be a multiple of the {world} process(es), got {batch}")
    if hasattr(model, "check"):
        signature = inspect.signature(model.check)
        try:
            signature.bind(*data, wait=True)
        except TypeError:
            names = ", ".join(name for name in signature.parameters if name != "wait")
            raise TypeError(f"{type(model).__name__} trains on ({names}), got {len(data)} tensor(s)") from None
        model.check(*data, wait=True)
    return [list(x.shape) for x in data]


def check_plan(model: nn.Module, plan: Plan | Callable[[int, float], Plan], batch: int) -> list | str:
    """Raise unless the model can follow the plan. Returns what tells it from others, as far as that can be told."""
    if not hasattr(model, "check_plan"):
        raise TypeError(f"{type(model).__name__} follows no plan: leave it out")
    with torch.random.fork_rng(devices=[]):
        model.check_plan(plan(batch, 0.0) if callable(plan) else plan, batch)
    return "drawn" if callable(plan) else [list(plan.sizes), plan.pos.tolist()]


def place(device: str) -> tuple[int, int, torch.device]:
    """Rank, number of processes and device of this process. torchrun sets the variables that are read here."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, choose_device(device)
    cuda = torch.cuda.is_available() and device != "cpu"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return dist.get_rank(), world, torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")


def stream(seed: int, number: int) -> int:
    """A seed of its own for each step and process of each run."""
    return seed * 1_000_000_007 + number


def pick_rows(n: int, batch: int, step: int, seed: int) -> Tensor:
    """The rows of one step, (batch,): the data set is shuffled once per epoch and read in that order."""
    first, rows = step * batch, []
    for epoch in range(first // n, (first + batch - 1) // n + 1):
        start = epoch * n
        rows.append(shuffled(n, seed, epoch)[max(first - start, 0) : first + batch - start])
    return torch.cat(rows)


@lru_cache(maxsize=2)
def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(stream(seed, epoch)))

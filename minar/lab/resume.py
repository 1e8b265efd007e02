"""The state of a training run in one file, written whole or not at all, so that a kill at any moment loses little."""

import json
from pathlib import Path

import torch

from minar.lab import checkpoint
from minar.lab.checkpoint import CheckpointError

STATE = "state.safetensors"
ADAM = ("step", "exp_avg", "exp_avg_sq")


def save(run, path: Path) -> None:
    tensors = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in run.average.items()}
    for k, p in run.named.items():
        tensors |= {f"{moment}.{k}": run.optimizer.state[p][moment] for moment in ADAM if p in run.optimizer.state}
    checkpoint.write(path, tensors, header(run) | {"step": run.step, "owns": run.gardener.owns})


@torch.no_grad()
def restore(run, path: Path) -> None:
    """Raises CheckpointError if the file belongs to another architecture or another recipe."""
    tensors, saved = checkpoint.read(path)
    _same(path, saved, header(run))
    checkpoint.fill(run.model, _part(tensors, "model"), path)
    average, moments = _part(tensors, "average"), {moment: _part(tensors, moment) for moment in ADAM}
    for k, p in run.named.items():
        run.average[k].copy_(average[k])
        if k in moments["step"]:
            # copies: on a CPU these would stay views of the file, and Windows replaces no file that is in use
            run.optimizer.state[p] = {m: moments[m][k].to(p.device, copy=True) for m in ADAM}
            if not p.is_cuda:
                run.optimizer.state[p]["step"] = moments["step"][k].clone()
    run.step, run.gardener.owns = saved["step"], saved["owns"]


def header(run) -> dict:
    return json.loads(json.dumps({"model": checkpoint.spec(run.model), "recipe": run.recipe}))


def _same(path: Path, saved: dict, own: dict) -> None:
    if "recipe" not in saved:
        raise CheckpointError(f"{path}: is a model, not the state of a training run")
    if saved["model"] != own["model"]:
        raise CheckpointError(f"{path}: was written by another architecture: use another folder, or delete this one")
    other = {k: (saved["recipe"].get(k), v) for k, v in own["recipe"].items() if saved["recipe"].get(k) != v}
    if other:
        was = ", ".join(f"{k} was {a}, is {b}" for k, (a, b) in other.items())
        raise CheckpointError(f"{path}: was trained otherwise ({was}): use another folder, or delete this one")


def _part(tensors: dict, name: str) -> dict:
    return {k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name + ".")}

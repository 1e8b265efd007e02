"""Checkpoints: one safetensors file with the weights, and in its header the constructor arguments as json.

A model is rebuilt from {class, args}, so a file needs no code beside it and no pickle. The rule that makes this work:
every model class keeps each constructor argument in an attribute of the same name.
"""

import importlib
import inspect
import json
import os
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

import minar

PUBLIC = {name: getattr(minar, name) for name in minar.__all__}
CLASSES: dict[str, type] = {name: x for name, x in PUBLIC.items() if isinstance(x, type) and issubclass(x, nn.Module)}

SCALE = ".row_step"  # what a weight in eight bits has beside it
STANDARD = {nn.Embedding: ("num_embeddings", "embedding_dim")}
CLASSES |= {cls.__name__: cls for cls in STANDARD}  # torch's own; other arguments stay at their defaults


class CheckpointError(RuntimeError):
    """A file that cannot be read as the checkpoint that was asked for; the message is one line."""


def register(cls: type) -> type:
    """Let a class of your own be saved and loaded: use it as a decorator, before `load`."""
    CLASSES[cls.__name__] = cls
    return cls


def save(path: str | Path, model: nn.Module, dtype: torch.dtype | None = None, eight_bits: bool = False) -> Path:
    """Write the model to a temporary file beside `path`, then rename it: a crash leaves the old file whole.

    dtype: round floating-point weights to it (torch.float16 halves the file). eight_bits: of linear layers and
    embeddings, one number a row and an integer a weight, which halves it again; codebooks and convolutions keep
    their precision. Raises OSError if it cannot be written.
    """
    tensors = model.state_dict()
    small = to_integers(tensors) if eight_bits else {}
    rest = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in tensors.items() if k not in small}
    return write(path, rest | small, {"model": spec(model)})


def load(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Rebuild the model that `save` wrote, in eval mode and float32. Raises CheckpointError with one clear line."""
    tensors, header = read(path)
    model = rebuild(header["model"], path)
    fill(model, from_integers(tensors), path)
    return model.to(device).eval()


def to_integers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of these, every 2-D `weight` (n, m) as int8, with the step of each row, (n, 1) float32, beside it."""
    out = {}
    for key, value in tensors.items():
        if key.endswith("weight") and value.dim() == 2:
            step = value.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            out[key], out[key + SCALE] = (value.float() / step).round().to(torch.int8), step
    return out


def from_integers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, up to rounding; what was no integer stays."""
    scales = {k: v for k, v in tensors.items() if k.endswith(SCALE)}
    rest = {k: v for k, v in tensors.items() if k not in scales}
    return rest | {k.removesuffix(SCALE): rest[k.removesuffix(SCALE)].float() * step for k, step in scales.items()}


def spec(value):
    """A module as {class, args}, nested; plain values as json has them."""
    if not isinstance(value, nn.Module):
        return value
    name = type(value).__name__
    if CLASSES.get(name) is not type(value):
        raise TypeError(f"{name} is not known to checkpoints: decorate it with @minar.lab.checkpoint.register")
    names = STANDARD.get(type(value)) or list(inspect.signature(type(value)).parameters)
    module = type(value).__module__
    where = {"module": module} if name not in PUBLIC and module.startswith("minar.") else {}
    return {"class": name, **where, "args": {k: spec(getattr(value, k)) for k in names}}


def rebuild(value, path: str | Path = "checkpoint"):
    """The inverse of `spec`, with fresh weights."""
    if isinstance(value, list):
        return tuple(rebuild(v, path) for v in value)
    if not isinstance(value, dict):
        return value
    if value.get("class") not in CLASSES and str(value.get("module")).startswith("minar."):
        with suppress(ImportError):  # it registers its classes; only this package's own code is ever imported
            importlib.import_module(value["module"])
    if value.get("class") not in CLASSES:
        known = ", ".join(sorted(CLASSES))
        raise CheckpointError(f"{path}: holds a {value.get('class')!r}; known are {known}: import its module first")
    try:
        return CLASSES[value["class"]](**{k: rebuild(v, path) for k, v in value["args"].items()})
    except TypeError as error:
        raise CheckpointError(
            f"{path}: {value['class']} takes other arguments here ({error}): made elsewhere?"
        ) from error


def fill(model: nn.Module, tensors: dict[str, Tensor], path: str | Path = "checkpoint") -> None:
    """Copy tensors into the model, naming the first key that is missing, unknown, or of another shape."""
    own = model.state_dict()
    for key in sorted(own.keys() | tensors.keys()):
        if key not in tensors:
            raise CheckpointError(f"{path}: misses {key!r}, which {type(model).__name__} needs: is it another model?")
        if key not in own:
            raise CheckpointError(f"{path}: holds {key!r}, which {type(model).__name__} has no place for")
        if own[key].shape != tensors[key].shape:
            given, expected = tuple(tensors[key].shape), tuple(own[key].shape)
            name = type(model).__name__
            raise CheckpointError(
                f"{path}: {key!r} is {given}, {name} expects {expected}: build it with the same sizes"
            )
    model.load_state_dict(tensors)


def write(path: str | Path, tensors: dict[str, Tensor], header: dict) -> Path:
    """Tensors and a json header into one file, whole or not at all."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"cannot save to {path}: it is not a file; give a name such as model.safetensors")
    temporary = path.with_name(path.name + ".tmp")
    data = to_bytes({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"minar": json.dumps(header)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # there is none below something that is not a folder
            temporary.unlink()
        needed = f"{len(data) / 1e6:.1f} MB are needed there; an older file is untouched"
        raise OSError(error.errno, f"cannot save to {path} ({error.strerror}): {needed}") from error
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the header that `write` wrote. Raises CheckpointError for anything else."""
    path = Path(path)
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.safetensors"))) or "no checkpoint"
        raise CheckpointError(f"{path}: no such file; {path.parent}/ holds {near}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
            header = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {_what_is_wrong(path)}; copy or train it again ({error})") from error
    if "minar" not in header:
        raise CheckpointError(f"{path}: safetensors, but not written by minar; official weights go through minar.ports")
    return tensors, json.loads(header["minar"])


def _what_is_wrong(path: Path) -> str:
    start = path.read_bytes()[:2]
    if start in (b"PK", b"\x80\x02", b"\x80\x04"):
        return "a PyTorch pickle, which is never opened here; official .pt files are read by minar.ports"
    return f"truncated or not safetensors ({path.stat().st_size} bytes)"

"""The models that come with the package, and how the lessons make them.

A training cell always trains. Only in the `full` profile is its result good enough to look at, and then it is what the
package ships; elsewhere the shipped model takes its place, so that figures show what the lesson is about.
"""

from pathlib import Path

import torch
from torch import nn

from minar.lab import checkpoint, data
from minar.lab.profile import profile

NEW = Path("runs/shipped")  # a full run writes here, below the working directory; to publish, copy the files to data/


def shipped(name: str, trained: nn.Module | None = None) -> nn.Module:
    """The shipped model `name`, in eval mode, on the device of `trained` (else the CPU).

    In the full profile a trained model is first rounded (linear layers and embeddings to eight bits, all else to half
    precision) and written to runs/shipped/, and that file is what comes back. FileNotFoundError lists what there is.
    """
    device = next(trained.parameters()).device if trained is not None else "cpu"
    new = NEW / f"{name}.safetensors"
    if trained is not None and profile() == "full":
        checkpoint.save(new, trained, torch.float16, eight_bits=True)
    return checkpoint.load(new if new.exists() else data.path(f"{name}.safetensors"), device)

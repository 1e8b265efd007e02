"""How big a run is, what it must show, and on what it runs: profile, pick, claim, exercise, device.

One environment variable, MINAR_PROFILE, says how much machine there is: `smoke` two cores and a minute, `lab` a laptop
or a free GPU (the default), `full` one big GPU. A notebook never asks which one it is: it picks sizes and makes claims.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

PROFILES = ("smoke", "lab", "full")


def profile() -> str:
    """The profile of this run, from MINAR_PROFILE: "smoke", "lab" or "full"; "lab" where it is not set.

    Raises ValueError for any other word.
    """
    name = os.environ.get("MINAR_PROFILE") or "lab"
    if name not in PROFILES:
        raise ValueError(f"MINAR_PROFILE is {name!r}, expected smoke, lab or full: set it before starting the kernel")
    return name


def pick(*, smoke: Any, full: Any, lab: Any = None) -> Any:
    """The value for this run's profile: `steps = pick(smoke=20, lab=2000, full=8000)`.

    Without `lab` a laptop takes the smoke value: too small a picture is better than an evening of waiting.
    """
    return {"smoke": smoke, "lab": smoke if lab is None else lab, "full": full}[profile()]


def claim(text: str, ok: Any, when: str | None = None) -> None:
    """Print "claim: text" if `ok` holds (a bool, or a tensor with one element), raise AssertionError if it does not.

    With `when="full"` the claim is judged in that profile only; elsewhere it prints "claim (judged in full): text",
    so such a claim must not stand in a cell whose output is checked.
    """
    if when is not None and when not in PROFILES:
        raise ValueError(f"when is {when!r}, expected smoke, lab, full or None")
    if when not in (None, profile()):
        print(f"claim (judged in {when}): {text}")
        return
    if not bool(ok):
        raise AssertionError(f"claim failed: {text}")
    print(f"claim: {text}")


def exercise(check: Callable, f: Callable, *args: Any) -> None:
    """Judge an exercise with `check(f, *args)`. Prints "to do" while f raises NotImplementedError, "ok" when it passes.

    Any other error goes through with its own message: that is the check telling what is wrong. A grader must not take
    "to do" for a pass, so where nbgrader runs the notebook (NBGRADER_EXECUTION is set) NotImplementedError goes through
    too. A message in NotImplementedError is printed after "to do", because PyTorch raises the same error for an
    operation that a device lacks.
    """
    try:
        check(f, *args)
    except NotImplementedError as error:
        if os.environ.get("NBGRADER_EXECUTION"):
            raise
        print(f"to do: {error}" if str(error) else "to do")
    else:
        print("ok")


def device(name: str = "auto") -> torch.device:
    """The torch device of that name. "auto" is the best there is: cuda, then mps, then cpu.

    Raises ValueError for a name that torch does not know, RuntimeError for a GPU that is not there.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in has if has[kind]))
    try:
        wanted = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}, expected auto, cuda, mps or cpu") from None
    if not has.get(wanted.type, True):
        raise RuntimeError(f"device {name!r} was asked for, but this torch finds none: use 'auto' or 'cpu'")
    return wanted

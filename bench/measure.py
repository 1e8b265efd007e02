"""What all benches need: paired timing, the machine's own ceilings, and a report as table and json."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch

from minar.lab.table import table


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(f: Callable, device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    wait(device)
    start = time.perf_counter()
    f()
    wait(device)
    return time.perf_counter() - start


def paired(calls: Mapping[str, Callable], device: torch.device, repeats: int = 3) -> dict[str, float]:
    """Median seconds of each call, after one to warm up; they take turns, so that a noisy moment hits all."""
    for f in calls.values():
        f()
    taken = {name: [] for name in calls}
    for _ in range(repeats):
        for name, f in calls.items():
            taken[name].append(once(f, device))
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second that a plain sum reads from memory: the ceiling of whatever must read its weights."""
    x = torch.ones(2**28 if device.type == "cuda" else 2**26, device=device)
    seconds = min(once(x.sum, device) for _ in range(5))
    return x.numel() * x.element_size() / seconds


def peak_bytes(f: Callable, device: torch.device) -> int | None:
    """Most memory held during the call, all that was there before included. None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    f()
    wait(device)
    return torch.cuda.max_memory_allocated(device)


def machine(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    return {"device": name, "torch": torch.__version__, "python": platform.python_version(), "date": str(date.today())}


def report(rows: list[dict], device: torch.device, path: Path | None, **more) -> str:
    """The table as text; everything as json if a path is given."""
    about = machine(device) | more
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    head = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in about.items())
    return f"{table(rows)}\n\n{head}"

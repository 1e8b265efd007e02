"""What `import minar` costs beside `import torch`, in CPU time of a new process."""

import statistics
import subprocess
import sys

CODE = "import {0}, resource; print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))"


def run(repeats: int = 5) -> str:
    """Median CPU seconds of both, taken in turns so that a noisy moment hits both."""
    seconds = measure(repeats)
    ratio = seconds["minar"] / seconds["torch"]
    lines = [f"import {name:6} {value:.2f} s of CPU time" for name, value in seconds.items()]
    return "\n".join([*lines, f"ratio {ratio:.2f} (goal: at most 1.10)"])


def measure(repeats: int) -> dict[str, float]:
    taken = {"torch": [], "minar": []}
    for _ in range(repeats):
        for name, values in taken.items():
            values.append(cpu_seconds(name))
    return {name: statistics.median(values) for name, values in taken.items()}


def cpu_seconds(name: str) -> float:
    done = subprocess.run([sys.executable, "-c", CODE.format(name)], capture_output=True, text=True, check=True)
    return float(done.stdout)

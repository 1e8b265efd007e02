"""Messages between the grader and a submission: a length, then tensors and plain values.

Only tensors, numbers, text, lists and dicts pass: torch's weights-only reader builds nothing else. A pickle from a
submission would be a program, run by the grader.
"""

import io
from typing import Any, BinaryIO

import torch

LARGEST = 2**26  # bytes: a right answer is far smaller


def send(pipe: BinaryIO, value: Any) -> None:
    """Write one value. Raises ValueError if it is too large, OSError if nobody reads any more."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getvalue()
    if len(data) > LARGEST:
        raise ValueError(f"an answer of {len(data)} bytes is too large, {LARGEST} are allowed")
    pipe.write(len(data).to_bytes(8, "big") + data)
    pipe.flush()


def receive(pipe: BinaryIO) -> Any:
    """Read one value. Raises EOFError if the other side is gone or says nonsense, UnpicklingError for odd objects."""
    size = int.from_bytes(_exactly(pipe, 8), "big")
    if size > LARGEST:
        raise EOFError(f"a message of {size} bytes")
    return torch.load(io.BytesIO(_exactly(pipe, size)), weights_only=True)


def _exactly(pipe: BinaryIO, n: int) -> bytes:
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError("the other side is gone")
    return data

"""Animations as PNG: they need no script and no network, and show their last frame where nothing moves."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def apng(frames: Sequence[np.ndarray], path: str | Path | None = None, ms: int = 120) -> bytes:
    """An animated PNG of uint8 (H, W, 3) frames, shown `ms` each, also written to `path` if given.

    The final picture comes first and stays for 1500 ms: it is what a viewer shows that does not animate.
    """
    frames = [np.asarray(frame) for frame in frames]
    if not frames:
        raise ValueError("no frames to animate")
    for frame in frames:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != frames[0].shape or frame.shape[2] != 3:
            raise ValueError(
                f"frames must be uint8 (H, W, 3) of one size, got {frame.dtype} {frame.shape}: image_grid makes them"
            )
    images = [Image.fromarray(frame) for frame in frames]
    out = io.BytesIO()
    images[-1].save(out, "PNG", save_all=True, append_images=images, duration=[1500] + [ms] * len(images), loop=0)
    if path is not None:
        Path(path).write_bytes(out.getvalue())
    return out.getvalue()


def show_apng(frames: Sequence[np.ndarray], ms: int = 120) -> Any:
    """The animation of `apng` as an IPython Image, for the last line of a cell."""
    from IPython.display import Image as Shown  # only a notebook has it

    return Shown(data=apng(frames, ms=ms), format="png")

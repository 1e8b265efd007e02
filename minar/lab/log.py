"""The log of a training run: lines for people (the progress bar) and for programs (log.jsonl)."""

import json
import math
import time
from pathlib import Path

from torch import Tensor

from minar.lab import metrics


class Log:
    """Means over the steps since the last line. The loss stays on its device until a line is due."""

    def __init__(self, path: Path | None, step: int):
        """path: a file to append to; lines after `step`, written by a run that was killed, are taken back."""
        self.path, self.lines = path, []
        if path and path.exists():
            kept = [json.loads(text) for text in path.read_text().splitlines() if text.endswith("}")]
            self.lines = [line for line in kept if line["step"] <= step]
        if path:
            self._rewrite()
        self._restart()

    def _rewrite(self) -> None:
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            temporary.replace(self.path)
        except OSError as error:
            message = f"cannot write to {self.path.parent} ({error.strerror}): give another folder"
            raise OSError(error.errno, message) from error

    def _restart(self) -> None:
        self.total, self.steps, self.images, self.since = 0.0, 0, 0, time.perf_counter()

    def count(self, loss: Tensor, images: int) -> None:
        self.total, self.steps, self.images = self.total + loss, self.steps + 1, self.images + images

    def mean(self, step: int) -> float:
        """Mean loss since the last line. Raises FloatingPointError where it is not a number any more."""
        loss = float(self.total) / max(1, self.steps)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}: lower lr, or look at the data")
        return loss

    def line(self, run) -> dict[str, str]:
        """Write one line; returns what the progress bar shows."""
        loss = self.mean(run.step)
        speed = self.images / (time.perf_counter() - self.since)
        line = {"step": run.step, "loss": loss, "lr": run.lr, "images_per_s": speed}
        shown = {"loss": f"{loss:.3f}", "lr": f"{run.lr:.1e}", "images/s": f"{speed:.0f}"}
        hits = getattr(run.gardener.quantizer, "hits", None)
        if hits is not None:
            line |= codes_in_use(hits)
            shown["usage"] = percent(line["usage"])
        self.lines.append(line)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self._restart()
        return shown


def codes_in_use(hits: Tensor) -> dict[str, float | list[float]]:
    """Usage and perplexity of (V,) hits, or a list with one for each scale, coarse first, of (S, V) hits."""
    if hits.dim() == 1:
        return {"usage": metrics.usage(hits), "perplexity": metrics.perplexity(hits)}
    return {"usage": [metrics.usage(row) for row in hits], "perplexity": [metrics.perplexity(row) for row in hits]}


def percent(usage: float | list[float]) -> str:
    """93%, or 12/48/100% for three scales."""
    shares = usage if isinstance(usage, list) else [usage]
    return "/".join(f"{100 * share:.0f}" for share in shares) + "%"

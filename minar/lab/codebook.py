"""Keeping a codebook alive while it trains: codes start on encodings of the data, and unused ones move to others."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

EVERY = 100  # steps between two looks at the codes' use


class Gardener:
    """Tends the codebook of a tokenizer from inside `fit`. A codebook that arrives trained is never touched."""

    def __init__(self, model: nn.Module):
        self.quantizer = model.quantizer if hasattr(model, "encoder") else None  # a transformer's own is frozen
        self.owns = hasattr(self.quantizer, "start_from") and not bool(self.quantizer.started)

    @torch.no_grad()
    def tend(self, run, part: tuple[Tensor, ...]) -> None:
        """Called before each step. Restarts end at four fifths of the run: the last codes need time to settle."""
        if not hasattr(self.quantizer, "hits") or run.step % EVERY:
            return
        if dist.is_initialized():
            dist.all_reduce(self.quantizer.hits)
        if self.owns and run.step == 0:
            self._move(run, self.quantizer.start_from, part, slice(None))
        elif self.owns and run.step < 0.8 * run.recipe["steps"]:
            self._move(run, self.quantizer.restart, part, self.quantizer.dead)
        self.quantizer.hits.zero_()

    def _move(self, run, how, part: tuple[Tensor, ...], moved: Tensor | slice) -> None:
        codebook = self.quantizer.codebook
        how(run.model.encoder(part[0]))
        if dist.is_initialized():
            dist.broadcast(codebook.data, 0)
        run.average["quantizer.codebook"][moved] = codebook[moved]
        for moment in ("exp_avg", "exp_avg_sq"):  # momentum belongs to the code that is gone
            if codebook in run.optimizer.state:
                run.optimizer.state[codebook][moment][moved] = 0

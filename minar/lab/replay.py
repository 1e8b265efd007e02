"""One training step as a CUDA graph: the host starts it once, instead of starting some hundred kernels one by one.

Small models leave a large GPU waiting for Python. A recording repeats the kernels of one call, whatever Python would
decide at the next one (a shape, a branch). So it first has to agree with the step itself on other rows and other
random numbers; if it does not, or cannot be made, the step runs as it is.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minar.plan import Plan

WARM = 3  # calls before recording: libraries choose their kernels and allocate their workspaces in the first ones
TRIALS = 3  # calls on which the recording and the step have to agree


class Replay:
    """Calls like `step(*part)`, which computes the gradients of `model` afresh and returns the loss, detached."""

    def __init__(self, step: Callable[..., Tensor], model: nn.Module):
        self.step, self.model, self.calls, self.graph = step, model, 0, None

    def __call__(self, *part: Tensor | Plan) -> Tensor:
        self.calls += 1
        if self.calls == WARM + 1:
            self._record(part)
        if self.graph is None:
            return self.step(*part)
        if self.calls > WARM + TRIALS:
            return self._replay(part)
        return self._compare(part)

    def _record(self, part: tuple) -> None:
        self.part, graph = tuple(x.clone() for x in part), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.loss = self.step(*self.part)
        except RuntimeError as error:
            generator = torch.cuda.default_generators[part[0].device.index]
            generator.graphsafe_set_state(generator.clone_state())  # or it would wait for the end of the recording
            return self._give_up(str(error).splitlines()[0])
        self.grads = {p: p.grad for p in self.model.parameters() if p.grad is not None}
        self.graph = graph

    def _replay(self, part: tuple) -> Tensor:
        for mine, given in zip(self.part, part, strict=True):
            mine.copy_(given)
        self.graph.replay()
        for p, grad in self.grads.items():
            p.grad = grad
        return self.loss

    def _compare(self, part: tuple) -> Tensor:
        before = [b.clone() for b in self.model.buffers()]
        random = torch.cuda.get_rng_state(part[0].device)
        replayed = self._replay(part).clone()
        for b, old in zip(self.model.buffers(), before, strict=True):
            b.copy_(old)
        torch.cuda.set_rng_state(random, part[0].device)
        loss = self.step(*part)
        if not torch.allclose(replayed, loss, rtol=1e-4):
            self.graph = None
            self._give_up(f"replayed it gives a loss of {replayed:.6g}, not {loss:.6g}")
        return loss

    def _give_up(self, why: str) -> None:
        warnings.warn(f"{type(self.model).__name__} trains kernel by kernel, which is slower: {why}", stacklevel=4)

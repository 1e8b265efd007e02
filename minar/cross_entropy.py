"""Cross-entropy of a large vocabulary without ever holding all logits.

16,384 tokens times 16,384 codes are a gigabyte in float32, and autograd keeps them for the way back. Here a block of
rows at a time is multiplied out, and once more in the backward pass: a third more work on the head, hardly any memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 2**24  # logits held at a time


def cross_entropy(h: Tensor, weight: Tensor, target: Tensor, block: int | None = None) -> Tensor:
    """-log softmax(h @ weight.T)[target], in nats and float32: h (n, D), weight (V, D), target (n,) long -> (n,).

    The products are in the dtype of autocast where that is on, as those of nn.Linear.
    """
    block = block or BLOCK
    if h.shape[0] * weight.shape[0] <= block:
        return F.cross_entropy(F.linear(h, weight).float(), target, reduction="none")
    if torch.is_autocast_enabled(h.device.type):
        dtype = torch.get_autocast_dtype(h.device.type)
        h, weight = h.type(dtype), weight.type(dtype)
    with torch.autocast(h.device.type, enabled=False):
        return _InBlocks.apply(h, weight, target, max(1, block // weight.shape[0]))


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, target: Tensor, rows: int) -> Tensor:
        total, own = [], []
        for part, t in zip(h.split(rows), target.split(rows), strict=True):
            logits = (part @ weight.T).float()
            total.append(logits.logsumexp(-1))
            own.append(logits.gather(-1, t[:, None])[:, 0])
        total = torch.cat(total)
        ctx.save_for_backward(h, weight, target, total)
        ctx.rows = rows
        return total - torch.cat(own)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        h, weight, target, total = ctx.saved_tensors
        grad_h, grad_weight = torch.empty_like(h), torch.zeros_like(weight, dtype=torch.float32)
        for i in range(0, len(h), ctx.rows):
            here = slice(i, i + ctx.rows)
            p = (h[here] @ weight.T).float().sub_(total[here, None]).exp_()
            p.scatter_add_(1, target[here, None], p.new_full((len(p), 1), -1.0))
            p = p.mul_(grad[here, None]).type_as(h)
            grad_h[here] = p @ weight
            grad_weight += p.T @ h[here]
        return grad_h, grad_weight.type_as(weight), None, None

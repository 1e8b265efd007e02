"""What the picture shall show: a condition becomes vectors that stand before the first token."""

import torch
from torch import Tensor, nn


class ClassLabel(nn.Module):
    """One learned vector per class, and one more, the null class, for "any": it is what guidance subtracts."""

    def __init__(self, n_classes: int, width: int):
        super().__init__()
        self.n_classes, self.width = n_classes, width
        self.table = nn.Embedding(n_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, label: Tensor) -> Tensor:
        """(B,) long -> (B, 1, D)."""
        return self.table(label)[:, None]

    def null(self, label: Tensor) -> Tensor:
        """The null class, once per row: (B,) -> (B,)."""
        return torch.full_like(label, self.n_classes)

    def drop(self, label: Tensor, p: float) -> Tensor:
        """Replace each label by the null class with probability p, so that one model learns both. (B,) -> (B,)."""
        dropped = torch.rand(label.shape, device=label.device) < p
        return torch.where(dropped, self.null(label), label)

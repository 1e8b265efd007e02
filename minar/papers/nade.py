"""NADE: the exact probability of a black-and-white image, pixel by pixel, each from a small network that all share.

    p(x) = prod_d p(x_d | x_<d)                 (1)   d counts slots of a plan: any order, one pixel a step
    p(x_d = 1 | x_<d) = sigmoid(b_d + V_d h_d)  (2)
    h_d = sigmoid(a_d),  a_d = c + W_<d x_<d    (3)
    a_1 = c,  a_d+1 = a_d + W_d x_d             (4)   the running sum

Because all pixels share W, one more pixel is one more row to add. All N conditionals cost O(N H) instead of O(N^2 H).

Larochelle, Murray, "The Neural Autoregressive Distribution Estimator", 2011; Uria et al., "Neural Autoregressive
Distribution Estimation", 2016, whose section 2 has these equations.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.checks import check_ids
from minar.plan import Plan


class NADE(nn.Module):
    """n: pixels of an image. width: H, hidden units. Images are (B, n) long, 0 or 1, by position.

    It starts with V and b at zero, so that the first loss is exactly ln 2: one bit a pixel.
    """

    def __init__(self, n: int, width: int):
        super().__init__()
        self.n, self.width = n, width
        self.W = nn.Parameter(torch.randn(n, width) / n**0.5)
        self.V = nn.Parameter(torch.zeros(n, width))
        self.b = nn.Parameter(torch.zeros(n))
        self.c = nn.Parameter(torch.zeros(width))

    def logits(self, x: Tensor, plan: Plan) -> Tensor:
        """Log-odds that a pixel is 1, given the slots before it: (B, n) by position -> (B, n) by slot."""
        self.check(x, plan)
        added = plan.permute(x)[..., None] * self.W[plan.pos]  # (B, n, H): what each pixel adds for those after it
        a = self.c + F.pad(added, (0, 0, 1, -1)).cumsum(1)  # moved on by one slot: nobody sees itself
        return self.out(a, plan.pos)

    def out(self, a: Tensor, place: Tensor) -> Tensor:
        """Log-odds of pixels from their sums: a (..., H), place (...) -> (...)."""
        return (a.sigmoid() * self.V[place]).sum(-1) + self.b[place]

    def nll(self, x: Tensor, plan: Plan) -> Tensor:
        """Negative log-likelihood of each pixel given those before, in nats: (B, n) by position -> (B, n) by slot.

        Its sum over the slots is -ln p(x), exactly.
        """
        logits = self.logits(x, plan)
        return F.binary_cross_entropy_with_logits(logits, plan.permute(x).type_as(logits), reduction="none")

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """The training loss, (): mean nll, in nats per pixel."""
        return self.nll(x, plan).mean()

    @torch.no_grad()
    def sample(
        self,
        batch: int,
        plan: Plan,
        prompt: Tensor | None = None,
        prompt_steps: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images from p, (batch, n) long by position. The running sum makes a pixel cost O(H).

        prompt: (batch, n) by position, of which the first `prompt_steps` slots are kept.
        """
        if prompt is None:
            prompt = torch.zeros(batch, self.n, dtype=torch.long, device=self.W.device)
        self.check(prompt, plan)
        x, a = plan.permute(prompt).clone(), self.c.expand(batch, -1)
        for slot in range(self.n):
            place = plan.pos[..., slot]
            if slot >= prompt_steps:
                x[:, slot] = torch.bernoulli(self.out(a, place).sigmoid(), generator=generator).long()
            a = a + x[:, slot, None] * self.W[place]
        return plan.unpermute(x)

    def check(self, x: Tensor, plan: Plan | None = None, wait: bool = False) -> None:
        """Raise unless these are images of this size, in 0 and 1. wait: look at the values on a GPU, too."""
        check_ids("x", x, 2, 2, wait)
        if x.shape[1] != self.n:
            raise ValueError(f"an image has {self.n} pixels, got {x.shape[1]} per row")
        if plan is not None:
            self.check_plan(plan, len(x))

    def check_plan(self, plan: Plan, batch: int) -> None:
        """Raise unless the plan takes these pixels one at a time, in one order for all or in one for each row."""
        if plan.n != self.n or plan.n_steps != plan.n:
            raise ValueError(f"NADE reads {self.n} pixels one at a time: {plan.n} in {plan.n_steps} steps do not fit")
        if plan.pos.dim() == 2 and len(plan.pos) != batch:
            raise ValueError(f"the plan has orders for a batch of {len(plan.pos)}, got a batch of {batch}")


class Sheet:
    """`images` images behind one another, as one image of images * n tokens: what `minar.papers.ardm_coder` codes.

    One number for the whole sheet is rounded up to whole bytes once; a number for each image would be, every time.
    plan: NADE's order; `self.plan` is the sheet's. There is no condition: hand over zeros.
    """

    cached = False  # an image has few pixels, and both sides must compute the same bits

    def __init__(self, model: NADE, plan: Plan, images: int):
        model.check_plan(plan, images)
        self.model, self.n, self.pos = model, model.n, plan.pos
        self.plan = Plan((self.pos + self.n * torch.arange(images)[:, None]).flatten(), (1,) * (images * self.n))
        self.cond = SimpleNamespace(check=lambda cond, wait=False: None)
        self.head = SimpleNamespace(logits=lambda h: h, empty=lambda b, n: torch.zeros(b, n, dtype=torch.long))

    def check(self, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
        """Raise unless `tokens` is (1, images * n), in 0 and 1."""
        check_ids("tokens", tokens, 2, 2)
        if tokens.shape != (1, self.plan.n):
            raise ValueError(f"the sheet has (1, {self.plan.n}) pixels, got {tuple(tokens.shape)}")

    def check_plan(self, plan: Plan, batch: int) -> None:
        """Raise unless it is the plan of this sheet."""
        if plan.pos.shape != self.plan.pos.shape or not torch.equal(plan.pos, self.plan.pos):
            raise ValueError("a sheet has one plan, sheet.plan")

    def prefix(self, cond: Tensor) -> None:
        """Nothing stands before the first pixel."""

    def hidden(self, tokens: Tensor, prefix: None, plan: Plan, lo: int, hi: int, cache: None = None) -> Tensor:
        """The logits of 0 and 1 of slot `lo`, (1, 1, 2), from the slots of its own image before it."""
        d = lo % self.n
        a = self.model.c + tokens[0, lo - d : lo].type_as(self.model.c) @ self.model.W[self.pos[:d]]
        ink = self.model.out(a, self.pos[d])
        return torch.stack([torch.zeros_like(ink), ink]).view(1, 1, 2)

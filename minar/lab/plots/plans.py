"""Plans as pictures: when each token is drawn, and which slot sees which."""

from collections.abc import Mapping

import matplotlib
import numpy as np
import torch

from minar.lab.plots.style import INK, STYLE, WIDEST, Picture, picture
from minar.plan import Plan

NUMBERED = 10  # up to this many rows or columns each cell carries its step's number


@matplotlib.rc_context(STYLE)
def show_plan(
    plans: Plan | Mapping[str, Plan],
    grid: tuple[int, int],
    title: str | None = None,
    sides: tuple[int, ...] = (),
) -> Picture:
    """The (h, w) grid of each plan, coloured by the step in which a token is drawn: dark first, bright last.

    plans: one, or {name: plan}, side by side. Of a plan with an order for each row the first row is shown.
    sides: of a pyramid; a plan of as many slots is drawn as all its grids, the smallest first.
    """
    plans = {"": plans} if isinstance(plans, Plan) else dict(plans)
    h, w = grid
    for name, plan in plans.items():
        if plan.n not in (h * w, sum(side**2 for side in sides)):
            raise ValueError(f"plan {name!r} has {plan.n} slots, a {h}x{w} grid has {h * w} places")
    fig, axes = _panels(len(plans), 230, h / w, title)
    for ax, (name, plan) in zip(axes, plans.items(), strict=True):
        steps = _by_place(plan)
        steps = steps.view(h, w).numpy() if plan.n == h * w else _side_by_side(steps, sides)
        ax.imshow(steps, vmin=0, vmax=max(1, plan.n_steps - 1))
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.set_title(f"{name}: {plan.n_steps} steps" if name else f"{plan.n_steps} steps", fontsize=11)
        if max(steps.shape) <= NUMBERED:
            for (y, x), s in np.ndenumerate(steps):
                bright = s > 0.6 * plan.n_steps
                ax.text(x, y, s, ha="center", va="center", fontsize=8, color=INK if bright else "white")
    return fig


@matplotlib.rc_context(STYLE)
def show_mask(plans: Plan | Mapping[str, Plan], title: str | None = None) -> Picture:
    """Which slot (row) sees which (column), coloured by the step of what is seen; white is hidden."""
    plans = {"": plans} if isinstance(plans, Plan) else dict(plans)
    fig, axes = _panels(len(plans), 260, 1, title)
    for ax, (name, plan) in zip(axes, plans.items(), strict=True):
        sees = plan.step[:, None] >= plan.step
        shown = torch.where(sees, plan.step.float(), torch.nan).numpy()
        ax.imshow(shown, vmin=0, vmax=max(1, plan.n_steps - 1))
        ax.grid(False)
        ax.set(xticks=[], yticks=[], xlabel="is seen: slot", ylabel="sees: slot", title=name)
        for start in plan.starts[1:-1]:
            if plan.n <= 40:
                ax.axhline(start - 0.5, color="white", linewidth=0.8)
                ax.axvline(start - 0.5, color="white", linewidth=0.8)
    return fig


def _panels(n: int, wide: int, shape: float, title: str | None) -> tuple[Picture, np.ndarray]:
    """A figure of n axes side by side, each about `wide` pixels wide and `shape` times as high."""
    width = min(WIDEST, wide * n + 20)
    fig = picture(width, round(width / n * shape) + (70 if title else 45))
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig, fig.subplots(1, n, squeeze=False)[0]


def _side_by_side(steps: torch.Tensor, sides: tuple[int, ...]) -> np.ndarray:
    """(N,) of a pyramid -> one array with all grids, NaN between them; as many in a row as the two largest take."""
    widest, rows, at = sum(sides[-2:]) + 1, [[]], []
    for side in sides:
        if sum(rows[-1]) + len(rows[-1]) + side > widest:
            rows.append([])
        at.append((sum(max(row) + 1 for row in rows[:-1]), sum(rows[-1]) + len(rows[-1])))
        rows[-1].append(side)
    array = np.full((sum(max(row) + 1 for row in rows) - 1, max(sum(row) + len(row) for row in rows) - 1), np.nan)
    for (top, left), side, part in zip(at, sides, steps.split([side**2 for side in sides]), strict=True):
        array[top : top + side, left : left + side] = part.view(side, side)
    return array


def _by_place(plan: Plan) -> torch.Tensor:
    """(N,) position -> step, on the CPU."""
    pos = plan.pos.cpu() if plan.pos.dim() == 1 else plan.pos[0].cpu()
    return torch.empty_like(plan.step, device="cpu").index_copy(0, pos, plan.step.cpu())

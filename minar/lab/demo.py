"""`minar demo`: pictures of every class from the shipped models, with and without a KV cache, and an animation."""

import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minar.gpt import GPT
from minar.lab import plots
from minar.lab.data import FASHION_NAMES
from minar.lab.shipped import shipped
from minar.vqvae import VQVAE

GREY = 0.2


def demo(labels: list[int], seed: int = 0, cfg: float = 1.5, samples: int = 4, out: str | Path = "minar-demo") -> None:
    """Draw `samples` pictures of each label (0..9) and write pictures.png and appearing.png into `out`.

    Raises ValueError for a label or guidance scale out of range, OSError if `out` cannot be written.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, gpt = shipped("fashion-vqvae"), shipped("fashion-gpt")
    labels = torch.tensor(labels)
    print(f"{len(labels)} classes x {samples} pictures, guidance {cfg:g}, seed {seed}, on the CPU")

    tokens = compare(gpt, labels, cfg, seed)
    if samples > 1:
        more = gpt.generate(labels.repeat(samples - 1), cfg=cfg, generator=stream(seed + 1))
        images = tokenizer.decode(torch.cat([tokens, more]))  # one row of classes after the other
    else:
        images = tokenizer.decode(tokens)

    pictures(images, [FASHION_NAMES[int(y)] for y in labels]).savefig(out / "pictures.png")
    plots.apng(appearing(tokenizer, tokens), out / "appearing.png", ms=120)
    print(f"\nwrote {out / 'pictures.png'}    {len(images)} pictures that nobody took")
    print(f"wrote {out / 'appearing.png'}   an animation of them appearing; open it in a browser")
    print("\nnext: .venv/bin/jupyter lab notebooks/03_gpt.ipynb, which builds what you just saw")
    print("      minar sample --class bag --samples 16    or    minar train --help")


def pictures(images: Tensor, names: list[str]) -> plots.Picture:
    """A column for each class; a single class fills the width."""
    if len(names) == 1:
        return plots.show_images(images, title=f"{names[0]}, drawn token by token")
    return plots.show_images(images, titles=names, columns=len(names), title="Drawn token by token")


def compare(gpt: GPT, labels: Tensor, cfg: float, seed: int) -> Tensor:
    """One picture of each label twice, with a cache and without. Says what each cost, returns the tokens."""
    cached, seconds = timed(lambda: gpt.generate(labels, cfg=cfg, generator=stream(seed)))
    naive, naive_seconds = timed(lambda: gpt.generate(labels, cfg=cfg, use_cache=False, generator=stream(seed)))
    n = gpt.n_tokens
    print(f"\none picture of each class, {n} steps, one token a step:")
    print(f"  with a KV cache     {n:5,} slots computed per picture  {seconds:6.2f} s")
    print(f"  without             {n * (n + 1) // 2:5,} slots computed per picture  {naive_seconds:6.2f} s")
    differ = int((cached != naive).sum())
    # a draw that falls within a rounding error of two tokens may go either way: then say so, do not hide it
    print("  the tokens are equal" if differ == 0 else f"  {differ} of {cached.numel()} tokens differ by rounding")
    return cached


def appearing(tokenizer: VQVAE, tokens: Tensor, every: int = 4) -> list:
    """Frames of (B, N) tokens becoming pictures, `every` tokens at a time; what is not known yet is grey."""
    n = tokens.shape[1]
    side, frames = round(n**0.5), []
    scale = tokenizer.encoder.factor
    empty = tokenizer.encode(torch.full((1, tokenizer.encoder.in_channels, side * scale, side * scale), -1.0))
    for known in range(0, n + 1, every):
        here = torch.arange(n) < known
        images = tokenizer.decode(torch.where(here, tokens, empty))
        shown = here.view(side, side).repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        frames.append(plots.image_grid(torch.where(shown, images, GREY), columns=min(len(tokens), 5), scale=3))
    return frames


def timed(f) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return f(), time.perf_counter() - start


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def save_grid(images: Tensor, path: Path, columns: int | None = None) -> None:
    """Write (B, C, H, W) pictures in [-1, 1] as one PNG, each picture about 96 pixels wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(plots.image_grid(images, columns, scale=max(3, 96 // images.shape[3]))).save(path)

"""The command line: minar demo, minar train, minar sample."""

import argparse
import sys
from pathlib import Path

import torch

from minar.lab import data, official
from minar.lab.demo import demo, save_grid, stream
from minar.lab.recipes import RECIPES, models, train
from minar.lab.shipped import shipped


def main(argv: list[str] | None = None) -> int:
    """Run one command; a mistake of the user is one line on stderr and exit code 2."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, RuntimeError) as error:  # a CheckpointError is a RuntimeError
        print(f"minar {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nminar {args.command}: stopped; the same command goes on from the last state", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The three commands and their options."""
    top = argparse.ArgumentParser(prog="minar", description="Autoregressive image generation, built in front of you.")
    commands = top.add_subparsers(dest="command", required=True)
    _demo(commands.add_parser("demo", help="draw Fashion pictures with the models that come with the package"))
    _sample(commands.add_parser("sample", help="draw with the shipped models or with yours"))
    _train(
        commands.add_parser(
            "train",
            help="train a tokenizer and a GPT, or the two of next-scale prediction",
            description="Train a tokenizer and a GPT on a data set, by a stated recipe.",
            epilog=recipes_text(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return top


def _drawing(p: argparse.ArgumentParser, samples: int, cfg: float, out: str) -> None:
    p.add_argument("--class", dest="kind", metavar="NAME", help="a class by name or number (default: all of them)")
    p.add_argument("--samples", type=int, default=samples, help=f"pictures per class (default {samples})")
    p.add_argument("--cfg", type=float, default=cfg, help=f"guidance scale, 1 is off (default {cfg})")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", default=out, help=f"where to write (default {out})")


def _demo(p: argparse.ArgumentParser) -> None:
    _drawing(p, samples=2, cfg=1.5, out="minar-demo")
    p.set_defaults(run=lambda a: demo(pick_labels(a.kind, data.FASHION_NAMES), a.seed, a.cfg, a.samples, a.out))


def _sample(p: argparse.ArgumentParser) -> None:
    p.add_argument("--models", metavar="FOLDER", help="a folder written by minar train (default: the shipped models)")
    p.add_argument("--official", choices=official.KINDS, help="official weights instead; cfg of VAR: 0 is off")
    p.add_argument("--tokenizer", metavar="FILE", help="with --official: its tokenizer, such as vq_ds16_c2i.pt")
    p.add_argument("--weights", metavar="FILE", help="with --official: its transformer, such as c2i_B_256.pt")
    p.add_argument("--heads", type=int, help="with --official: attention heads (default: width / 64)")
    p.add_argument("--side", type=int, help="with --official llamagen: tokens a side (default 16, for 256 pixels)")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--top-k", type=int, default=0)
    p.add_argument("--top-p", type=float, default=1.0)
    _drawing(p, samples=4, cfg=1.5, out="minar-sample.png")
    p.set_defaults(run=sample)


def _train(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "data", help=f"{', '.join(k for k in RECIPES if k != 'folder')}, or folder:PATH for your own pictures"
    )
    p.add_argument("--out", help="folder for states, logs and models (default runs/DATA)")
    p.add_argument("--share", type=float, default=1.0, help="part of the recipe's steps, 0.1 for a first look")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--next-scale", action="store_true", help="VAR's pair instead: pyramids of tokens, scale by scale")
    p.set_defaults(
        run=lambda a: train(
            a.data, a.out or own_folder(a.data, a.next_scale), a.share, a.device, a.seed, next_scale=a.next_scale
        )
    )


def own_folder(name: str, next_scale: bool = False) -> str:
    """Where the models of a data set go by default. Of folder:PATH the last part: Windows has no colons in names."""
    return f"runs/{Path(name.removeprefix('folder:')).resolve().name}" + ("-next-scale" if next_scale else "")


def sample(args: argparse.Namespace) -> None:
    """Draw `args.samples` pictures of each class asked for and write them as one PNG."""
    if args.official:
        tokenizer, gpt, names = official_models(args)
    elif args.models:
        tokenizer, gpt, names = models(args.models)
    else:
        tokenizer, gpt, names = shipped("fashion-vqvae"), shipped("fashion-gpt"), data.FASHION_NAMES
    if args.samples < 1:
        raise ValueError(f"samples must be at least 1, got {args.samples}")
    labels = torch.tensor(pick_labels(args.kind, names)).repeat_interleave(args.samples)
    knobs = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
    tokens = gpt.generate(labels, cfg=args.cfg, progress=True, generator=stream(args.seed), **knobs)
    save_grid(tokenizer.decode(tokens, gpt.grid), Path(args.out), columns=args.samples if args.kind is None else None)
    print(f"wrote {args.out}: {len(labels)} pictures")


def official_models(args: argparse.Namespace) -> tuple:
    """Tokenizer, model and class names, which are numbers: official files know no others."""
    if not (args.tokenizer and args.weights and args.kind):
        raise ValueError("--official needs --tokenizer FILE, --weights FILE and --class NUMBER")
    tokenizer, model = official.models(args.official, args.tokenizer, args.weights, args.heads, args.side)
    return tokenizer, model, tuple(str(i) for i in range(model.n_classes))


def pick_labels(kind: str | None, names: tuple[str, ...]) -> list[int]:
    """The class asked for, by number or by (a part of) its name; without one, all classes."""
    if kind is None:
        return list(range(len(names)))
    if kind.isdigit() and int(kind) < len(names):
        return [int(kind)]
    found = [i for i, name in enumerate(names) if kind.lower() in name.lower()]
    exact = [i for i in found if names[i].lower() == kind.lower()]
    if len(exact or found) != 1:
        known = f": {', '.join(names)}" if len(names) <= 20 else f" {len(names)} classes"
        raise ValueError(f"class {kind!r} fits {len(found)} of{known} (or give 0..{len(names) - 1})")
    return exact or found


def recipes_text() -> str:
    """What `minar train --help` says of each recipe."""
    lines = ["recipes:"]
    for name, r in RECIPES.items():
        width, layers, heads = r.trunk
        sizes = f"{r.time}; tokenizer width {r.width}, {r.vocab} codes; GPT {layers} x {width}, {heads} heads"
        lines.append(f"  {name:13} {sizes}; {r.steps[0]:,} + {r.steps[1]:,} steps of {r.batch}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""Measurements that can be repeated: python -m bench decode | train | quantizer | cost | import.

Ratios inside one run on one machine are the currency; seconds hold only on the machine that is named beside them.
"""

import argparse
from pathlib import Path

from bench import cost, decode, import_cost, quantizer, train
from minar.lab.profile import device

BENCHES = {"decode": decode.run, "train": train.run, "quantizer": quantizer.run, "cost": cost.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", choices=[*BENCHES, "import"])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--hf", action="store_true", help="decode: Hugging Face's generate as well (extra bench)")
    parser.add_argument("--vq", action="store_true", help="quantizer: vector-quantize-pytorch as well (extra bench)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    args = parser.parse_args()
    if args.what == "import":
        print(import_cost.run())
    else:
        more = {"peers": args.hf} if args.what == "decode" else {"peers": args.vq} if args.what == "quantizer" else {}
        print(BENCHES[args.what](device(args.device), path=args.json, **more))


if __name__ == "__main__":
    main()

"""Measurements that can be repeated: python -m bench import.

Ratios inside one run on one machine are the currency; seconds hold only on the machine that is named beside them.
"""

import argparse

from bench import import_cost

BENCHES = {"import": import_cost.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", choices=BENCHES)
    print(BENCHES[parser.parse_args().what]())


if __name__ == "__main__":
    main()

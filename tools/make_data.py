"""Rebuild data/digits.npz and data/fashion6k.npz from their published sources; the same bytes every time.

pip download --no-deps scikit-learn==1.9.1 -d DOWNLOADS
python tools/make_data.py digits DOWNLOADS/scikit_learn-*.whl

apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb DOWNLOADS
python tools/make_data.py fashion DOWNLOADS/usr/share/datasets/fashion-mnist
"""

import argparse
import gzip
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from minar.lab.fashion_full import checked

DIGITS = "sklearn/datasets/data/digits.csv.gz"
DIGITS_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=["digits", "fashion"])
    parser.add_argument("source", type=Path, help="the scikit-learn wheel, or the folder of the four .gz files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "data")
    args = parser.parse_args()
    if args.dataset == "digits":
        save(args.out / "digits.npz", digits(args.source))
    else:
        save(args.out / "fashion6k.npz", fashion(args.source))


def digits(wheel: Path) -> dict[str, np.ndarray]:
    """The 1,797 digits of the scikit-learn wheel, in its order: images (1797, 8, 8) in 0..16, labels (1797,)."""
    text = gzip.decompress(zipfile.ZipFile(wheel).read(DIGITS))
    if hashlib.sha256(text).hexdigest() != DIGITS_SHA256:
        raise SystemExit(f"{wheel}: its {DIGITS} is not the file this course was made from; try scikit-learn 1.9.1")
    rows = np.loadtxt(io.BytesIO(text), delimiter=",").astype(np.uint8)
    return {"images": rows[:, :64].reshape(-1, 8, 8), "labels": rows[:, 64]}


def fashion(folder: Path) -> dict[str, np.ndarray]:
    """The first 600 train and the first 100 test pictures of each class, both in their original order."""
    arrays = {}
    for split, prefix, count in (("train", "train", 600), ("test", "t10k", 100)):
        images = read(folder, f"{prefix}-images-idx3-ubyte")[16:].reshape(-1, 28, 28)
        labels = read(folder, f"{prefix}-labels-idx1-ubyte")[8:]
        # Sorting keeps the classes mixed as published, so that any slice of the file is nearly balanced.
        keep = np.sort(np.concatenate([np.flatnonzero(labels == k)[:count] for k in range(10)]))
        arrays |= {f"{split}_images": images[keep], f"{split}_labels": labels[keep]}
    return arrays


def read(folder: Path, name: str) -> np.ndarray:
    try:
        return np.frombuffer(checked(folder / f"{name}.gz", name), np.uint8)
    except ValueError as error:
        raise SystemExit(f"{folder / name}.gz: {error}; fetch the source again") from error


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **arrays)
    payload = hashlib.sha256(b"".join(a.tobytes() for a in arrays.values())).hexdigest()
    file = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path.name}: {path.stat().st_size:,} bytes\n  file    {file}\n  payload {payload}")


if __name__ == "__main__":
    main()

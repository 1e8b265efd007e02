"""The course's pictures: digits, Fashion-MNIST, emoji, and a folder of your own, all as float32 in [-1, 1].

Everything but `fashion(full=True)` ships with the package and works offline. Sources and licences: data/README.md.
"""

import json
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minar.lab.emoji_split import held_out

_HERE = Path(__file__).resolve().parent.parent
# An installed package carries its own copy, and a `data` folder beside it may belong to someone else: look here first.
_ROOT = _HERE / "_data" if (_HERE / "_data").is_dir() else _HERE.parent / "data"

FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
EMOJI_STYLES = ("noto", "twemoji", "fluent_flat", "fluent")  # Emoji.style counts in this order


class Images(NamedTuple):
    images: Tensor  # (N, C, H, W) float32 in [-1, 1]
    labels: Tensor  # (N,) long
    names: tuple[str, ...]  # name of each label


class Emoji(NamedTuple):
    images: Tensor  # (N, 3, 32, 32) float32 in [-1, 1]
    labels: Tensor  # (N,) long, the category
    names: tuple[str, ...]  # name of each category
    style: Tensor  # (N,) long, counts in EMOJI_STYLES
    concept: Tensor  # (N,) long, the same number for the same thing drawn in another style
    captions: tuple[str, ...]  # N, "grinning face"
    tags: tuple[tuple[str, ...], ...]  # N, ("cheerful", "face", ...)


def load(name: str, split: str = "train", **options) -> Images | Emoji:
    """A data set by name: "digits", "fashion", "fashion-full", "emoji" or "folder:PATH".

    `options` go to the function of that name, as in `load("emoji", style="all")`.
    ValueError if the name or the split does not exist.
    """
    if name.startswith("folder:") and name != "folder:":
        _check_choice("split of a folder", split, ("train",))
        return folder(name.removeprefix("folder:"), **options)
    _check_choice("data set", name, ("digits", "fashion", "fashion-full", "emoji", "folder:PATH"))
    if name == "fashion-full":
        return fashion(split, full=True, **options)
    return {"digits": digits, "fashion": fashion, "emoji": emoji}[name](split=split, **options)


def path(name: str) -> Path:
    """Where the file `name` of the package's data lies. FileNotFoundError if there is none."""
    found = _ROOT / name
    if not name or not found.exists():
        here = ", ".join(sorted(p.name for p in _ROOT.glob("*"))) or "nothing"
        raise FileNotFoundError(f"no data file {name!r} in {_ROOT}; there is: {here}")
    return found


def digits(split: str = "train") -> Images:
    """Handwritten digits, (1500 or 297, 1, 8, 8); every value is k/8 - 1 with k in 0..16.

    Train are the first 1,500 in the published order, test the rest. ValueError for another split.
    """
    _check_choice("split", split, ("train", "test"))
    part = slice(0, 1500) if split == "train" else slice(1500, None)
    with np.load(path("digits.npz")) as file:
        images, labels = file["images"][part], file["labels"][part]
    return Images(_to_unit(images[:, None], 16), _to_long(labels), tuple("0123456789"))


def fashion(split: str = "train", full: bool = False) -> Images:
    """Fashion-MNIST, (N, 1, 32, 32): the 28x28 pictures in a frame of background (-1). N is 6,000 or 1,000.

    `full=True` gives all 60,000 or 10,000, from a copy on this machine or else by download (fashion_full.py).
    ValueError for another split; RuntimeError if the full set is damaged or out of reach.
    """
    _check_choice("split", split, ("train", "test"))
    if full:
        from minar.lab.fashion_full import read_full  # only here: nothing else may need the network

        images, labels = read_full(split)
    else:
        with np.load(path("fashion6k.npz")) as file:
            images, labels = file[f"{split}_images"], file[f"{split}_labels"]
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    return Images(_to_unit(framed[:, None], 255), _to_long(labels), FASHION_NAMES)


fashion.names = FASHION_NAMES


def crop28(images: Tensor) -> Tensor:
    """(..., 32, 32) to the central (..., 28, 28), where PSNR and distances are measured: the frame would flatter them.

    ValueError for pictures of another size.
    """
    if images.shape[-2:] != (32, 32):
        raise ValueError(f"crop28 takes pictures of 32x32, as fashion() gives; these are {tuple(images.shape)}")
    return images[..., 2:30, 2:30]


def emoji(style: str = "noto", split: str = "train") -> Emoji:
    """Emoji at 32x32 on white, one style of EMOJI_STYLES or "all" four; labels are the 8 categories.

    A tenth of the concepts of each category are the test split (emoji_split.py), the same ones in every style, so no
    concept is on both sides. ValueError for another style or split.
    """
    _check_choice("emoji style", style, (*EMOJI_STYLES, "all"))
    _check_choice("split", split, ("train", "test"))
    meta = json.loads(path("emoji_meta.json").read_text(encoding="utf-8"))
    with np.load(path("emoji32.npz")) as file:
        keep = np.isin(file["concept"], sorted(held_out(meta)), invert=split == "train")
        if style != "all":
            keep &= file["style"] == EMOJI_STYLES.index(style)
        pixels, concept = file["x"][keep].transpose(0, 3, 1, 2), file["concept"][keep]
        labels, styles, names = file["category"][keep], file["style"][keep], tuple(file["categories"].tolist())
    captions = tuple(meta[c]["label"] for c in concept)
    tags = tuple(tuple(meta[c]["tags"]) for c in concept)
    return Emoji(_to_unit(pixels, 255), _to_long(labels), names, _to_long(styles), _to_long(concept), captions, tags)


def folder(path: str | Path, size: int = 32, channels: int = 3) -> Images:
    """Your own pictures, (N, channels, size, size): cut to the central square, resized, transparency on white.

    Labels are the sub-folders in alphabetical order, or the folder itself for pictures that lie loose in it.
    Files that Pillow cannot read are skipped and named in a warning.
    FileNotFoundError if there is no such folder; ValueError if it holds no readable picture or an option is wrong.
    """
    from PIL import Image

    root = Path(path).expanduser()
    _check_choice("number of channels", channels, (1, 3))
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1 pixel")
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}; give the folder that holds your pictures")

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in endings and not f.name.startswith("."))
    pixels, labels, broken = [], [], []
    for file in files:
        try:
            pixels.append(_read_picture(file, size, channels))
        except Exception as error:  # Pillow's readers raise a dozen kinds, and one bad file must not cost the others
            broken.append(f"{file.relative_to(root)} ({type(error).__name__})")
        else:
            inside = file.relative_to(root).parts[:-1]
            labels.append(inside[0] if inside else root.resolve().name)
    if broken:
        warnings.warn(f"{len(broken)} unreadable of {len(files)} files left out: {', '.join(broken)}", stacklevel=2)
    if not pixels:
        raise ValueError(f"no readable picture in {str(root)!r}; put png, jpg or gif files there or in sub-folders")
    names = tuple(sorted(set(labels)))
    images = _to_unit(np.stack(pixels).transpose(0, 3, 1, 2), 255)
    return Images(images, torch.tensor([names.index(label) for label in labels]), names)


def _read_picture(file: Path, size: int, channels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(file) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGBA")
    white = Image.new("RGBA", upright.size, "white")
    opaque = Image.alpha_composite(white, upright).convert("L" if channels == 1 else "RGB")
    return np.asarray(ImageOps.fit(opaque, (size, size))).reshape(size, size, channels)


def _to_unit(pixels: np.ndarray, top: int) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32, order="C")).div_(top / 2).sub_(1)


def _to_long(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(numbers.astype(np.int64))


def _check_choice(what: str, given: object, choices: tuple) -> None:
    if given not in choices:
        raise ValueError(f"unknown {what} {given!r}; choose one of: {', '.join(map(str, choices))}")

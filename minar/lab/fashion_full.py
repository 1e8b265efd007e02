"""All of Fashion-MNIST: found on this machine or downloaded once, and always checked before it is used."""

import gzip
import hashlib
import http.client
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# Of the decompressed files, because the same data is in circulation under several gzip headers.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read_full(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, 28, 28) in 0..255 and labels (N,) in 0..9, both uint8; N is 60,000 for "train", 10,000 for "test".

    RuntimeError if a copy is damaged, or if there is none and the download fails.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    images = np.frombuffer(payload(f"{prefix}-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(payload(f"{prefix}-labels-idx1-ubyte"), np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


def payload(name: str) -> bytes:
    """The checked bytes of one of the four files, from the first folder that has it, else from its publisher."""
    copies = [folder / file for folder in folders() for file in (f"{name}.gz", name)]
    found = next((copy for copy in copies if copy.is_file()), None) or download(name)
    try:
        return checked(found, name)
    except ValueError as error:
        raise RuntimeError(f"{found} is not Fashion-MNIST as published: {error}; delete it and try again") from error


def folders() -> list[Path]:
    """Where a copy may lie, in the order of search."""
    own = [Path(os.environ["MINAR_DATA"]).expanduser()] if os.environ.get("MINAR_DATA") else []
    return [*own, cache(), Path("/usr/share/datasets/fashion-mnist"), Path("data/FashionMNIST/raw")]


def cache() -> Path:
    return Path.home() / ".cache" / "minar"


def checked(file: Path, name: str) -> bytes:
    """The decompressed bytes of `file`; ValueError with the reason unless they are what was published as `name`."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256[name]:
        raise ValueError(f"its content has sha256 {found[:12]}..., expected {SHA256[name][:12]}...")
    return data


def download(name: str) -> Path:
    """Fetch one file into the cache and return its place there; RuntimeError without network."""
    target = cache() / f"{name}.gz"
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renaming a file that is complete and checked: a broken download, or two at once, leave no bad copy behind.
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=name, suffix=".gz")
        with os.fdopen(handle, "wb") as file:
            fetch(URL + target.name, file)
        checked(Path(partial), name)
        os.replace(partial, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RuntimeError(
            f"could not download {URL + target.name} ({error}); put the file into {target.parent} by hand, "
            "or name its folder in the variable MINAR_DATA, or use the embedded 7,000 pictures: fashion(full=False)"
        ) from error
    finally:
        if partial and os.path.exists(partial):
            os.remove(partial)
    return target


def fetch(url: str, file) -> None:
    """Copy what lies at `url` into an open file, with a progress bar."""
    import urllib.request

    from tqdm import tqdm

    with urllib.request.urlopen(url, timeout=30) as response:
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1]) as bar:
            while chunk := response.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))

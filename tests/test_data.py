"""The data sets: what they promise in shapes, ranges and splits, and every message a student may read. Offline."""

import gzip
import hashlib
import http.client
import io
import re
import socket
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from minar.lab import data, emoji_split, fashion_full


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("a test asked for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def check(given, count, channels, size):
    assert given.images.shape == (count, channels, size, size)
    assert given.images.dtype == torch.float32 and given.images.is_contiguous()
    assert given.images.min() == -1 and given.images.max() == 1
    assert given.labels.shape == (count,) and given.labels.dtype == torch.long
    assert set(given.labels.tolist()) == set(range(len(given.names)))


@pytest.mark.parametrize("split, count", [("train", 1500), ("test", 297)])
def test_digits(split, count):
    digits = data.digits(split)
    check(digits, count, 1, 8)
    levels = (digits.images + 1) * 8
    assert torch.equal(levels, levels.round())
    assert digits.names == tuple("0123456789")
    assert (digits.labels.bincount() / count).sub(0.1).abs().max() < 0.02


@pytest.mark.parametrize("split, count", [("train", 6000), ("test", 1000)])
def test_fashion(split, count):
    fashion = data.fashion(split)
    check(fashion, count, 1, 32)
    assert fashion.labels.bincount().tolist() == [count // 10] * 10
    assert fashion.names == data.fashion.names and fashion.names[9] == "Ankle boot"
    # Mixed, so that the first batches of a loader without shuffling have every class.
    assert len(set(fashion.labels[:100].tolist())) == 10


def test_crop28_undoes_the_frame():
    images = data.fashion("test").images
    with np.load(data.path("fashion6k.npz")) as file:
        published = torch.from_numpy(file["test_images"]).float()
    assert torch.equal(data.crop28(images)[:, 0].add(1).mul(127.5).round(), published)
    data.crop28(images).fill_(-1)
    assert (images == -1).all()
    assert data.crop28(images[0]).shape == (1, 28, 28)
    with pytest.raises(ValueError, match=r"takes pictures of 32x32, as fashion\(\) gives; these are \(1, 28, 28\)"):
        data.crop28(images[0, :, 2:30, 2:30])


def test_emoji_is_split_by_concept_alike_in_every_style():
    train, test = data.emoji("all", "train"), data.emoji("all", "test")
    check(train, 4 * 1431, 3, 32)
    check(test, 4 * 155, 3, 32)
    assert not set(train.concept.tolist()) & set(test.concept.tolist())
    assert test.style.bincount().tolist() == [155] * 4
    share = test.labels.bincount() / (test.labels.bincount() + train.labels.bincount())
    assert share.min() > 0.08 and share.max() <= 0.1
    assert "Food & Drink" in train.names and train.names == test.names


def test_no_emoji_picture_is_on_both_sides():
    def pictures(split):
        return {image.numpy().tobytes() for image in data.emoji("all", split).images}

    assert not pictures("train") & pictures("test")


def test_near_twins_are_one_family():
    def family(label, subcategory="person-role"):
        return emoji_split.family({"label": label, "subcategory": subcategory})

    assert family("man health worker") == family("woman health worker") != family("man farmer")
    assert family("one o’clock", "time") == family("two-thirty", "time")
    assert family("cat face", "animal-mammal") == family("black cat", "animal-mammal")


@pytest.mark.parametrize("style", data.EMOJI_STYLES)
def test_emoji_styles_are_aligned(style):
    one, every = data.emoji(style), data.emoji("all")
    mine = every.style == data.EMOJI_STYLES.index(style)
    check(one, 1431, 3, 32)
    assert torch.equal(one.images, every.images[mine]) and torch.equal(one.concept, every.concept[mine])
    assert len(one.captions) == len(one.tags) == 1431
    grinning = one.captions.index("grinning face")
    assert one.names[one.labels[grinning]] == "Smileys & Emotion" and "happy" in one.tags[grinning]
    # A yellow forehead in every style: a swapped channel or a shifted caption would show.
    red, green, blue = one.images[grinning, :, 4:8, 12:20].mean((1, 2))
    assert red > 0.9 and green > 0.3 and blue < -0.2


def test_emoji_styles_are_those_of_the_file():
    with np.load(data.path("emoji32.npz")) as file:
        assert tuple(file["styles"].tolist()) == data.EMOJI_STYLES


def test_readme_names_every_file_with_its_checksums():
    readme = data.path("README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| ([\d,]+) \| `(\w{64})` \| (?:`(\w{64})` )?\|$", readme, re.MULTILINE)
    assert {"digits.npz", "fashion6k.npz", "emoji32.npz", "emoji_meta.json"} <= {name for name, *_ in rows}
    for name, size, whole, payload in rows:
        content = data.path(name).read_bytes()
        assert len(content) == int(size.replace(",", ""))
        assert hashlib.sha256(content).hexdigest() == whole, f"{name} is not the file its README describes"
        if name.endswith(".npz"):
            with np.load(io.BytesIO(content)) as file:
                arrays = b"".join(file[key].tobytes() for key in file.files)
            assert hashlib.sha256(arrays).hexdigest() == payload


def test_path_lists_what_there_is():
    assert data.path("digits.npz").is_file()
    with pytest.raises(
        FileNotFoundError, match=r"no data file 'cats.npz' in .*; there is: .*digits.npz, .*emoji32.npz"
    ):
        data.path("cats.npz")


def test_path_of_an_empty_installation(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_ROOT", tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="there is: nothing"):
        data.path("digits.npz")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: data.load("cifar"), "unknown data set 'cifar'; choose one of: digits, fashion, fashion-full, emoji"),
        (lambda: data.load("folder:"), "unknown data set 'folder:'; choose one of"),
        (lambda: data.load("digits", "val"), "unknown split 'val'; choose one of: train, test"),
        (lambda: data.load("fashion-full", "val"), "unknown split 'val'; choose one of: train, test"),
        (lambda: data.load("folder:x", "test"), "unknown split of a folder 'test'; choose one of: train"),
        (lambda: data.fashion("valid"), "unknown split 'valid'; choose one of: train, test"),
        (lambda: data.emoji("apple"), "unknown emoji style 'apple'; choose one of: noto, twemoji, fluent_flat, fluent"),
        (lambda: data.emoji(split="val"), "unknown split 'val'; choose one of: train, test"),
        (lambda: data.folder(".", channels=4), "unknown number of channels 4; choose one of: 1, 3"),
        (lambda: data.folder(".", size=0), "size is 0, expected at least 1 pixel"),
    ],
)
def test_wrong_choice_is_told_the_right_ones(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_load_by_name():
    assert torch.equal(data.load("digits", "test").images, data.digits("test").images)
    assert len(data.load("fashion").images) == 6000
    assert len(data.load("emoji", "test", style="all").images) == 4 * 155


def picture(file, color, size=(40, 20), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(file)


def test_folder(tmp_path):
    picture(tmp_path / "sea" / "a.png", "blue")
    picture(tmp_path / "sea" / "deep" / "b.webp", "blue")
    picture(tmp_path / "grass" / "c.JPG", "lime", size=(7, 90))
    picture(tmp_path / "grass" / "d.gif", 0, mode="P")
    (tmp_path / "grass" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "grass" / "notes.txt").write_text("not a picture")
    with pytest.warns(UserWarning, match=r"1 unreadable of 5 files left out: grass.broken\.png \("):
        given = data.load(f"folder:{tmp_path}", size=16)
    assert given.images.shape == (4, 3, 16, 16) and given.images.abs().max() <= 1
    assert given.names == ("grass", "sea") and given.labels.tolist() == [0, 0, 1, 1]
    assert given.images[2].mean((1, 2)).tolist() == [-1, -1, 1]


def test_flat_folder_is_one_class(tmp_path):
    picture(tmp_path / "mine" / "a.png", 128, mode="L")
    given = data.folder(tmp_path / "mine", channels=1)
    assert given.images.shape == (1, 1, 32, 32) and given.names == ("mine",) and given.labels.tolist() == [0]
    assert given.images.unique().tolist() == pytest.approx([128 / 127.5 - 1], abs=1e-6)


def test_folder_cuts_the_centre_and_puts_transparency_on_white(tmp_path):
    wide = Image.new("RGBA", (60, 20), "red")
    wide.paste((0, 0, 0, 0), (20, 0, 40, 20))
    wide.save(tmp_path / "a.png")
    assert (data.folder(tmp_path, size=20).images == 1).all()


def test_folder_that_is_missing_empty_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'; give the folder that holds your pictures"):
        data.folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no readable picture in '.*'; put png, jpg"):
        data.folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"a\.png"), pytest.raises(ValueError, match="no readable picture"):
        data.folder(tmp_path)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A machine without a copy of Fashion-MNIST: the places of search are made-up folders."""
    places = [tmp_path / name for name in ("own", "cache", "debian", "torchvision")]
    monkeypatch.setattr(fashion_full, "folders", lambda: places)
    monkeypatch.setattr(fashion_full, "cache", lambda: places[1])
    return places


def publish(monkeypatch, folder, zipped=True):
    """Four made-up files in the published format, and their hashes in place of the real ones."""
    folder.mkdir(parents=True)
    for prefix, count in (("train", 30), ("t10k", 20)):
        images, labels = np.arange(count * 784) % 256, np.arange(count) % 10
        for kind, head, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            name, content = f"{prefix}-{kind}-ubyte", bytes(head) + array.astype(np.uint8).tobytes()
            monkeypatch.setitem(fashion_full.SHA256, name, hashlib.sha256(content).hexdigest())
            (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)


@pytest.mark.parametrize("place, zipped", [(0, True), (1, True), (2, True), (3, False)])
def test_full_fashion_from_a_local_copy(monkeypatch, elsewhere, place, zipped):
    publish(monkeypatch, elsewhere[place], zipped)
    train, test = data.fashion(full=True), data.load("fashion-full", "test")
    assert train.images.shape == (30, 1, 32, 32) and test.images.shape == (20, 1, 32, 32)
    assert train.labels.tolist() == [k % 10 for k in range(30)]
    assert data.crop28(train.images)[0, 0, 0, 5] == pytest.approx(5 / 127.5 - 1)


def test_full_fashion_places_of_search(monkeypatch, tmp_path):
    monkeypatch.setenv("MINAR_DATA", str(tmp_path))
    assert fashion_full.folders()[0] == tmp_path
    monkeypatch.delenv("MINAR_DATA")
    assert fashion_full.folders()[0] == fashion_full.cache()


@pytest.mark.parametrize("content", [gzip.compress(b"other pictures"), b"<html>", gzip.compress(b"cut" * 99)[:-9], b""])
def test_full_fashion_refuses_a_damaged_copy(elsewhere, content):
    elsewhere[0].mkdir()
    (elsewhere[0] / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(RuntimeError) as raised:
        data.fashion("test", full=True)
    message = str(raised.value)
    assert re.search(r"own.t10k-images-idx3-ubyte.gz is not Fashion-MNIST as published: .+; delete it and try", message)
    assert "\n" not in message


def test_full_fashion_without_network_says_what_to_do(elsewhere):
    with pytest.raises(RuntimeError) as raised:
        data.fashion(full=True)
    message = str(raised.value)
    assert message.startswith("could not download http://fashion-mnist.s3-website") and "\n" not in message
    for way_out in ("by hand", "MINAR_DATA", "fashion(full=False)"):
        assert way_out in message
    assert not list(elsewhere[1].iterdir()), "a failed download left a file in the cache"


def answer(monkeypatch, contents):
    class Response(io.BytesIO):
        headers = http.client.HTTPMessage()

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response(contents[url.rsplit("/", 1)[-1]]))


def test_full_fashion_downloads_once(monkeypatch, elsewhere, tmp_path):
    publish(monkeypatch, tmp_path / "upstream")
    answer(monkeypatch, {file.name: file.read_bytes() for file in (tmp_path / "upstream").iterdir()})
    assert len(data.fashion("test", full=True).images) == 20
    assert sorted(p.name for p in elsewhere[1].iterdir()) == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    answer(monkeypatch, {})
    assert len(data.fashion("test", full=True).images) == 20


def test_full_fashion_never_keeps_a_wrong_download(monkeypatch, elsewhere):
    answer(monkeypatch, {"train-images-idx3-ubyte.gz": gzip.compress(b"please log in")})
    with pytest.raises(RuntimeError, match=r"could not download .* \(its content has sha256 .*, expected c59f468a2f67"):
        data.fashion(full=True)
    assert not list(elsewhere[1].iterdir())

"""Rebuild data/emoji32.npz and data/emoji_meta.json from six npm packages: 1,586 concepts drawn in 4 styles.

    npm pack emoji-datasource-google@16.0.0 emojibase-data@17.0.0 @iconify-json/noto@1.2.9 \\
        @iconify-json/twemoji@1.2.5 @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji@1.2.7
    pip install numpy pillow resvg-py==0.5.0
    python tools/make_emoji.py FOLDER_OF_TGZ

Takes about three minutes on one core. Licences and attribution: data/README.md.
"""

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

STYLES = {"noto": "noto", "twemoji": "twemoji", "fluent_flat": "fluent-emoji-flat", "fluent": "fluent-emoji"}
PAYLOAD_SHA256 = {  # of the pictures alone: uint8, style x concept x size x size x 3
    32: "d1331ce84092770e48770b3c3f08955717c709fba9882c4f5f7fbf647e3379f1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder of the six .tgz files")
    parser.add_argument("--size", type=int, choices=[32, 64], default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "data")
    args = parser.parse_args()

    meta, svgs = concepts(args.source)
    pictures = np.stack([[shrink(draw(svg), args.size) for svg in svgs[style]] for style in STYLES])
    payload = hashlib.sha256(pictures.tobytes()).hexdigest()
    if payload != PAYLOAD_SHA256.get(args.size, payload):
        raise SystemExit(f"pictures have sha256 {payload}, expected {PAYLOAD_SHA256[args.size]}; check the versions")
    save(args.out, args.size, pictures, meta)


def concepts(source: Path) -> tuple[list[dict], dict[str, list[str]]]:
    """What each concept is called, and its drawing in every style; only concepts that all four styles draw."""
    listed = member(source, "emoji-datasource-google", "emoji.json")
    words = {plain(e["hexcode"]): e for e in member(source, "emojibase-data", "en/data.json")}
    icons = {style: member(source, f"iconify-json-{package}", "icons.json") for style, package in STYLES.items()}
    names = {style: icon_names(source, package) for style, package in STYLES.items()}

    meta, svgs = [], {style: [] for style in STYLES}
    for e in sorted(listed, key=lambda e: e["sort_order"]):
        code = plain(e["unified"])
        drawings = {style: drawing(icons[style], names[style].get(code)) for style in STYLES}
        if e["category"] in ("Component", "Flags") or None in drawings.values():
            continue
        w = words.get(code, {})
        meta.append(
            {
                "hex": code,
                "char": w.get("emoji"),
                "label": w.get("label", e["name"].lower()),
                "tags": w.get("tags", []),
                "category": e["category"],
                "subcategory": e["subcategory"],
            }
        )
        for style in STYLES:
            svgs[style].append(drawings[style])
    return meta, svgs


def member(source: Path, package: str, name: str) -> dict:
    found = sorted(source.glob(f"{package}-[0-9]*.tgz"))
    if not found:
        raise SystemExit(f"{source} holds no {package}-VERSION.tgz; run the npm pack line of this docstring there")
    with tarfile.open(found[0]) as archive:
        return json.load(archive.extractfile(f"package/{name}"))


def icon_names(source: Path, package: str) -> dict[str, str]:
    # fluent-emoji comes without a chars.json, but names its icons as fluent-emoji-flat does.
    package = "fluent-emoji-flat" if package == "fluent-emoji" else package
    return {plain(code): name for code, name in member(source, f"iconify-json-{package}", "chars.json").items()}


def plain(code: str) -> str:
    # fe0f asks for a coloured glyph and is written by some sources only.
    return code.lower().replace("-fe0f", "")


def drawing(icons: dict, name: str | None) -> str | None:
    alias = icons.get("aliases", {}).get(name, {}).get("parent")
    icon = icons["icons"].get(name) or icons["icons"].get(alias)
    if icon is None:
        return None
    width, height = (icon.get(side, icons.get(side, 32)) for side in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" width="256" height="256">'
        f"{icon['body']}</svg>"
    )


def draw(svg: str) -> Image.Image:
    """One drawing on white, 64 px; drawn at 256 and averaged, which leaves smoother edges than drawing small."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB").resize((64, 64), Image.Resampling.BOX)


def shrink(picture: Image.Image, size: int) -> np.ndarray:
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def save(out: Path, size: int, pictures: np.ndarray, meta: list[dict]) -> None:
    categories = sorted({m["category"] for m in meta})
    category = [categories.index(m["category"]) for m in meta]
    np.savez_compressed(
        out / f"emoji{size}.npz",
        x=pictures.reshape(-1, size, size, 3),
        style=np.repeat(np.arange(len(STYLES), dtype=np.uint8), len(meta)),
        concept=np.tile(np.arange(len(meta), dtype=np.int16), len(STYLES)),
        category=np.tile(np.array(category, np.uint8), len(STYLES)),
        styles=np.array(list(STYLES)),
        categories=np.array(categories),
    )
    (out / "emoji_meta.json").write_text(json.dumps(meta, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    for name in (f"emoji{size}.npz", "emoji_meta.json"):
        print(name, hashlib.sha256((out / name).read_bytes()).hexdigest())


if __name__ == "__main__":
    main()

"""Build the emoji that mmlib ships, from two npm packages.

    python book/scripts/build_emoji.py [--cache DIR] [--check]

fetches ``emoji-datasource-google`` 16.0.0 (the Noto pictures, 74 MB) and ``emojibase-data``
17.0.0 (names and keywords, 7 MB) with ``npm pack``, compares their sha512 with the registry's
published digests written below, and writes ``mmlib/data/files/emoji/``:

    emoji.webp   every picture, 64 x 64 with transparency, row by row in one sheet
    emoji.json   code, names, keywords, group, subgroup and concept, in the same order
    SHA256SUMS   the digest of every other file there; mmlib checks them at each load

The licence texts and ATTRIBUTION.md are committed beside them and are not written here.
With one version of libwebp (Pillow carries its own) the files come out byte for byte the
same; another version may choose other bits for nearly the same picture. ``--check`` writes
nothing and says which files differ from the committed ones.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from emoji_concepts import Entry, concepts, distances
from PIL import Image
from shipped_files import run, with_sums

TARGET = Path(__file__).parents[2] / "mmlib" / "data" / "files" / "emoji"
PACKAGES = {
    "emoji-datasource-google@16.0.0": (
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A=="
    ),
    "emojibase-data@17.0.0": (
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="
    ),
}
SIDE = 64
COLUMNS = 41
QUALITY = 85

# Traditional characters and a misprint that slipped into the simplified Chinese keywords.
MENDED = {
    "目擊": "目击",
    "檀岛警騎": "檀岛警骑",
    "碎碎唸的脸": "碎碎念的脸",
    "签餅": "签饼",
    "防嗮霜": "防晒霜",
}


def fetch(package: str, cache: Path) -> tarfile.TarFile:
    """Open an npm package, downloading it when the cache lacks it; its sha512 must match."""
    path = cache / (package.replace("@", "-") + ".tgz")
    if not path.exists():
        subprocess.run(["npm", "pack", "--silent", package], cwd=cache, check=True)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != PACKAGES[package]:
        raise SystemExit(f"{path.name}: sha512 is {digest}, expected {PACKAGES[package]}")
    return tarfile.open(path)


def read(package: tarfile.TarFile, name: str) -> bytes:
    """One file of a package."""
    file = package.extractfile(f"package/{name}")
    assert file is not None, name
    return file.read()


def plain(code: str) -> str:
    """A code without the variation selector, which the two packages do not place alike."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def rows(pictures: tarfile.TarFile, words: tarfile.TarFile) -> list[dict]:
    """All emoji but the flags, in Unicode's order, with names and keywords in two languages."""
    languages = {
        language: {plain(e["hexcode"]): e for e in json.loads(read(words, f"{language}/data.json"))}
        for language in ("en", "zh")
    }
    subgroups = json.loads(read(words, "meta/groups.json"))["subgroups"]
    result = []
    for entry in json.loads(read(pictures, "emoji.json")):
        if entry["category"] == "Flags":
            continue
        code = plain(entry["unified"])
        english, chinese = languages["en"][code], languages["zh"][code]
        row = {
            "code": entry["unified"],
            "name": english["label"],
            "name_zh": chinese["label"],
            "tags": english["tags"],
            "tags_zh": [MENDED.get(tag, tag) for tag in chinese["tags"]],
            "group": entry["category"],
            "subgroup": subgroups[str(english["subgroup"])],
        }
        if not all(row.values()):
            raise SystemExit(f"{row['code']}: something is empty: {row}")
        result.append((english["order"], row, entry["image"]))
    result.sort(key=lambda item: item[0])
    for _, row, image in result:
        row["image"] = image
    return [row for _, row, _ in result]


def sheet(pictures: tarfile.TarFile, names: list[str]) -> bytes:
    """The pictures in one WebP sheet, lossy colour and lossless transparency."""
    lines = -(-len(names) // COLUMNS)
    page = Image.new("RGBA", (COLUMNS * SIDE, lines * SIDE))
    for i, name in enumerate(names):
        tile = Image.open(io.BytesIO(read(pictures, f"img/google/64/{name}"))).convert("RGBA")
        if tile.size != (SIDE, SIDE):
            raise SystemExit(f"{name}: {tile.size} pixels, expected {SIDE} x {SIDE}")
        page.paste(tile, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    file = io.BytesIO()
    page.save(file, "WEBP", quality=QUALITY, alpha_quality=100, method=6)
    return file.getvalue()


def tiles(webp: bytes, count: int) -> np.ndarray:
    """Cut a sheet into its pictures, uint8 (n, 64, 64, 4)."""
    page = np.asarray(Image.open(io.BytesIO(webp)).convert("RGBA"))
    grid = page.reshape(-1, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2)
    return grid.reshape(-1, SIDE, SIDE, 4)[:count]


def build(cache: Path) -> dict[str, bytes]:
    """Contents of the built files."""
    pictures, words = (fetch(package, cache) for package in PACKAGES)
    table = rows(pictures, words)
    webp = sheet(pictures, [row.pop("image") for row in table])
    entries = [Entry(row["code"], row["name"], row["subgroup"]) for row in table]
    distance = distances(tiles(webp, len(table)))
    for row, concept in zip(table, concepts(entries, distance), strict=True):
        row["concept"] = concept
    lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in table)
    files = {"emoji.webp": webp, "emoji.json": ("[\n" + ",\n".join(lines) + "\n]\n").encode()}
    return with_sums(files, TARGET)


if __name__ == "__main__":
    sys.exit(run("emoji", build, TARGET))

"""Build the clip art that mmlib ships, from two Debian packages.

    python book/scripts/build_clipart.py [--cache DIR] [--check]

takes ``openclipart-png`` and ``openclipart-svg`` 0.18+dfsg-19 (131 and 25 MB; fetched with
``apt-get download`` unless the cache folder has them), compares their sha256 with the digests
of Debian 12's package index, written below, and writes ``mmlib/data/files/clipart/``:

    clipart.webp   every picture, 128 x 128 with transparency, row by row in one sheet
    clipart.jsonl  a line for each: caption, keywords, category, concept, and where it is from
    SHA256SUMS     the digest of every other file there; mmlib checks them at each load

Which drawings, and their captions, say ``clipart_titles.py`` and ``clipart_captions.tsv``. A
drawing comes in only if the licence in its SVG file is the public domain's. The licence text
and ATTRIBUTION.md are committed beside them and are not written here. With one version of
libwebp (Pillow carries its own) the files come out byte for byte the same; another version may
choose other bits for nearly the same picture. ``--check`` writes nothing and says which files
differ from the committed ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import io
import json
import lzma
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from clipart_titles import concept, emoji_concepts, keywords, table
from PIL import Image
from shipped_files import run, with_sums

DATA = Path(__file__).parents[2] / "mmlib" / "data" / "files"
TARGET = DATA / "clipart"
VERSION = "1:0.18+dfsg-19"
PACKAGES = {
    "openclipart-png": "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "openclipart-svg": "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
}
LICENCE = "http://web.resource.org/cc/PublicDomain"
MOST_PIXELS = 100_000_000  # the packages hold pictures of up to 623 million
SIDE = 128
MARGIN = 4
COLUMNS = 42
QUALITY = 45
ALPHA_QUALITY = 30

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
DC = "{http://purl.org/dc/elements/1.1/}"


def fetch(package: str, cache: Path) -> Path:
    """Path of a Debian package, downloaded when the cache lacks it; its sha256 must match."""
    path = cache / f"{package}_{VERSION.replace(':', '%3a')}_all.deb"
    if not path.exists():
        subprocess.run(["apt-get", "download", f"{package}={VERSION}"], cwd=cache, check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PACKAGES[package]:
        raise SystemExit(f"{path.name}: sha256 is {digest}, expected {PACKAGES[package]}")
    return path


def members(package: Path, kind: str, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Path without suffix, and contents, of the wanted drawings in a Debian package.

    A package is an ``ar`` archive, whose member ``data.tar.xz`` holds the files.
    """
    with package.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise SystemExit(f"{package.name} is not a Debian package")
        while header := file.read(60):
            name, size = header[:16].decode().strip(" /"), int(header[48:58])
            if name == "data.tar.xz":
                break
            file.seek(size + size % 2, io.SEEK_CUR)
        else:
            raise SystemExit(f"{package.name} has no data.tar.xz")
        unpacked = io.BytesIO(lzma.decompress(file.read(size)))
    with tarfile.open(fileobj=unpacked) as archive:
        for member in archive:
            match = re.fullmatch(rf"\./usr/share/openclipart/{kind}/(.+)\.{kind}", member.name)
            if match and match[1] in wanted:  # also a link: equal drawings are stored once
                yield match[1], archive.extractfile(member).read()


def metadata(svg: bytes) -> dict:
    """Title, author, keywords and licences that a drawing's file gives."""
    root = ElementTree.fromstring(svg)
    work = next(node for node in root.iter() if node.tag.endswith("}Work"))
    licences = {
        value
        for node in root.iter()
        if node.tag.endswith("}license")
        for key, value in node.attrib.items()
        if key == f"{RDF}resource"
    }
    creator = work.find(f"{DC}creator")
    author = next(creator.iter(f"{DC}title"), None) if creator is not None else None
    return {
        "title": readable(work.findtext(f"{DC}title")),
        "author": without_address(readable(author.text if author is not None else "")),
        "keywords": [readable(node.text) for node in work.iterfind(f"{DC}subject//{RDF}li")],
        "licences": licences,
    }


def readable(text: str | None) -> str:
    """Text with its entities resolved, in one line, and UTF-8 that was read as Latin-1 mended."""
    text = html.unescape(text or "")
    with contextlib.suppress(UnicodeError):
        text = text.encode("latin-1").decode("utf-8")
    return " ".join(text.split())


def without_address(author: str) -> str:
    """An author's name without addresses; of nothing but an address, the part before the @."""
    name = re.sub(r"[(<\[][^)>\]]*([@/]|\.com)[^)>\]]*[)>\]]|https?://\S+", "", author)
    name = re.sub(r"(mailto:)?([\w.-]+)@[\w.-]+", r"\2", name).strip(" ,-")
    return "" if re.match(r"HASH\(0x|\W*$", name) else name


def tile(png: bytes) -> Image.Image:
    """A drawing cut to what it covers, its longer side 120 pixels, in the middle of 128 x 128.

    Raises:
        ValueError: if it has too many pixels or none that shows.
    """
    picture = Image.open(io.BytesIO(png))
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(f"{picture.width} x {picture.height} pixels")
    picture = picture.convert("RGBA")
    longest = max(picture.size)
    if longest > 1024:  # an average of boxes first: fast, and as good for a reduction by so much
        size = [max(1, round(side * 512 / longest)) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(picture)
    shows = pixels[..., 3] > 8
    if shows.all():  # opaque: cut off white surroundings
        shows = (pixels[..., :3] < 250).any(-1)
    rows, columns = np.flatnonzero(shows.any(1)), np.flatnonzero(shows.any(0))
    if not len(rows):
        raise ValueError("nothing shows")
    picture = picture.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    scale = (SIDE - 2 * MARGIN) / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    page = Image.new("RGBA", (SIDE, SIDE))
    page.paste(picture, tuple((SIDE - side) // 2 for side in size))
    return page


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """The pictures row by row."""
    lines = -(-len(pictures) // COLUMNS)
    page = Image.new("RGBA", (COLUMNS * SIDE, lines * SIDE))
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
    return page


def encoded(page: Image.Image) -> bytes:
    """A sheet as WebP, lossy in colour and in transparency."""
    file = io.BytesIO()
    page.save(file, "WEBP", quality=QUALITY, alpha_quality=ALPHA_QUALITY, method=6)
    return file.getvalue()


def drawings(cache: Path) -> list[tuple[dict, Image.Image]]:
    """What ships of every drawing in the table, and its picture before encoding."""
    rows = table()
    paths = {path for path, _, _ in rows}
    about = {k: metadata(svg) for k, svg in members(fetch("openclipart-svg", cache), "svg", paths)}
    shown = {k: tile(png) for k, png in members(fetch("openclipart-png", cache), "png", paths)}
    emoji = json.loads((DATA / "emoji" / "emoji.json").read_text(encoding="utf-8"))
    concepts = emoji_concepts((row["name"], row["concept"]) for row in emoji)
    result = []
    for path, caption, category in rows:
        entry = about[path]
        if entry["licences"] != {LICENCE}:
            raise SystemExit(f"{path}: the licence is {entry['licences']}, expected {LICENCE}")
        row = {
            "name": caption,
            "tags": keywords(entry["keywords"], caption),
            "category": category,
            "concept": concept(caption, concepts),
            "source": path,
            "title": entry["title"],
            "author": entry["author"],
        }
        result.append((row, shown[path]))
    result.sort(key=lambda item: (item[0]["category"], item[0]["source"]))
    return result


def build(cache: Path) -> dict[str, bytes]:
    """Contents of the built files."""
    items = drawings(cache)
    lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row, _ in items)
    files = {
        "clipart.webp": encoded(sheet([picture for _, picture in items])),
        "clipart.jsonl": ("\n".join(lines) + "\n").encode(),
    }
    return with_sums(files, TARGET)


if __name__ == "__main__":
    sys.exit(run("clip art", build, TARGET))

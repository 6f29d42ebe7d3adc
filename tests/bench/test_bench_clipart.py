"""How long the pictures that ship take to load, beside decoding their sheets alone."""

import io
from importlib import resources

from PIL import Image

from mmlib.data import clipart, emoji

AREA = "Emoji and clip art"

FILES = resources.files("mmlib.data") / "files"


def decoded(folder: str) -> Image.Image:
    """The sheet of a data set, decoded by Pillow and nothing else."""
    sheet = (FILES / folder / f"{folder}.webp").read_bytes()
    return Image.open(io.BytesIO(sheet)).convert("RGBA")


def test_loading(side_by_side):
    table = side_by_side(
        "load the pictures that ship",
        {
            "clip art, 128 × 128": clipart.load,
            "clip art, 64 × 64": lambda: clipart.load(size=64),
            "clip art, sheet only": lambda: decoded("clipart"),
            "emoji, 64 × 64": emoji.load,
            "emoji, sheet only": lambda: decoded("emoji"),
        },
        rounds=5,
    )
    table.at_most("clip art, 128 × 128", "clip art, sheet only", 5)
    table.at_most("emoji, 64 × 64", "emoji, sheet only", 5)

r"""The emoji: 1,641 small pictures with names and keywords in English and Chinese (表情符号).

The pictures are Google's Noto emoji without the flags, the names and keywords those of
Unicode's CLDR. They ship with the library; ``book/scripts/build_emoji.py`` made them from two
npm packages, and ``files/emoji/ATTRIBUTION.md`` says whose they are and under which licences.

**The split.** Many emoji show the same thing twice: man, woman and person farmer, twenty-four
clock faces, a dog and a dog's face. Were they spread over training and test set at random, a
model could answer the test by remembering. So emoji that show the same thing share a *concept*
(the rule is in ``book/scripts/emoji_concepts.py``), and a whole concept is in the test set when
the hash of its name says so, which happens to one concept in five:

.. math:: \text{test} \iff \operatorname{SHA256}(\texttt{0/} \mathbin{+} \text{concept}) \bmod 5 = 0

where the first eight bytes of the digest are read as a big-endian number. No random generator
is involved: the split is the same on every machine.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

SPLITS = ("train", "test", "all")
SIDE = 64
"""Width and height, in pixels, of a picture as it is stored."""


@dataclass(frozen=True, eq=False, repr=False)
class EmojiSet:
    """Pictures and words of some emoji; item ``i`` of every field is about the same emoji.

    Attributes:
        images: uint8, 0 to 255. Three channels (red, green, blue) on a background, or four
            with the opacity last.
        names: English names, no two alike.
        names_zh: simplified Chinese names, no two alike.
        tags: English keywords of each emoji, at least one.
        tags_zh: Chinese keywords of each emoji, at least one.
        groups: Unicode's nine groups without the flags ("Animals & Nature", ...).
        subgroups: Unicode's subgroups ("animal-bird", ...).
        concepts: what the emoji shows; emoji of one concept are near-duplicates.
        codes: Unicode code points in hexadecimal, joined by hyphens.
    """

    images: UInt8[Tensor, "emoji channels height width"]
    names: tuple[str, ...]
    names_zh: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    tags_zh: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    subgroups: tuple[str, ...]
    concepts: tuple[str, ...]
    codes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"EmojiSet({len(self)} emoji, images {tuple(self.images.shape)})"

    @property
    def characters(self) -> tuple[str, ...]:
        """The emoji as text, one string each."""
        return tuple("".join(chr(int(c, 16)) for c in code.split("-")) for code in self.codes)

    def select(self, indices: Sequence[int] | Tensor | np.ndarray) -> "EmojiSet":
        """Take some of the emoji, in the order given.

        Args:
            indices: whole numbers below ``len(self)``; one may come twice.

        Returns:
            A new set; its images are a copy.

        Raises:
            TypeError: if the indices are not whole numbers.
            IndexError: if one is out of range.
        """
        index = torch.as_tensor(np.asarray(indices, dtype=None if len(indices) else np.int64))
        if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
            raise TypeError(
                "indices must be a sequence of whole numbers: "
                f"got dtype {index.dtype}, shape {tuple(index.shape)}"
            )
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(
                f"indices must be between 0 and {len(self) - 1}: "
                f"got {int(index.min())} to {int(index.max())}"
            )
        words = {
            field.name: tuple(getattr(self, field.name)[i] for i in index.tolist())
            for field in fields(self)
            if field.name != "images"
        }
        return EmojiSet(images=self.images[index], **words)


def load(
    split: str = "all",
    size: int = SIDE,
    background: tuple[int, int, int] | None = (255, 255, 255),
) -> EmojiSet:
    """Load the emoji, in Unicode's order.

    Every file is checked against its SHA-256 digest first. Two calls share no memory.

    Args:
        split: ``"train"``, ``"test"`` or ``"all"`` (see the top of this page).
        size: width and height of the pictures; other sizes than 64 are resampled (Lanczos).
        background: colour (red, green, blue; 0 to 255) to lay the pictures on, or None to keep
            their opacity as a fourth channel.

    Returns:
        The emoji, images ``(n, 3, size, size)``, or ``(n, 4, size, size)`` without a background.

    Raises:
        ValueError: if an argument is not one of the above, or a file is not the one that was
            shipped.
        FileNotFoundError: if a file is missing.

    >>> from mmlib.data import emoji
    >>> birds = emoji.load("train", size=32)
    >>> birds = birds.select([i for i, s in enumerate(birds.subgroups) if s == "animal-bird"])
    >>> birds.names[:2], birds.names_zh[:2], tuple(birds.images.shape[1:])
    (('chicken', 'rooster'), ('鸡', '公鸡'), (3, 32, 32))
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels above 0: got {size!r}")
    if background is not None and not (
        len(background) == 3
        and all(isinstance(value, int) and 0 <= value <= 255 for value in background)
    ):
        raise ValueError(
            f"background must be three whole numbers from 0 to 255, or None: got {background!r}"
        )
    files = checked_files(resources.files("mmlib.data") / "files" / "emoji")
    rows = json.loads(files["emoji.json"])
    kept = [i for i, row in enumerate(rows) if split in ("all", split_of(row["concept"]))]
    pictures = [_prepare(tile, size, background) for tile in _tiles(files["emoji.webp"], kept)]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    chosen = [rows[i] for i in kept]
    return EmojiSet(
        images=images,
        names=tuple(row["name"] for row in chosen),
        names_zh=tuple(row["name_zh"] for row in chosen),
        tags=tuple(tuple(row["tags"]) for row in chosen),
        tags_zh=tuple(tuple(row["tags_zh"]) for row in chosen),
        groups=tuple(row["group"] for row in chosen),
        subgroups=tuple(row["subgroup"] for row in chosen),
        concepts=tuple(row["concept"] for row in chosen),
        codes=tuple(row["code"] for row in chosen),
    )


def split_of(concept: str) -> str:
    """Say whether a concept belongs to ``"train"`` or ``"test"``; any string has an answer.

    >>> split_of("heart"), split_of("smiley")
    ('test', 'train')
    """
    digest = hashlib.sha256(f"0/{concept}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 5 == 0 else "train"


def checked_files(folder: Traversable) -> dict[str, bytes]:
    """Read every file that a folder's ``SHA256SUMS`` lists, if each has the digest given there.

    Args:
        folder: where ``SHA256SUMS`` (in the format of the ``sha256sum`` command) lies.

    Returns:
        Contents by file name.

    Raises:
        ValueError: if a file differs from what was shipped; the message names it.
        FileNotFoundError: if a file is missing.
    """
    contents = {}
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, name = line.split(maxsplit=1)
        contents[name] = (folder / name).read_bytes()
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise ValueError(
                f"{name} is not the file that was shipped: its sha256 is {found}, "
                f"expected {expected}. Install mmlib again."
            )
    return contents


def _tiles(sheet: bytes, indices: list[int]) -> list[Image.Image]:
    """Cut pictures out of the sheet, which holds them row by row."""
    page = Image.open(io.BytesIO(sheet)).convert("RGBA")
    columns = page.width // SIDE
    corners = ((i % columns * SIDE, i // columns * SIDE) for i in indices)
    return [page.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners]


def _prepare(tile: Image.Image, size: int, background: tuple[int, int, int] | None) -> np.ndarray:
    """Resample one picture and lay it on its background."""
    if size != SIDE:
        # Pillow premultiplies colour with opacity here, so that edges do not darken.
        tile = tile.resize((size, size), Image.Resampling.LANCZOS)
    if background is not None:
        page = Image.new("RGBA", tile.size, background)
        page.alpha_composite(tile)
        tile = page.convert("RGB")
    return np.asarray(tile)

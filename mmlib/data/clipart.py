r"""The clip art: small drawings of things, with plain English captions and keywords (剪贴画).

The drawings are Openclipart's, given to the public domain by their authors; they ship with the
library. ``book/scripts/build_clipart.py`` took them out of two Debian packages. The captions in
``book/scripts/clipart_captions.tsv`` were checked or written by looking at every drawing, for
the titles that came with them are in several languages, name the author or say "Various
Cliparts". ``files/clipart/ATTRIBUTION.md`` says more, and names each drawing's source.

Several drawings may have one caption: there are seven light bulbs. Whoever counts the other
captions of a batch as wrong ones must leave out those that are equal.

**The split.** As with the emoji, drawings of one thing share a *concept*, and a whole concept is
in the training or in the test set (:func:`split_of`). The concept of a drawing is the noun of its
caption, or that of the emoji that shows the same: a drawing of a dog and the emoji of a dog's
face have the concept ``"dog face"``. So what one data set holds out, the other does not train on:

>>> from mmlib.data import clipart, emoji
>>> held_out, seen = set(clipart.load("test", 8).concepts), set(emoji.load("train", 8).concepts)
>>> held_out & seen
set()
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from mmlib.data.shipped import (
    check_request,
    checked_files,
    checked_indices,
    pictures,
    split_of,
)

__all__ = ["SIDE", "ClipartSet", "load", "split_of"]

SIDE = 128
"""Width and height, in pixels, of a picture as it is stored."""


@dataclass(frozen=True, eq=False, repr=False)
class ClipartSet:
    """Pictures and words of some drawings; item ``i`` of every field is about the same one.

    Attributes:
        images: uint8, 0 to 255. Three channels (red, green, blue) on a background, or four
            with the opacity last.
        names: English captions such as ``"red apple"`` or ``"slice of pizza"``; some are alike.
        tags: English keywords of each drawing, at least one.
        categories: one of 16 ("animals", "food", ...), from the package's folders.
        concepts: what the drawing shows; named after an emoji's concept where there is one.
        sources: path in the package without suffix, no two alike.
        titles: as they came, before they were cleaned; may be empty.
        authors: as the drawing's file names them; may be empty.
    """

    images: UInt8[Tensor, "drawings channels height width"]
    names: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    categories: tuple[str, ...]
    concepts: tuple[str, ...]
    sources: tuple[str, ...]
    titles: tuple[str, ...]
    authors: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"ClipartSet({len(self)} drawings, images {tuple(self.images.shape)})"

    def select(self, indices: Sequence[int] | Tensor | np.ndarray) -> "ClipartSet":
        """Take some of the drawings, in the order given.

        Args:
            indices: whole numbers below ``len(self)``; one may come twice.

        Returns:
            A new set; its images are a copy.

        Raises:
            TypeError: if the indices are not whole numbers.
            IndexError: if one is out of range.
        """
        index = checked_indices(indices, len(self))
        words = {
            field.name: tuple(getattr(self, field.name)[i] for i in index.tolist())
            for field in fields(self)
            if field.name != "images"
        }
        return ClipartSet(images=self.images[index], **words)


def load(
    split: str = "all",
    size: int = SIDE,
    background: tuple[int, int, int] | None = (255, 255, 255),
) -> ClipartSet:
    """Load the clip art, by category and source.

    Every file is checked against its SHA-256 digest first. Two calls share no memory.

    Args:
        split: ``"train"``, ``"test"`` or ``"all"`` (see the top of this page).
        size: width and height of the pictures; other sizes than 128 are resampled (Lanczos).
        background: colour (red, green, blue; 0 to 255) to lay the pictures on, or None to keep
            their opacity as a fourth channel.

    Returns:
        The drawings, images ``(n, 3, size, size)``, or ``(n, 4, size, size)`` without a
        background.

    Raises:
        ValueError: if an argument is not one of the above, or a file is not the one that was
            shipped.
        FileNotFoundError: if a file is missing.

    >>> from mmlib.data import clipart
    >>> food = clipart.load("train", size=64)
    >>> food = food.select([i for i, c in enumerate(food.categories) if c == "food"])
    >>> food.names[:2], food.tags[0], tuple(food.images.shape[1:])
    (('yellow jug', 'mug of beer'), ('food', 'beverage'), (3, 64, 64))
    """
    check_request(split, size, background)
    files = checked_files(resources.files("mmlib.data") / "files" / "clipart")
    rows = [json.loads(line) for line in files["clipart.jsonl"].splitlines()]
    kept = [i for i, row in enumerate(rows) if split in ("all", split_of(row["concept"]))]
    chosen = [rows[i] for i in kept]
    return ClipartSet(
        images=pictures(files["clipart.webp"], SIDE, kept, size, background),
        names=tuple(row["name"] for row in chosen),
        tags=tuple(tuple(row["tags"]) for row in chosen),
        categories=tuple(row["category"] for row in chosen),
        concepts=tuple(row["concept"] for row in chosen),
        sources=tuple(row["source"] for row in chosen),
        titles=tuple(row["title"] for row in chosen),
        authors=tuple(row["author"] for row in chosen),
    )

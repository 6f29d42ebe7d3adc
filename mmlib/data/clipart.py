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

from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from mmlib.data.shipped import PictureSet, read_set, split_of

__all__ = ["SIDE", "ClipartSet", "load", "split_of"]

SIDE = 128
"""Width and height, in pixels, of a picture as it is stored."""


@dataclass(frozen=True, eq=False, repr=False)
class ClipartSet(PictureSet):
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

    def __repr__(self) -> str:
        return f"ClipartSet({len(self)} drawings, images {tuple(self.images.shape)})"


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
    images, rows = read_set("clipart.jsonl", SIDE, split, size, background)
    return ClipartSet(
        images=images,
        names=tuple(row["name"] for row in rows),
        tags=tuple(tuple(row["tags"]) for row in rows),
        categories=tuple(row["category"] for row in rows),
        concepts=tuple(row["concept"] for row in rows),
        sources=tuple(row["source"] for row in rows),
        titles=tuple(row["title"] for row in rows),
        authors=tuple(row["author"] for row in rows),
    )

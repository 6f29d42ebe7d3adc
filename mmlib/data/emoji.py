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

from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor

from mmlib.data.shipped import PictureSet, read_set, split_of

__all__ = ["SIDE", "EmojiSet", "load", "split_of"]

SIDE = 64
"""Width and height, in pixels, of a picture as it is stored."""


@dataclass(frozen=True, eq=False, repr=False)
class EmojiSet(PictureSet):
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

    def __repr__(self) -> str:
        return f"EmojiSet({len(self)} emoji, images {tuple(self.images.shape)})"

    @property
    def characters(self) -> tuple[str, ...]:
        """The emoji as text, one string each."""
        return tuple("".join(chr(int(c, 16)) for c in code.split("-")) for code in self.codes)


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
    images, rows = read_set("emoji.json", SIDE, split, size, background)
    return EmojiSet(
        images=images,
        names=tuple(row["name"] for row in rows),
        names_zh=tuple(row["name_zh"] for row in rows),
        tags=tuple(tuple(row["tags"]) for row in rows),
        tags_zh=tuple(tuple(row["tags_zh"]) for row in rows),
        groups=tuple(row["group"] for row in rows),
        subgroups=tuple(row["subgroup"] for row in rows),
        concepts=tuple(row["concept"] for row in rows),
        codes=tuple(row["code"] for row in rows),
    )

r"""Emoji and clip art together: 3,392 pictures with English captions (图文对).

Both data sets hold out whole concepts by one hash, so that a test picture shows something that no
training picture shows. That is the harder of two questions a matching model can be asked; the other
one, new drawings of known things, is what a random split asks (chapter 07 compares them).

Choices are made on a third part, which is cut out of the training concepts in the same way:

>>> parts = {split: load(split, 8) for split in ("train", "validation", "test")}
>>> {split: len(pairs) for split, pairs in parts.items()}
{'train': 2042, 'validation': 715, 'test': 635}
>>> set(parts["train"].concepts) & set(parts["test"].concepts)
set()
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from mmlib.data import clipart, emoji
from mmlib.data.scenes.draws import check_seed
from mmlib.data.shipped import checked_indices

__all__ = ["PairSet", "distinct", "load"]

_SPLITS = ("train", "validation", "development", "test", "all")


@dataclass(frozen=True, eq=False, repr=False)
class PairSet:
    """Pictures and what they are called; item ``i`` of every field is about the same one.

    Attributes:
        images: uint8, on white.
        names: English captions; some pictures have the same.
        names_zh: Chinese names, None for clip art, which has none.
        tags: English keywords of each picture, at least one.
        concepts: What is shown; pictures of one concept are alike.
        sources: ``"emoji"`` or ``"clipart"``.
    """

    images: UInt8[Tensor, "pairs 3 height width"]
    names: tuple[str, ...]
    names_zh: tuple[str | None, ...]
    tags: tuple[tuple[str, ...], ...]
    concepts: tuple[str, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"PairSet({len(self)} pairs, images {tuple(self.images.shape)})"

    def select(self, indices: Sequence[int] | Tensor) -> "PairSet":
        """Take some of the pairs, in the order given; the images are a copy.

        Raises:
            TypeError: The indices are not whole numbers.
            IndexError: One is out of range.
        """
        index = checked_indices(indices, len(self))
        words = {
            name: tuple(getattr(self, name)[i] for i in index.tolist())
            for name in ("names", "names_zh", "tags", "concepts", "sources")
        }
        return PairSet(images=self.images[index], **words)


def load(split: str = "all", size: int = 128) -> PairSet:
    """Load the emoji, then the clip art.

    Args:
        split: ``"test"``: the concepts that both data sets hold out. ``"development"``: all
            others, of which ``"validation"`` is a fifth of the concepts and ``"train"`` the rest.
            ``"all"``: everything.
        size: Width and height of the pictures.

    Raises:
        ValueError: An argument is not one of these.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}: got {split!r}")
    kept = {"test": "test", "all": "all"}.get(split, "train")
    faces, drawings = emoji.load(kept, size), clipart.load(kept, size)
    pairs = PairSet(
        images=torch.cat([faces.images, drawings.images]),
        names=faces.names + drawings.names,
        names_zh=faces.names_zh + (None,) * len(drawings),
        tags=faces.tags + drawings.tags,
        concepts=faces.concepts + drawings.concepts,
        sources=("emoji",) * len(faces) + ("clipart",) * len(drawings),
    )
    if split in ("train", "validation"):
        held_out = [_validates(concept) for concept in pairs.concepts]
        pairs = pairs.select([i for i, out in enumerate(held_out) if out == (split != "train")])
    return pairs


def distinct(names: Sequence[str], count: int, seed: int = 0) -> Int64[Tensor, " count"]:
    """Draw pairs with captions that are all different, as a search among them needs.

    Where two pictures have one caption, neither could be told to be the right one.

    Args:
        names: The captions of all pairs.
        count: How many pairs to draw.
        seed: Of the draw.

    Returns:
        Their numbers, in increasing order.

    Raises:
        ValueError: There are fewer different captions.

    >>> distinct(["a dog", "a cat", "a dog"], 2).tolist() in ([0, 1], [1, 2])
    True
    """
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(check_seed(seed)))
    first: dict[str, int] = {}
    for i in order.tolist():
        first.setdefault(names[i], i)
    if not 0 <= count <= len(first):
        raise ValueError(f"count must be at most {len(first)} different captions: got {count}")
    return torch.tensor(sorted(list(first.values())[:count]), dtype=torch.int64)


def _validates(concept: str) -> bool:
    """Whether a training concept is in the validation part: one in five, by a hash of its own."""
    digest = hashlib.sha256(f"val/{concept}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 5 == 0

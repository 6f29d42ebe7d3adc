"""What lessons are about: scenes, small drawings and photographs, looked at once.

The towers are locked, so that a picture needs to be encoded only once however many lessons it is
used in. Scenes hold no combination of colour and shape that the tests ask for, emoji and clip art
no concept of their test sets.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlib.data import clipart, emoji, scenes
from mmlib.painters import grid_scenes
from mmlib.system.photos import Photos
from mmlib.system.pictures import SIDE, Pictures

__all__ = ["Drawings", "Material"]

CHUNK = 512
_SETS = {"emoji": emoji, "clipart": clipart}


class Drawings(NamedTuple):
    """Small pictures with names, to look at and to draw.

    Attributes:
        names: By language.
        features: Of their regions, in bfloat16.
        codes: Theirs.
    """

    names: Mapping[str, tuple[str, ...]]
    features: Float[Tensor, "pictures regions dim"]
    codes: Int[Tensor, "pictures places"]


class Material:
    """Scenes to look at, scenes to draw, emoji and clip art for both, photographs to look at.

    Args:
        pictures: How pictures are looked at and drawn.
        count: How many scenes to look at, and to draw.
        objects: Fewest and most objects of a scene that is looked at; those that are drawn have
            one or two, on the corners of the codes' cells (:func:`mmlib.painters.grid_scenes`).
        seed: Another gives other scenes.
        drawings: Which small drawings there are: ``"emoji"``, ``"clipart"``, both or neither.
        photos: Photographs, if there are some.

    Attributes:
        seen: Scenes to look at.
        features: Of their regions, in bfloat16.
        drawn: Scenes to draw.
        codes: Theirs.
        drawings: Small drawings by kind.
        photos: Photographs, or None.

    Raises:
        ValueError: ``count`` is below 1, or a kind of drawings is unknown.
    """

    def __init__(
        self,
        pictures: Pictures,
        count: int,
        objects: tuple[int, int] = (1, 2),
        seed: int = 0,
        drawings: Sequence[str] = (),
        photos: Photos | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1: got {count}")
        unknown = set(drawings) - set(_SETS)
        if unknown:
            raise ValueError(f"drawings must be of {', '.join(_SETS)}: got {sorted(unknown)}")
        self.pictures = pictures
        self.seen = scenes.sample(count, 2 * seed, split="train", objects=objects)
        self.drawn = grid_scenes(count, 2 * seed + 1, "train")
        self.features = self._looked_at(self.seen)
        self.codes = torch.cat(
            [pictures.codes(self._rendered(part, SIDE)).short() for part in _parts(self.drawn)]
        )
        self.drawings = {name: self._drawings(name) for name in drawings}
        self.photos = photos

    @property
    def shape(self) -> tuple[int, int]:
        """Regions of a picture, and width of a region's features."""
        return self.features.shape[1], self.features.shape[2]

    @property
    def places(self) -> int:
        """Codes of a picture."""
        return self.codes.shape[1]

    def _looked_at(self, items: list[scenes.Scene]) -> Float[Tensor, "pictures regions dim"]:
        side = self.pictures.recipe.resize
        parts = [self.pictures.look(self._rendered(part, side)) for part in _parts(items)]
        return torch.cat([part.bfloat16() for part in parts])

    def _rendered(
        self, items: list[scenes.Scene], side: int
    ) -> Float[Tensor, "pictures 3 side side"]:
        return scenes.render(items, side, self.pictures.device)

    def _drawings(self, name: str) -> Drawings:
        painted = _SETS[name].load("train", SIDE)
        looked = _SETS[name].load("train", self.pictures.recipe.resize)
        names = {"en": painted.names}
        if name == "emoji":  # the clip art has English captions alone
            names["zh"] = painted.names_zh
        features = self.pictures.look(looked.images.float() / 255).bfloat16()
        codes = self.pictures.codes(painted.images.float() / 255).short()
        return Drawings(names, features, codes)


def _parts(items: list[scenes.Scene]) -> list[list[scenes.Scene]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]

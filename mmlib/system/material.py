"""What lessons are about: scenes and emoji, looked at and turned into codes once.

The towers are locked, so that a picture needs to be encoded only once however many lessons it is
used in. Scenes hold no combination of colour and shape that the tests ask for.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data import emoji, scenes
from mmlib.painters import grid_scenes
from mmlib.system.pictures import Pictures

__all__ = ["Material"]

CHUNK = 512


class Material:
    """Scenes to look at, scenes to draw, and emoji for both.

    Args:
        pictures: How pictures are looked at and drawn.
        count: How many scenes to look at, and to draw.
        objects: Fewest and most objects of a scene that is looked at; those that are drawn have
            one or two, on the corners of the codes' cells (:func:`mmlib.painters.grid_scenes`).
        seed: Another gives other scenes.
        with_emoji: Whether to encode the emoji, too.

    Attributes:
        seen: Scenes to look at.
        features: Of their regions, in bfloat16.
        drawn: Scenes to draw.
        codes: Theirs.
        names: Of the emoji, by language; none without emoji.
        emoji_features: As ``features``.
        emoji_codes: As ``codes``.

    Raises:
        ValueError: ``count`` is below 1.
    """

    def __init__(
        self,
        pictures: Pictures,
        count: int,
        objects: tuple[int, int] = (1, 2),
        seed: int = 0,
        with_emoji: bool = False,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1: got {count}")
        self.pictures = pictures
        self.seen = scenes.sample(count, 2 * seed, split="train", objects=objects)
        self.drawn = grid_scenes(count, 2 * seed + 1, "train")
        self.features = self._looked_at(self.seen)
        self.codes = torch.cat(
            [pictures.codes(self._rendered(part)).short() for part in _parts(self.drawn)]
        )
        self.names: dict[str, tuple[str, ...]] = {}
        if with_emoji:
            data = emoji.load("train", 32)
            images = data.images.float() / 255
            self.names = {"en": data.names, "zh": data.names_zh}
            self.emoji_features = pictures.look(images).bfloat16()
            self.emoji_codes = pictures.codes(images).short()

    @property
    def shape(self) -> tuple[int, int]:
        """Regions of a picture, and width of a region's features."""
        return self.features.shape[1], self.features.shape[2]

    @property
    def places(self) -> int:
        """Codes of a picture."""
        return self.codes.shape[1]

    def _looked_at(self, items: list[scenes.Scene]) -> Float[Tensor, "pictures regions dim"]:
        parts = [self.pictures.look(self._rendered(part)) for part in _parts(items)]
        return torch.cat([part.bfloat16() for part in parts])

    def _rendered(self, items: list[scenes.Scene]) -> Float[Tensor, "pictures 3 32 32"]:
        return scenes.render(items, 32, self.pictures.device)


def _parts(items: list[scenes.Scene]) -> list[list[scenes.Scene]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]

"""Scenes drawn in another way: outlines, and words written into them.

What a model of pictures and texts has learned shows where the pictures leave what it was trained
on. A shape without its inside is the same shape in another drawing style; a word written into a
picture changes nothing that the picture shows, and models that have learned to read believe it all
the same (Goh et al., *Multimodal Neurons in Artificial Neural Networks*, Distill 2021).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmlib.data.scenes.draws import check_seed

__all__ = ["outlines", "write"]


def outlines(
    images: Float[Tensor, "batch channels height width"], width: int = 2
) -> Float[Tensor, "batch channels height width"]:
    """The inner edge of every shape, and the background's colour inside.

    Args:
        images: Scenes in [0, 1]; the background is the colour of the first pixel, as in every
            scene without noise.
        width: Of the edge, in pixels.

    Raises:
        ValueError: a wrong shape, or a width below 1.

    >>> square = torch.zeros(1, 1, 7, 7)
    >>> square[..., 1:6, 1:6] = 1
    >>> outlines(square, width=1)[0, 0, 3].int().tolist()
    [0, 1, 0, 0, 0, 1, 0]
    """
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape (batch, channels, height, width): got {tuple(images.shape)}"
        )
    if width < 1:
        raise ValueError(f"width must be at least 1: got {width}")
    ground = images[:, :, :1, :1]
    drawn = (images - ground).abs().amax(dim=1, keepdim=True)
    # The least in the neighbourhood: above nothing only where everything around is drawn.
    deep = -F.max_pool2d(-drawn, 2 * width + 1, stride=1, padding=width) > 0.1
    return torch.where(deep, ground, images)


def write(
    images: Float[Tensor, "batch 3 height width"],
    words: Sequence[str],
    generator: torch.Generator | int,
    size: int = 8,
) -> Float[Tensor, "batch 3 height width"]:
    """Pictures with a word in white letters across each, at a random height.

    The font is the one that Pillow brings, so that it is the same everywhere.

    Args:
        images: Pictures in [0, 1].
        words: One for each. What does not fit the width is cut off, equally on both sides.
        generator: What the heights are drawn from, or a seed.
        size: Of the letters, in pixels.

    Raises:
        ValueError: a wrong shape, not one word for each picture, an empty word, or letters higher
            than the picture.
    """
    if images.ndim != 4 or len(images) != len(words):
        raise ValueError(
            "images must have shape (batch, 3, height, width) with a word for each: "
            f"got {tuple(images.shape)} and {len(words)} words"
        )
    if not isinstance(generator, torch.Generator):
        generator = torch.Generator().manual_seed(check_seed(generator))
    height, width = images.shape[2:]
    font, written = ImageFont.load_default(size=size), images.clone()
    for picture, word in zip(written, words, strict=True):
        left, top, right, bottom = (int(x) for x in font.getbbox(word))
        if not word or not 0 < bottom - top <= height:
            raise ValueError(f"words must have letters that fit into {height} pixels: got {word!r}")
        sheet = Image.new("L", (width, bottom - top))
        ImageDraw.Draw(sheet).text(((width - left - right) / 2, -top), word, 255, font)
        ink = torch.from_numpy(np.array(sheet)).to(images) / 255
        row = int(torch.randint(height - len(ink) + 1, (), generator=generator))
        strip = picture[:, row : row + len(ink)]  # a view: `written` is what changes
        strip += ink * (1 - strip)
    return written

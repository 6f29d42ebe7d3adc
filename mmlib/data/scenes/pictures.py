"""Pictures of scenes: batched, anti-aliased, on any device.

Most of a picture is background, and most shapes are not where a given pixel is. So objects are
grouped by shape and size, each is computed on a patch just large enough for it, and the patches are
added to the background: a 32-pixel picture costs about 300 distances instead of 20,000.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.scenes.shapes import EXTENT, signed_distance
from mmlib.data.scenes.world import (
    BACKGROUND_HEX,
    BACKGROUNDS,
    COLOUR_HEX,
    COLOURS,
    RADIUS,
    SHAPES,
    SIZES,
    Scene,
)

_SHAPE_NUMBER = {name: number for number, name in enumerate(SHAPES)}
_COLOUR_NUMBER = {name: number for number, name in enumerate(COLOURS)}
_SIZE_NUMBER = {name: number for number, name in enumerate(SIZES)}
_BACKGROUND_NUMBER = {name: number for number, name in enumerate(BACKGROUNDS)}


def _rgb(code: str) -> list[float]:
    return [int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)]


_COLOUR_RGB = [_rgb(COLOUR_HEX[name]) for name in COLOURS]
_BACKGROUND_RGB = [_rgb(BACKGROUND_HEX[name]) for name in BACKGROUNDS]


@dataclass(frozen=True)
class Layout:
    """Objects of many pictures as arrays: what :func:`paint` draws.

    Attributes:
        picture: Which picture each object stands in, shape (objects,).
        kind: Shape number times two, plus one if the object is large, shape (objects,).
        colour: Colour number, shape (objects,).
        centre: x and y of each object, shape (objects, 2).
        background: Background number of each picture, shape (pictures,).
    """

    picture: Tensor
    kind: Tensor
    colour: Tensor
    centre: Tensor
    background: Tensor


def layout(scenes: Sequence[Scene]) -> Layout:
    """Collect the objects of scenes into arrays, on the CPU."""
    rows = [
        (
            number,
            _SHAPE_NUMBER[item.shape] * 2 + _SIZE_NUMBER[item.size],
            _COLOUR_NUMBER[item.colour],
            item.x,
            item.y,
        )
        for number, scene in enumerate(scenes)
        for item in scene.objects
    ]
    # float64 holds the numbers and the places exactly.
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    picture, kind, colour = table[:, :3].long().unbind(1)
    ground = torch.tensor([_BACKGROUND_NUMBER[scene.background] for scene in scenes]).long()
    return Layout(picture, kind, colour, table[:, 3:], ground)


def check_picture(size: object, dtype: torch.dtype) -> None:
    """Raise unless pictures of this size and dtype can be drawn."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 8:
        raise ValueError(f"size must be an integer of at least 8 pixels: got {size!r}")
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type: got {dtype}")


def paint(
    objects: Layout, size: int, device: torch.device | str, dtype: torch.dtype
) -> Float[Tensor, "batch 3 height width"]:
    r"""Draw objects on their backgrounds.

    A pixel takes the share :math:`c` of an object's colour, where the object covers the share
    :math:`c = \operatorname{clip}(\tfrac12 - d, 0, 1)` of it and :math:`d` is the distance in
    pixels from the pixel's centre to the object's edge, negative inside.

    Args:
        objects: What to draw.
        size: Height and width in pixels.
        device: Where to draw.
        dtype: Type of the result.

    Returns:
        Pictures with values in [0, 1].
    """
    work = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    kind = objects.kind
    picture, colour = objects.picture.to(device), objects.colour.to(device)
    grounds = torch.tensor(_BACKGROUND_RGB, dtype=work, device=device)[
        objects.background.to(device)
    ]
    # How far a covered pixel moves from the background towards the object's colour.
    shift = torch.tensor(_COLOUR_RGB, dtype=work, device=device)[colour] - grounds[picture]
    centre = objects.centre.to(work).to(device) * size
    canvas = grounds[:, :, None].repeat(1, 1, size * size)
    plane = torch.arange(3, device=device) * (size * size)
    for number in range(len(SHAPES) * len(SIZES)):
        chosen = torch.nonzero(kind == number)[:, 0].to(device)
        if not len(chosen):
            continue
        radius = RADIUS[SIZES[number % 2]] * size
        # The pixels that may be covered have their centres within the radius and half a pixel.
        side = min(math.ceil(2 * radius) + 1, size)
        middle = centre[chosen]
        corner = (middle - radius).floor().clamp(0, size - side)
        steps = torch.arange(side, device=device)
        offset = (corner - middle)[:, :, None] + (steps + 0.5)
        x, y = (offset / radius)[:, 0, None, :], (offset / radius)[:, 1, :, None]
        distance = signed_distance(SHAPES[number // 2], *torch.broadcast_tensors(x, y)) * radius
        coverage = (0.5 - distance).clamp(0, 1).flatten(1)
        first = (corner[:, 1] * size + corner[:, 0]).long() + picture[chosen] * (3 * size * size)
        pixel = (steps[:, None] * size + steps).flatten()
        index = first[:, None, None] + plane[:, None] + pixel
        value = shift[chosen][:, :, None] * coverage[:, None]
        canvas.view(-1).scatter_add_(0, index.flatten(), value.flatten())
    return canvas.view(-1, 3, size, size).to(dtype)


def pixel_noise(seeds: Tensor, size: int) -> Float[Tensor, "batch 3 height width"]:
    r"""Uniform noise of standard deviation 1, the same on every device.

    Every pixel hashes its number and its picture's seed (the 32-bit finaliser of MurmurHash3,
    Appleby 2011), in integers, to :math:`u \in [0, 1)`; the noise is :math:`\sqrt{12}\,(u - 1/2)`.

    Args:
        seeds: Integers below 2³², shape (batch,).
        size: Height and width in pixels.

    Returns:
        The noise.
    """
    pixel = torch.arange(3 * size * size, device=seeds.device)
    word = _finalise(_finalise(seeds)[:, None] ^ pixel)
    # 24 bits fit a float32.
    share = (word >> 8).to(torch.float32) / 2**24
    return (math.sqrt(12) * (share - 0.5)).view(-1, 3, size, size)


def add_noise(pictures: Tensor, levels: Sequence[float], seeds: Sequence[int]) -> Tensor:
    """Pictures with :func:`pixel_noise` of the given deviations and seeds, clipped to [0, 1]."""
    noisy = [number for number, level in enumerate(levels) if level]
    if noisy:
        device = pictures.device
        seed = torch.tensor([seeds[number] for number in noisy], device=device)
        level = torch.tensor([levels[number] for number in noisy], device=device)
        noise = pixel_noise(seed, pictures.shape[-1]) * level[:, None, None, None]
        where = torch.tensor(noisy, device=device)
        pictures = pictures.index_add(0, where, noise.to(pictures.dtype))
    return pictures.clamp(0, 1)


def _finalise(word: Tensor) -> Tensor:
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        word = ((word ^ (word >> shift)) * factor) & 0xFFFFFFFF
    return word ^ (word >> 16)


def render(
    scenes: Scene | Sequence[Scene],
    size: int = 32,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch 3 height width"]:
    """Draw scenes.

    Args:
        scenes: One scene or several; one gives a batch of one.
        size: Height and width in pixels, at least 8; small shapes are told apart from 32 on.
        device: Where to draw: any torch device.
        dtype: A floating-point type.

    Returns:
        Pictures, red, green and blue in [0, 1]. Edges are anti-aliased: an edge pixel is a mix by
        the share of it that the object covers.

    Raises:
        ValueError: If the size is below 8.
        TypeError: If the dtype is not a floating-point type or a scene is not one.

    >>> from mmlib.data import scenes
    >>> scenes.render(scenes.sample(2, seed=0), size=32).shape
    torch.Size([2, 3, 32, 32])
    """
    check_picture(size, dtype)
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    for scene in scenes:
        if not isinstance(scene, Scene):
            raise TypeError(f"scenes must be a Scene or a sequence of them: got {scene!r}")
    pictures = paint(layout(scenes), size, device, dtype)
    levels = [scene.noise for scene in scenes]
    return add_noise(pictures, levels, [scene.noise_seed for scene in scenes])


def boxes(scene: Scene) -> Float[Tensor, "objects 4"]:
    """Bounding boxes, tight around the shapes.

    Args:
        scene: The scene.

    Returns:
        Left, top, right and bottom edge of each object in reading order, in picture widths.

    >>> from mmlib.data.scenes import Object, Scene
    >>> boxes(Scene((Object("circle", "red", "small", 0.5, 0.5),)))
    tensor([[0.3984, 0.3984, 0.6016, 0.6016]])
    """
    rows = []
    for item in scene.objects:
        left, top, right, bottom = (item.radius * edge for edge in EXTENT[item.shape])
        rows.append((item.x + left, item.y + top, item.x + right, item.y + bottom))
    return torch.tensor(rows, dtype=torch.float32)

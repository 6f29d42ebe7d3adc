"""The eight shapes as signed distances.

Each function maps coordinates, in units of the object's radius with the centre at the origin and
y downwards, to the distance from the shape's edge: negative inside, positive outside. Coverage of
a pixel follows from it. Formulas after Quilez, "2D distance functions",
https://iquilezles.org/articles/distfunctions2d/; a distance is exact near an edge and may be a
bound near a corner, which moves no edge.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

SQUARE = 0.88
TRIANGLE_TOP, TRIANGLE_BASE = -0.92, 0.78
DIAMOND_WIDTH = 0.74
CROSS_ARM = 0.34
RING_HOLE = 0.5
STAR_INNER = 0.46
HEART_SIDE, HEART_MIDDLE = 1.16, 0.085


def circle(x: Tensor, y: Tensor) -> Tensor:
    """A disc of radius 1."""
    return torch.hypot(x, y) - 1


def square(x: Tensor, y: Tensor) -> Tensor:
    """A square whose half side is ``SQUARE``."""
    return torch.maximum(x.abs(), y.abs()) - SQUARE


def triangle(x: Tensor, y: Tensor) -> Tensor:
    """An isosceles triangle with its tip at ``(0, TRIANGLE_TOP)`` and its base 2 wide."""
    height = TRIANGLE_BASE - TRIANGLE_TOP
    side = (height * x.abs() - (y - TRIANGLE_TOP)) / math.hypot(height, 1)
    return torch.maximum(side, y - TRIANGLE_BASE)


def diamond(x: Tensor, y: Tensor) -> Tensor:
    """A diamond 2 high and ``2 * DIAMOND_WIDTH`` wide."""
    return (x.abs() + DIAMOND_WIDTH * y.abs() - DIAMOND_WIDTH) / math.hypot(1, DIAMOND_WIDTH)


def cross(x: Tensor, y: Tensor) -> Tensor:
    """Two bars, 2 long and ``2 * CROSS_ARM`` thick."""
    x, y = x.abs(), y.abs()
    return torch.maximum(torch.maximum(x, y) - 1, torch.minimum(x, y) - CROSS_ARM)


def star(x: Tensor, y: Tensor) -> Tensor:
    """Five points on the unit circle, five notches on one of radius ``STAR_INNER``."""
    # Fold the plane into one of ten equal wedges: a tip lies at angle 0, a notch at 36 degrees.
    step = math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (angle - 2 * step * torch.round(angle / (2 * step))).abs()
    radius = torch.hypot(x, y)
    along, across = radius * folded.cos(), radius * folded.sin()
    # The one edge of the wedge runs from the tip (1, 0) to the notch.
    edge_x, edge_y = STAR_INNER * math.cos(step) - 1, STAR_INNER * math.sin(step)
    return ((along - 1) * edge_y - across * edge_x) / math.hypot(edge_x, edge_y)


def heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner, with a half disc on each of its two upper sides."""
    half = HEART_SIDE / 2
    # The square's centre lies below the object's, so that the whole heart is centred.
    x, y = x.abs(), y - HEART_MIDDLE
    box = (x + y.abs()) / math.sqrt(2) - half
    lobe = torch.hypot(x - half / math.sqrt(2), y + half / math.sqrt(2)) - half
    return torch.minimum(box, lobe)


def ring(x: Tensor, y: Tensor) -> Tensor:
    """A disc of radius 1 without the disc of radius ``RING_HOLE``."""
    middle, half = (1 + RING_HOLE) / 2, (1 - RING_HOLE) / 2
    return (torch.hypot(x, y) - middle).abs() - half


DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "diamond": diamond,
    "cross": cross,
    "star": star,
    "heart": heart,
    "ring": ring,
}


def signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """The distance from a shape's edge, in units of its radius, negative inside.

    Args:
        shape: One of :data:`SHAPES`.
        x: Coordinates to the right of the centre, in units of the radius.
        y: Coordinates below it, of the same shape.

    Returns:
        The distances.
    """
    # Beyond a sharp tip the lines along its sides seem near still; the unit square does not.
    box = torch.maximum(x.abs(), y.abs()) - 1
    return torch.maximum(DISTANCE[shape](x, y), box)


_HEART_WIDE = (1 / math.sqrt(2) + 1) * HEART_SIDE / 2
#: Left, top, right and bottom edge of each shape, in units of the radius.
EXTENT = {
    "circle": (-1, -1, 1, 1),
    "square": (-SQUARE, -SQUARE, SQUARE, SQUARE),
    "triangle": (-1, TRIANGLE_TOP, 1, TRIANGLE_BASE),
    "diamond": (-DIAMOND_WIDTH, -1, DIAMOND_WIDTH, 1),
    "cross": (-1, -1, 1, 1),
    "star": (-math.sin(0.4 * math.pi), -1, math.sin(0.4 * math.pi), math.cos(0.2 * math.pi)),
    "heart": (
        -_HEART_WIDE,
        HEART_MIDDLE - _HEART_WIDE,
        _HEART_WIDE,
        HEART_MIDDLE + HEART_SIDE / math.sqrt(2),
    ),
    "ring": (-1, -1, 1, 1),
}

"""The world of the scenes: its vocabulary, and what an object and a scene are.

A scene is data: up to four coloured shapes at places. Pictures, captions, boxes, graphs and
questions are all functions of it, in the other files of this package.

Lengths are in picture widths, x to the right and y downwards, so that a scene has no resolution.
Places are whole multiples of 1/256, which a float holds exactly.
"""

import math
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "heart", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SIZES = ("small", "large")

#: Hex codes, chosen by a search that kept every pair apart (CIELAB ΔE) to normal sight and under
#: simulated protanopia, deuteranopia and tritanopia (Machado et al. 2009).
COLOUR_HEX = {
    "red": "#b01024",
    "orange": "#f08020",
    "yellow": "#fdd600",
    "green": "#2f9560",
    "cyan": "#00d0ff",
    "blue": "#1a48ff",
    "purple": "#9650aa",
    "white": "#ffffff",
}
#: Dark, so that all eight colours stand out on each of them.
BACKGROUND_HEX = {"black": "#14141a", "grey": "#45454b", "navy": "#0c1836", "brown": "#2c1a10"}
BACKGROUNDS = tuple(BACKGROUND_HEX)

GRID = 256
#: Half the side of the square that an object may fill, in picture widths.
RADIUS = {"small": 26 / GRID, "large": 42 / GRID}
#: Empty space kept between the squares of two objects: one pixel of a 32-pixel picture.
GAP = 8 / GRID
MAX_OBJECTS = 4


def choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}: got {value!r}")


@dataclass(frozen=True, slots=True)
class Object:
    """One coloured shape at a place.

    Args:
        shape: One of :data:`SHAPES`.
        colour: One of :data:`COLOURS`.
        size: ``"small"`` or ``"large"``; the radius is :data:`RADIUS`.
        x: Centre, in picture widths from the left.
        y: Centre, in picture heights from the top.

    Raises:
        ValueError: If a word is not in the vocabulary or the object leaves the picture.

    >>> Object("circle", "red", "small", 0.25, 0.5).radius
    0.1015625
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float

    def __post_init__(self) -> None:
        choice("shape", self.shape, SHAPES)
        choice("colour", self.colour, COLOURS)
        choice("size", self.size, SIZES)
        radius = RADIUS[self.size]
        for name, value in (("x", self.x), ("y", self.y)):
            if not radius <= value <= 1 - radius:
                raise ValueError(
                    f"{name} must keep a {self.size} object inside the picture, "
                    f"from {radius} to {1 - radius}: got {value}"
                )

    @property
    def radius(self) -> float:
        """Half the side of the square around the object, in picture widths."""
        return RADIUS[self.size]


def apart(first: Object, second: Object) -> bool:
    """Whether the squares of two objects leave the gap :data:`GAP` between them."""
    distance = max(abs(first.x - second.x), abs(first.y - second.y))
    return distance >= first.radius + second.radius + GAP


@dataclass(frozen=True, slots=True)
class Scene:
    """One to four objects that do not overlap, on a background.

    The objects are kept in *reading order*, left to right and, at the same x, top to bottom,
    whatever the order they came in. Every list about a scene (boxes, graph, canonical caption)
    has that order, and two scenes of the same objects are equal.

    Args:
        objects: The objects.
        background: One of :data:`BACKGROUNDS`.
        noise: Standard deviation, 0 … 0.5, of the uniform pixel noise that :func:`render` adds
            before it clips to [0, 1].
        noise_seed: Which noise; two scenes that differ in nothing else differ in it only.

    Raises:
        ValueError: If there are not 1–4 objects, two of them overlap, or a field is off.

    >>> scene = Scene((Object("ring", "blue", "large", 0.75, 0.5),
    ...                Object("star", "red", "small", 0.25, 0.5)))
    >>> [item.shape for item in scene.objects]
    ['star', 'ring']
    """

    objects: tuple[Object, ...]
    background: str = "black"
    noise: float = 0.0
    noise_seed: int = 0

    def __post_init__(self) -> None:
        objects = tuple(sorted(self.objects, key=lambda item: (item.x, item.y)))
        object.__setattr__(self, "objects", objects)
        if not 1 <= len(objects) <= MAX_OBJECTS:
            raise ValueError(f"objects must be 1 to {MAX_OBJECTS}: got {len(objects)}")
        for index, first in enumerate(objects):
            for second in objects[index + 1 :]:
                if not apart(first, second):
                    raise ValueError(
                        f"objects must leave a gap of {GAP} between them: got {first} and {second}"
                    )
        choice("background", self.background, BACKGROUNDS)
        if not (math.isfinite(self.noise) and 0 <= self.noise <= 0.5):
            raise ValueError(f"noise must be between 0 and 0.5: got {self.noise}")
        if not 0 <= self.noise_seed < 2**32:
            raise ValueError(f"noise_seed must be between 0 and 2**32 - 1: got {self.noise_seed}")

"""Where objects are, alone and to each other, and the graph of a scene."""

from dataclasses import dataclass

from mmlib.data.scenes.world import GRID, Object, Scene

RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
#: How far apart two centres must be for one to be left of or above the other: three pixels of a
#: 32-pixel picture. Any nearer and neither holds.
MARGIN = 24 / GRID

#: The nine places of a picture cut in thirds, and the eight directions from one object to another.
PLACES = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
DIRECTIONS = (
    *("left", "right", "above", "below"),
    *("above left", "above right", "below left", "below right"),
)


def holds(relation: str, first: Object, second: Object) -> bool:
    """Whether ``first`` is ``relation`` (left, right, above, below) of ``second``.

    Left means that the centre lies at least :data:`MARGIN` further left, however much higher or
    lower it is. So left and right exclude each other, and so do above and below; between two
    objects of a scene at least one of the four always holds, and often two.

    Raises:
        ValueError: If the relation is not one of :data:`RELATIONS`.
    """
    if relation == "left":
        return second.x - first.x >= MARGIN
    if relation == "right":
        return first.x - second.x >= MARGIN
    if relation == "above":
        return second.y - first.y >= MARGIN
    if relation == "below":
        return first.y - second.y >= MARGIN
    raise ValueError(f"relation must be one of {', '.join(RELATIONS)}: got {relation!r}")


def direction(first: Object, second: Object) -> str:
    """All that :func:`holds` says of a pair in one of :data:`DIRECTIONS`, e.g. ``"above left"``."""
    vertical = [name for name in ("above", "below") if holds(name, first, second)]
    horizontal = [name for name in ("left", "right") if holds(name, first, second)]
    return " ".join(vertical + horizontal)


def place(item: Object) -> str:
    """The one of :data:`PLACES`, thirds of the picture, that holds the object's centre."""
    column, row = min(int(item.x * 3), 2), min(int(item.y * 3), 2)
    return PLACES[3 * row + column]


@dataclass(frozen=True, slots=True)
class Node:
    """An object as the graph sees it: what it looks like and its coarse place."""

    size: str
    colour: str
    shape: str
    place: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A scene without its coordinates.

    Attributes:
        nodes: The objects, in reading order.
        edges: Triples ``(first, relation, second)`` of node numbers, sorted; every relation
            stands beside its opposite.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, str, int], ...]


def graph(scene: Scene) -> Graph:
    """The scene graph: objects as nodes, relations as edges.

    Args:
        scene: The scene.

    Returns:
        The graph. If ``(a, "left", b)`` is an edge then so is ``(b, "right", a)``, and
        ``(b, "left", a)`` is not.

    >>> from mmlib.data.scenes import Object, Scene
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),
    ...                Object("ring", "blue", "large", 0.75, 0.5)))
    >>> graph(scene).edges
    ((0, 'left', 1), (1, 'right', 0))
    """
    objects = scene.objects
    nodes = tuple(Node(item.size, item.colour, item.shape, place(item)) for item in objects)
    edges = tuple(
        (i, relation, j)
        for i, first in enumerate(objects)
        for j, second in enumerate(objects)
        for relation in RELATIONS
        if i != j and holds(relation, first, second)
    )
    return Graph(nodes, edges)

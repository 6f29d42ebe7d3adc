r"""Marks for pictures: whether the judge sees in a picture what a caption asks for.

The judge (:class:`mmlib.judge.Judge`) names the objects of a picture and never sees the caption.
:func:`mark` then compares: so many objects as the caption names, each with its colour, its shape
and its size, and every place and every direction that it tells. :func:`mark_objects` compares the
objects of a scene one by one with those that are seen in their places, for pictures that were
rebuilt and not invented.

The judge's own error of a place is some tenths of a pixel. So a place or a direction counts where
it holds for centres moved by :data:`TOLERANCE`, half a pixel; else true pictures that lie near a
border between two words would be marked wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from mmlib.data.scenes import MARGIN, MAX_OBJECTS, PLACES, Object, Scene, caption
from mmlib.data.scenes.grammar import Tree, parse

__all__ = ["TOLERANCE", "Demands", "Marks", "ObjectMarks", "demands", "mark", "mark_objects"]

#: Half a pixel of a picture of 32, in picture widths.
TOLERANCE = 1 / 64
#: How far a rebuilt object may have moved, in x and in y, in picture widths: three pixels. The
#: centres of two objects are 7.5 apart.
NEAR = 3 / 32
_WORDS = {"SIZE": "size", "COLOUR": "colour", "SHAPE": "shape"}


class Marks(NamedTuple):
    """What is right in each picture.

    Objects are matched with the caption's things so that the most demands are met; a thing that
    no object is left for is wrong in all it says.

    Attributes:
        count: There are as many objects as the caption names.
        colour: Every colour that is told is right.
        shape: Every shape.
        size: Every size.
        place: Every place and every direction.
    """

    count: Bool[Tensor, " batch"]
    colour: Bool[Tensor, " batch"]
    shape: Bool[Tensor, " batch"]
    size: Bool[Tensor, " batch"]
    place: Bool[Tensor, " batch"]

    @property
    def right(self) -> Bool[Tensor, " batch"]:
        """Pictures in which everything is right."""
        return torch.stack(list(self)).all(0)


class ObjectMarks(NamedTuple):
    """What became of each object of some scenes: one scene after the other, in reading order.

    Attributes:
        found: An object is seen in its place.
        colour: And has its colour.
        shape: Or its shape.
        size: Or its size.
    """

    found: Bool[Tensor, " objects"]
    colour: Bool[Tensor, " objects"]
    shape: Bool[Tensor, " objects"]
    size: Bool[Tensor, " objects"]


@dataclass(frozen=True)
class Demands:
    """What a caption asks for.

    Attributes:
        things: Of each thing the words that are told: ``"size"``, ``"colour"``, ``"shape"``.
        places: Pairs of a thing's number and one of :data:`~mmlib.data.scenes.PLACES`.
        relations: Triples of a direction and the numbers of two things, of which the first lies
            there, seen from the second.
    """

    things: tuple[dict[str, str], ...]
    places: tuple[tuple[int, str], ...]
    relations: tuple[tuple[str, int, int], ...]


def demands(text: str, language: str = "en") -> Demands:
    """Read a caption of the scenes' grammar.

    Args:
        text: The caption.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ValueError: The language is unknown or the caption is outside the grammar.

    >>> demands("a small red star above a ring").relations
    (('above', 0, 1),)
    """
    things: list[dict[str, str]] = []
    places: list[tuple[int, str]] = []
    relations: list[tuple[str, int, int]] = []
    node: Tree | None = parse(text, language)
    while node is not None:
        numbers = {}
        for slot, child in node["CLAUSE"].children:
            if child.symbol == "THING":
                numbers[slot] = len(things)
                things.append({_WORDS[kind]: word.rule for kind, word in child.children})
        for _, child in node["CLAUSE"].children:
            if child.symbol == "PLACE":
                places.append((numbers["THING"], child.rule))
            elif child.symbol in ("RELATION", "SIDE"):
                relations.append((child.rule, numbers["THING1"], numbers["THING2"]))
        node = dict(node.children).get("CAPTION")
    return Demands(tuple(things), tuple(places), tuple(relations))


def mark(
    found: Sequence[Sequence[Object]],
    wanted: Sequence[str | Scene],
    *,
    language: str = "en",
    exact: bool = True,
) -> Marks:
    """Mark pictures by captions.

    Args:
        found: The objects of each picture, in any order, as the judge reads them.
        wanted: For each picture a caption of the scenes' grammar; a scene stands for its canonical
            caption.
        language: Of the captions, ``"en"`` or ``"zh"``.
        exact: A direction is all that holds between two objects, as canonical captions mean it:
            what is "to the left" is neither above nor below. Otherwise it is one that holds, as
            free captions mean it.

    Raises:
        ValueError: There is not one caption for each picture, or one is outside the grammar.

    >>> from mmlib.data.scenes import Object
    >>> star, ring = (Object(s, "red", "small", 0.5, y) for s, y in (("star", 0.2), ("ring", 0.8)))
    >>> marks = mark([[star, ring]], ["a small red star above a small green ring"])
    >>> marks.right.item(), [name for name, good in marks._asdict().items() if not good]
    (False, ['colour'])
    """
    if len(found) != len(wanted):
        raise ValueError(f"wanted must be one for each picture: got {len(wanted)} for {len(found)}")
    rows = []
    for objects, text in zip(found, wanted, strict=True):
        asked = demands(caption(text, language) if isinstance(text, Scene) else text, language)
        rows.append(_best(objects, asked, exact))
    table = torch.tensor(rows, dtype=torch.bool).reshape(-1, len(Marks._fields))
    return Marks(*table.unbind(1))


def mark_objects(found: Sequence[Sequence[Object]], drawn: Sequence[Scene]) -> ObjectMarks:
    """Mark rebuilt pictures by their scenes, object by object.

    Args:
        found: The objects of each picture, in any order, as the judge reads them.
        drawn: The scene of each picture.

    Raises:
        ValueError: There is not one scene for each picture.
    """
    if len(found) != len(drawn):
        raise ValueError(f"drawn must be one for each picture: got {len(drawn)} for {len(found)}")
    rows = []
    for objects, scene in zip(found, drawn, strict=True):
        for item in scene.objects:
            seen = min(objects, key=lambda other: _distance(other, item), default=None)
            if seen is None or _distance(seen, item) > NEAR:
                rows.append([False] * len(ObjectMarks._fields))
            else:
                words = ("colour", "shape", "size")
                rows.append([True, *(getattr(seen, w) == getattr(item, w) for w in words)])
    table = torch.tensor(rows, dtype=torch.bool).reshape(-1, len(ObjectMarks._fields))
    return ObjectMarks(*table.unbind(1))


def _distance(first: Object, second: Object) -> float:
    return max(abs(first.x - second.x), abs(first.y - second.y))


def _best(objects: Sequence[Object], asked: Demands, exact: bool) -> list[bool]:
    """Marks of one picture, in the order of :class:`Marks`."""
    count, things = len(objects) == len(asked.things), len(asked.things)
    if len(objects) > 2 * MAX_OBJECTS:
        return [False] * len(Marks._fields)  # no scene; and too many ways to match
    padded = [*objects, *[None] * (things - len(objects))]

    def judged(chosen: Sequence[Object | None]) -> tuple[int, list[bool]]:
        told: dict[str, list[bool]] = {name: [] for name in ("colour", "shape", "size", "place")}
        for item, words in zip(chosen, asked.things, strict=True):
            for name, word in words.items():
                told[name].append(item is not None and getattr(item, name) == word)
        for number, word in asked.places:
            told["place"].append(_at(word, chosen[number]))
        for word, first, second in asked.relations:
            told["place"].append(_lies(word, chosen[first], chosen[second], exact))
        return sum(map(sum, told.values())), [all(good) for good in told.values()]

    _, marks = max(map(judged, permutations(padded, things)), key=lambda pair: pair[0])
    return [count, *marks]


def _at(word: str, item: Object | None) -> bool:
    """Whether an object is at one of the nine places."""
    if item is None:
        return False
    row, column = divmod(PLACES.index(word), 3)
    return all(
        third / 3 - TOLERANCE <= value <= (third + 1) / 3 + TOLERANCE
        for third, value in ((column, item.x), (row, item.y))
    )


def _lies(words: str, first: Object | None, second: Object | None, exact: bool) -> bool:
    """Whether the first object lies in a direction (one or two words) from the second."""
    if first is None or second is None:
        return False
    for before, after, step in (
        ("left", "right", first.x - second.x),
        ("above", "below", first.y - second.y),
    ):
        said = words.split()
        if before in said and not -step >= MARGIN - TOLERANCE:
            return False
        if after in said and not step >= MARGIN - TOLERANCE:
            return False
        if exact and not {before, after} & set(said) and abs(step) >= MARGIN + TOLERANCE:
            return False
    return True

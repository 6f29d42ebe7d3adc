"""Which combinations a training set must not contain.

A model that has seen red things and stars, but never a red star, and still names one, has learnt
colour and shape apart. Splits that hold out whole combinations measure that; a random split of
pictures does not, because every combination stands on both sides of it.
"""

from dataclasses import dataclass

from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.relations import RELATIONS, holds
from mmlib.data.scenes.world import COLOURS, SHAPES, Scene, choice

SPLITS = ("train", "test", "all")


@dataclass(frozen=True)
class Holdout:
    """Combinations that no training scene contains and every test scene does.

    Args:
        pairs: Pairs (colour, shape).
        triples: Triples (colour, shape, relation): an object of that colour and shape that
            stands in that relation to any other object.

    Raises:
        ValueError: If a word is unknown, or a colour or a shape would be left with no partner
            in the training set.
    """

    pairs: frozenset[tuple[str, str]] = frozenset()
    triples: frozenset[tuple[str, str, str]] = frozenset()

    def __post_init__(self) -> None:
        for colour, shape, *relation in (*self.pairs, *self.triples):
            choice("colour", colour, COLOURS)
            choice("shape", shape, SHAPES)
            for word in relation:
                choice("relation", word, RELATIONS)
        for colour in COLOURS:
            if all((colour, shape) in self.pairs for shape in SHAPES):
                raise ValueError(f"pairs must leave every colour a shape: {colour} has none left")
        for shape in SHAPES:
            if all((colour, shape) in self.pairs for colour in COLOURS):
                raise ValueError(f"pairs must leave every shape a colour: {shape} has none left")

    def found(self, scene: Scene) -> frozenset[tuple[str, ...]]:
        """The held-out combinations that a scene contains."""
        found = {
            (item.colour, item.shape)
            for item in scene.objects
            if (item.colour, item.shape) in self.pairs
        }
        for colour, shape, relation in self.triples:
            if any(
                (first.colour, first.shape) == (colour, shape) and holds(relation, first, second)
                for first in scene.objects
                for second in scene.objects
                if first is not second
            ):
                found.add((colour, shape, relation))
        return frozenset(found)

    def split(self, scene: Scene) -> str:
        """``"test"`` if the scene contains a held-out combination, else ``"train"``."""
        return "test" if self.found(scene) else "train"


def holdout(per_colour: int = 1, triples: int = 0, seed: int = 0) -> Holdout:
    """Choose combinations to hold out, the same for the same arguments.

    The pairs are diagonals of the colour × shape table with its rows and columns shuffled, so
    that every colour and every shape loses the same number of partners.

    Args:
        per_colour: Shapes held out for each colour, 0–7; 1 holds out 8 of the 64 pairs.
        triples: Further combinations (colour, shape, relation), of pairs that are not held out.
        seed: Which ones.

    Returns:
        The combinations.

    Raises:
        ValueError: If a number is out of range.

    >>> len(holdout().pairs)
    8
    """
    if not 0 <= per_colour < len(SHAPES):
        raise ValueError(f"per_colour must be 0 to {len(SHAPES) - 1}: got {per_colour}")
    dice = Dice(check_seed(seed), 0x5B117)
    colours, shapes = dice.shuffled(COLOURS), dice.shuffled(SHAPES)
    pairs = frozenset(
        (colour, shapes[(row + step) % len(shapes)])
        for row, colour in enumerate(colours)
        for step in range(per_colour)
    )
    rest = [
        (colour, shape, relation)
        for colour in COLOURS
        for shape in SHAPES
        for relation in RELATIONS
        if (colour, shape) not in pairs
    ]
    if not 0 <= triples <= len(rest) // 4:
        raise ValueError(f"triples must be 0 to {len(rest) // 4}: got {triples}")
    return Holdout(pairs, frozenset(dice.shuffled(rest)[:triples]))


#: The combinations that :func:`sample` holds out when no other are given: one shape a colour.
DEFAULT_HOLDOUT = holdout()

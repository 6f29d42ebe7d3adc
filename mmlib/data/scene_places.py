"""Where is it, and how large? Two questions about a scene's objects, each in many wordings.

The questions of :mod:`mmlib.data.scenes` come in one wording a kind, and neither kind here is among
them. They are what a model that has learned those is fine-tuned to. The wordings of a test set are
others than those of the training set, made of the same words: a model that has learned sentences
by heart fails on them.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from mmlib.data.scenes import PLACES, SIZES, Scene, place
from mmlib.data.scenes.draws import Dice, check_seed

__all__ = ["ANSWERS", "FORMS", "PlaceQuestion", "place_questions"]

#: Every answer there is: two sizes, nine places.
ANSWERS = (*SIZES, *PLACES)

#: kind -> split -> wordings; ``{}`` is the object, such as "red star".
FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {
        "train": (
            "how large is the {}?",
            "what size is the {}?",
            "is the {} small or large?",
            "tell me the size of the {}",
            "the {}, is it large or small?",
            "which size has the {}?",
            "the size of the {} is what?",
            "look at the {} and tell me its size",
        ),
        "test": (
            "what is the size of the {}?",
            "tell me, is the {} large or small?",
            "of which size is the {}?",
            "look at the size of the {}, what is it?",
        ),
    },
    "place": {
        "train": (
            "where is the {}?",
            "in which part of the picture is the {}?",
            "tell me the place of the {}",
            "the {}, where is it?",
            "which place has the {}?",
            "the place of the {} is what?",
            "what part of the picture has the {}?",
            "look at the {} and tell me its place",
        ),
        "test": (
            "what is the place of the {}?",
            "tell me, where is the {}?",
            "in what part is the {}?",
            "look at the picture and tell me where the {} is",
        ),
    },
}


class PlaceQuestion(NamedTuple):
    """A question about one object of a scene.

    Attributes:
        kind: ``"size"`` or ``"place"``.
        text: The question, in lower case.
        answer: One of :data:`ANSWERS`.
        number: Which of the scene's objects it is about.
    """

    kind: str
    text: str
    answer: str
    number: int


def place_questions(scene: Scene, seed: int, split: str = "train") -> list[PlaceQuestion]:
    """Ask one question of each kind, where the scene allows it.

    The object is named by whatever of its size, colour and shape fits no other object; a question
    for the size does not name it.

    Args:
        scene: The scene.
        seed: Which objects, names and wordings.
        split: ``"train"`` or ``"test"``: which wordings.

    Raises:
        ValueError: ``split`` is neither, or the seed is out of range.

    >>> from mmlib.data.scenes import Object
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),))
    >>> [(q.kind, q.answer) for q in place_questions(scene, seed=0)]
    [('size', 'small'), ('place', 'left')]
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be train or test: got {split!r}")
    check_seed(seed)
    asked = []
    for kind, fields in (("size", ("colour", "shape")), ("place", ("size", "colour", "shape"))):
        dice = Dice(seed, 0x91ACE, len(kind))
        named = [
            (number, words)
            for number, item in enumerate(scene.objects)
            for words in _names(scene, item, fields)
        ]
        if not named:
            continue
        number, words = dice.choice(named)
        item = scene.objects[number]
        text = dice.choice(FORMS[kind][split]).format(words)
        asked.append(
            PlaceQuestion(kind, text, item.size if kind == "size" else place(item), number)
        )
    return asked


def _names(scene: Scene, item, fields: Sequence[str]) -> list[str]:
    """What can be said of an object and of no other, by these fields."""
    names = []
    for length in range(1, len(fields) + 1):
        for chosen in combinations(fields, length):
            words = [getattr(item, field) for field in chosen]
            same = [o for o in scene.objects if [getattr(o, f) for f in chosen] == words]
            if len(same) == 1:
                names.append(" ".join(words if "shape" in chosen else [*words, "object"]))
    return names

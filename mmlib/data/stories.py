"""Short stories about scenes, in which each sentence can be told to follow from the one before.

A story introduces the objects of one scene, one a sentence, and ends by comparing two of them::

    there is a large red star on the left .
    above the red star there is a small blue ring .
    the blue ring is smaller than the red star .

The first sentence names an object and its place; each sentence after it leads from the object
that was introduced last (*the red star*) to a new one; the last says which of two objects is
larger, or whether they have the same size. Everything that is said is true of the scene. So a
reader who has seen the text so far knows what the next sentence may be about, and much of what
it will say, without any label: this is the text that chapter 03 pretrains on.

In a story no two objects have both colour and shape in common, so *the red star* is one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmlib.data.scenes import Holdout, Object, Scene, direction, place, sample
from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.wording import RULES
from mmlib.data.scenes.world import MAX_OBJECTS

__all__ = ["SentencePairs", "Statements", "Story", "sample_stories", "sentence_pairs", "statements"]


@dataclass(frozen=True)
class Story:
    """A story and what it is about.

    Attributes:
        sentences: English, in lower case, each with a full stop after a space.
        scene: The scene.
        objects: Its objects in the order in which the sentences introduce them.
    """

    sentences: tuple[str, ...]
    scene: Scene
    objects: tuple[Object, ...]

    @property
    def text(self) -> str:
        """All sentences, with spaces between them."""
        return " ".join(self.sentences)


class SentencePairs(NamedTuple):
    """Pairs for next-sentence prediction.

    Attributes:
        first: The beginning of a story: one sentence or more.
        second: One sentence.
        is_next: Whether it is the one that follows.
    """

    first: list[str]
    second: list[str]
    is_next: list[bool]


class Statements(NamedTuple):
    """Stories with a statement on each, to tell true ones from false ones.

    Attributes:
        stories: The text of each story without its last sentence.
        statements: Such as ``"the ring is blue ."``.
        is_true: Whether the story says so.
    """

    stories: list[str]
    statements: list[str]
    is_true: list[bool]


def sample_stories(
    count: int,
    seed: int,
    *,
    split: str = "all",
    holdout: Holdout | None = None,
    objects: int | tuple[int, int] = (2, MAX_OBJECTS),
) -> list[Story]:
    """Draw stories; the same arguments give the same stories on every machine.

    Story ``i`` depends on the seed and ``i`` alone, as scenes do.

    Args:
        count: How many.
        seed: Which ones.
        split: ``"train"``, ``"test"`` or ``"all"``: whether a scene may, must or can hold a
            held-out combination of colour and shape; see :func:`mmlib.data.scenes.sample`.
        holdout: The held-out combinations.
        objects: How many objects a story has, at least two: a number, or the smallest and the
            largest. It has one sentence more.

    Raises:
        TypeError: ``seed`` is no whole number.
        ValueError: an argument is out of range.

    >>> sample_stories(1, seed=1, objects=2)[0].sentences[0]
    'there is a large purple square on the right .'
    """
    low = objects if isinstance(objects, int) else min(objects)
    if low < 2:
        raise ValueError(f"objects must be at least 2, which the last sentence compares: got {low}")
    if count < 0:
        raise ValueError(f"count must be at least 0: got {count}")
    seed, chosen = check_seed(seed), [None] * count
    pending, turn = list(range(count)), 0
    # A scene with two objects that one could not tell apart is drawn anew.
    while pending:
        drawn = sample(
            count,
            Dice(seed, 0x570, turn).word() >> 1,
            split=split,
            holdout=holdout,
            objects=objects,
        )
        for index in pending:
            looks = {(item.colour, item.shape) for item in drawn[index].objects}
            if len(looks) == len(drawn[index].objects):
                chosen[index] = drawn[index]
        pending, turn = [index for index in pending if chosen[index] is None], turn + 1
    return [_tell(scene, Dice(seed, 0x7E11, index)) for index, scene in enumerate(chosen)]


def sentence_pairs(stories: Sequence[Sequence[str]], seed: int) -> SentencePairs:
    """Cut each story in two: what was told, and what comes next, half of the time from another.

    A false second sentence comes from the same place of another story (counted from the end for
    last sentences), so that its form tells nothing: only what it is about does. By chance it may
    fit all the same.

    Args:
        stories: The sentences of each story; at least two stories of at least two sentences.
        seed: Where each story is cut, and which are false.

    Raises:
        TypeError: ``seed`` is no whole number.
        ValueError: there are too few stories, or a story has one sentence.

    >>> pairs = sentence_pairs([["a .", "b ."], ["c .", "d ."]], seed=0)
    >>> pairs.first
    ['a .', 'c .']
    """
    if len(stories) < 2 or min(map(len, stories)) < 2:
        raise ValueError(
            "stories must be at least two, of at least two sentences: got "
            f"{len(stories)} stories, the shortest of {min(map(len, stories), default=0)}"
        )
    dice, pairs = Dice(check_seed(seed), 0x9A125), SentencePairs([], [], [])
    for index, story in enumerate(stories):
        cut = 1 + dice.below(len(story) - 1)
        is_next, other = bool(dice.below(2)), story
        if not is_next:
            other = stories[(index + 1 + dice.below(len(stories) - 1)) % len(stories)]
        # A last sentence compares two objects, one before it introduces one.
        last = cut == len(story) - 1 or len(other) < 3
        pairs.first.append(" ".join(story[:cut]))
        pairs.second.append(other[-1] if last else other[min(cut, len(other) - 2)])
        pairs.is_next.append(is_next)
    return pairs


def statements(stories: Sequence[Story], seed: int) -> Statements:
    """A statement on the colour of a shape for each story, half of them false.

    A false statement takes the colour of another of the story's objects, so the words alone do
    not tell: one must know which colour goes with which shape. Stories in which no object has a
    shape of its own and another object another colour are left out.

    Raises:
        TypeError: ``seed`` is no whole number.

    >>> made = statements(sample_stories(3, seed=0), seed=0)
    >>> made.statements[0], made.is_true[0]
    ('the ring is cyan .', False)
    """
    dice, made = Dice(check_seed(seed), 0x57A7E), Statements([], [], [])
    for story in stories:
        shapes = [item.shape for item in story.objects]
        asked = [item for item in story.objects if shapes.count(item.shape) == 1]
        asked = [item for item in asked if any(o.colour != item.colour for o in story.objects)]
        if not asked:
            continue
        item, true = dice.choice(asked), bool(dice.below(2))
        others = sorted({o.colour for o in story.objects} - {item.colour})
        colour = item.colour if true else dice.choice(others)
        made.stories.append(" ".join(story.sentences[:-1]))
        made.statements.append(f"the {item.shape} is {colour} .")
        made.is_true.append(true)
    return made


def _tell(scene: Scene, dice: Dice) -> Story:
    objects = dice.shuffled(scene.objects)
    spot = RULES["PLACE"][place(objects[0])][0]
    told = [dice.choice((f"there is {_a(objects[0])} {spot}", f"{spot} there is {_a(objects[0])}"))]
    for old, new in zip(objects[:-1], objects[1:], strict=True):
        relation = RULES["RELATION"][direction(new, old)][0]
        forms = (
            f"{relation} {_the(old)} there is {_a(new)}",
            f"there is {_a(new)} {relation} {_the(old)}",
        )
        told.append(dice.choice(forms))
    first, second = dice.shuffled(objects)[:2]
    if first.size == second.size:
        told.append(f"{_the(first)} has the same size as {_the(second)}")
    else:
        word = "smaller" if first.size == "small" else "larger"
        told.append(f"{_the(first)} is {word} than {_the(second)}")
    return Story(tuple(f"{sentence} ." for sentence in told), scene, tuple(objects))


def _a(item: Object) -> str:
    return f"a {item.size} {item.colour} {item.shape}"


def _the(item: Object) -> str:
    return f"the {item.colour} {item.shape}"

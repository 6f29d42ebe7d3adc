"""The pointing game on scenes: does the map of a word peak on what the word is true of? Chapter 06.

Captions are canonical and English, and each thing in them is *a small red star*. Of every object
four things are asked: where is its size, its colour, its shape, and where is what the whole
description names? A word is true of every object of that size, colour or shape, a description
only of its own.

Reference:
    Zhang et al., *Top-Down Neural Attention by Excitation Backprop*, ECCV 2016.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlib.data.scenes import COLOURS, SHAPES, SIZES, Scene, boxes, caption, tokenize, vocabulary
from mmlib.region_words import points_inside

__all__ = ["VOCABULARY", "Questions", "caption_words", "descriptions", "questions", "word_kinds"]

#: The words of canonical English captions; a word's number is its place here.
VOCABULARY = tuple(vocabulary("en", "canonical"))
_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}
_KINDS = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}


class Questions(NamedTuple):
    """Questions of one kind, one for each object of each scene.

    Attributes:
        picture: Which scene.
        words: Size, colour and shape of the object, as numbers of :data:`VOCABULARY`.
        said: Which of the three words the question has.
        boxes: The right boxes, for :func:`mmlib.region_words.points_inside`; zeros are none.
        things: How many objects the scene has, right or wrong.
    """

    picture: Int[Tensor, " questions"]
    words: Int[Tensor, "questions 3"]
    said: Bool[Tensor, "questions 3"]
    boxes: Float[Tensor, "questions boxes 4"]
    things: Int[Tensor, " questions"]

    @property
    def random(self) -> float:
        """The chance of a random place: the mean area of the right boxes, which never overlap."""
        sides = self.boxes[..., 2:] - self.boxes[..., :2]
        return sides.prod(-1).sum(-1).mean().item()

    @property
    def any_thing(self) -> float:
        """The chance of a random object, for maps that know things from the background."""
        return (self.boxes.any(-1).sum(1) / self.things).mean().item()

    @property
    def middle(self) -> float:
        """The share of hits of the middle of the picture."""
        return points_inside(torch.ones(len(self.boxes), 1, 1), self.boxes).double().mean().item()


def caption_words(
    scenes: Sequence[Scene],
) -> tuple[Int[Tensor, "scenes length"], Bool[Tensor, "scenes length"]]:
    """The canonical captions as numbers of :data:`VOCABULARY`, and which of them exist.

    Raises:
        ValueError: there is no scene.

    >>> from mmlib.data.scenes import Object, Scene
    >>> ids, keep = caption_words([Scene((Object("star", "red", "small", 0.5, 0.5),))])
    >>> " ".join(VOCABULARY[i] for i in ids[0])
    'a small red star in the centre'
    """
    if not scenes:
        raise ValueError("scenes must not be empty")
    rows = [[_NUMBERS[word] for word in tokenize(caption(scene), "en")] for scene in scenes]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, torch.arange(length) < torch.tensor([[len(row)] for row in rows])


def descriptions(scenes: Sequence[Scene]) -> Int[Tensor, "scenes things 3"]:
    """The size, colour and shape of each thing, read off the canonical captions.

    Rows of -1 stand for things that a caption has fewer than the longest.

    >>> from mmlib.data.scenes import Object, Scene
    >>> found = descriptions([Scene((Object("star", "red", "small", 0.5, 0.5),))])
    >>> [VOCABULARY[word] for word in found[0, 0]]
    ['small', 'red', 'star']
    """
    ids, keep = caption_words(scenes)
    kinds = word_kinds()
    rows = [row[kept & (kinds[row] >= 0)].view(-1, 3) for row, kept in zip(ids, keep, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def word_kinds() -> Int[Tensor, " vocab"]:
    """For each word: 0 a size, 1 a colour, 2 a shape, -1 another.

    >>> [word_kinds()[VOCABULARY.index(word)].item() for word in ("large", "red", "ring", "the")]
    [0, 1, 2, -1]
    """
    kinds = {word: number for number, words in enumerate(_KINDS.values()) for word in words}
    return torch.tensor([kinds.get(word, -1) for word in VOCABULARY])


def questions(scenes: Sequence[Scene]) -> dict[str, Questions]:
    """Ask for the ``"size"``, ``"colour"``, ``"shape"`` and ``"description"`` of every object.

    Raises:
        ValueError: there is no scene.

    >>> from mmlib.data.scenes import Object, Scene
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),
    ...                Object("star", "blue", "large", 0.75, 0.5)))
    >>> asked = questions([scene])
    >>> [(q.boxes[0].any(1)).sum().item() for q in asked.values()]  # right answers for the first
    [1, 1, 2, 1]
    """
    words = descriptions(scenes)
    picture, number = (words[..., 0] >= 0).nonzero(as_tuple=True)
    others = words[picture]
    same = others == others[torch.arange(len(number)), number][:, None]
    every = torch.zeros(*words.shape[:2], 4)
    for k, scene in enumerate(scenes):
        every[k, : len(scene.objects)] = boxes(scene)
    asked = {}
    for kind, name in enumerate((*_KINDS, "description")):
        if name == "description":
            said, right = torch.ones(3), torch.arange(words.shape[1]) == number[:, None]
        else:
            said, right = torch.eye(3)[kind], same[..., kind]
        asked[name] = Questions(
            picture,
            words[picture, number],
            said.bool().expand(len(number), 3),
            every[picture] * right[..., None],
            torch.bincount(picture)[picture],
        )
    return asked

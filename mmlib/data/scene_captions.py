"""Captions of scenes as a task: batches of pictures and captions, and marks for what is said.

The canonical caption of a scene is the one right answer: it names every object by size, colour
and shape in reading order, and how each pair lies. So a wrong word is wrong, and it is known which
object a word is about.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlib.data import scenes
from mmlib.data.translation import BEGIN, END, PAD, Vocabulary

__all__ = [
    "CaptionBatch",
    "Thing",
    "attribute_scores",
    "caption_batch",
    "named_things",
    "without_colour",
]


class CaptionBatch(NamedTuple):
    """Pictures and their captions.

    Attributes:
        images: Pictures in [0, 1].
        tokens: Ids from the begin to the end token, padded at the end.
        keep: Which of them count: those that exist, but for what :func:`without_colour` leaves
            out.
    """

    images: Float[Tensor, "batch 3 height width"]
    tokens: Int[Tensor, "batch length"]
    keep: Bool[Tensor, "batch length"]


def caption_batch(
    items: Sequence[scenes.Scene],
    vocabulary: Vocabulary,
    *,
    mode: str = "canonical",
    seed: int = 0,
    size: int = 32,
) -> CaptionBatch:
    """Draw scenes and caption them in English.

    Args:
        items: The scenes.
        vocabulary: Ids of the words.
        mode: ``"canonical"`` or ``"free"``.
        seed: Of free captions: the one of scene number ``i`` is drawn with ``seed + i``.
        size: Of the pictures, in pixels.

    Raises:
        ValueError: there are no scenes, or a word is not in the vocabulary.

    >>> words = Vocabulary(scenes.vocabulary("en", "canonical"))
    >>> batch = caption_batch(scenes.sample(2, seed=0, objects=1), words)
    >>> batch.images.shape, batch.tokens.shape
    (torch.Size([2, 3, 32, 32]), torch.Size([2, 9]))
    """
    if not items:
        raise ValueError("items must not be empty")
    rows = []
    for i, scene in enumerate(items):
        text = scenes.caption(scene, "en", mode, None if mode == "canonical" else seed + i)
        rows.append([BEGIN, *vocabulary.encode(scenes.tokenize(text, "en")), END])
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    return CaptionBatch(scenes.render(items, size), tokens, tokens != PAD)


def without_colour(
    batch: CaptionBatch, vocabulary: Vocabulary, rows: Bool[Tensor, " batch"], seed: int
) -> CaptionBatch:
    r"""Make some of the pictures grey, and leave out the words that only colour could tell.

    .. math:: x'_{c} = \sum_k w_k x_k, \qquad w \sim \operatorname{Dirichlet}(1, 1, 1)

    with a :math:`w` for each picture, so that a colour becomes grey of any brightness, the same
    for red, green and blue. What is learned of shapes from such pictures holds for all colours. In
    their captions each colour becomes a random one, and neither colours nor the *an* before
    *orange* are to be predicted: ``keep`` is False there.

    Args:
        batch: Pictures and captions in English; not changed.
        vocabulary: Ids of the words.
        rows: Which pictures.
        seed: Of the brightness and of the random colours.

    Raises:
        TypeError: ``rows`` is not boolean.
        ValueError: ``rows`` has another length, or the vocabulary lacks a colour.

    >>> words = Vocabulary(scenes.vocabulary("en", "canonical"))
    >>> batch = caption_batch(scenes.sample(1, seed=0, objects=1), words)
    >>> grey = without_colour(batch, words, torch.tensor([True]), seed=0)
    >>> bool((grey.images == grey.images[:, :1]).all()), int(batch.keep.sum() - grey.keep.sum())
    (True, 1)
    """
    if rows.dtype != torch.bool:
        raise TypeError(f"rows must be boolean (True = make grey): got {rows.dtype}")
    if rows.shape != (len(batch.images),):
        raise ValueError(f"rows must have shape ({len(batch.images)},): got {tuple(rows.shape)}")
    generator = torch.Generator().manual_seed(seed)
    # Exponential draws divided by their sum.
    weights = -(1 - torch.rand(len(rows), 3, generator=generator)).log()
    weights = weights / weights.sum(1, keepdim=True)
    grey = torch.einsum("bchw,bc->bhw", batch.images, weights.to(batch.images))[:, None]
    grey = grey.clamp(max=1.0)  # white may be rounded up
    colours = torch.tensor(vocabulary.encode(scenes.COLOURS))
    others = colours[torch.randint(len(colours), batch.tokens.shape, generator=generator)]
    told = torch.isin(batch.tokens, colours) & rows[:, None]
    article = vocabulary.encode(["an"])[0] if "an" in vocabulary.words else PAD
    hidden = told | ((batch.tokens == article) & rows[:, None])
    return CaptionBatch(
        torch.where(rows[:, None, None, None], grey, batch.images),
        torch.where(told, others, batch.tokens),
        batch.keep & ~hidden,
    )


class Thing(NamedTuple):
    """What a caption says of one object.

    Attributes:
        at: Position of its size among the caption's words; colour and shape follow.
        size: The three words.
        colour:
        shape:
    """

    at: int
    size: str
    colour: str
    shape: str


def named_things(words: Sequence[str]) -> list[Thing]:
    """The objects that a caption names in full, in its order.

    Args:
        words: Words of a caption, right or wrong; no grammar is needed.

    >>> named_things("a small red star above a large blue ring".split())[1]
    Thing(at=6, size='large', colour='blue', shape='ring')
    """
    found = []
    for at in range(len(words) - 2):
        size, colour, shape = words[at : at + 3]
        if size in scenes.SIZES and colour in scenes.COLOURS and shape in scenes.SHAPES:
            found.append(Thing(at, size, colour, shape))
    return found


def attribute_scores(
    captions: Sequence[Sequence[str]], items: Sequence[scenes.Scene]
) -> dict[str, float]:
    """Mark canonical captions by the objects that they name.

    Args:
        captions: Words of each caption.
        items: The scenes they are about.

    Returns:
        ``attributes``: share of the sizes, colours and shapes of all objects, taken in reading
        order, that the caption gives; an object it does not name counts three times wrong.
        ``objects``: share of objects with all three right. ``scenes``: share of captions that name
        as many objects as there are, and all of them right. ``exact``: share of captions equal to
        the canonical one, directions and places too.

    Raises:
        ValueError: the numbers of captions and scenes differ, or are zero.

    >>> scene = scenes.Scene((scenes.Object("star", "red", "small", 0.25, 0.5),))
    >>> attribute_scores(["a small blue star on the left".split()], [scene])["objects"]
    0.0
    """
    if not captions or len(captions) != len(items):
        raise ValueError(
            f"captions and items must be as many, not none: got {len(captions)} and {len(items)}"
        )
    attributes, objects, whole, exact = [], [], [], []
    for words, scene in zip(captions, items, strict=True):
        things = named_things(words)
        marks = []
        for i, item in enumerate(scene.objects):
            said = things[i][1:] if i < len(things) else ("", "", "")
            true = (item.size, item.colour, item.shape)
            marks.append([a == b for a, b in zip(said, true, strict=True)])
        attributes += [mark for row in marks for mark in row]
        objects += [all(row) for row in marks]
        whole.append(len(things) == len(marks) and all(map(all, marks)))
        exact.append(scenes.detokenize(list(words), "en") == scenes.caption(scene))
    names = {"attributes": attributes, "objects": objects, "scenes": whole, "exact": exact}
    return {name: sum(marks) / len(marks) for name, marks in names.items()}

"""Captions of scenes as a translation task, English to Chinese: chapter 02.

Every pair describes one scene in both languages, so that the translation is exact. Chinese tells
the place first and the second object before the first: the words have to move.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmlib.data import scenes
from mmlib.data.scenes.draws import check_seed

__all__ = [
    "BEGIN",
    "END",
    "PAD",
    "TranslationBatch",
    "Vocabulary",
    "caption_pairs",
    "collate",
    "length_batches",
]

PAD, BEGIN, END = 0, 1, 2

Pair = tuple[list[str], list[str]]


class Vocabulary:
    """Words and their ids; the first three ids are padding, begin and end.

    Args:
        words: Different words.

    Raises:
        ValueError: a word comes twice.

    >>> Vocabulary(["red", "star"]).encode(["star", "red"])
    [4, 3]
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = ("<pad>", "<begin>", "<end>", *words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            raise ValueError("words must all be different, and none of <pad>, <begin>, <end>")

    def __len__(self) -> int:
        """Number of ids."""
        return len(self.words)

    def encode(self, words: Sequence[str]) -> list[int]:
        """Ids of words.

        Raises:
            ValueError: a word is not in the vocabulary.
        """
        try:
            return [self._ids[word] for word in words]
        except KeyError as error:
            raise ValueError(f"words must be in the vocabulary: got {error.args[0]!r}") from None

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Words of ids."""
        return [self.words[index] for index in ids]


def caption_pairs(
    count: int, seed: int, *, split: str = "all", objects: int | tuple[int, int] = (1, 3)
) -> list[Pair]:
    """Canonical captions of random scenes, as words: (English, Chinese).

    Args:
        count: How many.
        seed: Of the scenes.
        split: ``"train"``, ``"test"`` or ``"all"``, see :func:`mmlib.data.scenes.sample`: every
            test caption holds a combination of colour and shape that no training caption has.
        objects: How many objects a scene has: a number, or the smallest and the largest.

    >>> caption_pairs(1, seed=0, objects=1)[0][0][:4]
    ['a', 'large', 'yellow', 'square']
    """
    drawn = scenes.sample(count, seed, split=split, objects=objects)
    english, chinese = (
        [scenes.tokenize(scenes.caption(scene, language), language) for scene in drawn]
        for language in ("en", "zh")
    )
    return list(zip(english, chinese, strict=True))


class TranslationBatch(NamedTuple):
    """Padded ids of a few pairs.

    Attributes:
        source: English.
        target: Chinese, from the begin token to the end token.
    """

    source: Int[Tensor, "batch source_length"]
    target: Int[Tensor, "batch target_length"]


def collate(pairs: Sequence[Pair], english: Vocabulary, chinese: Vocabulary) -> TranslationBatch:
    """Make one batch of these pairs, in this order.

    Raises:
        ValueError: there are no pairs, or a word is not in its vocabulary.
    """
    if not pairs:
        raise ValueError("pairs must not be empty")
    source = [english.encode(words) for words, _ in pairs]
    target = [[BEGIN, *chinese.encode(words), END] for _, words in pairs]
    return TranslationBatch(_pad(source), _pad(target))


def length_batches(
    pairs: Sequence[Pair],
    english: Vocabulary,
    chinese: Vocabulary,
    *,
    batch_size: int,
    seed: int,
) -> list[TranslationBatch]:
    """All pairs once, in batches of about equal length and in random order.

    Padding is computed for nothing. Sorting within groups of a few batches keeps most of it away
    and leaves the order of the batches random.

    Args:
        pairs: The pairs.
        english: Ids of the source words.
        chinese: Ids of the target words.
        batch_size: Pairs in a batch.
        seed: Of the order.

    Raises:
        ValueError: ``batch_size`` is below 1, or there are no pairs.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1: got {batch_size}")
    generator = torch.Generator().manual_seed(check_seed(seed))
    order = torch.randperm(len(pairs), generator=generator).tolist()
    found = []
    for start in range(0, len(order), 16 * batch_size):
        group = sorted(order[start : start + 16 * batch_size], key=lambda i: len(pairs[i][1]))
        for first in range(0, len(group), batch_size):
            chosen = [pairs[i] for i in group[first : first + batch_size]]
            found.append(collate(chosen, english, chinese))
    if not found:
        raise ValueError("pairs must not be empty")
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]


def _pad(rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])

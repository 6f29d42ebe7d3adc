"""The words of the full system: English and Chinese in one vocabulary, and the markers.

Words are byte pairs, so that any text can be read and written. They are learned from the training
split alone: scenes' captions, questions and answers, names of emoji, and requests. Two things keep
what is said of a shape apart from what is said of its colour, so that a combination which training
never shows is still made of known pieces: English words begin with their space wherever they stand,
and Chinese is learned one character at a time.

Markers (:class:`Marker`) tell who speaks and what follows: regions of a picture, or a picture to be
drawn. They have no spelling, so that no text can forge one.
"""

import enum
import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from mmlib.data import emoji, scenes
from mmlib.encoders.tokenizers import Tokenizer, bpe_tokenizer
from mmlib.system.requests import REQUESTS

__all__ = ["Marker", "Words", "words"]


class Marker(enum.IntEnum):
    """What the language model reads and writes beside words; numbers behind those of the words."""

    PICTURE = 0  #: Regions of a picture follow.
    DRAW = 1  #: Codes of a picture follow.
    ENGLISH = 2  #: A caption in English follows, or is what the picture is drawn from.
    CHINESE = 3
    USER = 4  #: A person speaks, up to the end token.
    ASSISTANT = 5  #: The model speaks.


class Words:
    """Texts to numbers and back, without begin and end, and the numbers of the markers.

    Args:
        tokenizer: Byte pairs.

    Attributes:
        begin: What a document begins with.
        end: What a caption, or a turn of a dialogue, ends with.
        pad: What stands where nothing is.
        size: How many numbers there are, markers included.
        most: Most words of an answer.

    >>> known = words()
    >>> ids = known.encode("a red star")
    >>> len(ids), known.decode(ids), known.decode(known.encode("红色的星形"))
    (3, 'a red star', '红色的星形')
    """

    most = 32

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.begin, self.end = tokenizer.begin_id, tokenizer.end_id
        self.pad = tokenizer.pad_id
        self.size = tokenizer.vocab_size + len(Marker)
        # Lessons come back to the same sentences, and a call costs ten times a look-up.
        self._encode = functools.lru_cache(65_536)(
            lambda text: tuple(tokenizer.encode([text]).ids[0, 1:-1].tolist())
        )

    def marker(self, marker: Marker) -> int:
        """The number of a marker."""
        return self.tokenizer.vocab_size + int(marker)

    def encode(self, text: str) -> list[int]:
        """Numbers of a text.

        Raises:
            ValueError: it is not valid Unicode.
        """
        return list(self._encode(_spaced(text)))

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of numbers; markers, begin, end and padding are left out."""
        kept = [int(token) for token in ids if int(token) < self.tokenizer.vocab_size]
        row = torch.tensor([kept], dtype=torch.long)
        return self.tokenizer.decode(row, torch.ones_like(row, dtype=torch.bool))[0].strip()


@functools.cache
def words(size: int = 2048) -> Words:
    """The words that the system knows.

    Args:
        size: How many byte pairs at most.
    """
    return Words(bpe_tokenizer(list(_texts()), size))


def _texts() -> Iterable[str]:
    plurals = [shape + ("es" if shape.endswith("s") else "s") for shape in scenes.SHAPES]
    said = [*scenes.vocabulary("en"), *scenes.ANSWERS, *plurals]
    found = [*said, *(question for kind in REQUESTS["en"].values() for question in kind)]
    for scene in scenes.sample(400, 16, split="train"):
        for question in scenes.questions(scene, 16):
            found += [question.text, question.text_zh, question.answer_zh]
    found += scenes.vocabulary("zh")
    found += [question for kind in REQUESTS["zh"].values() for question in kind]
    # Every word of the scenes is one piece, however rare it is in the questions.
    found += 20 * said
    data = emoji.load("train", 8)
    for text in (*found, *data.names, *data.names_zh):
        # A character at a time: nothing is joined across two.
        if any(map(_is_han, text)):
            yield from filter(_is_han, text)
        else:
            yield _spaced(text)


def _spaced(text: str) -> str:
    text = text.strip()
    return text if not text or _is_han(text[0]) else f" {text}"


def _is_han(letter: str) -> bool:
    return "\u4e00" <= letter <= "\u9fff"

r"""Word error rate: how much of a sentence was heard wrongly (词错误率).

References:
    Levenshtein, *Binary Codes Capable of Correcting Deletions, Insertions, and Reversals*, 1966.
"""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["WordErrors", "word_error_rate", "word_errors"]


class WordErrors(NamedTuple):
    """What has to be done to what was heard to get what was said.

    Attributes:
        substitutions: Words that were heard as another.
        deletions: Words that were not heard.
        insertions: Words that were heard and not said.
        words: Words that were said.
    """

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def rate(self) -> float:
        """Errors for each word that was said; above 1 if much was heard that was not said."""
        return (self.substitutions + self.deletions + self.insertions) / self.words


def word_errors(said: Sequence[str], heard: Sequence[str]) -> WordErrors:
    r"""The fewest substitutions, deletions and insertions between two sentences.

    .. math::

        D_{ij} = \min\big(D_{i-1,j-1} + [s_i \ne h_j],\; D_{i-1,j} + 1,\; D_{i,j-1} + 1\big)

    Of several ways of equal cost one is counted; only their sum is unique.

    Args:
        said: Words.
        heard: Words.

    Raises:
        TypeError: a sentence is a string and not a list of words.
        ValueError: nothing was said: no rate is defined.

    >>> word_errors("a red star".split(), "red stars here".split()).rate
    1.0
    """
    for name, sentence in (("said", said), ("heard", heard)):
        if isinstance(sentence, str):
            raise TypeError(f"{name} must be a list of words: got {sentence!r}")
    if not said:
        raise ValueError("said must have a word: got none")
    # Of each prefix: errors, then how many of each kind.
    above = [(j, 0, 0, j) for j in range(len(heard) + 1)]
    for i, word in enumerate(said, start=1):
        row = [(i, 0, i, 0)]
        for j, other in enumerate(heard, start=1):
            cost, s, d, n = above[j - 1]
            ways = [(cost + (word != other), s + (word != other), d, n)]
            cost, s, d, n = above[j]
            ways.append((cost + 1, s, d + 1, n))
            cost, s, d, n = row[j - 1]
            ways.append((cost + 1, s, d, n + 1))
            row.append(min(ways, key=lambda way: way[0]))
        above = row
    return WordErrors(*above[-1][1:], len(said))


def word_error_rate(said: Sequence[Sequence[str]], heard: Sequence[Sequence[str]]) -> float:
    r"""Word error rate of many sentences: all errors over all words.

    .. math:: \text{WER} = \frac{\sum_k (S_k + D_k + I_k)}{\sum_k N_k}

    It is not the mean of the sentences' rates, in which a short sentence counts as much as a long
    one. Equal to jiwer's.

    Args:
        said: Words of each sentence.
        heard: As many sentences.

    Raises:
        TypeError: as :func:`word_errors`.
        ValueError: as :func:`word_errors`, no sentences, or not as many of both.
    """
    if not len(said) or len(said) != len(heard):
        raise ValueError(
            "said and heard must be as many sentences, at least one: "
            f"got {len(said)} and {len(heard)}"
        )
    found = [word_errors(*pair) for pair in zip(said, heard, strict=True)]
    wrong = sum(one.substitutions + one.deletions + one.insertions for one in found)
    return wrong / sum(one.words for one in found)

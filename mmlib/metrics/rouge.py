r"""ROUGE: how much of a summary's words and their order a reference has (摘要评价).

ROUGE-N compares runs of :math:`n` words, ROUGE-L the longest common subsequence, the words that
both have in one order, with anything between:

.. math::
    P = \frac{\text{common}}{\text{candidate}}, \qquad R = \frac{\text{common}}{\text{reference}},
    \qquad F = \frac{2PR}{P+R}

The numbers are those of Google's ``rouge-score`` without stemming, F with equal weights. Common
runs are counted no more often than either side has them.

References:
    Lin, *ROUGE: A Package for Automatic Evaluation of Summaries*, 2004.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mmlib.data.samplers import at_least
from mmlib.metrics.ngrams import ngrams

__all__ = ["Rouge", "longest_common", "rouge_l", "rouge_n", "words"]


class Rouge(NamedTuple):
    """Precision, recall and their harmonic mean.

    Attributes:
        precision: Share of the candidate that the reference has.
        recall: Share of the reference that the candidate has.
        f: Their harmonic mean.
    """

    precision: float
    recall: float
    f: float


def words(text: str) -> list[str]:
    """The words of an English text as ``rouge-score`` cuts it: runs of letters and digits.

    >>> words("It's a red star.")
    ['it', 's', 'a', 'red', 'star']
    """
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_n(candidate: Sequence[str], reference: Sequence[str], n: int = 1) -> Rouge:
    """ROUGE-N of one summary against one reference.

    Args:
        candidate: Words, as :func:`words` gives them; none gives zeros.
        reference: Words.
        n: Words of a run.

    Raises:
        TypeError: a string where a list of words is wanted, or ``n`` is not whole.
        ValueError: ``n`` is below 1.

    >>> rouge_n(words("a red star"), words("the red star shines"), 2).precision
    0.5
    """
    at_least(1, "n", n)
    _check(candidate, reference)
    mine, theirs = (
        {run: count for run, count in ngrams(text, n).items() if len(run) == n}
        for text in (candidate, reference)
    )
    common = sum(min(count, theirs.get(run, 0)) for run, count in mine.items())
    return _rouge(common, sum(mine.values()), sum(theirs.values()))


def rouge_l(candidate: Sequence[str], reference: Sequence[str]) -> Rouge:
    """ROUGE-L of one summary against one reference, each taken as one sequence of words.

    Args:
        candidate: Words; none gives zeros.
        reference: Words.

    Raises:
        TypeError: a string where a list of words is wanted.

    >>> rouge_l(["a", "b", "c"], ["a", "c"])
    Rouge(precision=0.6666666666666666, recall=1.0, f=0.8)
    """
    _check(candidate, reference)
    return _rouge(longest_common(candidate, reference), len(candidate), len(reference))


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    r"""Length of the longest common subsequence.

    .. math:: L_{ij} = \begin{cases} L_{i-1,j-1} + 1 & a_i = b_j \\
              \max(L_{i-1,j}, L_{i,j-1}) & \text{else} \end{cases}

    >>> longest_common("a man bites a dog".split(), "a dog bites a man".split())
    3
    """
    row = [0] * (len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
    return row[-1]


def _rouge(common: int, candidate: int, reference: int) -> Rouge:
    precision = common / candidate if candidate else 0.0
    recall = common / reference if reference else 0.0
    f = 2 * precision * recall / (precision + recall) if common else 0.0
    return Rouge(precision, recall, f)


def _check(*texts: Sequence[str]) -> None:
    for text in texts:
        if isinstance(text, str):
            raise TypeError(f"a summary must be a list of words: got {text!r}")

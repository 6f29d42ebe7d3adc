r"""BLEU: how many of a caption's word sequences stand in a reference (双语评估替补).

Three things make two BLEU scores of the same text differ, and a score without them says little:

* **The words.** Nothing is split here: candidates and references come as lists of words.
* **The smoothing** of a precision of zero, which has no logarithm (a corpus of short captions
  easily has no match of four words). Names and values as in sacrebleu: ``"none"`` gives 0;
  ``"floor"`` puts a small count (0.1) in the place of 0; ``"add-k"`` adds k (1) to the counts above
  one word; ``"exp"`` takes a half, a quarter, ... of one match for each further zero.
* **The corpus.** Counts are summed over the corpus before anything is divided; the mean of
  sentences' scores is another number.

Equal to sacrebleu with ``tokenize="none"`` (times 100 there). nltk differs where a caption has
fewer words than ``order``: it counts one n-gram for it that does not exist.

References:
    Papineni et al., *BLEU: a Method for Automatic Evaluation of Machine Translation*, ACL 2002.
    Chen and Cherry, *A Systematic Comparison of Smoothing Techniques for Sentence-Level BLEU*,
    WMT 2014. Post, *A Call for Clarity in Reporting BLEU Scores*, WMT 2018 (sacrebleu).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mmlib.metrics.ngrams import check_captions, ngrams

__all__ = ["SMOOTHING", "Bleu", "bleu", "sentence_bleu"]

SMOOTHING = {"none": 0.0, "floor": 0.1, "add-k": 1.0, "exp": 0.0}
"""The kinds of smoothing, with the value that each takes unless another is given."""


class Bleu(NamedTuple):
    """A BLEU score and what it is made of.

    Attributes:
        score: 0 to 1.
        precisions: for each length of n-gram, smoothed, 0 to 1.
        brevity_penalty: 1 unless the candidates are too short.
        candidate_length: words of the candidates.
        reference_length: words of the references nearest in length.
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    candidate_length: int
    reference_length: int


def bleu(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    *,
    order: int = 4,
    smoothing: str = "none",
    smoothing_value: float | None = None,
    effective_order: bool = False,
) -> Bleu:
    r"""BLEU of a corpus.

    .. math::

        \text{BLEU} = \min\left(1, e^{1 - r/c}\right) \left(\prod_{n=1}^N p_n\right)^{1/N},
        \qquad
        p_n = \frac{\sum_i \sum_g \min\left(h_g(c_i), \max_j h_g(s_{ij})\right)}
                   {\sum_i \sum_g h_g(c_i)}

    where :math:`h_g` counts an n-gram, :math:`c` is the number of words of all candidates and
    :math:`r` that of the references nearest in length to each (of two as near, the shorter).

    Args:
        candidates: One caption for each item: its words, or none.
        references: The captions that each candidate may be like, at least one an item.
        order: :math:`N`, words of the longest n-gram.
        smoothing: ``"none"``, ``"floor"``, ``"add-k"`` or ``"exp"`` (see the module).
        smoothing_value: The count for ``"floor"``, the k for ``"add-k"``; see :data:`SMOOTHING`.
        effective_order: Leave out lengths of n-gram that no candidate is long enough for, which
            make the score 0 otherwise.

    Raises:
        TypeError: a caption is a string and not a list of words.
        ValueError: numbers that do not fit, an item without references, an unknown smoothing, a
            value that is not above 0, or one for a smoothing that takes none.

    >>> found = bleu(["a red star on the left".split()], [["a red star at the left".split()]])
    >>> [round(p, 3) for p in found.precisions], found.score  # no four words in a row match
    ([0.833, 0.6, 0.25, 0.0], 0.0)
    """
    check_captions(candidates, references, order)
    value = _checked_value(smoothing, smoothing_value)
    matches: list[int | float] = [0] * order
    totals: list[int | float] = [0] * order
    candidate_length = reference_length = 0
    for candidate, captions in zip(candidates, references, strict=True):
        allowed: Counter[tuple[str, ...]] = Counter()
        for caption in captions:
            allowed |= ngrams(caption, order)  # the larger of the two counts
        for gram, count in ngrams(candidate, order).items():
            totals[len(gram) - 1] += count
            matches[len(gram) - 1] += min(count, allowed[gram])
        length = len(candidate)
        candidate_length += length
        reference_length += min((len(c) for c in captions), key=lambda r: (abs(r - length), r))
    penalty = _brevity_penalty(candidate_length, reference_length)
    if not any(matches):  # no smoothing makes something of nothing
        return Bleu(0.0, (0.0,) * order, penalty, candidate_length, reference_length)
    if smoothing == "add-k":
        matches[1:] = [match + value for match in matches[1:]]
        totals[1:] = [total + value for total in totals[1:]]
    precisions = _precisions(matches, totals, smoothing, value)
    used = [p for p, total in zip(precisions, totals, strict=True) if total or not effective_order]
    mean = math.exp(sum(map(math.log, used)) / len(used)) if all(used) else 0.0
    return Bleu(penalty * mean, precisions, penalty, candidate_length, reference_length)


def sentence_bleu(
    candidate: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    order: int = 4,
    smoothing: str = "none",
    smoothing_value: float | None = None,
    effective_order: bool = False,
) -> Bleu:
    """BLEU of one caption: :func:`bleu` of a corpus of one.

    Without smoothing it is 0 for every caption that shares no four words in a row with a
    reference. sacrebleu's function of this name smooths by ``"exp"``, with ``effective_order``.

    Args:
        candidate: Words of the caption.
        references: Captions that it may be like.
        order: As for :func:`bleu`, like all that follow.
        smoothing: As for :func:`bleu`.
        smoothing_value: As for :func:`bleu`.
        effective_order: As for :func:`bleu`.

    Raises:
        TypeError: As for :func:`bleu`.
        ValueError: As for :func:`bleu`.

    >>> sentence_bleu(["red", "star"], [["red", "star"]], effective_order=True).score
    1.0
    """
    return bleu(
        [candidate],
        [references],
        order=order,
        smoothing=smoothing,
        smoothing_value=smoothing_value,
        effective_order=effective_order,
    )


def _precisions(
    matches: Sequence[int | float], totals: Sequence[int | float], smoothing: str, value: float
) -> tuple[float, ...]:
    """Matches over totals, with something in the place of 0 if the smoothing says so."""
    precisions, missed = [], 0
    for match, total in zip(matches, totals, strict=True):
        if match == 0 and smoothing == "floor":
            match = value
        elif match == 0 and smoothing == "exp":
            missed += 1
            match = 0.5**missed
        precisions.append(match / total if total else 0.0)
    return tuple(precisions)


def _brevity_penalty(candidate_length: int, reference_length: int) -> float:
    if candidate_length >= reference_length:
        return 1.0
    return math.exp(1 - reference_length / candidate_length) if candidate_length else 0.0


def _checked_value(smoothing: str, value: float | None) -> float:
    if smoothing not in SMOOTHING:
        raise ValueError(f"smoothing must be one of {', '.join(SMOOTHING)}: got {smoothing!r}")
    if value is None:
        return SMOOTHING[smoothing]
    if not SMOOTHING[smoothing]:
        raise ValueError(f"smoothing_value must be None for {smoothing!r}: got {value}")
    if not 0 < value < math.inf:
        raise ValueError(f"smoothing_value must be above 0: got {value}")
    return value

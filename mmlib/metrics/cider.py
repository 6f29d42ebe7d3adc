r"""CIDEr: how alike captions are in the words that say something (图像描述评估).

"a", "on the" stand in the references of almost every picture, and agreeing on them is worth
nothing; "zebra" stands in few. So n-grams are weighted by how rare they are among the pictures
(tf-idf), and the score is a mean of cosines. What is computed here is CIDEr-D, which is what
everyone reports as CIDEr: it clips repeated words and punishes another length, against captions
that are made for the metric.

Equal to pycocoevalcap's ``Cider``, on its scale: 10 for a caption that is the one reference. Four
things follow from its definition and surprise. The rarity is taken from the references given, so
that scores on two test sets cannot be compared. One picture alone always scores 0 (its n-grams
stand in every picture). A caption that equals one of five references scores below 10. A caption of
fewer than four words has no 4-grams, and scores 0 for those: 5 of 10 for a perfect one of two.

References:
    Vedantam, Zitnick and Parikh, *CIDEr: Consensus-based Image Description Evaluation*,
    CVPR 2015.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mmlib.metrics.ngrams import check_captions, ngrams

__all__ = ["Cider", "cider"]


class Cider(NamedTuple):
    """A CIDEr score, and that of each item.

    Attributes:
        score: mean of the items'; 0 to 10.
        scores: one for each item.
    """

    score: float
    scores: tuple[float, ...]


def cider(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    *,
    order: int = 4,
    sigma: float = 6.0,
) -> Cider:
    r"""CIDEr-D of a corpus.

    .. math::

        \text{CIDEr}(c, S) = \frac{10}{N |S|} \sum_{n=1}^N \sum_{s \in S}
        e^{-\frac{(l_c - l_s)^2}{2 \sigma^2}}
        \frac{\min(g_n(c), g_n(s)) \cdot g_n(s)}{\|g_n(c)\| \|g_n(s)\|}, \qquad
        g_n(s)_k = h_k(s) \log \frac{M}{\max(1, d_k)}

    where :math:`h_k(s)` counts an n-gram in a caption, :math:`d_k` is the number of the :math:`M`
    items that have it in a reference, and :math:`l` is the number of words.

    Args:
        candidates: One caption for each item: its words, or none.
        references: The captions of each item, at least one.
        order: :math:`N`, words of the longest n-gram.
        sigma: How far lengths may differ.

    Raises:
        TypeError: a caption is a string and not a list of words.
        ValueError: numbers that do not fit, an item without references, or a ``sigma`` of 0 or
            less.

    >>> captions = [["a", "very", "red", "star"], ["a", "small", "blue", "dot"]]
    >>> [round(score, 3) for score in cider(captions, [[caption] for caption in captions]).scores]
    [10.0, 10.0]
    """
    check_captions(candidates, references, order)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be above 0: got {sigma}")
    counted = [[ngrams(caption, order) for caption in captions] for captions in references]
    items_with = Counter(gram for grams in counted for gram in set().union(*grams))
    log_items = math.log(len(candidates))

    def weighted(counts: Counter[tuple[str, ...]]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(order)]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (log_items - math.log(max(1, items_with[gram])))
        return vectors

    scores = []
    for candidate, captions, grams in zip(candidates, references, counted, strict=True):
        own = weighted(ngrams(candidate, order))
        total = 0.0
        for caption, counts in zip(captions, grams, strict=True):
            delta = len(candidate) - len(caption)
            similar = sum(map(_clipped_cosine, own, weighted(counts)))
            total += math.exp(-(delta**2) / (2 * sigma**2)) * similar
        scores.append(10 * total / (order * len(captions)))
    return Cider(sum(scores) / len(scores), tuple(scores))


def _clipped_cosine(
    candidate: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]
) -> float:
    """Cosine, in which the candidate has no more of an n-gram than the reference."""
    norms = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    if norms == 0:
        return 0.0
    shared = candidate.keys() & reference.keys()
    return sum(min(candidate[g], reference[g]) * reference[g] for g in shared) / norms

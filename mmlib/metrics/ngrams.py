"""What metrics of captions share: counts of n-grams, and a check of the captions (n 元组)."""

from collections import Counter
from collections.abc import Sequence

from mmlib.data.samplers import at_least

__all__ = ["check_captions", "ngrams"]


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each run of 1 to ``order`` words comes.

    >>> ngrams(["a", "red", "star"], 2)[("red", "star")]
    1
    """
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, order + 1)
        for start in range(len(words) - n + 1)
    )


def check_captions(candidates: Sequence, references: Sequence, order: object) -> None:
    """Check what a metric of captions is given, of whatever type it is.

    Args:
        candidates: One caption for each item: a list of words, which may be empty.
        references: At least one caption for each item.
        order: Words of the longest n-gram.

    Raises:
        TypeError: a caption is a string and not a list of words, or ``order`` is not a whole
            number.
        ValueError: no items, another number of candidates than of items with references, an item
            without a reference, or an ``order`` below 1.
    """
    at_least(1, "order", order)
    if len(candidates) != len(references) or not len(candidates):
        raise ValueError(
            "candidates and references must be for the same items, at least one: "
            f"got {len(candidates)} candidates and references for {len(references)} items"
        )
    for item, (candidate, captions) in enumerate(zip(candidates, references, strict=True)):
        if isinstance(captions, str) or not len(captions):
            raise ValueError(f"every item must have a list of references: item {item} has none")
        for caption in (candidate, *captions):
            if isinstance(caption, str) or not all(isinstance(word, str) for word in caption):
                raise TypeError(f"a caption must be a list of words: got {caption!r}, item {item}")

r"""Sentences of real product reviews, each rated by twenty people (商品评论).

3,708 English sentences from 309 reviews of cameras, a telephone, a music player and a DVD player;
each has the mean of at least twenty ratings from -4, very negative, to 4, very positive. The data
are those of the VADER paper, MIT licence, from the source distribution of ``vaderSentiment`` 0.5;
they ship with the library, and ``files/reviews/ATTRIBUTION.md`` says more.

**The split.** Every third review is in the test set, with all its sentences: sentences of one
review speak of the same camera in the same words, and a random split of sentences would put each
review on both sides.

References:
    Hutto and Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
    Media Text*, ICWSM 2014. Hu and Liu, *Mining and Summarizing Customer Reviews*, KDD 2004.
"""

from dataclasses import dataclass
from importlib import resources

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmlib.data.shipped import SPLITS, checked_files

__all__ = ["Reviews", "load"]


@dataclass(frozen=True, eq=False, repr=False)
class Reviews:
    """Sentences and their ratings.

    Attributes:
        texts: English, lower case.
        ratings: Mean rating, -4 to 4.
        review: Number of the review that the sentence is from.
    """

    texts: tuple[str, ...]
    ratings: Float[Tensor, " sentences"]
    review: Int64[Tensor, " sentences"]

    def __len__(self) -> int:
        """The number of sentences."""
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Reviews({len(self)} sentences of {len(self.review.unique())} reviews)"

    @property
    def positive(self) -> Bool[Tensor, " sentences"]:
        """Whether people found the sentence rather positive than negative."""
        return self.ratings > 0


def load(split: str = "all", margin: float = 1.0) -> Reviews:
    """Read the sentences.

    Args:
        split: ``"train"``, ``"test"`` (every third review) or ``"all"``.
        margin: Leave out sentences with a rating nearer to 0 than this, about which people are
            divided, or which say nothing of the kind; 0 keeps all.

    Returns:
        The sentences in the order of the file.

    Raises:
        ValueError: there is no such split, ``margin`` is out of range, or the shipped file is
            damaged.

    >>> train, test = load("train"), load("test")
    >>> train, test
    (Reviews(1636 sentences of 199 reviews), Reviews(819 sentences of 99 reviews))
    >>> test.texts[1], test.positive[1].item()
    ("many of our disney movies don't play on this dvd player.", False)
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    if not 0 <= margin < 4:
        raise ValueError(f"margin must be at least 0 and below 4: got {margin}")
    contents = checked_files(resources.files("mmlib.data") / "files" / "reviews")
    rows = [line.split("\t") for line in contents["reviews.tsv"].decode("ascii").splitlines()]
    kept = []
    for name, rating, text in rows:
        number, value = int(name.split("_")[0]), float(rating)
        part = "test" if number % 3 == 0 else "train"
        if split in (part, "all") and abs(value) >= margin:
            kept.append((text, value, number))
    texts, ratings, numbers = zip(*kept, strict=True)
    return Reviews(texts, torch.tensor(ratings), torch.tensor(numbers))

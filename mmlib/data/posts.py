r"""Posts about four products: a real sentence, perhaps an emoji, and the hour (舆情帖子流).

The sentences are those of :mod:`mmlib.data.reviews`, written by customers, and their sentiment is
what twenty people gave them. Beside a sentence may stand an emoji whose polarity is what people
made of it (:mod:`mmlib.data.emoji_ratings`). The pairing is generated: an emoji shows the writer's
sentiment, but not always, and not every post has one,

.. math:: e \sim p(e \mid s), \qquad e \in \{\text{negative}, \text{none}, \text{positive}\},

with the numbers of :data:`SHOWN`. So an emoji is a second, noisy witness. Who sees nothing but the
emoji's polarity can be right with the probability :math:`\sum_e \max_s p(s)\, p(e \mid s)`, and no
more (:func:`emoji_ceiling`).

A :func:`stream` puts posts in time: so many an hour, with a share of complaints that rises in one
topic at one hour and stays there.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from mmlib.data import reviews
from mmlib.data.samplers import at_least

__all__ = [
    "SENTIMENTS",
    "SHOWN",
    "TOPICS",
    "Posts",
    "emoji_ceiling",
    "posts",
    "stream",
]

TOPICS = ("DVD player", "camera", "phone", "music player")
"""What the reviews are about."""

SENTIMENTS = ("negative", "neutral", "positive")
"""Below -1, between -0.5 and 0.5, above 1 on a scale of -4 to 4; the rest is left out."""

SHOWN = ((0.60, 0.30, 0.10), (0.20, 0.60, 0.20), (0.10, 0.30, 0.60))
"""How often each sentiment, a row, comes with a negative emoji, with none, with a positive one."""

# The reviews stand in this order in the file; each number is the last review of a topic.
_LAST = (98, 175, 215, 309)


@dataclass(frozen=True, eq=False, repr=False)
class Posts:
    """Posts; item ``i`` of each field is about the same.

    Attributes:
        texts: English sentences.
        emoji: An index into the emoji that were given, or -1 for none.
        topics: An index into :data:`TOPICS`.
        sentiments: An index into :data:`SENTIMENTS`.
        hours: When it was written, in whole hours; 0 outside a stream.
        reviews: Number of the review that the sentence is from.
    """

    texts: tuple[str, ...]
    emoji: Int64[Tensor, " posts"]
    topics: Int64[Tensor, " posts"]
    sentiments: Int64[Tensor, " posts"]
    hours: Int64[Tensor, " posts"]
    reviews: Int64[Tensor, " posts"]

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        shown = int((self.emoji >= 0).sum())
        return f"Posts({len(self)}, {shown} with an emoji, {int(self.hours.max()) + 1} hours)"


def posts(split: str, polarity: Tensor, among: Tensor | None = None, *, seed: int = 0) -> Posts:
    """Every sentence of a split with a clear sentiment, each with its emoji or none.

    Args:
        split: ``"train"``, ``"test"`` or ``"all"``, by review (:func:`mmlib.data.reviews.load`).
        polarity: Of every emoji, True for positive: boolean, shape (emoji,).
        among: Which emoji may occur; all by default.
        seed: The same seed shows the same emoji.

    Raises:
        TypeError: ``polarity`` is not boolean.
        ValueError: there is no such split, or ``among`` leaves no emoji of a polarity.

    >>> posts("test", torch.tensor([True, False]))
    Posts(1019, 673 with an emoji, 1 hours)
    """
    if polarity.dtype != torch.bool:
        raise TypeError(f"polarity must be boolean: got {polarity.dtype}")
    found = reviews.load(split, margin=0.0)
    sentiment = torch.full((len(found),), -1)
    sentiment[found.ratings < -1] = 0
    sentiment[found.ratings.abs() < 0.5] = 1
    sentiment[found.ratings > 1] = 2
    rows = (sentiment >= 0).nonzero().flatten()
    topics = torch.bucketize(found.review[rows], torch.tensor(_LAST))
    return Posts(
        texts=tuple(found.texts[i] for i in rows.tolist()),
        emoji=_shown(sentiment[rows], polarity, among, torch.Generator().manual_seed(seed)),
        topics=topics,
        sentiments=sentiment[rows],
        hours=torch.zeros_like(topics),
        reviews=found.review[rows],
    )


def stream(
    pool: Posts,
    polarity: Tensor,
    among: Tensor | None = None,
    *,
    hours: int = 240,
    rate: float = 4.0,
    shares: tuple[float, float, float] = (0.2, 0.4, 0.4),
    after: tuple[float, float, float] = (0.4, 0.3, 0.3),
    topic: int = 2,
    change: int = 120,
    seed: int = 0,
) -> Posts:
    r"""Posts in the order of time, whose mood changes at one hour in one topic.

    In each hour each topic has a Poisson number of posts; a post's sentiment is drawn from the
    shares, its sentence from those of ``pool`` with that topic and sentiment, and its emoji anew.

    Args:
        pool: Where the sentences are from.
        polarity: As for :func:`posts`.
        among: As for :func:`posts`.
        hours: Length of the stream.
        rate: Mean number of posts a topic and hour.
        shares: Of the three sentiments, in every topic.
        after: Of the three sentiments in ``topic`` from the hour ``change`` on.
        topic: An index into :data:`TOPICS`.
        change: The hour; ``hours`` or more for a stream without a change.
        seed: The same seed draws the same stream.

    Raises:
        ValueError: a number is out of its range, shares that do not sum to 1, or a topic of the
            pool has no sentence of a sentiment.
    """
    at_least(1, "hours", hours)
    if not rate > 0:
        raise ValueError(f"rate must be above 0: got {rate}")
    if not 0 <= topic < len(TOPICS):
        raise ValueError(f"topic must be from 0 to {len(TOPICS) - 1}: got {topic}")
    for name, values in (("shares", shares), ("after", after)):
        if len(values) != 3 or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
            raise ValueError(f"{name} must be three shares that sum to 1: got {values}")
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((hours, len(TOPICS)), float(rate)), generator=generator)
    cells = counts.long().flatten()
    hour = torch.arange(hours).repeat_interleave(len(TOPICS)).repeat_interleave(cells)
    topics = torch.arange(len(TOPICS)).repeat(hours).repeat_interleave(cells)
    changed = ((topics == topic) & (hour >= change))[:, None]
    weights = torch.where(changed, torch.tensor(after), torch.tensor(shares))
    sentiment = torch.multinomial(weights, 1, generator=generator).flatten()
    rows = torch.zeros(len(hour), dtype=torch.int64)
    for t in range(len(TOPICS)):
        for s in range(len(SENTIMENTS)):
            here = (topics == t) & (sentiment == s)
            known = ((pool.topics == t) & (pool.sentiments == s)).nonzero().flatten()
            if not len(known):
                raise ValueError(f"pool must have a {SENTIMENTS[s]} sentence on {TOPICS[t]}")
            drawn = torch.randint(len(known), (int(here.sum()),), generator=generator)
            rows[here] = known[drawn]
    return Posts(
        texts=tuple(pool.texts[i] for i in rows.tolist()),
        emoji=_shown(sentiment, polarity, among, generator),
        topics=topics,
        sentiments=sentiment,
        hours=hour,
        reviews=pool.reviews[rows],
    )


def emoji_ceiling(sentiments: Tensor) -> float:
    """The best expected accuracy of a rule that sees the emoji's polarity and nothing else.

    Args:
        sentiments: Of the posts, for their shares.

    Raises:
        ValueError: there are none.

    >>> round(emoji_ceiling(torch.tensor([0, 1, 2])), 3)
    0.6
    """
    if not len(sentiments):
        raise ValueError("sentiments must not be empty")
    shares = torch.bincount(sentiments, minlength=3).double() / len(sentiments)
    return (shares[:, None] * torch.tensor(SHOWN, dtype=torch.float64)).amax(0).sum().item()


def _shown(
    sentiment: Tensor, polarity: Tensor, among: Tensor | None, generator: torch.Generator
) -> Tensor:
    """An emoji of the drawn polarity for each post, or -1."""
    allowed = torch.arange(len(polarity)) if among is None else torch.as_tensor(among)
    pools = [allowed[polarity[allowed] == sign] for sign in (False, True)]
    if not all(len(pool) for pool in pools):
        raise ValueError("among must hold emoji of both polarities: got one polarity")
    kind = torch.multinomial(torch.tensor(SHOWN)[sentiment], 1, generator=generator).flatten()
    place = torch.rand(len(sentiment), generator=generator)
    found = torch.full_like(sentiment, -1)
    for value, pool in ((0, pools[0]), (2, pools[1])):
        drawn = pool[(place * len(pool)).long().clamp(max=len(pool) - 1)]
        found = torch.where(kind == value, drawn, found)
    return found

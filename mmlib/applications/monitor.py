r"""Watching the mood of a stream of posts, and raising an alarm when it turns (舆情监测).

Each post is read by two linear classifiers on frozen vectors: its **topic** from the sentence, its
**sentiment** from the sentence and the picture of its emoji. What is then watched, topic by topic,
is the stream of "is it a complaint?", zeros and ones, of which a share :math:`p_0` is normal.

**CUSUM** (累积和). The share may rise to :math:`p_1` at any time. The sum of the log-likelihood
ratios since its last low point is compared with a limit. For zeros and ones, divided by its step
down and rounded, it counts in whole numbers:

.. math::
    S_t = \max(0,\; S_{t-1} + m\,x_t - 1), \qquad
    \frac1m \approx \frac{\log\frac{1-p_0}{1-p_1}}{\log\frac{p_1 (1-p_0)}{p_0 (1-p_1)}},
    \qquad \text{alarm when } S_t \ge h

so that a complaint adds :math:`m - 1`, every other post takes one away. Between the two, the mean
time to an alarm is exactly that of a Markov chain with the states :math:`0 \dots h - 1`
(:func:`mean_run_length`): with :math:`p_0` it is the time between false alarms, with :math:`p_1`
the delay. No detector with as few false alarms has a shorter worst delay (Moustakides), so a model
that reads posts wrongly can be compared with what is possible.

References:
    Page, *Continuous Inspection Schemes*, Biometrika 1954. Moustakides, *Optimal Stopping Times for
    Detecting Changes in Distributions*, Annals of Statistics 1986. Reynolds and Stoumbos, *A CUSUM
    Chart for Monitoring a Proportion When Inspecting Continuously*, Journal of Quality Technology
    1999.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlib.data.posts import SENTIMENTS, TOPICS, Posts
from mmlib.data.samplers import at_least
from mmlib.zero_shot import linear_probe

__all__ = [
    "Cusum",
    "Monitor",
    "Reading",
    "first_alarm",
    "mean_run_length",
    "rolling_share",
    "window_count",
]


class Cusum:
    """The statistic :math:`S_t` of the module, for shares that rise from ``before`` to ``after``.

    Args:
        before: Normal share of complaints.
        after: The share that must be noticed.

    Attributes:
        gain: The whole number :math:`m`, at least 2.

    Raises:
        ValueError: unless ``0 < before < after < 1``.

    >>> cusum = Cusum(0.2, 0.5)
    >>> cusum.gain, cusum(torch.tensor([[0, 1, 1, 0, 1]])).tolist()
    (3, [[0, 2, 4, 3, 5]])
    """

    def __init__(self, before: float, after: float) -> None:
        if not 0 < before < after < 1:
            raise ValueError(f"shares must be 0 < before < after < 1: got {before} and {after}")
        fall = math.log((1 - before) / (1 - after))
        self.gain = max(2, round((math.log(after / before) + fall) / fall))

    def __call__(self, complaints: Tensor) -> Int64[Tensor, "streams posts"]:
        """The statistic after each post.

        Args:
            complaints: Zeros and ones (or booleans), shape (streams, posts).

        Raises:
            ValueError: another shape, or other values.
        """
        steps = _zeros_and_ones(complaints) * self.gain - 1
        total = steps.new_zeros(len(steps))
        path = []
        for step in steps.unbind(1):
            total = (total + step).clamp(min=0)
            path.append(total)
        return torch.stack(path, 1)


def first_alarm(statistic: Tensor, limit: int | float) -> Int64[Tensor, " streams"]:
    """After how many posts the statistic first reaches the limit; -1 if it never does.

    >>> first_alarm(torch.tensor([[0, 2, 4, 3], [0, 0, 0, 1]]), 3)
    tensor([ 3, -1])
    """
    above = statistic >= limit
    return torch.where(above.any(1), above.int().argmax(1) + 1, -1)


def mean_run_length(gain: int, limit: int, share: float, calm: float | None = None) -> float:
    r"""Mean number of posts until CUSUM reaches the limit, in closed form.

    .. math:: (I - Q)\, \ell = \mathbf{1}, \qquad
              Q_{s, \max(0, s-1)} \mathrel{+}= 1 - p, \quad Q_{s, s+m-1} = p

    over the states below the limit. From zero, where a detector starts and where it is slowest, the
    answer is :math:`\ell_0`; after a long calm without an alarm it is :math:`\pi^\top \ell`, where
    :math:`\pi` is the left eigenvector of the calm's :math:`Q` with the largest eigenvalue.

    Args:
        gain: The whole number :math:`m`.
        limit: The whole number :math:`h`, at least 1.
        share: Probability of a complaint, above 0.
        calm: The same before the first of these posts, for long; a start at zero by default.

    Raises:
        TypeError: ``gain`` or ``limit`` is not whole.
        ValueError: ``gain`` below 2, ``limit`` below 1, or a share outside (0, 1].

    >>> mean_run_length(3, 1, 0.25)  # the first complaint
    4.0
    """
    at_least(2, "gain", gain)
    at_least(1, "limit", limit)
    for name, p in (("share", share), ("calm", calm)):
        if p is not None and not 0 < p <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1: got {p}")
    unit, ones = torch.eye(limit, dtype=torch.float64), torch.ones(limit, dtype=torch.float64)
    length = torch.linalg.solve(unit - _chain(gain, limit, share), ones)
    if calm is None:
        return length[0].item()
    values, vectors = torch.linalg.eig(_chain(gain, limit, calm).T)
    start = vectors[:, values.real.argmax()].real.abs()
    return (start @ length / start.sum()).item()


def _chain(gain: int, limit: int, share: float) -> Tensor:
    """Probabilities of the steps between the states below the limit."""
    chain = torch.zeros(limit, limit, dtype=torch.float64)
    for state in range(limit):
        chain[state, max(0, state - 1)] += 1 - share
        if state + gain - 1 < limit:
            chain[state, state + gain - 1] += share
    return chain


def window_count(complaints: Tensor, window: int) -> Int64[Tensor, "streams posts"]:
    """Complaints among the last ``window`` posts: the detector that comes to mind first.

    Raises:
        TypeError: ``window`` is not whole.
        ValueError: ``window`` is below 1, or no zeros and ones of shape (streams, posts).

    >>> window_count(torch.tensor([[1, 0, 1, 1]]), 2)
    tensor([[1, 1, 1, 2]])
    """
    at_least(1, "window", window)
    total = _zeros_and_ones(complaints).cumsum(1)
    before = torch.zeros_like(total)
    before[:, window:] = total[:, :-window] if window < total.shape[1] else 0
    return total - before


def rolling_share(
    complaints: Tensor, window: int, z: float = 1.96
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Share of complaints among the last posts, with Wilson's interval.

    .. math:: \frac{k + z^2/2}{n + z^2} \pm
              \frac{z}{n + z^2} \sqrt{\frac{k (n - k)}{n} + \frac{z^2}{4}}

    Args:
        complaints: Zeros and ones, shape (streams, posts).
        window: How many posts, fewer at the start.
        z: Of the interval; 1.96 for 95 %.

    Returns:
        The share, the lower and the upper end, each of shape (streams, posts).

    Raises:
        ValueError: As for :func:`window_count`.
    """
    k = window_count(complaints, window).double()
    n = torch.arange(1, k.shape[1] + 1, dtype=torch.float64).clamp(max=window).expand_as(k)
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (k * (n - k) / n + z * z / 4).sqrt()
    return k / n, middle - half, middle + half


class Reading(NamedTuple):
    """What a monitor reads out of posts.

    Attributes:
        topics: An index into :data:`mmlib.data.posts.TOPICS`.
        sentiments: An index into :data:`mmlib.data.posts.SENTIMENTS`.
    """

    topics: Int64[Tensor, " posts"]
    sentiments: Int64[Tensor, " posts"]

    @property
    def complaints(self) -> Bool[Tensor, " posts"]:
        """Which posts are negative."""
        return self.sentiments == 0


class Monitor:
    """Reads topic and sentiment of posts from frozen vectors.

    Args:
        use: ``"both"``, ``"text"`` or ``"emoji"``: what the sentiment is read from.
        penalty: Of the logistic regressions.

    Raises:
        ValueError: another ``use``, or a penalty of 0 or less.
    """

    def __init__(self, use: str = "both", penalty: float = 1.0) -> None:
        if use not in ("both", "text", "emoji"):
            raise ValueError(f"use must be 'both', 'text' or 'emoji': got {use!r}")
        if not penalty > 0:
            raise ValueError(f"penalty must be above 0: got {penalty}")
        self.use, self.penalty = use, penalty
        self._topic: nn.Linear | None = None
        self._mood: nn.Linear | None = None

    def fit(
        self,
        posts: Posts,
        sentences: Float[Tensor, "posts dim"],
        pictures: Float[Tensor, "emoji width"],
    ) -> "Monitor":
        """Learn from posts with their labels.

        Args:
            posts: With topics and sentiments.
            sentences: A vector of each post's text.
            pictures: A vector of each emoji, which ``posts.emoji`` counts.
        """
        seen = self._features(posts, sentences, pictures)
        self._topic = linear_probe(
            sentences, posts.topics, len(TOPICS), penalty=self.penalty, steps=200
        )
        self._mood = linear_probe(
            seen, posts.sentiments, len(SENTIMENTS), penalty=self.penalty, steps=200
        )
        return self

    @torch.no_grad()
    def read(
        self,
        posts: Posts,
        sentences: Float[Tensor, "posts dim"],
        pictures: Float[Tensor, "emoji width"],
    ) -> Reading:
        """Read posts, whose labels are not looked at.

        Raises:
            RuntimeError: :meth:`fit` was not called.
        """
        if self._topic is None or self._mood is None:
            raise RuntimeError("fit the monitor before it reads")
        seen = self._features(posts, sentences, pictures)
        return Reading(self._topic(sentences).argmax(1), self._mood(seen).argmax(1))

    def _features(self, posts: Posts, sentences: Tensor, pictures: Tensor) -> Tensor:
        if len(sentences) != len(posts):
            raise ValueError(
                f"sentences must be one for each of {len(posts)} posts: got {len(sentences)}"
            )
        if int(posts.emoji.max()) >= len(pictures):
            raise ValueError(
                f"pictures must hold emoji {int(posts.emoji.max())}: got {len(pictures)}"
            )
        # A post without an emoji has zeros in its place, and a one that says so.
        there = (posts.emoji >= 0).to(sentences.dtype)[:, None]
        shown = torch.cat([pictures[posts.emoji.clamp(min=0)] * there, there], 1)
        return {"text": sentences, "emoji": shown}.get(self.use, torch.cat([sentences, shown], 1))


def _zeros_and_ones(x: Tensor) -> Tensor:
    if x.ndim != 2 or 0 in x.shape or not ((x == 0) | (x == 1)).all():
        raise ValueError(
            f"complaints must be zeros and ones of shape (streams, posts): got {tuple(x.shape)}"
        )
    return x.long()

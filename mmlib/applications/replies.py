r"""Picking a reply (应答选择) by shared words, by sentence vectors, or by a learned map.

Given a question and a list of candidate replies, order the replies. Three ways, none of which
generates a word:

* **TF–IDF**: the cosine of weighted counts of words (English), or of characters and pairs of them
  (Chinese, which is written without spaces),
  :math:`w_t = n_t \big(1 + \log \frac{1 + N}{1 + N_t}\big)`;
* **sentence vectors**: the cosine of MiniLM's vectors (English only);
* **a learned map**: where replies lie as seen from questions is learned from the training topics by
  ridge regression, :math:`W = (Q^\top Q + \lambda I)^{-1} Q^\top (R - Q)`, and a question is moved
  to :math:`q + qW` before it is compared; :math:`\lambda` is chosen on training topics that the
  map did not see (:func:`choose_penalty`).

To answer from a knowledge base of pairs one can also compare the question with the *questions* and
give the reply of the nearest (:func:`nearest_reply`).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmlib.metrics.retrieval import mean_reciprocal_rank, ranks

__all__ = ["TfIdf", "choose_penalty", "nearest_reply", "ridge_map", "same_question", "terms"]


def terms(text: str, language: str = "en") -> list[str]:
    """What TF–IDF counts: words of English, characters and pairs of them of Chinese.

    Raises:
        ValueError: the language is neither ``"en"`` nor ``"zh"``.

    >>> terms("Do you drink?"), terms("你喝酒吗？", "zh")
    (['do', 'you', 'drink'], ['你', '喝', '酒', '吗', '你喝', '喝酒', '酒吗'])
    """
    if language == "en":
        return re.findall(r"[a-z0-9]+", text.lower())
    if language != "zh":
        raise ValueError(f"language must be 'en' or 'zh': got {language!r}")
    runs = re.findall(r"\w+", text.lower())
    pairs = [run[i : i + 2] for run in runs for i in range(len(run) - 1)]
    return [*"".join(runs), *pairs]


class TfIdf:
    """Weighted counts of terms, as vectors of unit length.

    Args:
        texts: What the terms and their weights are taken from.
        language: ``"en"`` or ``"zh"``.

    Raises:
        ValueError: no texts, or none with a term.
    """

    def __init__(self, texts: Sequence[str], language: str = "en") -> None:
        self.language = language
        within = Counter(t for text in texts for t in set(terms(text, language)))
        if not within:
            raise ValueError("texts must hold at least one term")
        self._place = {term: i for i, term in enumerate(sorted(within))}
        self._weight = [1 + math.log((1 + len(texts)) / (1 + within[term])) for term in self._place]

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "texts terms"]:
        """Vectors; of zeros where a text has no known term."""
        rows = torch.zeros(len(texts), len(self._place))
        for row, text in zip(rows, texts, strict=True):
            for term, count in Counter(terms(text, self.language)).items():
                if (place := self._place.get(term)) is not None:
                    row[place] = count * self._weight[place]
        return F.normalize(rows, dim=1)


def ridge_map(
    questions: Float[Tensor, "pairs dim"], replies: Float[Tensor, "pairs dim"], penalty: float
) -> Float[Tensor, "dim dim"]:
    """The map :math:`I + W` of the module; with a large penalty, the identity.

    Args:
        questions: Vectors.
        replies: Their replies' vectors.
        penalty: λ, above 0.

    Raises:
        ValueError: shapes that do not fit, or a penalty of 0 or less.
    """
    if questions.ndim != 2 or questions.shape != replies.shape:
        raise ValueError(
            "questions and replies must have one shape, (pairs, dim): "
            f"got {tuple(questions.shape)} and {tuple(replies.shape)}"
        )
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0: got {penalty}")
    q, r = questions.double(), replies.double()
    count, dim = q.shape
    if count < dim:  # the same map, from a smaller system: (QᵀQ + λI)⁻¹Qᵀ = Qᵀ(QQᵀ + λI)⁻¹
        kernel = q @ q.T + penalty * torch.eye(count, dtype=q.dtype)
        change = q.T @ torch.linalg.solve(kernel, r - q)
    else:
        change = torch.linalg.solve(
            q.T @ q + penalty * torch.eye(dim, dtype=q.dtype), q.T @ (r - q)
        )
    return (torch.eye(dim, dtype=q.dtype) + change).to(questions.dtype)


def choose_penalty(
    questions: Float[Tensor, "pairs dim"],
    replies: Float[Tensor, "pairs dim"],
    own: Bool[Tensor, "pairs pairs"],
    topics: Sequence[str],
    penalties: Sequence[float],
) -> float:
    """The λ whose map orders the replies of a topic best when the topic was left out.

    Each topic is left out once; the measure is the mean reciprocal rank of all questions, each
    among the replies of its own topic.

    Args:
        questions: Vectors of training pairs.
        replies: Their replies' vectors.
        own: Which replies are right for which question (:func:`same_question`).
        topics: Of each pair.
        penalties: What to choose from.

    Returns:
        One of ``penalties``; the first of equal ones.

    Raises:
        ValueError: shapes that do not fit, fewer than two topics, or no penalties.
    """
    if len(topics) != len(questions) or len(set(topics)) < 2:
        raise ValueError(
            f"topics must be one a pair, of two topics or more: got {len(topics)} topics of "
            f"{len(questions)} pairs, {len(set(topics))} different"
        )
    if own.shape != (len(questions), len(questions)):
        raise ValueError(f"own must have shape ({len(questions)},) * 2: got {tuple(own.shape)}")
    if not len(penalties):
        raise ValueError("penalties must hold at least one: got none")
    left_out = [torch.tensor([t == name for t in topics]) for name in sorted(set(topics))]

    def quality(penalty: float) -> float:
        found = []
        for rows in left_out:
            moved = questions[rows] @ ridge_map(questions[~rows], replies[~rows], penalty)
            found.append(ranks(moved @ replies[rows].T, own[rows][:, rows]))
        return mean_reciprocal_rank(torch.cat(found))

    return max(penalties, key=quality)


def same_question(questions: Sequence[str]) -> Bool[Tensor, "questions replies"]:
    """Which replies are right for which question: all that stand with the same question.

    Questions are the same if their words are, whatever the case and the punctuation.

    >>> same_question(["hi", "who?", "Hi!"]).int()
    tensor([[1, 0, 1],
            [0, 1, 0],
            [1, 0, 1]], dtype=torch.int32)
    """
    plain = [tuple(re.findall(r"\w+", q.lower())) for q in questions]
    numbers = {text: i for i, text in enumerate(dict.fromkeys(plain))}
    label = torch.tensor([numbers[text] for text in plain])
    return label[:, None] == label


def nearest_reply(
    queries: Float[Tensor, "queries dim"],
    known: Float[Tensor, "pairs dim"],
    allowed: Bool[Tensor, "queries pairs"] | None = None,
) -> tuple[Float[Tensor, " queries"], Int64[Tensor, " queries"]]:
    """The pair whose question is nearest to each query, and how near it is.

    Args:
        queries: Vectors of unit length.
        known: Of the questions of a knowledge base.
        allowed: Which pairs may be used; all by default.

    Raises:
        ValueError: the widths differ, or a query may use no pair.
    """
    if queries.shape[1] != known.shape[1]:
        raise ValueError(
            f"queries and known must be of one width: got {queries.shape[1]}, {known.shape[1]}"
        )
    score = queries @ known.T
    if allowed is not None:
        if not allowed.any(1).all():
            raise ValueError("allowed must leave every query a pair: got a row without one")
        score = score.masked_fill(~allowed, -torch.inf)
    return tuple(score.max(1))

r"""Answering only when sure: the rejection curve, and how well confidence sorts (拒答曲线).

A system that may say "I do not know" has two numbers: its **coverage**, the share of questions
that it answers, and its accuracy *among those*. A threshold on the confidence trades one for the
other; all thresholds together are the rejection curve. A question that nobody could answer counts
as wrong whenever it is answered.

References:
    El-Yaniv and Wiener, *On the Foundations of Noise-free Selective Classification*, JMLR 2010.
    Geifman and El-Yaniv, *Selective Classification for Deep Neural Networks*, NeurIPS 2017.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["RejectionCurve", "accuracy_at", "auroc", "rejection_curve"]


class RejectionCurve(NamedTuple):
    """One point for each threshold that makes a difference, the strictest first.

    Attributes:
        threshold: Questions with at least this confidence are answered.
        coverage: Share of the questions that are answered.
        accuracy: Share of the answered questions that are right.
        area: Area above the curve, the mean risk over coverages (AURC); 0 at best.
    """

    threshold: Float[Tensor, " points"]
    coverage: Float[Tensor, " points"]
    accuracy: Float[Tensor, " points"]
    area: float


def rejection_curve(
    confidence: Float[Tensor, " questions"], correct: Bool[Tensor, " questions"]
) -> RejectionCurve:
    r"""Accuracy among the answered for every coverage.

    .. math:: c(\theta) = \frac{|A|}{n}, \qquad
              a(\theta) = \frac{|\{q \in A : \text{right}\}|}{|A|}, \qquad
              A = \{q : \text{confidence} \ge \theta\}

    Questions of equal confidence are answered together or not at all, so that no order among them
    flatters the curve. The area weighs each step of coverage with the risk at its end.

    Args:
        confidence: Any scale; higher is surer.
        correct: Whether the answer, if given, would be right.

    Raises:
        TypeError: ``correct`` is not boolean.
        ValueError: shapes that do not fit, no questions, or NaN.

    >>> curve = rejection_curve(torch.tensor([0.9, 0.5, 0.5, 0.1]),
    ...                         torch.tensor([True, True, False, False]))
    >>> curve.coverage.tolist(), [round(a, 3) for a in curve.accuracy.tolist()]
    ([0.25, 0.75, 1.0], [1.0, 0.667, 0.5])
    """
    _check(confidence, correct, "correct")
    order = confidence.argsort(descending=True)
    value, right = confidence[order].double(), correct[order].double().cumsum(0)
    last = torch.ones(len(value), dtype=torch.bool, device=value.device)
    last[:-1] = value[:-1] != value[1:]
    answered = torch.arange(1, len(value) + 1, dtype=torch.float64, device=value.device)
    coverage, accuracy = (answered / len(value))[last], (right / answered)[last]
    steps = coverage.diff(prepend=coverage.new_zeros(1))
    return RejectionCurve(value[last], coverage, accuracy, ((1 - accuracy) * steps).sum().item())


def accuracy_at(curve: RejectionCurve, coverage: float) -> float:
    """Accuracy at the strictest threshold that answers at least this share.

    Raises:
        ValueError: ``coverage`` is not in (0, 1].

    >>> curve = rejection_curve(torch.tensor([0.9, 0.5]), torch.tensor([True, False]))
    >>> accuracy_at(curve, 0.5), accuracy_at(curve, 0.6)
    (1.0, 0.5)
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be above 0 and at most 1: got {coverage}")
    place = int((curve.coverage < coverage - 1e-12).sum())
    return curve.accuracy[place].item()


def auroc(scores: Float[Tensor, " items"], positive: Bool[Tensor, " items"]) -> float:
    r"""How often a positive item has the higher score of a pair; a tie counts half.

    .. math:: \frac{1}{|P||N|} \sum_{i \in P} \sum_{j \in N} [s_i > s_j] + \tfrac12 [s_i = s_j]

    Equal to scikit-learn's ``roc_auc_score``. 0.5 is chance.

    Raises:
        TypeError: ``positive`` is not boolean.
        ValueError: shapes that do not fit, NaN, or items of one kind only.

    >>> auroc(torch.tensor([0.9, 0.4, 0.4]), torch.tensor([True, True, False]))
    0.75
    """
    _check(scores, positive, "positive")
    if positive.all() or not positive.any():
        raise ValueError("positive must hold items of both kinds: got one kind")
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    upto = counts.cumsum(0).double()
    rank = (upto - (counts.double() - 1) / 2)[inverse]  # the mean rank of equal scores
    many, few = int(positive.sum()), int((~positive).sum())
    return ((rank[positive].sum() - many * (many + 1) / 2) / (many * few)).item()


def _check(values: Tensor, flags: Tensor, name: str) -> None:
    if flags.dtype != torch.bool:
        raise TypeError(f"{name} must be boolean: got {flags.dtype}")
    if values.ndim != 1 or values.shape != flags.shape or not len(values):
        raise ValueError(
            f"scores and {name} must have one shape, (items,), not empty: "
            f"got {tuple(values.shape)} and {tuple(flags.shape)}"
        )
    if values.isnan().any():
        raise ValueError("scores must be numbers: got NaN")

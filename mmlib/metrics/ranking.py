r"""Ranking with one right item: NDCG, and macro-averaged F1 of classes (排序与分类指标).

:mod:`mmlib.metrics.retrieval` gives ranks and hit rates; a recommender is asked a little more,
*how early* in the list the right item comes. With one right item at rank :math:`r` the normalised
discounted cumulative gain is one number:

.. math:: \text{NDCG@}k = \begin{cases} 1 / \log_2(r + 1) & r \le k \\ 0 & \text{else} \end{cases}

References:
    Järvelin and Kekäläinen, *Cumulated Gain-based Evaluation of IR Techniques*, TOIS 2002.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from mmlib.data.samplers import at_least

__all__ = ["macro_f1", "ndcg"]


def ndcg(ranks: Int[Tensor, " queries"], k: int) -> float:
    """Mean NDCG@k of queries that have one right item each.

    Equal to scikit-learn's ``ndcg_score`` with one relevant item and no ties.

    Args:
        ranks: Of the right item, from 1 (:func:`mmlib.metrics.retrieval.ranks`).
        k: At least 1.

    Raises:
        TypeError: ``ranks`` or ``k`` are not whole numbers.
        ValueError: no ranks, a rank below 1, or a ``k`` below 1.

    >>> ndcg(torch.tensor([1, 3, 11]), 10)
    0.5
    """
    at_least(1, "k", k)
    if ranks.is_floating_point() or ranks.dtype == torch.bool:
        raise TypeError(f"ranks must be whole numbers: got {ranks.dtype}")
    if ranks.ndim != 1 or not len(ranks) or int(ranks.min()) < 1:
        raise ValueError("ranks must have shape (queries,), not empty, and be counted from 1")
    gains = 1 / torch.log2(ranks.double() + 1)
    return (gains * (ranks <= k)).mean().item()


def macro_f1(
    predicted: Int[Tensor, " items"], labels: Int[Tensor, " items"], classes: int
) -> float:
    r"""Mean over the classes of each one's F1: a small class counts as much as a large one.

    .. math:: \frac1C \sum_c \frac{2\,\text{TP}_c}{2\,\text{TP}_c + \text{FP}_c + \text{FN}_c}

    A class that is neither predicted nor there counts 0. Equal to scikit-learn's ``f1_score`` with
    ``average="macro"``, ``labels=range(classes)`` and ``zero_division=0``.

    Raises:
        TypeError: the predictions or labels are not whole numbers.
        ValueError: shapes that do not fit, none, or a class outside ``0 ... classes - 1``.

    >>> macro_f1(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2)
    0.6666666666666666
    """
    at_least(1, "classes", classes)
    for name, x in (("predicted", predicted), ("labels", labels)):
        if x.is_floating_point() or x.dtype == torch.bool:
            raise TypeError(f"{name} must be whole numbers: got {x.dtype}")
        if x.ndim != 1 or not len(x) or x.shape != labels.shape:
            raise ValueError(
                f"predicted and labels must have one shape, (items,), not empty: "
                f"got {tuple(predicted.shape)} and {tuple(labels.shape)}"
            )
        if int(x.min()) < 0 or int(x.max()) >= classes:
            raise ValueError(f"{name} must lie from 0 to {classes - 1}")
    table = torch.bincount(labels * classes + predicted, minlength=classes**2)
    table = table.reshape(classes, classes).double()
    right, both = table.diagonal(), table.sum(0) + table.sum(1)
    return (2 * right / both.clamp(min=1)).mean().item()

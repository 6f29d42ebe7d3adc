r"""Retrieval: how far down the list the first right answer stands (检索指标).

A query is compared with every item; the items it should find are its *relevant* ones. A picture
of COCO has five captions, so five relevant items, and the field's "Recall@K" is then not the
recall of information retrieval, which would ask how many of the five are among the first K. It
asks whether *at least one* is: the **hit rate**. :func:`recall` is here to show the difference.

All of it comes from the ranks, which are computed once for each direction::

    text_ranks = ranks(scores, relevant)          # picture -> text: rows are pictures
    image_ranks = ranks(scores.T, relevant.T)     # text -> picture
    hit_rate(text_ranks, 1), median_rank(image_ranks)
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlib.data.samplers import at_least

__all__ = ["hit_rate", "mean_reciprocal_rank", "median_rank", "ranks", "recall"]


def ranks(
    scores: Float[Tensor, "queries items"], relevant: Bool[Tensor, "queries items"]
) -> Int[Tensor, " queries"]:
    r"""Rank of each query's best relevant item, counted from 1.

    .. math:: r_q = 1 + \left|\{\, i \notin R_q : s_{qi} \ge \max_{j \in R_q} s_{qj} \}\right|

    Ties count against us: an irrelevant item with the same score stands before the relevant one.
    A model that gives every item one score is last, not first.

    Args:
        scores: The higher, the better an item fits a query.
        relevant: :math:`R_q`, True where an item is an answer to a query.

    Returns:
        int64, from 1 to the number of items.

    Raises:
        TypeError: ``scores`` are no floating-point numbers, or ``relevant`` is not boolean.
        ValueError: shapes that do not fit, a score that is NaN, or a query without a relevant
            item.

    >>> scores = torch.tensor([[0.9, 0.1, 0.5], [0.3, 0.3, 0.2]])
    >>> relevant = torch.tensor([[False, True, True], [True, False, False]])
    >>> ranks(scores, relevant)  # in the second row two items tie
    tensor([2, 2])
    """
    _check(scores, relevant)
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    return 1 + ((scores >= best) & ~relevant).sum(dim=1)


def hit_rate(ranks: Int[Tensor, " queries"], k: int) -> float:
    r"""Share of queries with at least one relevant item among the first ``k``: COCO's "R@K".

    .. math:: \frac1Q \left|\{\, q : r_q \le k \}\right|

    Equal to ``torchmetrics.retrieval.RetrievalHitRate`` where no scores tie.

    Args:
        ranks: From :func:`ranks`.
        k: At least 1.

    Raises:
        TypeError: ``ranks`` or ``k`` are not whole numbers.
        ValueError: no ranks, a rank below 1, or a ``k`` below 1.

    >>> hit_rate(torch.tensor([1, 3, 12, 2]), 3)
    0.75
    """
    at_least(1, "k", k)
    return (_checked(ranks) <= k).double().mean().item()


def recall(
    scores: Float[Tensor, "queries items"], relevant: Bool[Tensor, "queries items"], k: int
) -> float:
    r"""Recall in the textbook's sense: the share of the relevant items among the first ``k``.

    .. math:: \frac1Q \sum_q \frac{|R_q \cap \text{first } k|}{|R_q|}

    This is *not* what tables of image–text retrieval call R@K (see the module): with five captions
    a picture it cannot pass 0.2 at ``k`` = 1. Equal to ``torchmetrics.retrieval.RetrievalRecall``
    where no scores tie; ties count against us.

    Args:
        scores: As for :func:`ranks`.
        relevant: As for :func:`ranks`.
        k: At least 1; more than there are items finds all of them.

    Raises:
        TypeError: As for :func:`ranks`, or ``k`` is not a whole number.
        ValueError: As for :func:`ranks`, or ``k`` is below 1.

    >>> scores = torch.tensor([[0.9, 0.8, 0.5]])
    >>> relevant = torch.tensor([[False, True, True]])
    >>> recall(scores, relevant, 2), hit_rate(ranks(scores, relevant), 2)
    (0.5, 1.0)
    """
    _check(scores, relevant)
    at_least(1, "k", k)
    # Two stable sorts: by score, and among equal scores the irrelevant first.
    order = relevant.to(torch.uint8).argsort(dim=1, stable=True)
    best = scores.gather(1, order).argsort(dim=1, descending=True, stable=True)
    found = relevant.gather(1, order.gather(1, best)[:, :k]).sum(dim=1)
    return (found.double() / relevant.sum(dim=1)).mean().item()


def median_rank(ranks: Int[Tensor, " queries"]) -> float:
    """The rank in the middle; between two, their mean.

    (VSE++'s evaluation code rounds that mean down.)

    Raises:
        TypeError: ``ranks`` are not whole numbers.
        ValueError: no ranks, or a rank below 1.

    >>> median_rank(torch.tensor([1, 2, 3, 100]))
    2.5
    """
    return _checked(ranks).double().quantile(0.5).item()


def mean_reciprocal_rank(ranks: Int[Tensor, " queries"]) -> float:
    r"""Mean of one over the rank, :math:`\frac1Q \sum_q 1 / r_q`; 1 at best.

    Equal to ``torchmetrics.retrieval.RetrievalMRR`` where all scores are above 0 and none tie: it
    takes a relevant item with a score of 0 or less for one that was never found.

    Raises:
        TypeError: ``ranks`` are not whole numbers.
        ValueError: no ranks, or a rank below 1.

    >>> mean_reciprocal_rank(torch.tensor([1, 2, 4]))
    0.5833333333333334
    """
    return _checked(ranks).double().reciprocal().mean().item()


def _check(scores: Tensor, relevant: Tensor) -> None:
    if not scores.is_floating_point():
        raise TypeError(f"scores must hold floating-point numbers: got {scores.dtype}")
    if relevant.dtype != torch.bool:
        raise TypeError(f"relevant must be boolean: got {relevant.dtype}")
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"scores must have shape (queries, items), not empty: got {tuple(scores.shape)}"
        )
    if scores.shape != relevant.shape:
        raise ValueError(
            f"relevant must have the shape of scores, {tuple(scores.shape)}: "
            f"got {tuple(relevant.shape)}"
        )
    # A comparison with NaN is never true, so that a broken model would always be first.
    if scores.isnan().any():
        raise ValueError(f"scores must be numbers: got NaN in {int(scores.isnan().sum())} places")
    if not relevant.any(dim=1).all():
        query = int(relevant.any(dim=1).int().argmin())
        raise ValueError(f"every query must have a relevant item: query {query} has none")


def _checked(ranks: Tensor) -> Tensor:
    if ranks.is_floating_point() or ranks.dtype == torch.bool:
        raise TypeError(f"ranks must be whole numbers: got {ranks.dtype}")
    if ranks.ndim != 1 or len(ranks) == 0:
        raise ValueError(f"ranks must have shape (queries,), not empty: got {tuple(ranks.shape)}")
    if ranks.min() < 1:
        raise ValueError(f"ranks are counted from 1: got {int(ranks.min())}")
    return ranks

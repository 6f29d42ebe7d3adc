r"""The triplet loss: an anchor, what belongs to it, and what does not (三元组损失): chapter 05.

Older than the losses of :mod:`mmlib.contrastive`, which weigh all negatives of a batch at once.
Here someone has to say which negatives count, and a margin after which they stop counting.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmlib.large_batches import cosines
from mmlib.pairs import check_groups, same_group, unit_pair

__all__ = ["MINING", "triplet_loss"]

MINING = ("all", "semi-hard", "hardest")
"""The kinds of mining that :func:`triplet_loss` knows."""


def triplet_loss(
    anchors: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "batch dim"],
    margin: float = 0.2,
    mining: Literal["all", "semi-hard", "hardest"] = "all",
    *,
    groups: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""An anchor must be nearer to its own candidate than to a negative, by a margin.

    .. math::

        \ell_{ij} = \max\left(0,\; m - a_i \cdot c_i + a_i \cdot c_j\right),
        \quad j \notin P_i

    ``"all"`` takes the mean over every triplet. ``"hardest"`` takes each anchor's most similar
    negative (VSE++, Faghri et al., BMVC 2018), which finds its way least surely at the start of a
    training. ``"semi-hard"`` takes the mean over the negatives that are less similar than the
    positive, but by less than the margin (FaceNet, Schroff et al., CVPR 2015, there with squared
    distances, which on the unit sphere are twice one minus the cosine).

    Args:
        anchors: Row ``i`` belongs to row ``i`` of the candidates.
        candidates: As many.
        margin: :math:`m`, in cosines.
        mining: Which negatives count.
        groups: Equal numbers for items that are no negatives of each other.

    Returns:
        The mean over the triplets that count; 0 when there is none.

    Raises:
        ValueError: shapes that do not fit, a margin of 0 or less, or another ``mining``.

    >>> items = torch.eye(2)
    >>> round(triplet_loss(items, items.flip(0), margin=0.2).item(), 4)  # 0.2 - 0 + 1
    1.2
    """
    anchors, candidates = unit_pair(anchors, candidates, ("anchors", "candidates"))
    check_groups(groups, len(anchors))
    if not margin > 0:
        raise ValueError(f"margin must be above 0: got {margin}")
    if mining not in MINING:
        raise ValueError(f"mining must be one of {', '.join(MINING)}: got {mining!r}")
    similar = cosines(anchors, candidates)
    positive = similar.diagonal()[:, None]
    negative = ~same_group(groups, len(anchors), anchors.device)
    if mining == "hardest":
        hardest = similar.detach().masked_fill(~negative, -torch.inf).argmax(1, keepdim=True)
        negative = negative & torch.zeros_like(negative).scatter(1, hardest, True)
    elif mining == "semi-hard":
        gap = (positive - similar).detach()
        negative = negative & (gap > 0) & (gap < margin)
    losses = (margin - positive + similar).clamp(min=0)
    return losses.where(negative, 0.0).sum() / negative.sum().clamp(min=1)

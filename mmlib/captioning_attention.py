r"""Where a captioner looks: attention over regions, a penalty on it, and a mark for it: chapter 08.

References:
    Bahdanau, Cho, Bengio, *Neural Machine Translation by Jointly Learning to Align and Translate*,
    ICLR 2015 (additive attention). Xu et al., *Show, Attend and Tell*, ICML 2015 (over the regions
    of a picture; the penalty).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.positions import LearnedPositions

__all__ = ["PlacedRegions", "RegionAttention", "doubly_stochastic", "mass_inside"]


class PlacedRegions(nn.Module):
    r"""Region features brought to one width, each with a learned vector for its place.

    .. math:: v_i = W_r r_i + b_r + p_i

    Without :math:`p_i` a captioner sees a set of regions: it could name things, not where they are.

    Args:
        region_dim: Width of the features.
        max_regions: Number of places.
        dim: Width wanted.
    """

    def __init__(self, region_dim: int, max_regions: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(region_dim, dim)
        # About as loud as the projected features, or they would not be heard.
        self.place = LearnedPositions(dim, max_regions, std=0.3)

    def forward(
        self,
        regions: Float[Tensor, "batch regions region_dim"],
        keep: Bool[Tensor, "batch regions"] | None = None,
    ) -> Float[Tensor, "batch regions dim"]:
        """Place the regions; those that do not exist become zeros.

        Raises:
            TypeError: ``regions`` is not floating point, or ``keep`` not boolean.
            ValueError: a wrong shape, or more regions than places.
        """
        if not regions.is_floating_point():
            raise TypeError(f"regions must be floating point: got {regions.dtype}")
        shape, width = tuple(regions.shape), self.projection.in_features
        most = len(self.place.table)
        if len(shape) != 3 or 0 in shape or shape[1] > most or shape[2] != width:
            raise ValueError(
                f"regions must have shape (batch, 1 to {most} regions, {width}): got {shape}"
            )
        if keep is None:
            return self.place(self.projection(regions))
        if keep.dtype != torch.bool:
            raise TypeError(f"keep must be boolean (True = the region exists): got {keep.dtype}")
        if keep.shape != shape[:2]:
            raise ValueError(f"keep must have shape {shape[:2]}: got {tuple(keep.shape)}")
        # Filled and not multiplied: what stands for a missing region may hold NaN.
        return self.place(self.projection(regions)).masked_fill(~keep[..., None], 0.0)


class RegionAttention(nn.Module):
    r"""Additive attention of one query over the regions of its picture (加性注意力).

    .. math::

        e_i = w^\top \tanh(W_v v_i + W_h h + b), \qquad
        \alpha = \operatorname{softmax}(e), \qquad
        z = \sum_i \alpha_i v_i

    The product :math:`W_v v_i` is the same at every word: it is made once (:meth:`keys`).

    Args:
        region_dim: Width of a region.
        query_dim: Width of the query.
        dim: Width of the layer in between.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, region_dim: int, query_dim: int, dim: int) -> None:
        super().__init__()
        sizes = {"region_dim": region_dim, "query_dim": query_dim, "dim": dim}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1: got {value}")
        self.region = nn.Linear(region_dim, dim)
        self.query = nn.Linear(query_dim, dim, bias=False)
        self.score = nn.Linear(dim, 1, bias=False)  # a bias would cancel in the softmax

    def keys(
        self, regions: Float[Tensor, "batch regions region_dim"]
    ) -> Float[Tensor, "batch regions dim"]:
        r""":math:`W_v v_i + b`, what a query is compared with."""
        return self.region(regions)

    def forward(
        self,
        query: Float[Tensor, "batch query_dim"],
        keys: Float[Tensor, "batch regions dim"],
        regions: Float[Tensor, "batch regions region_dim"],
        keep: Bool[Tensor, "batch regions"] | None = None,
    ) -> tuple[Float[Tensor, "batch region_dim"], Float[Tensor, "batch regions"]]:
        """What the query sees, and the weights it sees it by.

        Args:
            query: One vector a picture.
            keys: From :meth:`keys` of the same regions.
            regions: What is averaged.
            keep: Which regions exist. Where none does, what is seen is zero.
        """
        scores = self.score(torch.tanh(keys + self.query(query)[:, None])).squeeze(-1)
        if keep is not None:
            # The most negative finite number: a row of -inf alone would have a softmax of NaN.
            scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if keep is not None:
            weights = weights.masked_fill(~keep, 0.0)
        return torch.einsum("br,brd->bd", weights, regions), weights


def doubly_stochastic(
    weights: Float[Tensor, "batch length regions"],
    keep: Bool[Tensor, "batch length"],
    region_keep: Bool[Tensor, "batch regions"] | None = None,
) -> Float[Tensor, ""]:
    r"""The penalty of Show, Attend and Tell on regions that no word looks at, summed.

    .. math:: \sum_b \sum_i \Big(1 - \sum_t \alpha_{bti}\Big)^2

    Each :math:`\sum_i \alpha_{ti}` is 1 by the softmax; this asks for
    :math:`\sum_t \alpha_{ti} = 1` too, hence the name. Both can hold only where a caption has as
    many words as the picture has regions; with fewer words the penalty is smallest where all
    regions get the same share.

    Args:
        weights: Attention of each word over the regions.
        keep: Which words count.
        region_keep: Which regions exist; all by default.

    Raises:
        TypeError: a mask is not boolean.
        ValueError: shapes that do not fit.

    >>> even = torch.full((1, 2, 4), 0.25)  # two words, four regions: each gets 1/2
    >>> doubly_stochastic(even, torch.ones(1, 2, dtype=torch.bool))
    tensor(1.)
    """
    if weights.ndim != 3:
        raise ValueError(
            f"weights must have shape (batch, length, regions): got {tuple(weights.shape)}"
        )
    batch, length, regions = weights.shape
    masks = [("keep", keep, (batch, length)), ("region_keep", region_keep, (batch, regions))]
    for name, mask, shape in masks:
        if mask is None:
            continue
        if mask.dtype != torch.bool:
            raise TypeError(f"{name} must be boolean (True = exists): got {mask.dtype}")
        if mask.shape != shape:
            raise ValueError(f"{name} must have shape {shape}: got {tuple(mask.shape)}")
    seen = weights.masked_fill(~keep[..., None], 0.0).sum(1)
    missing = (1.0 - seen).square()
    return (missing if region_keep is None else missing.masked_fill(~region_keep, 0.0)).sum()


def mass_inside(
    heat: Float[Tensor, "batch rows columns"], box: Float[Tensor, "batch 4"]
) -> Float[Tensor, " batch"]:
    r"""Share of an attention map's mass inside a box, each cell's spread evenly over the cell.

    .. math:: \frac{\sum_c \alpha_c\, |c \cap B| / |c|}{\sum_c \alpha_c}

    An even map has the box's own area, which is the baseline.

    Args:
        heat: Maps, not negative and not all zero.
        box: Left, top, right and bottom edge, in picture widths.

    Raises:
        ValueError: shapes that do not fit, or a map without mass.

    >>> heat = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    >>> mass_inside(heat, torch.tensor([[0.0, 0.0, 0.5, 0.25]]))  # half of the cell at the top left
    tensor([0.2500])
    """
    if heat.ndim != 3 or 0 in heat.shape:
        raise ValueError(f"heat must have shape (batch, rows, columns): got {tuple(heat.shape)}")
    if box.shape != (len(heat), 4):
        raise ValueError(f"box must have shape ({len(heat)}, 4): got {tuple(box.shape)}")
    total = heat.sum((1, 2))
    if (heat < 0).any() or (total <= 0).any():
        raise ValueError("heat must not be negative, and not zero everywhere")
    left, top, right, bottom = box.to(heat.dtype).unbind(-1)
    rows = _overlap(heat.shape[1], top, bottom)
    columns = _overlap(heat.shape[2], left, right)
    return torch.einsum("brc,br,bc->b", heat, rows, columns) / total


def _overlap(cells: int, start: Tensor, end: Tensor) -> Tensor:
    """Share of each of ``cells`` equal parts of [0, 1] that lies between start and end."""
    edges = torch.arange(cells + 1, dtype=start.dtype, device=start.device) / cells
    high = torch.minimum(edges[1:], end[:, None])
    return (high - torch.maximum(edges[:-1], start[:, None])).clamp(min=0) * cells

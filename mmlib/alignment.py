r"""Alignment in time: dynamic time warping (动态时间规整), hard and soft: chapter 06.

Two sequences say the same thing at different speeds. A **warping path** walks from the first
elements of both to the last ones in steps of one, in one of them or in both at once; it costs the
sum of ``cost[i, j]`` over the cells that it visits. :func:`dtw` finds the cheapest one,
:func:`soft_dtw` the softened minimum over all, which is smooth and so can be a loss.

**Cells of one anti-diagonal do not depend on each other**, so the tables are filled a diagonal
at a time, for the whole batch: ``n + m - 1`` vectorised steps instead of ``n * m`` scalar ones.

**Conventions.** The cost of a path is the plain sum over its cells, each counted once. That is

* ``dtw-python`` with ``step_pattern="symmetric1"`` (its default, ``symmetric2``, counts a cell
  that is reached diagonally twice);
* the square of ``dtaidistance``, which sums squared differences and takes the root at the end;
* the square of ``tslearn.metrics.dtw``, and its ``soft_dtw``, which is not rooted, both with
  squared Euclidean costs.

References:
    Sakoe, Chiba, *Dynamic Programming Algorithm Optimization for Spoken Word Recognition*, IEEE
    Transactions on Acoustics, Speech, and Signal Processing, 1978. Cuturi, Blondel, *Soft-DTW:
    a Differentiable Loss Function for Time-Series*, ICML 2017.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Warping", "dtw", "soft_dtw", "warp_positions"]


class Warping(NamedTuple):
    """The cheapest path of each example, and what it costs.

    Attributes:
        distance: Sum of the costs on the path. Its gradient is 1 on the path and 0 elsewhere.
        path: Row and column of each step, from the first cell to the last; zeros after the end.
        keep: Which steps exist.
    """

    distance: Float[Tensor, " batch"]
    path: Int[Tensor, "batch steps 2"]
    keep: Bool[Tensor, "batch steps"]


def dtw(
    cost: Float[Tensor, "batch rows columns"],
    row_keep: Bool[Tensor, "batch rows"] | None = None,
    column_keep: Bool[Tensor, "batch columns"] | None = None,
) -> Warping:
    r"""The cheapest warping path: dynamic time warping.

    .. math::

        D_{ij} = c_{ij} + \min(D_{i-1,j-1},\; D_{i-1,j},\; D_{i,j-1}), \qquad
        \mathrm{dtw}(c) = D_{nm}

    Of equally cheap ways back the diagonal one is taken, then the one that leaves the row.

    Args:
        cost: What it costs to match element ``i`` of one sequence with element ``j`` of the
            other. An infinite cost forbids a cell: a band around the diagonal is made so.
        row_keep: Which elements of the first sequence exist; the real ones come first.
        column_keep: The same for the second.

    Raises:
        TypeError: ``cost`` is not floating-point, or a mask not boolean.
        ValueError: a wrong shape, a cost that is NaN or minus infinity, a mask with a gap or
            without any element, or forbidden cells that leave no path.

    >>> x, y = torch.tensor([0.0, 1, 2]), torch.tensor([0.0, 0, 1, 2, 2])
    >>> warping = dtw((x[:, None] - y).abs()[None])
    >>> warping.distance
    tensor([0.])
    >>> warping.path[0, warping.keep[0]].tolist()
    [[0, 0], [0, 1], [1, 2], [2, 3], [2, 4]]
    """
    last = _ends(cost, row_keep, column_keep)
    rows, columns = cost.shape[1:]
    with torch.no_grad():
        diagonals = _skew(_filled(cost, row_keep, column_keep))
        table = _table(diagonals)
        for k, diagonal in enumerate(diagonals):
            torch.minimum(table[k + 1, :, 1:], table[k + 1, :, :-1], out=table[k + 2, :, 1:])
            best = torch.minimum(table[k + 2, :, 1:], table[k, :, :-1])
            torch.add(diagonal, best, out=table[k + 2, :, 1:])
        _check_reached(_at(table, last))
        path, keep = _walk_back(table, last, rows + columns - 1)
    batch = torch.arange(len(cost), device=cost.device)[:, None]
    visited = cost[batch, path[..., 0], path[..., 1]]
    return Warping(visited.where(keep, 0.0).sum(1), path, keep)


def soft_dtw(
    cost: Float[Tensor, "batch rows columns"],
    gamma: float = 1.0,
    row_keep: Bool[Tensor, "batch rows"] | None = None,
    column_keep: Bool[Tensor, "batch columns"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Softened minimum over all warping paths, and its exact gradient.

    .. math::

        R_{ij} = c_{ij} + \operatorname{softmin}_\gamma(R_{i-1,j-1}, R_{i-1,j}, R_{i,j-1}),
        \qquad \operatorname{softmin}_\gamma(a) = -\gamma \log \sum_k e^{-a_k / \gamma}

    It is :math:`-\gamma \log \sum_\pi e^{-c(\pi)/\gamma}` over all paths :math:`\pi`, at most the
    distance of :func:`dtw`, and goes to it as :math:`\gamma \to 0`. It can be negative, and of two
    equal sequences it is not zero. The gradient is the share of the paths, each weighed by
    :math:`e^{-c(\pi)/\gamma}`, that visit a cell: a soft alignment. It is found by the backward
    recursion of Cuturi and Blondel (2017), not through the graph of the forward one.

    Args:
        cost: As in :func:`dtw`.
        gamma: How soft, in the unit of the costs.
        row_keep: As in :func:`dtw`.
        column_keep: As in :func:`dtw`.

    Raises:
        TypeError: as :func:`dtw`.
        ValueError: as :func:`dtw`, or a ``gamma`` that is not above 0.

    >>> cost = torch.zeros(1, 2, 2)  # three paths, each of cost 0
    >>> round(soft_dtw(cost, gamma=1.0).item(), 4) == round(-math.log(3), 4)
    True
    """
    if not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be above 0 and finite: got {gamma}")
    last = _ends(cost, row_keep, column_keep)
    return _SoftDTW.apply(_filled(cost, row_keep, column_keep), last, float(gamma))


def warp_positions(warping: Warping, rows: int) -> Float[Tensor, "batch rows"]:
    """Where each row of the cost lies among the columns: the mean column that it is matched with.

    Args:
        warping: What :func:`dtw` gave.
        rows: How many rows the cost had. Rows that did not exist get 0.

    Raises:
        ValueError: ``rows`` is less than what the path visits.

    >>> cost = torch.tensor([[[0.0, 0.0, 9.0], [9.0, 9.0, 0.0]]])
    >>> warp_positions(dtw(cost), 2)  # the first row is matched with columns 0 and 1
    tensor([[0.5000, 2.0000]])
    """
    row, column = warping.path.unbind(-1)
    if rows <= int(row.max()):
        raise ValueError(f"rows must be at least {int(row.max()) + 1}: got {rows}")
    weight = warping.keep.to(warping.distance.dtype)
    total = weight.new_zeros(len(weight), rows).scatter_add(1, row, column * weight)
    return total / weight.new_zeros(len(weight), rows).scatter_add(1, row, weight).clamp(min=1)


class _SoftDTW(torch.autograd.Function):
    """Forward: the table R by diagonals. Backward: the table E, from the last cell to the first."""

    @staticmethod
    def forward(ctx, cost: Tensor, last: Tensor, gamma: float) -> Tensor:
        diagonals = _skew(cost)
        table = _table(diagonals)
        for k, diagonal in enumerate(diagonals):
            before = torch.stack(_before(table, k))
            table[k + 2, :, 1:] = diagonal - gamma * torch.logsumexp(before / -gamma, 0)
        result = _at(table, last)
        _check_reached(result)
        ctx.save_for_backward(diagonals, table, last)
        ctx.gamma, ctx.columns = gamma, cost.shape[2]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        diagonals, table, last = ctx.saved_tensors
        visits = torch.zeros_like(table)
        batch = torch.arange(len(last), device=last.device)
        visits[last.sum(1) + 2, batch, last[:, 0] + 1] = gradient
        for k in range(len(diagonals) - 1, -1, -1):
            here = visits[k + 2, :, 1:]
            soft = table[k + 2, :, 1:] - diagonals[k]
            # inf - inf is NaN where no path leads, and no path came from there either.
            shares = [
                here * ((soft - value) / ctx.gamma).exp().nan_to_num(0.0, 0.0, 0.0)
                for value in _before(table, k)
            ]
            visits[k + 1, :, 1:] += shares[0]
            visits[k + 1, :, :-1] += shares[1]
            visits[k, :, :-1] += shares[2]
        return _unskew(visits[2:, :, 1:], ctx.columns), None, None


# ---- tables by anti-diagonals


def _skew(cost: Tensor) -> Tensor:
    """``(diagonals, batch, rows)``: entry ``[k, b, i]`` is ``cost[b, i, k - i]``, or infinite.

    Each row gets as many infinite cells as there are rows; read again with rows one shorter,
    row ``i`` has moved right by ``i``.
    """
    batch, rows, columns = cost.shape
    width = rows + columns - 1
    padded = F.pad(cost, (0, rows), value=math.inf).flatten(1)[:, : rows * width]
    return padded.view(batch, rows, width).permute(2, 0, 1).contiguous()


def _unskew(diagonals: Tensor, columns: int) -> Tensor:
    """What :func:`_skew` did, undone."""
    width, batch, rows = diagonals.shape
    flat = diagonals.permute(1, 2, 0).reshape(batch, rows * width)
    return F.pad(flat, (0, rows)).view(batch, rows, width + 1)[:, :, :columns]


def _table(diagonals: Tensor) -> Tensor:
    """A table with two diagonals and one row before the first cell, to read from without ifs.

    Entry ``[k + 2, b, i + 1]`` belongs to row ``i`` and column ``k - i``. Every path starts in a
    cell of cost 0 that lies diagonally before the first.
    """
    steps, batch, rows = diagonals.shape
    table = diagonals.new_full((steps + 2, batch, rows + 1), math.inf)
    table[0, :, 0] = 0.0
    return table


def _before(table: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells left of, above, and diagonally before those of diagonal ``k``."""
    return table[k + 1, :, 1:], table[k + 1, :, :-1], table[k, :, :-1]


def _at(table: Tensor, cell: Tensor) -> Tensor:
    batch = torch.arange(len(cell), device=cell.device)
    return table[cell.sum(1) + 2, batch, cell[:, 0] + 1]


def _walk_back(table: Tensor, last: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The path of each example from its last cell to the first, turned round."""
    moves = last.new_tensor([[1, 1], [1, 0], [0, 1]])
    cells, alive, path, keep = last, torch.ones_like(last[:, 0], dtype=torch.bool), [], []
    for _ in range(steps):
        path.append(cells.where(alive[:, None], 0))
        keep.append(alive)
        alive = alive & (cells > 0).any(1)
        # Cells outside are infinite, so nobody steps there; who has arrived stays.
        options = torch.stack([_at(table, (cells - move).clamp(min=-1)) for move in moves])
        cells = (cells - moves[options.argmin(0)]).clamp(min=0)
    path, keep = torch.stack(path, 1).flip(1), torch.stack(keep, 1).flip(1)
    first = (~keep).long().argsort(dim=1, stable=True)  # the steps that exist to the front
    return path.gather(1, first[..., None].expand(-1, -1, 2)), keep.gather(1, first)


# ---- what is checked


def _ends(cost: Tensor, row_keep: Tensor | None, column_keep: Tensor | None) -> Tensor:
    """The last cell of each example, shape (batch, 2), after all checks."""
    if cost.ndim != 3 or 0 in cost.shape:
        raise ValueError(
            f"cost must have shape (batch, rows, columns), not empty: got {tuple(cost.shape)}"
        )
    if not cost.is_floating_point():
        raise TypeError(f"cost must hold floating-point numbers: got {cost.dtype}")
    ends = []
    for axis, (name, keep) in enumerate((("row_keep", row_keep), ("column_keep", column_keep)), 1):
        if keep is None:
            ends.append(torch.full((len(cost),), cost.shape[axis] - 1, device=cost.device))
            continue
        if keep.dtype != torch.bool:
            raise TypeError(f"{name} must be boolean (True = exists): got {keep.dtype}")
        if keep.shape != (len(cost), cost.shape[axis]):
            raise ValueError(
                f"{name} must have shape {(len(cost), cost.shape[axis])}: got {tuple(keep.shape)}"
            )
        if not keep[:, 0].all() or (keep[:, 1:] & ~keep[:, :-1]).any():
            raise ValueError(f"{name} must have at least one True, and all of them first")
        ends.append(keep.sum(1) - 1)
    seen = _filled(cost.detach(), row_keep, column_keep)
    if not (seen > -math.inf).all():  # a NaN is not larger than anything
        raise ValueError("cost must not be NaN or minus infinity: got one")
    return torch.stack(ends, 1)


def _filled(cost: Tensor, row_keep: Tensor | None, column_keep: Tensor | None) -> Tensor:
    """Costs without what padding may hold; no path to the last cell passes through padding."""
    if row_keep is not None:
        cost = cost.masked_fill(~row_keep[:, :, None], 0.0)
    if column_keep is not None:
        cost = cost.masked_fill(~column_keep[:, None, :], 0.0)
    return cost


def _check_reached(distance: Tensor) -> None:
    blocked = (distance == math.inf).nonzero().flatten().tolist()
    if blocked:
        raise ValueError(f"cost must leave a path: example {blocked[0]} has none of finite cost")

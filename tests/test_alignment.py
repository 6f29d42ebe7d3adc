"""Dynamic time warping: all paths tried, gradients, masks, forbidden cells, bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlib.alignment import Warping, dtw, soft_dtw, warp_positions


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def every_path(rows, columns, at=(0, 0)):
    """All warping paths of a small table."""
    if at == (rows - 1, columns - 1):
        yield (at,)
        return
    for move in itertools.product((0, 1), repeat=2):
        cell = (at[0] + move[0], at[1] + move[1])
        if move != (0, 0) and cell[0] < rows and cell[1] < columns:
            yield from ((at, *rest) for rest in every_path(rows, columns, cell))


def price(cost, path):
    return sum(cost[i, j].item() for i, j in path)


SHAPES = [(1, 1), (1, 5), (5, 1), (2, 3), (4, 4), (5, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_dtw_is_the_cheapest_of_all_paths(shape):
    cost = draw(3, *shape)
    warping = dtw(cost)
    for b in range(3):
        best = min(every_path(*shape), key=lambda path: price(cost[b], path))
        found = [tuple(cell) for cell in warping.path[b][warping.keep[b]].tolist()]
        assert found == list(best)
        assert math.isclose(warping.distance[b], price(cost[b], best), rel_tol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gamma", [0.05, 1.0, 20.0])
def test_soft_dtw_is_the_softened_minimum_over_all_paths(shape, gamma):
    cost = draw(2, *shape)
    expected = [
        -gamma
        * torch.tensor([-price(one, path) / gamma for path in every_path(*shape)]).double()
        .logsumexp(0)
        for one in cost
    ]  # fmt: skip
    torch.testing.assert_close(soft_dtw(cost, gamma), torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_the_gradient_of_soft_dtw_is_the_share_of_paths_through_a_cell():
    cost = draw(1, 4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_dtw(cost, 0.3).sum(), cost)
    paths = list(every_path(4, 3))
    shares = torch.tensor([-price(cost[0], path) / 0.3 for path in paths]).double().softmax(0)
    expected = torch.zeros(4, 3, dtype=torch.float64)
    for path, share in zip(paths, shares, strict=True):
        for cell in path:
            expected[cell] += share
    torch.testing.assert_close(gradient[0], expected, rtol=1e-6, atol=1e-7)


ROW_KEEP = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
COLUMN_KEEP = torch.arange(7) < torch.tensor([3, 7, 1])[:, None]


def test_gradients_by_finite_differences():
    cost = draw(3, 6, 7).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: soft_dtw(c, 0.5, ROW_KEEP, COLUMN_KEEP), cost)
    assert torch.autograd.gradcheck(lambda c: dtw(c, ROW_KEEP, COLUMN_KEEP).distance, cost)


def test_a_batch_of_different_lengths_is_each_alone():
    cost = draw(3, 6, 7)
    holes = cost.masked_fill(~(ROW_KEEP[:, :, None] & COLUMN_KEEP[:, None]), math.nan)
    together = dtw(holes, ROW_KEEP, COLUMN_KEEP)
    soft = soft_dtw(holes, 0.5, ROW_KEEP, COLUMN_KEEP)
    for b in range(3):
        one = cost[b : b + 1, : ROW_KEEP[b].sum(), : COLUMN_KEEP[b].sum()]
        alone = dtw(one)
        torch.testing.assert_close(together.distance[b : b + 1], alone.distance)
        torch.testing.assert_close(soft[b : b + 1], soft_dtw(one, 0.5))
        path = together.path[b][together.keep[b]]
        assert path.tolist() == alone.path[0][alone.keep[0]].tolist()
        assert not together.path[b][~together.keep[b]].any()


def test_a_band_of_forbidden_cells():
    cost = draw(1, 8, 8)
    i, j = torch.arange(8)[:, None], torch.arange(8)
    banded = cost.masked_fill((i - j).abs() > 1, math.inf).requires_grad_()
    warping = dtw(banded)
    path = warping.path[0][warping.keep[0]]
    assert ((path[:, 0] - path[:, 1]).abs() <= 1).all()
    allowed = [p for p in every_path(8, 8) if all(abs(i - j) <= 1 for i, j in p)]
    assert math.isclose(warping.distance, min(price(cost[0], p) for p in allowed), rel_tol=1e-12)
    (gradient,) = torch.autograd.grad(soft_dtw(banded, 0.1).sum(), banded)
    assert gradient.isfinite().all()
    assert (gradient[0][(i - j).abs() > 1] == 0).all()
    assert math.isclose(gradient[0, 0, 0], 1.0)  # every path starts here


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16))
def test_properties(rows, columns, seed):
    cost = draw(1, rows, columns, seed=seed)
    hard, mirrored = dtw(cost), dtw(cost.transpose(1, 2))
    torch.testing.assert_close(hard.distance, mirrored.distance)
    backwards = dtw(cost.flip(1, 2))
    torch.testing.assert_close(hard.distance, backwards.distance)
    assert soft_dtw(cost, 0.5) <= hard.distance + 1e-9
    torch.testing.assert_close(soft_dtw(cost, 1e-4), hard.distance, rtol=0, atol=2e-3)
    path = hard.path[0][hard.keep[0]]
    steps = path.diff(dim=0)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [rows - 1, columns - 1]
    assert ((steps >= 0) & (steps <= 1)).all() and (steps.sum(1) >= 1).all()


def test_nothing_is_changed_and_types_are_kept():
    cost = draw(2, 3, 4).float()
    before = cost.clone()
    warping = dtw(cost)
    assert warping.distance.dtype == soft_dtw(cost).dtype == torch.float32
    assert warping.path.dtype == torch.int64 and torch.equal(cost, before)


def test_warp_positions_are_means_of_columns():
    path = torch.tensor([[[0, 0], [0, 1], [0, 2], [1, 3], [2, 3]], [[0, 0], [1, 1], *[[0, 0]] * 3]])
    keep = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    positions = warp_positions(Warping(torch.zeros(2), path, keep), 3)
    assert positions.tolist() == [[1.0, 3.0, 3.0], [0.0, 1.0, 0.0]]


GOOD = torch.rand(2, 3, 4)
NAN, INF = torch.full((1, 2, 2), math.nan), torch.full((1, 2, 2), -math.inf)
WALL = torch.tensor([[[0.0, math.inf], [math.inf, 0.0]], [[0.0, math.inf], [0.0, math.inf]]])
BAD = [
    (dict(cost=torch.rand(3, 4)), ValueError, "cost must have shape"),
    (dict(cost=torch.rand(2, 0, 4)), ValueError, "cost must have shape"),
    (dict(cost=torch.ones(1, 2, 2).long()), TypeError, "cost must hold floating-point"),
    (dict(cost=NAN), ValueError, "cost must not be NaN"),
    (dict(cost=INF), ValueError, "cost must not be NaN or minus infinity"),
    (dict(cost=WALL), ValueError, "example 1 has none"),
    (dict(cost=GOOD, row_keep=torch.ones(2, 3)), TypeError, "row_keep must be boolean"),
    (dict(cost=GOOD, row_keep=torch.ones(2, 4).bool()), ValueError, "row_keep must have shape"),
    (
        dict(cost=GOOD, column_keep=torch.tensor([[True, False, True, True]] * 2)),
        ValueError,
        "column_keep must have at least one True, and all of them first",
    ),
    (dict(cost=GOOD, row_keep=torch.zeros(2, 3).bool()), ValueError, "at least one True"),
]


@pytest.mark.parametrize("arguments, error, message", BAD)
@pytest.mark.parametrize("function", [dtw, soft_dtw])
def test_bad_input(unchecked, function, arguments, error, message):
    with pytest.raises(error, match=message):
        unchecked(function)(**arguments)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.inf, math.nan])
def test_bad_gamma(unchecked, gamma):
    with pytest.raises(ValueError, match="gamma must be above 0 and finite"):
        unchecked(soft_dtw)(GOOD, gamma)


def test_too_few_rows(unchecked):
    with pytest.raises(ValueError, match="rows must be at least 3: got 2"):
        unchecked(warp_positions)(dtw(GOOD), 2)


def test_ties_go_back_diagonally_and_then_by_rows():
    flat = dtw(torch.zeros(1, 3, 2))
    assert flat.path[0][flat.keep[0]].tolist() == [[0, 0], [1, 0], [2, 1]]
    # A negative cost makes both ways round cheaper than the diagonal.
    around = dtw(torch.tensor([[[1.0, -1.0], [-1.0, 0.0]]]))
    assert around.path[0][around.keep[0]].tolist() == [[0, 0], [0, 1], [1, 1]]

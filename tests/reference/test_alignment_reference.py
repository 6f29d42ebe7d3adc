"""Warping is equal to dtaidistance's, dtw-python's and tslearn's, each with its own convention."""

import warnings

import numpy as np
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # dtw-python prints and warns as it is imported
    import dtaidistance
    import dtw as dtw_python
    from dtaidistance import dtw_ndim
    from tslearn import metrics

from mmlib.alignment import dtw, soft_dtw

CASES = [(1, 1, 1), (7, 7, 1), (12, 30, 1), (30, 12, 3), (41, 37, 5)]


def pair(rows, columns, dim):
    generator = np.random.default_rng(rows * columns * dim)
    return generator.normal(size=(rows, dim)), generator.normal(size=(columns, dim))


def squared(x, y):
    return (torch.from_numpy(x)[:, None] - torch.from_numpy(y)).square().sum(-1)[None]


def steps(warping):
    return [tuple(cell) for cell in warping.path[0][warping.keep[0]].tolist()]


@pytest.mark.parametrize("case", CASES)
def test_dtaidistance_takes_the_root_of_summed_squares(case):
    x, y = pair(*case)
    warping = dtw(squared(x, y))
    expected, path = dtw_ndim.distance(x, y), dtw_ndim.warping_path(x, y)
    assert np.isclose(warping.distance.sqrt().item(), expected, rtol=1e-12)
    assert steps(warping) == path
    if case[2] == 1:
        expected = dtaidistance.dtw.distance(x[:, 0], y[:, 0])
        assert np.isclose(warping.distance.sqrt().item(), expected, rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_dtw_python_sums_distances_with_symmetric1(case):
    x, y = pair(*case)
    cost = torch.cdist(torch.from_numpy(x), torch.from_numpy(y))[None]
    warping = dtw(cost)
    theirs = dtw_python.dtw(cost[0].numpy(), step_pattern="symmetric1")
    assert np.isclose(warping.distance.item(), theirs.distance, rtol=1e-12)
    assert steps(warping) == list(zip(theirs.index1.tolist(), theirs.index2.tolist(), strict=True))


def test_the_default_pattern_of_dtw_python_is_another_one():
    x, y = pair(12, 30, 1)
    cost = torch.cdist(torch.from_numpy(x), torch.from_numpy(y))[None]
    theirs = dtw_python.dtw(cost[0].numpy())
    path = list(zip(theirs.index1.tolist(), theirs.index2.tolist(), strict=True))
    diagonal = [a != c and b != d for (a, b), (c, d) in zip(path, path[1:], strict=False)]
    twice = sum(
        cost[0, i, j].item() * (1 + d) for (i, j), d in zip(path[1:], diagonal, strict=True)
    )
    assert np.isclose(theirs.distance, cost[0, 0, 0].item() + twice)
    assert theirs.distance > dtw(cost).distance.item()


@pytest.mark.parametrize("case", CASES)
def test_tslearn_roots_the_hard_distance_and_not_the_soft_one(case):
    x, y = pair(*case)
    cost = squared(x, y)
    path, distance = metrics.dtw_path(x, y)
    assert np.isclose(dtw(cost).distance.sqrt().item(), distance, rtol=1e-12)
    assert steps(dtw(cost)) == [tuple(map(int, cell)) for cell in path]
    for gamma in (0.01, 1.0, 30.0):
        expected = metrics.soft_dtw(x, y, gamma=gamma)
        assert np.isclose(soft_dtw(cost, gamma).item(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES[1:])
def test_the_soft_alignment_is_tslearns(case):
    x, y = pair(*case)
    cost = squared(x, y).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_dtw(cost, 0.7).sum(), cost)
    alignment, _ = metrics.soft_dtw_alignment(x, y, gamma=0.7)
    np.testing.assert_allclose(gradient[0].numpy(), alignment, rtol=1e-8, atol=1e-10)

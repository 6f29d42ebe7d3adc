"""Kernel and Fréchet distance against torchmetrics, scikit-learn and scipy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torchmetrics.image.kid import poly_mmd

from mmlib.metrics.kid import frechet_distance, kernel_distance


def draw(count, dim, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(count, dim, generator=generator, dtype=torch.float64)


def test_the_kernel_distance_is_torchmetrics():
    x, y = draw(30, 8, 1), draw(30, 8, 2, 0.5)  # theirs wants as many of both
    assert kernel_distance(x, y) == pytest.approx(poly_mmd(x, y).item(), rel=1e-10)


def test_the_kernel_distance_from_scikit_learn_s_kernel():
    x, y = draw(20, 8, 1), draw(33, 8, 2, 0.5)
    xx, yy, xy = (polynomial_kernel(a, b, degree=3) for a, b in ((x, x), (y, y), (x, y)))
    expected = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy))
    assert kernel_distance(x, y) == pytest.approx(expected - 2 * xy.mean(), rel=1e-10)


def test_frechet_from_scipy_s_root_of_a_matrix():
    x, y = draw(50, 6, 1), draw(40, 6, 2, 0.5) @ draw(6, 6, 3)
    first, second = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(first @ second).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    expected += np.trace(first) + np.trace(second) - 2 * np.trace(root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)

"""Kernel and Fréchet distance: by hand, unbiased or not, intervals, bad input."""

import math

import pytest
import torch

from mmlib.metrics.kid import frechet_distance, kernel_distance, kernel_interval


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(count, dim=4, seed=0, shift=0.0):
    return shift + torch.randn(count, dim, generator=generator(seed), dtype=torch.float64)


def test_the_kernel_distance_by_loops():
    x, y = draw(5, seed=1), draw(4, seed=2)

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    within = [
        sum(kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j)
        / (len(z) * (len(z) - 1))
        for z in (x, y)
    ]
    across = sum(kernel(a, b) for a in x for b in y) / 20
    assert kernel_distance(x, y) == pytest.approx(sum(within) - 2 * across, rel=1e-12)


def test_the_kernel_distance_is_symmetric_and_grows():
    x = draw(30, seed=1)
    near, far = draw(30, seed=2, shift=0.5), draw(30, seed=2, shift=1.5)
    assert kernel_distance(x, far) == pytest.approx(kernel_distance(far, x))
    assert kernel_distance(x, far) > kernel_distance(x, near)


def test_the_kernel_distance_is_unbiased_and_frechet_is_not():
    # Both sets from one source: the truth is 0.
    pairs = [(draw(10, seed=2 * n), draw(10, seed=2 * n + 1)) for n in range(300)]
    kernel = torch.tensor([kernel_distance(*pair) for pair in pairs])
    frechet = torch.tensor([frechet_distance(*pair) for pair in pairs])
    error = kernel.std() / math.sqrt(len(kernel))
    assert kernel.mean().abs() < 4 * error
    assert (kernel < 0).any()
    assert frechet.mean() > 20 * frechet.std() / math.sqrt(len(frechet))
    larger = torch.tensor(
        [frechet_distance(draw(80, seed=2 * n), draw(80, seed=2 * n + 1)) for n in range(50)]
    )
    assert larger.mean() < frechet.mean() / 4


def test_frechet_of_normal_distributions_in_closed_form():
    # Points whose mean and covariance are exact: corners of a box.
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    factor = math.sqrt(8 / 7)  # of the sample's covariance
    found = frechet_distance(corners, corners * scale + 1)
    assert found == pytest.approx(3 + factor**2 * (0 + 1 + 4), rel=1e-12)
    assert frechet_distance(corners, corners) == pytest.approx(0, abs=1e-12)


def test_frechet_of_sets_smaller_than_their_features_are_wide():
    x, y = draw(5, 40, seed=1), draw(6, 40, seed=2)

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T

    first, second = x.T.cov(), y.T.cov()
    shared = root(root(first) @ second @ root(first)).trace()
    expected = (x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace()
    assert frechet_distance(x, y) == pytest.approx((expected - 2 * shared).item(), rel=1e-6)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    # Two sources that differ by a known shift; the truth from a large sample.
    truth = kernel_distance(draw(3000, 2, seed=1), draw(3000, 2, seed=2, shift=1.0))
    held = 0
    for n in range(60):
        pair = draw(40, 2, seed=10 + 2 * n), draw(40, 2, seed=11 + 2 * n, shift=1.0)
        low, high = kernel_interval(*pair, samples=200, level=0.9, seed=n)
        held += low <= truth <= high
    assert 46 <= held <= 60


def test_the_bootstrap_compares_no_item_with_itself():
    # Were an item compared with its own copy, the samples' mean would lie far above the distance.
    x, y = draw(12, 4, seed=1), draw(12, 4, seed=2)
    low, high = kernel_interval(x, y, samples=4000, level=0.02)
    assert (low + high) / 2 == pytest.approx(kernel_distance(x, y), abs=0.25)


def test_blocks_make_the_interval_as_wide_as_there_are_few():
    single, other = draw(20, 3, seed=1), draw(20, 3, seed=2, shift=1.0)
    x, y = single.repeat_interleave(5, 0), other.repeat_interleave(5, 0)
    groups = [n // 5 for n in range(100)]
    low, high = kernel_interval(x, y, samples=400)
    block_low, block_high = kernel_interval(x, y, (groups, groups), samples=400)
    assert block_high - block_low > 1.6 * (high - low)


def test_the_interval_depends_on_the_seed_alone():
    x, y, state = draw(10, seed=1), draw(10, seed=2), torch.get_rng_state()
    assert kernel_interval(x, y, samples=50) == kernel_interval(x, y, samples=50)
    assert kernel_interval(x, y, samples=50) != kernel_interval(x, y, samples=50, seed=1)
    assert torch.get_rng_state().equal(state)
    low, high = kernel_interval(x[:2], y[:2], samples=50)  # never one group alone
    assert math.isfinite(low) and math.isfinite(high)


X = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("function", "arguments", "options", "word"),
    [
        (kernel_distance, (X, X[:, :2]), {}, "first and second"),
        (kernel_distance, (X[0], X), {}, "first and second"),
        (kernel_distance, (X[:1], X), {}, "two items"),
        (kernel_distance, (X, X / 0), {}, "second must be finite"),
        (frechet_distance, (X[:1], X), {}, "two items"),
        (frechet_distance, (X / 0, X), {}, "first must be finite"),
        (kernel_interval, (X[:1], X), {}, "two items"),
        (kernel_interval, (X, X), {"level": 1.0}, "level"),
        (kernel_interval, (X, X), {"samples": 1}, "samples"),
        (kernel_interval, (X, X, ([1, 2], [1, 2])), {}, "groups"),
        (kernel_interval, (X, X, ([1] * 4, [1, 2, 3, 4])), {}, "groups"),
    ],
)
def test_bad_input_is_named(unchecked, function, arguments, options, word):
    with pytest.raises(ValueError, match=word):
        unchecked(function)(*arguments, **options)

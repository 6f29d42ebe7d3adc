r"""How far one set of pictures is from another: kernel distance and Fréchet distance (KID, FID).

Both compare *features*: vectors that some network makes of the pictures, to be named with every
number. The **kernel distance** is the squared maximum mean discrepancy under a polynomial kernel;
its estimate here is unbiased, so two sets from one source come to 0 on average, however small. The
**Fréchet distance** fits a normal distribution to each set; its estimate is biased upwards, by far
on sets smaller than the features are wide.

References:
    Bińkowski et al., *Demystifying MMD GANs*, ICLR 2018 (KID, and that FID is biased). Gretton et
    al., *A Kernel Two-Sample Test*, JMLR 2012. Heusel et al., *GANs Trained by a Two Time-Scale
    Update Rule Converge to a Local Nash Equilibrium*, NeurIPS 2017 (FID). Both papers take the
    features of an Inception network.
"""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.samplers import at_least

__all__ = ["frechet_distance", "kernel_distance", "kernel_interval"]


def kernel_distance(
    first: Float[Tensor, "items dim"], second: Float[Tensor, "others dim"]
) -> float:
    r"""Kernel distance of two sets of features, unbiased.

    .. math::

        \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
        - \frac{2}{nm} \sum_{i,j} k(x_i, y_j), \qquad
        k(x, y) = \Bigl(\frac{x \cdot y}{d} + 1\Bigr)^3

    It may come out below 0: that is what unbiased means where the truth is 0.

    Args:
        first: Features, at least two.
        second: Likewise, of the same width.

    Raises:
        ValueError: shapes that do not fit, fewer than two items, or a value that is not finite.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> kernel_distance(x, x + 1)  # 1 + 27 - (1 + 1 + 8 + 27) / 2
    9.5
    """
    kernels = _kernels(first, second)
    ones = [torch.ones(1, len(x), dtype=torch.float64) for x in (first, second)]
    return _distance(*kernels, *ones).item()


def kernel_interval(
    first: Float[Tensor, "items dim"],
    second: Float[Tensor, "others dim"],
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    *,
    level: float | int = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Block bootstrap interval of :func:`kernel_distance`.

    Whole groups are drawn with repetition, from either set: pictures of one concept say less than
    as many of different ones. An item that is drawn twice is not compared with itself: it would be
    nearer to itself than any other, and the distance would come out too large.

    Args:
        first: Features, at least two.
        second: Likewise, of the same width.
        groups: The group of each item of the first set, and of the second; by default each is its
            own.
        level: Share of the samples inside the interval.
        samples: How many samples are drawn.
        seed: Of the draws; the global random state is left alone.

    Returns:
        The lower and the upper end.

    Raises:
        TypeError: ``samples`` is no whole number.
        ValueError: as :func:`kernel_distance`; a number out of its range, other numbers of groups
            than of items, or a set with fewer than two groups.
    """
    kernels = _kernels(first, second)
    at_least(2, "samples", samples)
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1: got {level}")
    named = groups or (range(len(first)), range(len(second)))
    generator = torch.Generator().manual_seed(seed)
    times = []
    for items, names in zip((first, second), named, strict=True):
        names = list(names)
        if len(names) != len(items):
            raise ValueError(f"groups must have one for each item: got {len(names)}")
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        if len(numbers) < 2:
            raise ValueError(f"groups must be at least two in each set: got {len(numbers)}")
        member = torch.tensor([numbers[name] for name in names])
        times.append(_draws(len(numbers), samples, generator)[:, member])
    found = _distance(*kernels, *times)
    tail = (1 - level) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = found.quantile(ends).tolist()
    return low, high


def frechet_distance(
    first: Float[Tensor, "items dim"], second: Float[Tensor, "others dim"]
) -> float:
    r"""Fréchet distance of the normal distributions that fit two sets of features.

    .. math:: \|\mu_1 - \mu_2\|^2
              + \operatorname{tr}\bigl(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2}\bigr)

    With :math:`\Sigma_1 = A^\top A` and :math:`\Sigma_2 = B^\top B` the last trace is the sum of
    the singular values of :math:`A B^\top`, so no root of a matrix is taken.

    Args:
        first: Features, at least two.
        second: Likewise, of the same width.

    Raises:
        ValueError: as :func:`kernel_distance`.

    >>> x = torch.tensor([[-1.0], [1.0]])
    >>> round(frechet_distance(x, 2 * x + 3), 6)  # (3)² + (√8 - √2)²
    11.0
    """
    x, y = _checked(first, second)
    a, b = ((z - z.mean(dim=0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    shared = torch.linalg.svdvals(a @ b.T).sum()
    between = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return (between + a.square().sum() + b.square().sum() - 2 * shared).item()


def _checked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU and with the digits that differences of large sums need."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            "first and second must have shapes (items, dim) and (others, dim): "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if min(len(first), len(second)) < 2 or not first.shape[1]:
        raise ValueError(
            f"first and second must hold at least two items: got {len(first)} and {len(second)}"
        )
    pair = tuple(x.detach().to("cpu", torch.float64) for x in (first, second))
    for name, x in zip(("first", "second"), pair, strict=True):
        if not bool(x.isfinite().all()):
            raise ValueError(f"{name} must be finite: got NaN or infinity")
    return pair


def _kernels(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = _checked(first, second)
    return tuple((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))


def _distance(xx: Tensor, yy: Tensor, xy: Tensor, times: Tensor, others: Tensor) -> Tensor:
    """The distance for each row of how often each item counts."""

    def within(kernel: Tensor, times: Tensor) -> Tensor:
        apart = kernel - kernel.diag().diag()
        pairs = times.sum(dim=1) ** 2 - times.square().sum(dim=1)
        return ((times @ apart) * times).sum(dim=1) / pairs

    across = ((times @ xy) * others).sum(dim=1) / (times.sum(dim=1) * others.sum(dim=1))
    return within(xx, times) + within(yy, others) - 2 * across


def _draws(count: int, samples: int, generator: torch.Generator) -> Tensor:
    """How often each group is drawn in each sample, which always holds two different ones."""
    times = torch.zeros(samples, count, dtype=torch.float64)
    pending = torch.arange(samples)
    while len(pending):
        drawn = torch.randint(count, (len(pending), count), generator=generator)
        times[pending] = torch.zeros(len(pending), count, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(()).double().expand_as(drawn)
        )
        pending = pending[(times[pending] > 0).sum(dim=1) < 2]
    return times

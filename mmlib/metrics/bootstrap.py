r"""How sure a number is: the percentile bootstrap, over items or over groups of them (自助法).

A test set is a sample. Drawing from it again, with replacement and as many as there are, shows how
far a mean would move had another sample been drawn. Items that are alike (five captions of one
picture, three emoji of one concept) are right or wrong together; drawn one by one they would seem
to be more evidence than they are. So whole ``groups`` are drawn.

To compare two models on the same items, take the interval of the *differences*: both models find
the same items hard, and the difference is surer than either number.

References:
    Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993. Cameron, Gelbach and Miller,
    *Bootstrap-Based Improvements for Inference with Clustered Errors*, 2008.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from mmlib.data.samplers import at_least
from mmlib.data.scenes.draws import check_seed

__all__ = ["interval"]

# Weights of so many (sample, value) pairs are held at a time: 32 MB.
_HELD = 2**22


def interval(
    values: Sequence[int | float] | np.ndarray | Tensor,
    groups: Sequence[Hashable] | np.ndarray | Tensor | None = None,
    *,
    statistic: str = "mean",
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval in which a statistic of other samples would lie, by the percentile bootstrap.

    Its ends are quantiles of the statistic over the drawn samples. With groups, as many groups are
    drawn as there are, each with all of its values; the number of values then varies.

    Args:
        values: One number for each item, say its hit (0 or 1) or its rank.
        groups: What belongs together: one name or number for each item. Every item alone by
            default.
        statistic: ``"mean"`` or ``"median"``.
        level: Share of the samples inside the interval.
        samples: How many samples are drawn; the ends move by about ``1 / sqrt(samples)`` of the
            interval's width.
        seed: Of the draws; the global random state is left alone.

    Returns:
        The lower and the upper end.

    Raises:
        TypeError: ``samples`` or ``seed`` is not a whole number.
        ValueError: no values, one that is not finite, another number of groups than of values, an
            unknown statistic, a level outside (0, 1), fewer than 2 samples, or a seed below 0.

    >>> hits = [1.0] * 40 + [0.0] * 60
    >>> low, high = interval(hits)
    >>> round(low, 1), round(high, 1)  # 0.4 ± 1.96 * sqrt(0.4 * 0.6 / 100)
    (0.3, 0.5)
    """
    x = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"values must have one axis, not empty: got shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError("values must be finite: got NaN or infinity")
    if statistic not in _STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(_STATISTICS)}: got {statistic!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1: got {level}")
    at_least(2, "samples", samples)
    member = _members(groups, len(x))
    generator = torch.Generator().manual_seed(check_seed(seed))
    x, order = x.sort()
    member, count = member[order], int(member.max()) + 1
    found = []
    for chunk in torch.arange(samples).split(max(1, _HELD // max(len(x), count))):
        drawn = torch.randint(count, (len(chunk), count), generator=generator)
        times = torch.zeros(len(chunk), count, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones(()).double().expand_as(drawn))
        found.append(_STATISTICS[statistic](x, times[:, member]))
    tail = (1 - level) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return low.item(), high.item()


def _members(groups: Sequence[Hashable] | np.ndarray | Tensor | None, items: int) -> Tensor:
    """The group of each item, numbered from 0."""
    if groups is None:
        return torch.arange(items)
    names = groups.tolist() if isinstance(groups, (Tensor, np.ndarray)) else list(groups)
    if len(names) != items:
        raise ValueError(f"groups must have one for each value: got {len(names)} for {items}")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names])


def _mean(x: Tensor, times: Tensor) -> Tensor:
    return times @ x / times.sum(dim=1)


def _median(x: Tensor, times: Tensor) -> Tensor:
    """Median of sorted values that come so many times each; between two, their mean."""
    upto, total = times.cumsum(dim=1), times.sum(dim=1, keepdim=True)
    # Of n values in order, the middle ones are number (n + 1) // 2 and n // 2 + 1.
    middle = torch.cat([((total + 1) / 2).floor(), (total / 2).floor() + 1], dim=1)
    return x[torch.searchsorted(upto, middle)].mean(dim=1)


_STATISTICS = {"mean": _mean, "median": _median}

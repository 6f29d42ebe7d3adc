r"""How features lie on the unit sphere: pairs near, all of them spread out: chapter 05.

A contrastive loss wants two things at once, and two numbers show them apart: :func:`alignment`
and :func:`uniformity`. Neither alone says that a model is good: equal features for everything are
perfectly aligned, and random ones perfectly spread. Both are better when lower.

References:
    Wang and Isola, *Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere*, ICML 2020.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.pairs import unit, unit_pair

__all__ = ["alignment", "uniformity"]


def alignment(
    x: Float[Tensor, "batch dim"], y: Float[Tensor, "batch dim"], power: float = 2.0
) -> Float[Tensor, ""]:
    r"""How far apart the two sides of a pair lie, :math:`\frac1n \sum_i \|x_i - y_i\|^\alpha`.

    0 at best; 2 for independent random pairs with :math:`\alpha = 2`. Wang and Isola,
    *Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere*, ICML 2020.

    Raises:
        ValueError: shapes that do not fit, or a power of 0 or less.
    """
    if not power > 0:
        raise ValueError(f"power must be above 0: got {power}")
    x, y = unit_pair(x, y, ("x", "y"))
    return (x - y).norm(dim=1).pow(power).mean()


def uniformity(x: Float[Tensor, "batch dim"], temperature: float = 2.0) -> Float[Tensor, ""]:
    r"""How evenly points lie on the sphere; lower is more even.

    .. math:: \log \frac{1}{n(n-1)} \sum_{i \neq j} \exp\left(-t \|x_i - x_j\|^2\right)

    0 when all points are one (collapse), about :math:`-2t` when they are spread evenly in many
    dimensions. Wang and Isola, ICML 2020, whose :math:`t` is the ``temperature`` here.

    Raises:
        ValueError: fewer than two points, or a temperature of 0 or less.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0: got {temperature}")
    x = unit(x=x)
    if len(x) < 2:
        raise ValueError("x must hold at least two points: got 1")
    squared = torch.pdist(x).square()
    return (-temperature * squared).logsumexp(0) - math.log(len(squared))

r"""Flow matching: from noise to data along straight lines: chapter 11.

Draw noise :math:`x_0 \sim N(0, I)` and an item of the data :math:`x_1`, and walk from one to the
other at an even speed:

.. math::

    x_t = (1 - t)\, x_0 + t\, x_1, \qquad \dot x_t = x_1 - x_0

A network that sees :math:`x_t` and :math:`t` alone cannot know where the walk came from and where
it goes. Trained to say :math:`x_1 - x_0` with the least squared error, it says the mean over all
walks that pass there, and following these means carries the whole of the noise into the whole of
the data:

.. math::

    v(x, t) = \mathbb E[x_1 - x_0 \mid x_t = x], \qquad
    \dot x = v(x, t), \quad x(0) \sim N(0, I) \;\Rightarrow\; x(1) \sim p_{\text{data}}

References:
    Lipman et al., *Flow Matching for Generative Modeling*, ICLR 2023. Liu, Gong and Liu, *Flow
    Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow*, ICLR 2023.
    Karras et al., *Elucidating the Design Space of Diffusion-Based Generative Models*, NeurIPS
    2022 (Heun's method with Euler's last step).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.samplers import at_least

__all__ = ["Walk", "flow_loss", "integrate", "walk"]

Velocity = Callable[[Tensor, Tensor], Tensor]


class Walk(NamedTuple):
    """Points between noise and data.

    Attributes:
        place: :math:`x_t`.
        time: :math:`t` of each item, from 0 (noise) to 1 (data).
        velocity: :math:`x_1 - x_0`.
    """

    place: Float[Tensor, "batch ..."]
    time: Float[Tensor, " batch"]
    velocity: Float[Tensor, "batch ..."]


def walk(data: Float[Tensor, "batch ..."], generator: torch.Generator | None = None) -> Walk:
    """Draw noise and a time for each item, and go there.

    Args:
        data: Items :math:`x_1`; best with a mean of 0 and a variance of about 1.
        generator: What is drawn from, by default torch's own; on its own device.

    Raises:
        TypeError: the data are no floating-point numbers.
        ValueError: there are none.
    """
    if not data.is_floating_point():
        raise TypeError(f"data must be floating-point numbers: got {data.dtype}")
    if not data.numel():
        raise ValueError(f"data must not be empty: got shape {tuple(data.shape)}")
    where = {"device": data.device if generator is None else generator.device}
    noise = torch.randn(data.shape, generator=generator, dtype=data.dtype, **where).to(data.device)
    time = torch.rand(len(data), generator=generator, dtype=data.dtype, **where).to(data.device)
    share = time.reshape(-1, *[1] * (data.ndim - 1))
    return Walk((1 - share) * noise + share * data, time, data - noise)


def flow_loss(
    velocity: Velocity,
    data: Float[Tensor, "batch ..."],
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Mean squared error of the velocity at a random point of each item's walk.

    .. math:: \mathbb E\, \tfrac1D \bigl\| v(x_t, t) - (x_1 - x_0) \bigr\|^2

    It does not go to zero: what is left is how much the walks through one point differ.

    Args:
        velocity: :math:`v`, of places and times.
        data: See :func:`walk`.
        generator: See :func:`walk`.

    Raises:
        TypeError: the data are no floating-point numbers.
        ValueError: there are no data, or the velocity has another shape than the place.
    """
    place, time, wanted = walk(data, generator)
    found = velocity(place, time)
    if found.shape != wanted.shape:
        raise ValueError(
            f"velocity must give the shape {tuple(wanted.shape)}: got {tuple(found.shape)}"
        )
    return (found.to(wanted.dtype) - wanted).square().mean()


def integrate(
    velocity: Velocity,
    start: Float[Tensor, "batch ..."],
    steps: int,
    method: str = "heun",
) -> Float[Tensor, "batch ..."]:
    r"""Follow the velocity from time 0 to 1 in equal steps of :math:`h`.

    .. math::

        \text{Euler: } x \leftarrow x + h\, v(x, t), \qquad
        \text{Heun: } x \leftarrow x + \tfrac h2 \bigl[v(x, t) +
            v\bigl(x + h\, v(x, t),\, t + h\bigr)\bigr]

    Euler's error falls with :math:`h`, Heun's with :math:`h^2`; a step of Heun's asks for the
    velocity twice. Its last step is Euler's (as in Karras et al., 2022), which leaves the order as
    it is: at time 1 no network has been trained, and one that expects data divides by what time is
    left.

    Args:
        velocity: Of places and times.
        start: Places at time 0; noise, for pictures. It is not changed.
        steps: How many.
        method: ``"heun"`` or ``"euler"``.

    Returns:
        The places at time 1.

    Raises:
        TypeError: ``steps`` is no whole number.
        ValueError: ``steps`` is below 1, or the method is unknown.

    >>> decay = lambda x, t: -x
    >>> [round(integrate(decay, torch.ones(1, 1), n, "euler").item(), 3) for n in (1, 10, 1000)]
    [0.0, 0.349, 0.368]
    """
    at_least(1, "steps", steps)
    if method not in ("heun", "euler"):
        raise ValueError(f"method must be 'heun' or 'euler': got {method!r}")
    x = start
    for number in range(steps):
        now = x.new_full((len(x),), number / steps)
        first = velocity(x, now)
        ahead = x + first / steps
        if method == "euler" or number == steps - 1:
            x = ahead
        else:
            then = x.new_full((len(x),), (number + 1) / steps)
            x = x + (first + velocity(ahead, then)) / (2 * steps)
    return x

r"""Adversarial examples and training on embeddings (对抗训练): FGM and PGD, for chapter 13.

An adversary moves what a model reads by a small :math:`\delta`, chosen to make the loss large:

.. math:: \max_{\lVert \delta_i \rVert_2 \le \epsilon} L(x + \delta)

with one ball for each example :math:`i`, over all its numbers together. One step along the gradient
is the **fast gradient method** (FGM), several with a projection after each **projected gradient
descent** (PGD). Training on :math:`L(x) + L(x + \delta)` makes a model steadier against such moves.

Nothing of the model is changed to find :math:`\delta`: it is added to the embedded words, not to
the embedding table. The usual FGM code for BERT changes the table and puts it back afterwards;
:func:`perturbed` does that for whoever needs it, and puts it back whatever happens.

References:
    Miyato, Dai, Goodfellow, *Adversarial Training Methods for Semi-Supervised Text
    Classification*, ICLR 2017 (FGM on embeddings). Madry et al., *Towards Deep Learning Models
    Resistant to Adversarial Attacks*, ICLR 2018 (PGD).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["fgm", "noise", "norms", "pgd", "perturbed", "project"]

Loss = Callable[[Tensor], Tensor]


def norms(delta: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    r"""The length :math:`\lVert \delta_i \rVert_2` of each example's perturbation."""
    return delta.flatten(1).norm(dim=1)


def project(delta: Float[Tensor, "batch ..."], epsilon: float) -> Float[Tensor, "batch ..."]:
    r"""The nearest point of each example's ball (投影到球内).

    .. math:: \delta_i \leftarrow \delta_i \min(1, \epsilon / \lVert \delta_i \rVert_2)

    Raises:
        ValueError: ``epsilon`` is negative.

    >>> project(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    _check_epsilon(epsilon)
    length = norms(delta)
    # A hair less than epsilon, so that rounding does not leave the ball.
    share = (epsilon * (1 - 1e-6) / length.clamp(min=1e-30)).clamp(max=1.0)
    return delta * share.reshape(-1, *[1] * (delta.ndim - 1))


def noise(
    x: Float[Tensor, "batch ..."],
    epsilon: float,
    generator: torch.Generator | None = None,
    keep: Tensor | None = None,
) -> Float[Tensor, "batch ..."]:
    r"""A random direction of length :math:`\epsilon`: what an attack must be worse than.

    Args:
        x: What is perturbed; only its shape counts.
        epsilon: The length.
        generator: Of the draw.
        keep: Which numbers may move, broadcast against ``x``; all by default.
    """
    _check_epsilon(epsilon)
    drawn = torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype)
    return _to_length(_kept(drawn, keep), epsilon)


def fgm(
    loss: Loss, x: Float[Tensor, "batch ..."], epsilon: float, keep: Tensor | None = None
) -> Float[Tensor, "batch ..."]:
    r"""One step to the edge of the ball: :math:`\delta_i = \epsilon\, g_i / \lVert g_i \rVert_2`.

    Args:
        loss: A function of ``x`` whose gradient for one example does not depend on the others: a
            sum over the examples. Called once.
        x: What is perturbed, such as embedded words. Not changed.
        epsilon: The radius.
        keep: Which numbers may move, broadcast against ``x``; all by default. Padding must not.

    Returns:
        The perturbation, without a gradient; zeros for an example whose gradient is zero.

    Raises:
        ValueError: ``epsilon`` is negative.

    >>> fgm(lambda x: (x * torch.tensor([3.0, 4.0])).sum(), torch.zeros(1, 2), epsilon=1.0)
    tensor([[0.6000, 0.8000]])
    """
    _check_epsilon(epsilon)
    return _to_length(_kept(_gradient(loss, x), keep), epsilon)


def pgd(
    loss: Loss,
    x: Float[Tensor, "batch ..."],
    epsilon: float,
    steps: int = 3,
    step: float | None = None,
    keep: Tensor | None = None,
    start: Float[Tensor, "batch ..."] | None = None,
) -> Float[Tensor, "batch ..."]:
    r"""Several steps along the gradient, each followed by the way back into the ball.

    .. math::

        \delta \leftarrow \Pi_\epsilon\Bigl(\delta +
        \eta\, \frac{\nabla_\delta L(x + \delta)}{\lVert \nabla_\delta L(x + \delta) \rVert_2}
        \Bigr)

    Args:
        loss: See :func:`fgm`; called once a step.
        x: The same.
        epsilon: The radius.
        steps: How many steps; 1 with ``step=epsilon`` is :func:`fgm`.
        step: Their length :math:`\eta`, by default ``2.5 * epsilon / steps``.
        keep: See :func:`fgm`.
        start: Where to start, zeros by default; it is projected first.

    Raises:
        ValueError: ``epsilon`` is negative, or there is no step.
    """
    _check_epsilon(epsilon)
    if steps < 1:
        raise ValueError(f"steps must be at least 1: got {steps}")
    step = 2.5 * epsilon / steps if step is None else step
    delta = torch.zeros_like(x) if start is None else project(_kept(start, keep), epsilon)
    delta, fixed = delta.detach(), x.detach()
    for _ in range(steps):
        uphill = _kept(_gradient(lambda moved: loss(fixed + moved), delta), keep)
        delta = project(delta + _to_length(uphill, step), epsilon)
    return delta


@contextmanager
def perturbed(parameter: nn.Parameter, delta: Tensor) -> Iterator[nn.Parameter]:
    """Add to a parameter for a while; what was there is put back bit for bit, come what may.

    Args:
        parameter: Such as an embedding table.
        delta: What is added.

    Raises:
        ValueError: The shapes differ.

    >>> table = nn.Parameter(torch.tensor([0.1]))
    >>> with perturbed(table, torch.tensor([0.2])):
    ...     print(f"{table.item():.1f}")
    0.3
    >>> f"{table.item():.1f}"
    '0.1'
    """
    if parameter.shape != delta.shape:
        raise ValueError(
            f"delta must have the parameter's shape {tuple(parameter.shape)}: "
            f"got {tuple(delta.shape)}"
        )
    before = parameter.detach().clone()
    try:
        parameter.data.add_(delta)
        yield parameter
    finally:
        parameter.data.copy_(before)


def _gradient(loss: Loss, x: Tensor) -> Tensor:
    # Of x alone: .backward() would add to the gradients of the model's parameters as well.
    with torch.enable_grad():
        moved = x.detach().requires_grad_(True)
        return torch.autograd.grad(loss(moved), moved)[0]


def _kept(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x.masked_fill(~keep, 0.0)


def _to_length(x: Tensor, length: float) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 1))
    size = norms(x).reshape(shape)
    # Divided in two steps: a tiny gradient keeps its direction, and zero stays zero.
    return torch.where(size > 0, x / size.clamp(min=1e-30), 0.0) * (length * (1 - 1e-6))


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative: got {epsilon}")

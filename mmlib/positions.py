r"""What tells a Transformer the order of its tokens: chapter 02.

Attention treats its keys as a set: without positions, a Transformer encoder cannot tell "dog bites
man" from "man bites dog".

References:
    Vaswani et al., *Attention Is All You Need*, NeurIPS 2017, section 3.5. Gehring et al.,
    *Convolutional Sequence to Sequence Learning*, ICML 2017 (learned positions).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LearnedPositions", "SinusoidalPositions", "sinusoids"]


def sinusoids(length: int, dim: int) -> Float[Tensor, "length dim"]:
    r"""Sinusoidal positions, in float64.

    .. math::

        P_{t,2i} = \sin\!\left(t\,\omega_i\right), \qquad
        P_{t,2i+1} = \cos\!\left(t\,\omega_i\right), \qquad
        \omega_i = 10000^{-2i/d}

    Every pair of columns is a clock hand; moving by :math:`k` positions turns each hand by a
    fixed angle, so that :math:`P_{t+k}` is the same rotation of :math:`P_t` for every
    :math:`t`, and :math:`P_t \cdot P_{t+k}` does not depend on :math:`t`.

    Raises:
        ValueError: ``length`` below 1, or ``dim`` not a positive even number.

    >>> sinusoids(2, 2)  # sin 0, cos 0; sin 1, cos 1
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]], dtype=torch.float64)
    """
    if length < 1:
        raise ValueError(f"length must be at least 1: got {length}")
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and at least 2: got {dim}")
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class SinusoidalPositions(nn.Module):
    """Adds the fixed vectors of :func:`sinusoids` to a sequence; nothing is learned or saved.

    Args:
        dim: Width, even.
        max_length: Number of positions made.
    """

    def __init__(self, dim: int, max_length: int) -> None:
        super().__init__()
        table = sinusoids(max_length, dim).to(torch.get_default_dtype())
        self.register_buffer("table", table, persistent=False)

    def forward(
        self, x: Float[Tensor, "batch length dim"], offset: int = 0
    ) -> Float[Tensor, "batch length dim"]:
        """Add the positions ``offset, offset + 1, ...``; a cache has seen ``offset`` before.

        Raises:
            ValueError: the width differs, or a position lies outside the table.
        """
        return x + _positions(self.table, x, offset)


class LearnedPositions(nn.Module):
    """Adds one learned vector for each position (BERT, GPT, ViT).

    Args:
        dim: Width.
        max_length: Number of positions; there is nothing beyond.
        std: Spread of the initial vectors. They are heard only when they are about as loud as
            the embeddings they are added to.
    """

    def __init__(self, dim: int, max_length: int, std: float = 0.02) -> None:
        super().__init__()
        if min(dim, max_length) < 1:
            raise ValueError(
                f"dim and max_length must be at least 1: got dim={dim}, max_length={max_length}"
            )
        self.table = nn.Parameter(torch.empty(max_length, dim))
        nn.init.normal_(self.table, std=std)

    def forward(
        self, x: Float[Tensor, "batch length dim"], offset: int = 0
    ) -> Float[Tensor, "batch length dim"]:
        """Add the positions ``offset, offset + 1, ...``.

        Raises:
            ValueError: the width differs, or a position lies outside the table.
        """
        return x + _positions(self.table, x, offset)


def _positions(table: Tensor, x: Tensor, offset: int) -> Tensor:
    if x.ndim != 3 or x.shape[-1] != table.shape[-1]:
        raise ValueError(
            f"x must have shape (batch, length, {table.shape[-1]}): got {tuple(x.shape)}"
        )
    if offset < 0 or offset + x.shape[1] > table.shape[0]:
        raise ValueError(
            f"positions {offset} to {offset + x.shape[1] - 1} must lie in 0 to "
            f"{table.shape[0] - 1}: raise max_length"
        )
    return table[offset : offset + x.shape[1]].to(x.dtype)

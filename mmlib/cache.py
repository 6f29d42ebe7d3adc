"""The cache of keys and values with which text is generated token by token.

It is part of chapter 01 and is imported from :mod:`mmlib.attention`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["KVCache"]


class KVCache:
    """Keys and values of the positions that one attention layer has already seen.

    Decoding one token at a time with a cache projects only the new token: the keys and values of
    the earlier ones do not change, because causal attention never lets them see a later token.

    The cache grows by concatenation. That copies what is there at each step, and the attention
    step that follows reads the same memory once more, so a preallocated buffer would save less
    than half of the traffic and would not be differentiable.

    Attributes:
        key: Tensor ``(batch, heads, length, head_dim)``, or None while empty.
        value: The same for the values.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def __len__(self) -> int:
        """Number of positions held."""
        return 0 if self.key is None else self.key.shape[-2]

    def append(
        self,
        key: Float[Tensor, "batch heads new_length head_dim"],
        value: Float[Tensor, "batch heads new_length head_dim"],
    ) -> tuple[
        Float[Tensor, "batch heads length head_dim"], Float[Tensor, "batch heads length head_dim"]
    ]:
        """Add new positions at the end and return all of them.

        Raises:
            ValueError: batch, heads or head size differ from what is held.
        """
        if self.key is None or self.value is None:
            self.key, self.value = key, value
        else:
            held, new = self.key.shape, key.shape
            if (held[:2], held[3]) != (new[:2], new[3]):
                raise ValueError(
                    "key must have the batch, heads and head_dim of the cache: "
                    f"got {tuple(new)}, the cache holds {tuple(held)}"
                )
            self.key = torch.cat([self.key, key], dim=-2)
            self.value = torch.cat([self.value, value], dim=-2)
        return self.key, self.value

    def select(self, rows: Int[Tensor, " new_batch"]) -> None:
        """Keep these rows of the batch, in this order: beam search follows the best beams."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[rows], self.value[rows]

"""Masks: who may attend to whom. Boolean, named ``keep``, True means *attend*.

They are part of chapter 01 and are imported from :mod:`mmlib.attention`.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["causal_keep", "padding_keep"]


def causal_keep(
    query_length: int, key_length: int | None = None, device: torch.device | str | None = None
) -> Bool[Tensor, "query_length key_length"]:
    r"""Mask in which no position sees a later one, aligned to the end.

    Query :math:`i` of :math:`T_q` is position :math:`i + T_k - T_q` of the sequence, so that a
    mask for the last few queries is the last few rows of the full mask. PyTorch's ``is_causal``
    aligns to the start, which is wrong as soon as a cache holds earlier keys.

    Args:
        query_length: Number of queries, at least 1.
        key_length: Number of keys, at least ``query_length``; equal to it by default.
        device: Where the mask is made.

    Raises:
        ValueError: lengths below 1, or fewer keys than queries.

    >>> causal_keep(2, 4).int()
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    key_length = query_length if key_length is None else key_length
    if query_length < 1 or key_length < query_length:
        raise ValueError(
            "causal_keep wants 1 <= query_length <= key_length: "
            f"got query_length={query_length}, key_length={key_length}"
        )
    keep = torch.ones(query_length, key_length, dtype=torch.bool, device=device)
    return keep.tril(diagonal=key_length - query_length)


def padding_keep(
    lengths: Int[Tensor, " batch"], length: int | None = None
) -> Bool[Tensor, "batch length"]:
    """Mask of the real tokens in a padded batch.

    Args:
        lengths: Number of real tokens in each row; they come first.
        length: Padded length, the longest row by default.

    Raises:
        TypeError: ``lengths`` does not hold integers.
        ValueError: ``lengths`` is empty or not one-dimensional, or a row is negative or longer
            than ``length``.

    >>> padding_keep(torch.tensor([3, 1])).int()
    tensor([[1, 1, 1],
            [1, 0, 0]], dtype=torch.int32)
    """
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths must hold integers: got {lengths.dtype}")
    if lengths.ndim != 1 or lengths.numel() == 0:
        raise ValueError(
            f"lengths must be one-dimensional and not empty: got shape {tuple(lengths.shape)}"
        )
    longest, shortest = int(lengths.max()), int(lengths.min())
    length = longest if length is None else length
    if shortest < 0 or longest > length:
        raise ValueError(
            f"lengths must lie between 0 and length={length}: got {shortest} to {longest}"
        )
    return torch.arange(length, device=lengths.device) < lengths[:, None]

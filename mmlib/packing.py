r"""Several short sequences in one row, and nobody sees a neighbour: chapter 12.

A padded batch computes on padding. Packing lays sequences one behind the other instead, and needs
two things that are easily forgotten: a mask by document, and positions that begin anew.

References:
    Krell et al., *Efficient Sequence Packing without Cross-contamination*, 2021. Dehghani et al.,
    *Patch n' Pack: NaViT, a Vision Transformer for any Aspect Ratio and Resolution*, NeurIPS 2023.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Packed", "document_keep", "first_fit", "pack", "unpack"]


class Packed(NamedTuple):
    """Sequences laid into rows.

    Attributes:
        tokens: Vectors, zeros where nothing is.
        document: Number of the sequence that each token is of, -1 where nothing is.
        positions: Place of each token in its own sequence, 0 where nothing is.
    """

    tokens: Float[Tensor, "rows length dim"]
    document: Int[Tensor, "rows length"]
    positions: Int[Tensor, "rows length"]


def first_fit(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which sequences share a row: the longest first, each into the first row with room.

    First-fit decreasing never needs more than 11/9 of the fewest rows possible, and one more
    (Johnson 1973).

    Args:
        lengths: Of the sequences.
        length: Of a row.

    Raises:
        ValueError: a sequence is empty or longer than a row.

    >>> first_fit([3, 5, 2, 4], 7)
    [[1, 2], [3, 0]]
    """
    if any(not 1 <= size <= length for size in lengths):
        raise ValueError(f"lengths must be from 1 to length={length}: got {list(lengths)}")
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        row = next((r for r, free in enumerate(room) if free >= lengths[item]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(item)
        room[row] -= lengths[item]
    return rows


def pack(
    tokens: Float[Tensor, "batch length dim"],
    keep: Bool[Tensor, "batch length"],
    length: int | None = None,
) -> Packed:
    """Lay the tokens that exist into as few rows as :func:`first_fit` finds.

    Args:
        tokens: A padded batch; gaps are allowed, as between modalities.
        keep: Which tokens exist; every sequence has one.
        length: Of a row, that of ``tokens`` by default.

    Raises:
        TypeError: ``keep`` is not boolean.
        ValueError: shapes do not fit, or a sequence is empty or longer than a row.
    """
    if keep.dtype != torch.bool:
        raise TypeError(f"keep must be boolean (True = exists): got {keep.dtype}")
    if tokens.ndim != 3 or keep.shape != tokens.shape[:2]:
        raise ValueError(
            "tokens must have shape (batch, length, dim) and keep (batch, length): "
            f"got {tuple(tokens.shape)} and {tuple(keep.shape)}"
        )
    length = tokens.shape[1] if length is None else length
    sizes = keep.sum(1).tolist()
    rows = first_fit(sizes, length)
    where = torch.zeros(len(tokens), 2, dtype=torch.long)
    for row, items in enumerate(rows):
        start = 0
        for item in items:
            where[item] = torch.tensor([row, start])
            start += sizes[item]
    where = where.to(tokens.device)
    item, _ = keep.nonzero(as_tuple=True)
    place = (keep.cumsum(1) - 1)[keep]
    row, column = where[item, 0], where[item, 1] + place
    shape = (len(rows), length)
    document = torch.full(shape, -1, device=tokens.device)
    positions = torch.zeros(shape, dtype=torch.long, device=tokens.device)
    document[row, column], positions[row, column] = item, place
    # Not in place: the gradient has to find its way back.
    laid = tokens.new_zeros(*shape, tokens.shape[2]).index_put((row, column), tokens[keep])
    return Packed(laid, document, positions)


def document_keep(document: Int[Tensor, "rows length"]) -> Bool[Tensor, "rows 1 length length"]:
    """Who may attend to whom: tokens of the same sequence, whatever row they share.

    >>> document_keep(torch.tensor([[0, 0, 1, -1]]))[0, 0].int()
    tensor([[1, 1, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 0, 0]], dtype=torch.int32)
    """
    same = document[:, :, None] == document[:, None, :]
    return (same & (document >= 0)[:, None, :])[:, None]


def unpack(
    tokens: Float[Tensor, "rows length dim"],
    packed: Packed,
    keep: Bool[Tensor, "batch batch_length"],
) -> Float[Tensor, "batch batch_length dim"]:
    """Undo :func:`pack`: what was computed of each token, where the token was.

    Args:
        tokens: Vectors for the packed tokens.
        packed: What :func:`pack` returned.
        keep: The mask it was given.

    Returns:
        The padded batch, zeros where nothing is.

    Raises:
        ValueError: the shapes do not fit, or ``keep`` is another.
    """
    if tokens.shape[:2] != packed.document.shape:
        raise ValueError(
            f"tokens must have the rows and length of packed, {tuple(packed.document.shape)}: "
            f"got {tuple(tokens.shape)}"
        )
    real = packed.document >= 0
    sizes = packed.document[real].bincount(minlength=len(keep)).tolist()
    if sizes != keep.sum(1).tolist():
        raise ValueError(
            f"keep must be that of pack, of {sizes} tokens: got {keep.sum(1).tolist()}"
        )
    order = (packed.document[real] * packed.document.shape[1] + packed.positions[real]).argsort()
    out = tokens.new_zeros(*keep.shape, tokens.shape[2])
    return out.index_put(keep.nonzero(as_tuple=True), tokens[real][order])

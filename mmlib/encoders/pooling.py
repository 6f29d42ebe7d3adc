"""From token ids to places, and from tokens to one vector: what the text encoders share."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["check_text", "end_positions", "mean_tokens"]


def mean_tokens(
    tokens: Float[Tensor, "batch length dim"], keep: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch dim"]:
    r"""Mean of the tokens that exist; zeros for a row in which none does.

    .. math:: \frac{\sum_t k_t\, x_t}{\max(1, \sum_t k_t)}

    >>> x = torch.tensor([[[1.0], [3.0], [8.0]]])
    >>> mean_tokens(x, torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    # Filled and not multiplied: padding that holds infinity would give NaN.
    total = tokens.masked_fill(~keep[..., None], 0.0).sum(dim=1)
    return total / keep.sum(dim=1, keepdim=True).clamp(min=1).to(tokens.dtype)


def end_positions(
    ids: Int[Tensor, "batch length"],
    end_id: int,
    keep: Bool[Tensor, "batch length"] | None = None,
) -> Int[Tensor, " batch"]:
    """Where the first end-of-text token of each row stands.

    OpenAI's code takes the largest id of the row for it, which is wrong as soon as a vocabulary
    grows beyond it. Here it is found by name.

    Args:
        ids: Token ids.
        end_id: Id of the end-of-text token.
        keep: Which tokens exist; a row in which none does gives 0.

    Raises:
        ValueError: a row has tokens and no end (checked on a CPU; on an accelerator reading the
            values would make the host wait, and the position is 0).

    >>> end_positions(torch.tensor([[5, 9, 2, 0], [5, 2, 2, 2]]), end_id=2)
    tensor([2, 1])
    """
    ends = ids == end_id
    exists = torch.ones_like(ends) if keep is None else keep
    ends = ends & exists
    if ids.device.type == "cpu":
        without = exists.any(dim=1) & ~ends.any(dim=1)
        if without.any():
            row = int(without.int().argmax())
            raise ValueError(
                f"ids must hold the end-of-text token {end_id} in every row: "
                f"row {row} is {ids[row].tolist()}"
            )
    return ends.int().argmax(dim=1)  # the first of equals


def take_tokens(
    tokens: Float[Tensor, "batch length dim"], positions: Int[Tensor, " batch"]
) -> Float[Tensor, "batch dim"]:
    """The token at one position of each row."""
    index = rearrange(positions, "batch -> batch 1 1").expand(-1, 1, tokens.shape[-1])
    return rearrange(tokens.gather(1, index), "batch 1 dim -> batch dim")


def check_text(
    ids: Tensor,
    keep: Tensor | None,
    vocab_size: int,
    max_length: int | None = None,
    name: str = "ids",
) -> None:
    """Say what is wrong with token ids and their mask, before an encoder does in its own words.

    Raises:
        TypeError: ``ids`` does not hold integers, or ``keep`` is not boolean.
        ValueError: a wrong shape, more positions than there are, or an id outside the
            vocabulary (values are read on a CPU only).
    """
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must hold whole numbers: got {ids.dtype}")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(
            f"{name} must have shape (batch, length), not empty: got {tuple(ids.shape)}"
        )
    if max_length is not None and ids.shape[1] > max_length:
        raise ValueError(f"{name} must have at most {max_length} positions: got {ids.shape[1]}")
    if keep is not None:
        if keep.dtype != torch.bool:
            raise TypeError(f"keep must be boolean (True = exists): got {keep.dtype}")
        if keep.shape != ids.shape:
            raise ValueError(
                f"keep must have the shape of {name}, {tuple(ids.shape)}: got {tuple(keep.shape)}"
            )
    if ids.device.type == "cpu":
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"{name} must lie from 0 to {vocab_size - 1}: got {low} to {high}")

"""What losses on pairs share: unit length, who belongs to whom, and the checks (配对)."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["check_groups", "group_numbers", "same_group", "unit", "unit_pair"]


def unit(**features: Tensor) -> Tensor:
    """One set of features ``(batch, dim)``, given by name, with rows of unit length in fp32 or 64.

    Raises:
        TypeError: they are no floating-point numbers.
        ValueError: they have another shape, or are empty.

    >>> unit(queries=torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    ((name, x),) = features.items()
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape (batch, dim), not empty: got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers: got {x.dtype}")
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


def unit_pair(
    first: Tensor, second: Tensor, names: tuple[str, str] = ("image_features", "text_features")
) -> tuple[Tensor, Tensor]:
    """Two sets of features of which row belongs to row, each as by :func:`unit`.

    Raises:
        TypeError: As for :func:`unit`.
        ValueError: As for :func:`unit`, or their shapes differ.
    """
    pair = unit(**{names[0]: first}), unit(**{names[1]: second})
    if first.shape != second.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have one shape: got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    return pair


def check_groups(groups: Tensor | None, batch: int) -> None:
    """Check the numbers of groups.

    Raises:
        ValueError: they are not one whole number for each item.
    """
    if groups is not None and (groups.shape != (batch,) or groups.is_floating_point()):
        raise ValueError(
            f"groups must hold {batch} whole numbers: got {groups.dtype}, {tuple(groups.shape)}"
        )


def group_numbers(groups: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """The numbers of groups; without any, every item is one of its own."""
    return torch.arange(batch, device=device) if groups is None else groups


def same_group(groups: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """Boolean ``(batch, batch)``, True where two items belong together; each does to itself."""
    numbers = group_numbers(groups, batch, device)
    return numbers[:, None] == numbers

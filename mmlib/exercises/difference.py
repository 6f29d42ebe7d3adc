"""Where a reader's value differs from the right one, in words."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def difference(
    got: Any, expected: Any, name: str, rtol: float = 1e-4, atol: float = 1e-5
) -> str | None:
    """The first difference between a value and the right one, in words, or None.

    Args:
        got: The value to judge.
        expected: The right value: a tensor or array, number, string, or a tuple or list of these.
        name: What to call the value.
        rtol: Relative tolerance of floating-point numbers.
        atol: Absolute tolerance of floating-point numbers.

    Returns:
        ``None`` when the values agree. Precisions of one kind (float32, float64) agree; kinds
        (integer, floating point, boolean) do not.

    >>> difference([1.0, 2.5], [1.0, 2.0], "the mean")
    'item 1 of the mean is 2.5; it should be 2'
    """
    if isinstance(expected, tuple | list):
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            what = f"{len(got)} values" if isinstance(got, tuple | list) else _kind(got)
            return f"{name} must be {len(expected)} values; yours is {what}"
        pairs = enumerate(zip(got, expected, strict=True))
        parts = (difference(g, e, f"item {i} of {name}", rtol, atol) for i, (g, e) in pairs)
        return next((part for part in parts if part is not None), None)
    if isinstance(expected, str | bool):
        same = isinstance(got, type(expected)) and got == expected
        return None if same else f"{name} is {got!r}; it should be {expected!r}"
    if not isinstance(expected, Tensor | np.ndarray | int | float | np.generic):
        return None if got == expected else f"{name} is {got!r}; it should be {expected!r}"
    wants_tensor = isinstance(expected, Tensor | np.ndarray)
    if not isinstance(got, Tensor | np.ndarray | int | float | np.generic) or (
        wants_tensor and not isinstance(got, Tensor | np.ndarray)
    ):
        return f"{name} must be a {_kind(expected)}; yours is a {_kind(got)}"
    got, expected = _tensor(got), _tensor(expected)
    return _tensor_difference(got, expected, name, rtol, atol, wants_tensor)


def _tensor_difference(
    got: Tensor, expected: Tensor, name: str, rtol: float, atol: float, strict: bool
) -> str | None:
    if got.shape != expected.shape:
        return f"{name} has the shape {tuple(got.shape)}; it should be {tuple(expected.shape)}"
    if strict and _family(got) != _family(expected):
        return f"{name} has the dtype {got.dtype}; it should be {expected.dtype}"
    got, expected = got.double(), expected.double()
    # Positions where both are NaN, or the same infinity, agree.
    same = (got == expected) | (got.isnan() & expected.isnan())
    close = (got - expected).abs() <= atol + rtol * expected.abs()
    wrong = ~(same | (close & expected.isfinite()))
    if not wrong.any():
        return None
    index = tuple(wrong.nonzero()[0].tolist())
    where = f" at index {index}" if index else ""
    mine, right = got[index].item(), expected[index].item()
    if math.isnan(mine):
        return f"{name} is NaN{where}; it should be {right:.5g}"
    first = f"{name} is {mine:.5g}{where}; it should be {right:.5g}"
    if got.numel() == 1:
        return first
    largest = (got - expected)[wrong].abs().max().item()
    share = f"{int(wrong.sum())} of {wrong.numel()} numbers differ"
    return f"{first} ({share}, by at most {largest:.3g})"


def _tensor(value: Any) -> Tensor:
    return value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)


def _family(tensor: Tensor) -> str:
    # float32 and float64 are both fine where a float is wanted, and so are all integers.
    if tensor.dtype == torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "int"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"array of shape {value.shape}"
    return f"`{type(value).__name__}`"

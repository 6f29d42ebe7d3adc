"""How examples become a batch: padding, keep-masks, and modalities that some examples lack."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmlib.data.batch import LAYOUT, Batch, check_tensor

__all__ = ["Example", "collate"]


@dataclass(frozen=True, eq=False)
class Example:
    """One item before it is in a batch; every field may be None.

    Attributes:
        image: ``(channels, height, width)``, floating point or uint8.
        text: Ids of tokens: a 1-D integer tensor or a sequence of ints.
        audio: ``(samples,)``, floating point.
        video: ``(frames, channels, height, width)``, floating point or uint8.
        target: An int or float, a sequence of them, or a tensor.
        id: What the item is called.
        group: What it shows, an int or a string; see :class:`Batch`.
    """

    image: Tensor | None = None
    text: Tensor | Sequence[int] | None = None
    audio: Tensor | None = None
    video: Tensor | None = None
    target: Tensor | Sequence[int] | Sequence[float] | int | float | None = None
    id: int | str | None = None
    group: int | str | None = None


_EXAMPLE_FIELDS = tuple(field.name for field in fields(Example))
_BATCH_NAMES = {"image": "images", "target": "targets"}
_AXES = {"image": 3, "text": 1, "audio": 1, "video": 4}


def collate(
    examples: Sequence[Example | Mapping[str, Any]],
    *,
    pad_id: int = 0,
    multiples: Mapping[str, int] | None = None,
) -> Batch:
    """Make one batch of examples, in their order.

    Text, sound, clips and targets of more than one number are padded at the end to the longest of
    the batch. An example that lacks a modality which others have gets a row of padding with
    ``keep`` False. The examples are copied.

    It is a ``collate_fn`` for a ``DataLoader`` (with options: ``functools.partial``).

    Args:
        examples: :class:`Example` or mappings with the same names.
        pad_id: Id that stands where there is no token, in text and integer targets.
        multiples: Lengths are rounded up to a multiple, for the hardware or so that shapes repeat:
            ``{"text": 8}``; of ``text``, ``audio``, ``video`` and ``targets``.

    Returns:
        The batch.

    Raises:
        ValueError: There are no examples, one has nothing or an unknown name, pictures or frames
            have different sizes (resize them first), or only some have an ``id`` or a ``group``.
        TypeError: A field is not of its type, or the examples differ in it.

    >>> batch = collate([{"text": [5, 6, 7], "target": 1}, {"text": [8], "target": 0}])
    >>> batch.text.tolist(), batch.text_keep.tolist()[1], batch.targets.tolist()
    ([[5, 6, 7], [8, 0, 0]], [True, False, False], [1, 0])
    """
    if isinstance(examples, (str, Mapping, Example)) or not len(examples):
        raise ValueError(f"examples must be a sequence with at least one example: got {examples!r}")
    multiples = dict(multiples or {})
    for name, multiple in multiples.items():
        if name not in ("text", "audio", "video", "targets"):
            raise ValueError(f"multiples must be of text, audio, video or targets: got {name!r}")
        if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
            raise ValueError(f"multiples must be whole numbers above 0: got {name}={multiple!r}")
    rows = [_as_mapping(example, at) for at, example in enumerate(examples)]
    made: dict[str, Any] = {}
    for name in ("image", "text", "audio", "video", "target"):
        values = [
            None if row.get(name) is None else _as_tensor(row[name], name, at)
            for at, row in enumerate(rows)
        ]
        if any(value is not None for value in values):
            field = _BATCH_NAMES.get(name, name)
            made[field], made[f"{field}_keep"] = _stack(
                values, name, pad_id if name in ("text", "target") else 0, multiples.get(field, 1)
            )
    for name in ("id", "group"):
        values = [row.get(name) for row in rows]
        lacking = [at for at, value in enumerate(values) if value is None]
        if len(lacking) == len(values):
            continue
        if lacking:
            raise ValueError(
                f"examples[{lacking[0]}].{name} must be given, as other examples have one"
            )
        if name == "id":
            made["ids"] = tuple(values)
        else:
            made["groups"] = torch.tensor([_group_number(v, at) for at, v in enumerate(values)])
    return Batch(**made)


def _as_mapping(example: object, at: int) -> Mapping[str, Any]:
    if isinstance(example, Example):
        row: Mapping[str, Any] = vars(example)
    elif isinstance(example, Mapping):
        row = example
        for name in row:
            if name not in _EXAMPLE_FIELDS:
                raise ValueError(
                    f"examples[{at}] must have the names {', '.join(_EXAMPLE_FIELDS)}: got {name!r}"
                )
    else:
        raise TypeError(f"examples[{at}] must be an Example or a mapping: got {example!r}")
    if all(row.get(name) is None for name in _EXAMPLE_FIELDS):
        raise ValueError(f"examples[{at}] must have at least one field: all are None")
    return row


def _as_tensor(value: Any, name: str, at: int) -> Tensor:
    """A field as a tensor, with integers as int64 and Python's floats as float32."""
    what = f"examples[{at}].{name}"
    if not isinstance(value, Tensor):
        if name not in ("text", "target"):
            raise TypeError(f"{what} must be a tensor: got {type(value).__name__}")
        try:
            value = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{what} must be numbers: got {value!r}") from error
        if value.numel() == 0:
            value = value.long()  # an empty list has no type: ids are likelier than soft labels
        if value.is_floating_point():
            value = value.float()
    kind = LAYOUT[_BATCH_NAMES.get(name, name)][2] if name in _AXES else "floating point or integer"
    if name == "target" and value.dtype == torch.bool:
        value = value.long()
    check_tensor(what, value, kind)
    if name in ("text", "target") and not value.is_floating_point():
        value = value.long()
    if name in _AXES and value.ndim != _AXES[name]:
        raise ValueError(f"{what} must have {_AXES[name]} axes: got shape {tuple(value.shape)}")
    return value


def _stack(
    values: list[Tensor | None], name: str, padding: int, multiple: int
) -> tuple[Tensor, Tensor]:
    """The values in one tensor and its keep-mask; the first axis is padded, but of pictures."""
    first_at = next(at for at, value in enumerate(values) if value is not None)
    first = values[first_at]
    padded = name != "image" and first.ndim > 0
    padding = 0 if first.is_floating_point() else padding
    lead = 1 if padded else 0
    lengths = torch.zeros(len(values), dtype=torch.int32)
    for at, value in enumerate(values):
        if value is None:
            continue
        what = f"examples[{at}].{name}"
        if value.dtype != first.dtype:
            raise TypeError(
                f"{what} must be of the dtype of the others: got {value.dtype}, "
                f"examples[{first_at}] has {first.dtype}"
            )
        if value.ndim != first.ndim or value.shape[lead:] != first.shape[lead:]:
            raise ValueError(
                f"{what} must be of the size of the others{' but in length' if padded else ''}: "
                f"got {tuple(value.shape)}, examples[{first_at}] has {tuple(first.shape)}"
            )
        lengths[at] = len(value) if padded else 1
    if not padded:
        blank = torch.full_like(first, padding)
        filled = torch.stack([blank if value is None else value for value in values])
        return filled, lengths.bool().to(first.device)
    # One that is missing is as long as nothing.
    out = pad_sequence([first[:0] if v is None else v for v in values], True, padding)
    extra = -out.shape[1] % multiple
    if extra:
        blank = first.new_full((len(values), extra, *first.shape[1:]), padding)
        out = torch.cat([out, blank], dim=1)
    places = torch.arange(out.shape[1], dtype=torch.int32)
    return out, (places < lengths[:, None]).to(first.device)


def _group_number(group: Any, at: int) -> int:
    """A group as an int64; that of a string is the same in every process and on every machine."""
    if isinstance(group, str):
        digest = hashlib.blake2b(group.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1
    if isinstance(group, bool) or not isinstance(group, int):
        raise TypeError(f"examples[{at}].group must be an int or a string: got {group!r}")
    return group

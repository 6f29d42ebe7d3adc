"""One type for a batch of any modalities.

Every loader yields it, every encoder reads it. A modality that some items of a batch lack is there
with ``keep`` False throughout for these items; one that no item has is ``None``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

__all__ = ["MODALITIES", "Batch", "check_tensor"]

#: The modalities a batch can hold, by the names of its fields.
MODALITIES = ("images", "text", "audio", "video")
#: Number of axes, how many of them (from the left) ``keep`` has, and what the field may hold.
LAYOUT = {
    "images": (4, 1, "floating point or uint8"),
    "text": (2, 2, "integer"),
    "audio": (2, 2, "floating point"),
    "video": (5, 2, "floating point or uint8"),
}


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """A few items, each of any modalities; row ``i`` of every field is about the same item.

    Every field may be None. A keep-mask that is not given is all True; what stands where ``keep``
    is False is padding, and must change no result.

    Attributes:
        images: ``(batch, channels, height, width)``, floating point in [0, 1] (or normalised for
            a model), or uint8.
        images_keep: ``(batch,)``, whether the item has a picture.
        text: ``(batch, length)``, ids of tokens.
        text_keep: ``(batch, length)``, whether there is a token.
        audio: ``(batch, samples)``, mono sound in [-1, 1] at 16,000 Hz.
        audio_keep: ``(batch, samples)``, whether there is sound.
        video: ``(batch, frames, channels, height, width)``, frames as ``images``.
        video_keep: ``(batch, frames)``, whether there is a frame.
        targets: What is to be predicted: ``(batch,)`` classes or numbers, ``(batch, length)`` ids
            or soft labels, or ``(batch, length, ...)``.
        targets_keep: ``(batch,)`` or ``(batch, length)``, whether it counts in the loss. No id
            stands for "ignore".
        ids: What the items are called, one int or string each.
        groups: ``(batch,)`` int64; items of one group show the same thing and are no negatives of
            each other.

    Raises:
        TypeError: A field is not of its type.
        ValueError: A field has another shape than it should; the message names it.

    >>> batch = Batch(text=torch.tensor([[5, 6], [7, 0]]), groups=torch.tensor([1, 2]))
    >>> len(batch), batch.modalities, batch.text_keep.all().item()
    (2, ('text',), True)
    """

    # The sizes of pictures and frames differ, so these have names that are not compared.
    images: (
        Float[Tensor, "batch channels height width"]
        | UInt8[Tensor, "batch channels height width"]
        | None
    ) = None
    images_keep: Bool[Tensor, " batch"] | None = None
    text: Int[Tensor, "batch length"] | None = None
    text_keep: Bool[Tensor, "batch length"] | None = None
    audio: Float[Tensor, "batch samples"] | None = None
    audio_keep: Bool[Tensor, "batch samples"] | None = None
    video: (
        Float[Tensor, "batch frames _channels _height _width"]
        | UInt8[Tensor, "batch frames _channels _height _width"]
        | None
    ) = None
    video_keep: Bool[Tensor, "batch frames"] | None = None
    targets: Float[Tensor, "batch ..."] | Int[Tensor, "batch ..."] | None = None
    targets_keep: Bool[Tensor, "batch ..."] | None = None
    ids: tuple[int | str, ...] | None = None
    groups: Int[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        for name, (axes, keep_axes, kind) in LAYOUT.items():
            value = getattr(self, name)
            check_tensor(name, value, kind)
            if value is not None and value.ndim != axes:
                raise ValueError(f"{name} must have {axes} axes: got shape {tuple(value.shape)}")
            self._check_keep(name, keep_axes)
        check_tensor("targets", self.targets, "floating point or integer")
        if self.targets is not None and self.targets.ndim == 0:
            raise ValueError("targets must have a batch axis: got a tensor without axes")
        self._check_keep("targets", 2)
        check_tensor("groups", self.groups, "integer")
        if self.groups is not None and self.groups.ndim != 1:
            raise ValueError(f"groups must have 1 axis: got shape {tuple(self.groups.shape)}")
        if self.ids is not None:
            if isinstance(self.ids, (str, Tensor)) or not isinstance(self.ids, Sequence):
                raise TypeError(f"ids must be a tuple of ints or strings: got {self.ids!r}")
            object.__setattr__(self, "ids", tuple(self.ids))
        sizes = {name: len(value) for name, value in self._present().items()}
        if not sizes:
            raise ValueError("a batch must have at least one field: all are None")
        first = next(iter(sizes))
        for name, size in sizes.items():
            if size != sizes[first]:
                raise ValueError(
                    f"{name} must have as many items as {first}: got {size}, {first} has "
                    f"{sizes[first]}"
                )

    def _check_keep(self, name: str, axes: int) -> None:
        """Check a keep-mask against its field, or make it."""
        value, keep = getattr(self, name), getattr(self, f"{name}_keep")
        if value is None:
            if keep is not None:
                raise ValueError(f"{name}_keep must be None when {name} is None")
            return
        shape = tuple(value.shape[:axes])
        if keep is None:
            # The one place where a frozen batch is written to: while it is made.
            keep = torch.ones(shape, dtype=torch.bool, device=value.device)
            object.__setattr__(self, f"{name}_keep", keep)
        check_tensor(f"{name}_keep", keep, "bool")
        if tuple(keep.shape) != shape:
            raise ValueError(
                f"{name}_keep must be of shape {shape} as {name} is of {tuple(value.shape)}: "
                f"got {tuple(keep.shape)}"
            )

    def _present(self) -> dict[str, Any]:
        """The fields that are not None."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> "Batch":
        """A batch with the function applied to each tensor."""
        present = self._present().items()
        return replace(self, **{n: function(n, v) for n, v in present if isinstance(v, Tensor)})

    def __len__(self) -> int:
        """Number of items."""
        return len(next(iter(self._present().values())))

    def __repr__(self) -> str:
        shapes = (f"{n} {tuple(v.shape)}" for n, v in self._present().items() if n != "ids")
        return f"Batch({', '.join([str(len(self)), *shapes])})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are there for at least one item, in :data:`MODALITIES`'s order."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)

    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> "Batch":
        """Move to a device, and the floating-point modalities to a dtype.

        Targets keep their dtype, since a loss wants them exact, and so do uint8 pictures.

        Args:
            device: Where to; None leaves it where it is.
            dtype: A floating-point dtype, or None to leave it as it is.
            non_blocking: Whether the copy may go on while the program does (see
                :meth:`torch.Tensor.to`).

        Raises:
            TypeError: ``dtype`` is not a floating-point one.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating-point dtype or None: got {dtype!r}")

        def move(name: str, value: Tensor) -> Tensor:
            cast = dtype if name in MODALITIES and value.is_floating_point() else None
            return value.to(device=device, dtype=cast, non_blocking=non_blocking)

        return self._map(move)

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory, from which copies to a GPU are faster.

        A ``DataLoader`` with ``pin_memory=True`` calls this. It needs a GPU.
        """
        return self._map(lambda _, value: value.pin_memory())

    def select(self, rows: Sequence[int] | slice | Tensor) -> "Batch":
        """Take some of the items, in the order given.

        Args:
            rows: Numbers of items (one may come twice), one True or False an item (a tensor), or
                a slice, whose result shares memory with this batch.

        Returns:
            A batch of the same modalities, padded as this one is.

        Raises:
            TypeError: ``rows`` is none of these.
            IndexError: A number is not below ``len(self)``, or below 0.
            ValueError: There is not one True or False an item.

        >>> batch = Batch(text=torch.tensor([[1], [2], [3]]), ids=("a", "b", "c"))
        >>> batch.select([2, 0]).ids
        ('c', 'a')
        """
        if isinstance(rows, slice):
            numbers = list(range(*rows.indices(len(self))))
            index: Any = rows if rows.step is None or rows.step > 0 else numbers
        else:
            index = _row_numbers(rows, len(self))
            numbers = index.tolist()
        chosen = {
            name: value[index.to(value.device) if isinstance(index, Tensor) else index]
            for name, value in self._present().items()
            if isinstance(value, Tensor)
        }
        if self.ids is not None:
            chosen["ids"] = tuple(self.ids[i] for i in numbers)
        return replace(self, **chosen)

    def without(self, modality: str, rows: Sequence[int] | slice | Tensor | None = None) -> "Batch":
        """Leave a modality out, for all items or for some.

        Args:
            modality: One of :data:`MODALITIES`.
            rows: The items that lose it, as for :meth:`select`. They get ``keep`` False, and zeros
                for contents. None stands for all: the field is then None.

        Raises:
            ValueError: The batch has no such modality.

        >>> batch = Batch(images=torch.rand(2, 3, 8, 8), text=torch.tensor([[1, 2], [3, 4]]))
        >>> batch.without("images").modalities
        ('text',)
        >>> batch.without("text", rows=[1]).text_keep.tolist()
        [[True, True], [False, False]]
        """
        if modality not in self.modalities:
            raise ValueError(
                f"modality must be one that the batch has ({', '.join(self.modalities)}): "
                f"got {modality!r}"
            )
        value, keep = getattr(self, modality), getattr(self, f"{modality}_keep")
        if rows is None:
            return replace(self, **{modality: None, f"{modality}_keep": None})
        if isinstance(rows, slice):
            rows = range(*rows.indices(len(self)))
        index = _row_numbers(rows, len(self)).to(value.device)
        cleared = {
            modality: value.index_fill(0, index, 0),
            f"{modality}_keep": keep.index_fill(0, index, False),
        }
        return replace(self, **cleared)


def _row_numbers(rows: Sequence[int] | Tensor, size: int) -> Tensor:
    """Rows as int64 numbers below ``size``."""
    index = rows if isinstance(rows, Tensor) else torch.as_tensor(list(rows))
    if index.numel() == 0 and not isinstance(rows, Tensor):
        index = index.long()  # an empty list has no type
    if index.ndim != 1 or index.is_floating_point() or index.is_complex():
        raise TypeError(
            "rows must be whole numbers, or True or False an item: "
            f"got dtype {index.dtype}, shape {tuple(index.shape)}"
        )
    if index.dtype == torch.bool:
        if len(index) != size:
            raise ValueError(
                f"rows must have one True or False an item: got {len(index)} of {size}"
            )
        return index.nonzero()[:, 0]
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
        raise IndexError(
            f"rows must be between 0 and {size - 1}: got {int(index.min())} to {int(index.max())}"
        )
    return index.long()


def check_tensor(name: str, value: Any, kind: str) -> None:
    """Raise ``TypeError`` unless the value is None or a tensor of one of the kinds."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor: got {type(value).__name__}")
    integer = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    if not (
        ("floating" in kind and value.is_floating_point())
        or ("integer" in kind and integer)
        or ("uint8" in kind and value.dtype == torch.uint8)
        or ("bool" in kind and value.dtype == torch.bool)
    ):
        article = "an" if kind.startswith("i") else "a"
        raise TypeError(f"{name} must be {article} {kind} tensor: got {value.dtype}")

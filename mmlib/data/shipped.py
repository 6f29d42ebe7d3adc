"""What the data sets of pictures that ship with the library have in common (随库数据).

Each is a folder with a table, a sheet that holds the pictures row by row, and ``SHA256SUMS``.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

SPLITS = ("train", "test", "all")

#: The kind of set that is selected from.
SetT = TypeVar("SetT", bound="PictureSet")


class PictureSet:
    """What sets of pictures with words have in common.

    A set is a frozen dataclass: its field ``images`` is a tensor, every other a tuple, and item
    ``i`` of each is about the same picture.
    """

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def select(self: SetT, indices: Sequence[int] | Tensor | np.ndarray) -> SetT:
        """Take some of the pictures, in the order given.

        Args:
            indices: whole numbers below ``len(self)``; one may come twice.

        Returns:
            A new set; its images are a copy.

        Raises:
            TypeError: if the indices are not whole numbers.
            IndexError: if one is out of range.
        """
        index = checked_indices(indices, len(self))
        words = {
            field.name: tuple(getattr(self, field.name)[i] for i in index.tolist())
            for field in fields(self)
            if field.name != "images"
        }
        return type(self)(images=self.images[index], **words)


def read_set(
    table: str, side: int, split: Any, size: Any, background: Any
) -> tuple[UInt8[Tensor, "pictures channels size size"], list[dict[str, Any]]]:
    """Read the pictures of a split, and the rows of the table; checks what a ``load`` was asked.

    Args:
        table: ``"name.json"`` or ``"name.jsonl"`` in the folder ``name``, beside ``name.webp``.
        side: width and height of a picture as it is stored.
        split: ``"train"``, ``"test"`` or ``"all"``: see :func:`split_of`.
        size: width and height of the results.
        background: colour to lay the pictures on, or None: see :func:`pictures`.

    Raises:
        ValueError: if an argument is not one of the above, or a file is not the one that was
            shipped.
        FileNotFoundError: if a file is missing.
    """
    check_request(split, size, background)
    name, kind = table.split(".")
    files = checked_files(resources.files("mmlib.data") / "files" / name)
    if kind == "jsonl":
        rows = [json.loads(line) for line in files[table].splitlines()]
    else:
        rows = json.loads(files[table])
    kept = [i for i, row in enumerate(rows) if split in ("all", split_of(row["concept"]))]
    images = pictures(files[f"{name}.webp"], side, kept, size, background)
    return images, [rows[i] for i in kept]


def checked_files(folder: Traversable) -> dict[str, bytes]:
    """Read every file that a folder's ``SHA256SUMS`` lists, if each has the digest given there.

    Args:
        folder: where ``SHA256SUMS`` (in the format of the ``sha256sum`` command) lies.

    Returns:
        Contents by file name.

    Raises:
        ValueError: if a file differs from what was shipped; the message names it.
        FileNotFoundError: if a file is missing.
    """
    contents = {}
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, name = line.split(maxsplit=1)
        contents[name] = (folder / name).read_bytes()
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise ValueError(
                f"{name} is not the file that was shipped: its sha256 is {found}, "
                f"expected {expected}. Install mmlib again."
            )
    return contents


def split_of(concept: str) -> str:
    r"""Say whether a concept belongs to ``"train"`` or ``"test"``; any string has an answer.

    .. math:: \text{test} \iff
              \operatorname{SHA256}(\texttt{0/} \mathbin{+} \text{concept}) \bmod 5 = 0

    where the first eight bytes of the digest are read as a big-endian number.

    >>> split_of("heart"), split_of("smiley")
    ('test', 'train')
    """
    digest = hashlib.sha256(f"0/{concept}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 5 == 0 else "train"


def check_request(split: object, size: object, background: object) -> None:
    """Check what a data set's ``load`` was asked for, of whatever type it is.

    Args:
        split: ``"train"``, ``"test"`` or ``"all"``.
        size: width and height in pixels.
        background: colour (red, green, blue; 0 to 255), or None.

    Raises:
        ValueError: if an argument is not one of these.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels above 0: got {size!r}")
    if background is not None and not (
        len(background) == 3
        and all(isinstance(value, int) and 0 <= value <= 255 for value in background)
    ):
        raise ValueError(
            f"background must be three whole numbers from 0 to 255, or None: got {background!r}"
        )


def checked_indices(indices: object, count: int) -> Int64[Tensor, " index"]:
    """Indices into ``count`` items, of whatever type they are, as a tensor.

    Args:
        indices: whole numbers from 0 to ``count - 1``; one may come twice.
        count: how many items there are.

    Raises:
        TypeError: if the indices are not whole numbers.
        IndexError: if one is out of range.
    """
    index = torch.as_tensor(np.asarray(indices, dtype=None if len(indices) else np.int64))
    if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            "indices must be a sequence of whole numbers: "
            f"got dtype {index.dtype}, shape {tuple(index.shape)}"
        )
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise IndexError(
            f"indices must be between 0 and {count - 1}: "
            f"got {int(index.min())} to {int(index.max())}"
        )
    return index.to(torch.int64)


def pictures(
    sheet: bytes,
    side: int,
    indices: Sequence[int],
    size: int,
    background: tuple[int, int, int] | None,
) -> UInt8[Tensor, "pictures channels size size"]:
    """Cut pictures out of a sheet, resample them and lay them on a background.

    Args:
        sheet: an image file that holds square pictures row by row.
        side: width and height of a picture in it.
        indices: which pictures, counted from 0.
        size: width and height of the results; other sizes than ``side`` are resampled (Lanczos).
        background: colour (red, green, blue; 0 to 255) to lay the pictures on, or None to keep
            their opacity as a fourth channel.
    """
    page = Image.open(io.BytesIO(sheet)).convert("RGBA")
    columns = page.width // side
    made = np.empty((len(indices), size, size, 4 if background is None else 3), np.uint8)
    for n, i in enumerate(indices):
        x, y = i % columns * side, i // columns * side
        made[n] = prepared(page.crop((x, y, x + side, y + side)), size, background)
    return torch.from_numpy(made).permute(0, 3, 1, 2).contiguous()


def prepared(tile: Image.Image, size: int, background: tuple[int, int, int] | None) -> np.ndarray:
    """Resample one picture with opacity and lay it on a background.

    Returns:
        uint8 ``(size, size, 3)``, or ``(size, size, 4)`` without a background.
    """
    if size != tile.width:
        # Pillow premultiplies colour with opacity here, so that edges do not darken.
        tile = tile.resize((size, size), Image.Resampling.LANCZOS)
    if background is not None:
        page = Image.new("RGBA", tile.size, background)
        page.alpha_composite(tile)
        tile = page.convert("RGB")
    return np.asarray(tile)

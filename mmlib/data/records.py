"""Records that may be broken: read what can be read, name or count what cannot.

Large data sets have broken records: a picture that was not downloaded, a file cut short, an
annotation of an image that is not there. Each reader takes ``on_error``: with ``"raise"`` a broken
record raises a :class:`RecordError` that names the file and the record; with ``"skip"`` it is left
out and counted by reason, also when a worker process of a DataLoader met it.
"""

import io
import json
import operator
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset, get_worker_info

__all__ = [
    "ON_ERROR",
    "REASONS",
    "RecordDataset",
    "RecordError",
    "Skipped",
    "check_images",
    "open_image",
    "read_json",
]

#: What can be done with a broken record.
ON_ERROR = ("raise", "skip")
#: Why a record can be broken.
REASONS = (
    "missing image",
    "broken image",
    "bad record",
    "bad text",
    "duplicate id",
    "unknown id",
    "nothing to learn",
    "broken shard",
)
_WORKERS = 256
_ORIENTATION = 0x0112  # of EXIF


class RecordError(ValueError):
    """A record cannot be used; the message names the file and the record.

    Attributes:
        reason: One of :data:`REASONS`.
    """

    # DataLoader raises a worker's error again as type(message): more arguments without a
    # default would turn it into a RuntimeError.
    def __init__(self, message: str, reason: str = "bad record"):
        super().__init__(message)
        self.reason = reason


def check_on_error(on_error: object) -> None:
    """Raise unless ``on_error`` is one of :data:`ON_ERROR`."""
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}: got {on_error!r}")


class Skipped:
    """Counts records that were left out, by reason, over all worker processes.

    The counts lie in shared memory, a row for each worker, so that no two processes write to the
    same number and the parent sees what its workers counted.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(_WORKERS, len(REASONS), dtype=torch.int64).share_memory_()

    def add(self, reason: str) -> None:
        """Count one more."""
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % (_WORKERS - 1)
        self._counts[row, REASONS.index(reason)] += 1

    def total(self) -> Counter[str]:
        """How many were left out for each reason; reasons that never came are not in it."""
        sums = self._counts.sum(0).tolist()
        return Counter({reason: n for reason, n in zip(REASONS, sums, strict=True) if n})


class Sieve:
    """Lets good records through, and raises or counts the others, while a file is read.

    Args:
        on_error: One of :data:`ON_ERROR`.
        skipped: Where to count.
    """

    def __init__(self, on_error: str, skipped: Skipped):
        check_on_error(on_error)
        self.on_error, self.skipped, self.problems = on_error, skipped, []

    def refuse(self, reason: str, file: str | os.PathLike, record: str, detail: str) -> None:
        """Raise, or count and remember, that a record is broken."""
        error = RecordError(f"{file}: {record}: {detail}", reason)
        if self.on_error == "raise":
            raise error
        self.skipped.add(reason)
        self.problems.append(error)


class RecordDataset(Dataset, ABC):
    """A map-style data set some of whose records may turn out broken when they are read.

    A subclass defines ``read``, which raises :class:`RecordError` for a broken record. With
    ``on_error="skip"`` a broken record is answered by the next good one (the same one every time,
    whatever the workers), so that batches keep their size. That shows some records twice: to leave
    the broken ones out instead, run :meth:`check` once and :meth:`select` the others.

    Attributes:
        on_error: ``"raise"`` or ``"skip"``.
        problems: The errors of the records that were left out when the files were read.
    """

    on_error: str
    problems: list[RecordError]
    _skipped: Skipped

    @abstractmethod
    def __len__(self) -> int:
        """How many records there are."""

    @abstractmethod
    def read(self, index: int) -> Any:
        """Record ``index``, from 0 to ``len(self) - 1``.

        Raises:
            RecordError: It cannot be read.
        """

    @abstractmethod
    def select(self, indices: list[int]) -> "RecordDataset":
        """Some of the records, in the order given, as a data set of the same kind."""

    @property
    def skipped(self) -> Counter[str]:
        """How many records were left out or replaced so far, by reason, all workers together."""
        return self._skipped.total()

    def __getitem__(self, index: int) -> Any:
        index = self.position(index)
        for step in range(len(self)):
            try:
                return self.read((index + step) % len(self))
            except RecordError as error:
                if self.on_error == "raise":
                    raise
                self._skipped.add(error.reason)
                last = error
        raise RecordError(f"no record of {len(self)} can be read; the last error: {last}")

    def __iter__(self) -> Iterator:
        return (self[index] for index in range(len(self)))

    def position(self, index: int) -> int:
        """An index as a number from 0; negative ones count from the end."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index must be below {len(self)}: got {index}")
        return number % len(self)

    def check(self) -> dict[int, RecordError]:
        """Read every record, and give the errors of the broken ones by their index.

        >>> from tempfile import TemporaryDirectory
        >>> from mmlib.data import coco_example, vqa_v2
        >>> with TemporaryDirectory() as folder:
        ...     files = coco_example.write_example(folder, images=10)
        ...     data = vqa_v2.VQA(files.val_questions, files.val_annotations, files.val_images)
        ...     broken = data.check()
        ...     good = data.select([i for i in range(len(data)) if i not in broken])
        >>> len(broken), len(good) == len(data)
        (0, True)
        """
        broken = {}
        for index in range(len(self)):
            try:
                self.read(index)
            except RecordError as error:
                broken[index] = error
        return broken


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: It is not there.
        RecordError: It is not JSON; the message says where it breaks.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is not JSON: {error}") from error


def records_of(content: Any, field: str, path: str | os.PathLike) -> list:
    """The list of records under a field of a JSON file, which must not be empty.

    Raises:
        RecordError: There is no such list.
    """
    found = content.get(field) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise RecordError(f"{path}: {field} must be a list: got {type(found).__name__}")
    if not found:
        raise RecordError(f"{path}: {field} must not be empty", "nothing to learn")
    return found


def is_id(value: object) -> bool:
    """Whether a value can be an id: a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether a value is a string that says something."""
    return isinstance(value, str) and bool(value.strip())


def check_images(root: Path, names: list[str]) -> set[str]:
    """The names of which no file lies under ``root``.

    Folders are listed rather than files asked for one by one: 118,000 files take a fraction of a
    second.
    """
    listed: dict[str, set[str]] = {}
    missing = set()
    for name in names:
        folder, file = os.path.split(name)
        if folder not in listed:
            there = (root / folder).is_dir()
            listed[folder] = {e.name for e in os.scandir(root / folder)} if there else set()
        if file not in listed[folder]:
            missing.add(name)
    return missing


def open_image(source: Path | bytes, name: str) -> Image.Image:
    """Decode a picture to red, green and blue, the right way up.

    Greyscale, palette and CMYK pictures are converted. A camera's note in the EXIF data that the
    picture lies on its side is followed, which torchvision's ``CocoCaptions`` does not do.

    Args:
        source: A file, or its content.
        name: What to call it in an error.

    Returns:
        The picture, mode ``"RGB"``, fully decoded.

    Raises:
        RecordError: There is no such file, or it is not a whole picture.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.getexif().get(_ORIENTATION, 1) != 1:  # else it would be copied for nothing
                image = ImageOps.exif_transpose(image)
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise RecordError(f"{name}: there is no such file", "missing image") from error
    # Decoders raise OSError, SyntaxError, ValueError, struct.error and others on bad data.
    except Exception as error:
        message = f"{name}: not a readable picture: {type(error).__name__}: {error}"
        raise RecordError(message, "broken image") from error

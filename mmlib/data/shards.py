"""Pictures and their texts in tar files, read one after another.

A folder of a million small files is slow to read, above all from a disk that is not in the
machine. So large data sets are kept in *shards*, tar files of some thousand samples each, in the
format of the webdataset library: files whose names differ in the extension alone make one sample
(``000000000009.jpg``, ``000000000009.json``).

::

    from mmlib.data import coco, shards

    data = coco.Captions("train2017", "annotations/captions_train2017.json")
    shards.write_shards(data.records(), "shards", per_shard=1000)
    stream = shards.ShardStream("shards", seed=0)
    loader = DataLoader(stream, batch_size=64, num_workers=4, collate_fn=...)

Pictures and JSON are decoded; whatever else a shard contains stays bytes. (webdataset's own
``decode()`` unpickles members named ``.pyd`` and ``.pickle``, which runs whatever code they
contain, and it runs addresses that begin with ``pipe:`` as shell commands. Neither can happen
here.)
"""

import json
import os
import random
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from mmlib.data.records import (
    RecordError,
    Skipped,
    check_on_error,
    open_image,
    read_json,
    records_of,
)
from mmlib.data.scenes.draws import Dice, check_seed, key
from mmlib.data.shard_writer import INDEX, PICTURES, write_shards

try:
    import webdataset
    from webdataset import gopen, tariterators
except ImportError as error:
    raise ImportError('mmlib.data.shards needs webdataset: pip install "mmlib[coco]"') from error

__all__ = ["INDEX", "Sample", "ShardStream", "write_shards"]

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)


class Sample(NamedTuple):
    """What a shard holds of one picture.

    Attributes:
        key: Its name.
        image: The picture, transformed if a transform was given.
        record: The JSON: captions, or questions and their answers.
        other: Whatever else came with it, by extension, as bytes.
    """

    key: str
    image: Any
    record: dict
    other: dict[str, bytes]


class ShardStream(IterableDataset):
    """A stream of :class:`Sample`, for a DataLoader.

    Every epoch has every sample once, whatever the number of processes and of DataLoader workers:
    the shards are put into an order that all agree on, each process takes every
    ``world_size``-th of them, and each of its workers every so many-th of those. The order of
    samples does depend on the number of workers. Processes whose shards hold different numbers
    of samples come to their ends at different times: see :meth:`samples`.

    Args:
        source: A folder of shards (with :data:`INDEX` or without), or shards: files, or addresses
            that begin with ``http://`` or ``https://``, which ``curl`` then reads.
        seed: Of the order of shards and samples; None keeps the order in which they stand.
        buffer: How many samples are held to draw the next one from. Their bytes are held, not
            their pixels.
        transform: Of the picture.
        on_error: ``"raise"``, or ``"skip"`` to leave broken samples out and count them.
        rank: Which process this is; by default that of ``torch.distributed``, or of the
            environment variables ``RANK`` and ``WORLD_SIZE``, else 0.
        world_size: How many processes there are.

    Raises:
        FileNotFoundError: The folder or one of the files does not exist.
        ValueError: There is no shard or not one for every process, an address is of another kind,
            or an argument is out of range.
        RecordError: The index is not one.
    """

    def __init__(
        self,
        source: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        seed: int | None = None,
        buffer: int = 1000,
        transform: Callable | None = None,
        on_error: str = "raise",
        rank: int | None = None,
        world_size: int | None = None,
    ):
        check_on_error(on_error)
        if buffer < 1:
            raise ValueError(f"buffer must be at least 1: got {buffer}")
        self.shards, self._samples = _find(source)
        self.seed = None if seed is None else check_seed(seed)
        self.buffer, self.transform, self.on_error = buffer, transform, on_error
        # Now, in the process itself: its workers know nothing of the process group.
        found_rank, found_size, _, _ = webdataset.utils.pytorch_worker_info()
        self.rank = found_rank if rank is None else rank
        self.world_size = found_size if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be below world_size: got {self.rank}, {self.world_size}")
        if len(self.shards) < self.world_size:
            raise ValueError(
                f"there must be a shard for every process: got {len(self.shards)} for "
                f"{self.world_size}; write smaller ones"
            )
        self._skipped = Skipped()
        # In shared memory, so that workers that live on see it change.
        self._start = torch.zeros(3, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int, *, skip_shards: int = 0, skip: int = 0) -> None:
        """Choose the order of the next pass, and where it starts.

        A run that stopped can go on where it was: after ``n`` samples without workers by
        ``skip=n``, which reads and drops them (and decodes them if broken ones are skipped, to
        count the same); at a shard's beginning by ``skip_shards``, which reads nothing.

        Args:
            epoch: The number of the pass; with a seed each has another order.
            skip_shards: How many shards of this order to leave out, of all processes together.
            skip: How many samples to leave out after those, of this process.

        Raises:
            ValueError: A number is negative.
        """
        for name, value in (("epoch", epoch), ("skip_shards", skip_shards), ("skip", skip)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0: got {value}")
        self._start.copy_(torch.tensor([epoch, skip_shards, skip]))

    @property
    def skipped(self) -> Counter[str]:
        """How many samples and shards were left out so far, by reason, all workers together."""
        return self._skipped.total()

    def order(self, worker: int = 0, workers: int = 1) -> list[str]:
        """The shards that a worker of this process reads in the next pass, in order."""
        epoch, skip_shards, _ = self._start.tolist()
        shards = self.shards
        if self.seed is not None:
            shards = Dice(self.seed, 0x5A4D, epoch).shuffled(shards)
        return shards[skip_shards:][self.rank :: self.world_size][worker::workers]

    def samples(self) -> int:
        """How many samples this process has in the next pass, ``skip`` left aside.

        Raises:
            ValueError: It is not known: the shards came without :data:`INDEX`.
        """
        if not self._samples:
            raise ValueError(f"shards must come with {INDEX} to know their samples: got none")
        return sum(self._samples[shard] for shard in self.order())

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, _, skip = self._start.tolist()
        if skip and workers > 1:
            raise ValueError(
                f"skip must be 0 with several workers: got {skip} with {workers}; "
                "give skip_shards, or use one worker"
            )
        raw: Iterator[dict] = self._raw(self.order(worker, workers))
        if self.seed is not None:
            seed = key(self.seed, 0xB0FF, epoch, self.rank, worker)
            shuffle = webdataset.shuffle(self.buffer, initial=self.buffer, rng=random.Random(seed))
            raw = shuffle(raw)
        for sample in raw:
            if skip and self.on_error == "raise":
                skip -= 1
                continue
            try:
                decoded = self._decode(sample)
            except RecordError as error:
                self._refuse(error)
                continue
            if skip:
                skip -= 1
            else:
                yield decoded

    def _refuse(self, error: RecordError) -> None:
        if self.on_error == "raise":
            raise error
        self._skipped.add(error.reason)

    def _raw(self, shards: list[str]) -> Iterator[dict]:
        """The samples of some shards, as bytes."""
        for shard in shards:
            found = 0
            try:
                for sample in _read_shard(shard):
                    found += 1
                    yield sample
                expected = self._samples.get(shard, found)
                if found != expected:
                    # A tar file cut between two members ends like a whole one.
                    detail = f"{found} samples instead of {expected}"
                    self._refuse(RecordError(f"{shard}: {detail}", "broken shard"))
            except RecordError:
                raise
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                # The library appends the stream and the address to the arguments.
                detail = error.args[0] if error.args else type(error).__name__
                message = f"{shard}: cannot be read after sample {found}: {detail}"
                self._refuse(RecordError(message, "broken shard"))

    def _decode(self, sample: dict) -> Sample:
        name = f"{sample['__url__']}: sample {sample['__key__']}"
        members = {kind: data for kind, data in sample.items() if not kind.startswith("__")}
        pictures = [kind for kind in PICTURES if kind in members]
        if not pictures:
            raise RecordError(f"{name}: it has no picture", "missing image")
        image = open_image(members.pop(pictures[0]), name)
        try:
            record = json.loads(members.pop("json", b""))
        except ValueError as error:
            raise RecordError(f"{name}: no good JSON: {error}", "bad record") from error
        if not isinstance(record, dict):
            raise RecordError(f"{name}: JSON must be an object: got {record!r}", "bad record")
        if self.transform is not None:
            image = self.transform(image)
        return Sample(sample["__key__"], image, record, members)


def _find(source: Any) -> tuple[list[str], dict[str, int]]:
    """The shards of a source, and how many samples they hold if that is known."""
    samples: dict[str, int] = {}
    single = isinstance(source, (str, os.PathLike))
    folder = Path(source) if single else None
    if folder is None or not folder.is_dir():
        shards = [str(shard) for shard in ([source] if single else source)]
    elif (folder / INDEX).exists():
        rows = records_of(read_json(folder / INDEX), "shards", folder / INDEX)
        try:
            samples = {str(folder / row["name"]): int(row["samples"]) for row in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{folder / INDEX}: shards need name and samples") from error
        shards = list(samples)
    else:
        shards = sorted(str(path) for path in folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"source must contain shards: got none in {source}")
    for shard in shards:
        if not (_is_remote(shard) or Path(shard).is_file()):
            if _ADDRESS.match(shard):
                raise ValueError(f"source must be files or http(s) addresses: got {shard!r}")
            raise FileNotFoundError(f"there is no shard at {shard}")
    return shards, samples


def _is_remote(shard: str) -> bool:
    return shard.lower().startswith(("http://", "https://"))


def _read_shard(shard: str) -> Iterator[dict]:
    """The samples of one shard as bytes, by webdataset's functions that do not decode."""
    broken: list[Exception] = []

    def members() -> Iterator[dict]:
        try:
            yield from tariterators.tar_file_expander([{"url": shard, "stream": file}])
        except (tarfile.TarError, OSError, EOFError) as error:
            # Raised here, it would take the sample before it along: that is held until the next
            # one begins. An empty dictionary is the end of a shard.
            broken.append(error)
            yield {}

    with gopen.gopen_curl(shard) if _is_remote(shard) else open(shard, "rb") as file:
        for sample in tariterators.group_by_keys(members()):
            if not (broken and "json" not in sample):  # else it was cut in the middle
                yield sample
    if broken:
        raise broken[0]

"""Which items make up which batch: in random order, by length, for several processes.

A sampler is a pure function of a batch's number, counted from the first batch of the first epoch.
So to resume a run one number is enough, and nothing has to be drawn again to get there::

    sampler = BatchSampler(len(pairs), batch_size=64, seed=0)
    sampler(1000)  # the items of batch 1000, whatever was asked for before

The orders come from the integers of :mod:`mmlib.data.scenes.draws`: they are the same on every
machine and in every version of every library, and no global random state is read or changed.
:class:`mmlib.data.loader.Loader` reads items by a sampler, with workers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from mmlib.data.scenes.draws import check_seed, key, keys

__all__ = ["BatchSampler", "BucketSampler", "item_generator", "item_seed", "padding_share"]

# Each use of a seed has a stream of its own, so that one tells nothing of another.
_ITEMS, _BATCHES, _DRAWS = 0x17E45, 0xBA7C4, 0xD9A35


class BatchSampler:
    """Every item once an epoch, in batches of one size.

    With several processes each one has a sampler that differs in ``rank`` only. Together their
    batches of one number are the next ``batch_size * world_size`` items of the epoch's order, so
    that the same global batch comes from any number of processes that divides it. All processes
    have equally many batches. What is left at an epoch's end is shared out evenly; only where it is
    fewer items than processes are some of these given to a second process as well (with
    ``drop_last`` all batches are full, and what is left over is left out, other items each epoch).

    Args:
        size: Number of items.
        batch_size: Items in a batch, on each process.
        seed: Of the orders.
        shuffle: Whether each epoch has a random order of its own; else 0, 1, 2, ….
        drop_last: Whether to leave out a batch that is not full. Needed where all processes must
            have batches of one size (:func:`mmlib.training.distributed.all_gather`).
        rank: The number of this process.
        world_size: How many processes there are.

    Raises:
        TypeError: A number is not whole.
        ValueError: ``size``, ``batch_size`` or ``world_size`` is below 1, ``rank`` is none of the
            ranks, or no batch is left.

    >>> sampler = BatchSampler(5, batch_size=2, seed=0)
    >>> len(sampler), [sampler(number) for number in range(3)]
    (3, [[0, 1], [4, 3], [2]])
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        counts, rows = [at_least(1, "size", size)], [at_least(1, "batch_size", batch_size)]
        self._set_up(counts, rows, seed, shuffle, drop_last, rank, world_size)

    def _set_up(
        self,
        counts: Sequence[int],
        rows: Sequence[int],
        seed: object,
        shuffle: object,
        drop_last: object,
        rank: object,
        world_size: object,
    ) -> None:
        """Cut buckets of so many items into batches of so many rows."""
        self.size, self.seed, self.shuffle = sum(counts), check_seed(seed), bool(shuffle)
        self.drop_last = bool(drop_last)
        self.world_size = at_least(1, "world_size", world_size)
        self.rank = at_least(0, "rank", rank)
        if self.rank >= self.world_size:
            raise ValueError(f"rank must be below world_size: got {rank} of {world_size}")
        self._counts, self._rows = list(counts), list(rows)
        firsts = np.cumsum([0, *counts[:-1]]).tolist()
        parts = [
            _cut(*bucket, self.drop_last, self.rank, self.world_size)
            for bucket in zip(firsts, counts, rows, strict=True)
        ]
        #: For each batch of an epoch, where it begins and ends in the epoch's order.
        self._starts, self._stops = np.concatenate(parts, axis=1)
        if not len(self._starts):
            raise ValueError(
                "drop_last must leave at least one batch: got "
                f"{self.size} items for {world_size} × {max(rows)}"
            )
        self._epoch = -1

    def __len__(self) -> int:
        """Number of batches in an epoch, the same in each epoch and on each process."""
        return len(self._starts)

    def epoch(self, number: int) -> int:
        """The epoch of a batch, counted from 0."""
        return at_least(0, "number", number) // len(self)

    def __call__(self, number: int) -> list[int]:
        """The items of a batch.

        Args:
            number: Of the batch, from 0 without an end: ``len(self)`` is the first of epoch 1.

        Raises:
            TypeError: The number is not whole.
            ValueError: It is below 0.
        """
        epoch = at_least(0, "number", number) // len(self)
        if epoch != self._epoch:
            self._order, self._batches = self._draw(epoch)
            self._epoch = epoch
        at = self._batches[number % len(self)]
        return self._order[self._starts[at] : self._stops[at]].tolist()

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's order of the items, and of the batches."""
        batches = np.arange(len(self))
        if not self.shuffle:
            return self._sorted(None), batches
        if len(self._counts) > 1:
            batches = np.argsort(keys(key(self.seed, epoch), _BATCHES, batches), kind="stable")
        return self._sorted(keys(key(self.seed, epoch), _ITEMS, np.arange(self.size))), batches

    def _sorted(self, draws: np.ndarray | None) -> np.ndarray:
        """The items, bucket by bucket, in each by their draws."""
        return np.arange(self.size) if draws is None else np.argsort(draws, kind="stable")

    def state(self) -> dict[str, Any]:
        """What the orders depend on, for a checkpoint to compare; plain numbers.

        It is the same in all processes. It is also the same for one process with batches of 64 and
        two with batches of 32, since their global batches are the same.
        """
        rows = [rows * self.world_size for rows in self._rows]
        state = {name: getattr(self, name) for name in ("size", "seed", "shuffle", "drop_last")}
        return state | {"bucket_sizes": self._counts, "global_batch_sizes": rows}


class BucketSampler(BatchSampler):
    r"""Every item once an epoch, in batches of items of about one length.

    A batch is padded to its longest item, and what is computed on padding is computed for nothing.
    The lengths are cut into buckets; an epoch shuffles the items within each, cuts them into
    batches and shuffles the batches of all buckets together. The cuts are those with the least

    .. math:: \sum_b \sum_{i \in b} \left(\max_{j \in b} n_j - n_i\right),

    where :math:`n_i` are the lengths and :math:`b` the buckets: the padding if every batch were
    as long as its bucket's longest item. Since buckets stay, an epoch always has the same number of
    batches, and any two items of a bucket can meet in a batch. At an epoch's end each bucket, not
    only the last, may have a batch that is not full: take fewer buckets for little data.

    All processes get batches from one bucket at a time, and so equally much work.

    Args:
        lengths: The length of each item, as it is padded.
        batch_size: The most items in a batch, or None.
        max_tokens: The most that a batch holds with its padding, items × longest; or None. One of
            the two must be given.
        buckets: How many buckets; fewer if there are fewer lengths.
        seed: Of the orders.
        shuffle: Whether each epoch has a random order of its own; else batches go from short to
            long.
        drop_last: Whether to leave out batches that are not full.
        rank: The number of this process.
        world_size: How many processes there are.

    Raises:
        TypeError: A number is not whole.
        ValueError: A number is out of range, neither ``batch_size`` nor ``max_tokens`` is given,
            an item is longer than ``max_tokens``, or no batch is left.

    >>> sampler = BucketSampler([3, 9, 2, 8, 3], max_tokens=18, buckets=2, seed=0)
    >>> sorted(sorted(sampler(number)) for number in range(len(sampler)))
    [[0, 2, 4], [1, 3]]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        seed: int,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        buckets: int = 8,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        sizes = _lengths(lengths)
        if batch_size is None and max_tokens is None:
            raise ValueError("batch_size or max_tokens must be given: both are None")
        most = len(sizes) if batch_size is None else at_least(1, "batch_size", batch_size)
        if max_tokens is not None and sizes.max() > at_least(1, "max_tokens", max_tokens):
            raise ValueError(
                f"lengths must be at most max_tokens={max_tokens}: "
                f"got lengths[{sizes.argmax()}]={sizes.max()}"
            )
        longest = _longest_of_buckets(sizes, at_least(1, "buckets", buckets))
        self._bucket = np.searchsorted(longest, sizes)
        rows = [most if max_tokens is None else min(most, max_tokens // max(n, 1)) for n in longest]
        counts = np.bincount(self._bucket, minlength=len(longest)).tolist()
        self._set_up(counts, rows, seed, shuffle, drop_last, rank, world_size)

    def _sorted(self, draws: np.ndarray | None) -> np.ndarray:
        second = np.arange(self.size) if draws is None else draws
        return np.lexsort((second, self._bucket))


def padding_share(lengths: Sequence[int] | np.ndarray, batches: Iterable[Sequence[int]]) -> float:
    """The part of the batches that is padding: 0 for none, 0.5 for half of it.

    Args:
        lengths: The length of each item.
        batches: The items of each batch, padded to the longest of them.

    Raises:
        ValueError: There is no batch, or all items have length 0.

    >>> padding_share([2, 4], [[0, 1]])
    0.25
    """
    sizes = _lengths(lengths)
    rows = [sizes[list(batch)] for batch in batches]
    whole = sum(len(row) * int(row.max()) for row in rows)
    if not whole:
        raise ValueError("batches must have at least one item that is longer than 0")
    return 1 - sum(int(row.sum()) for row in rows) / whole


def item_seed(seed: int, epoch: int, index: int) -> int:
    """A seed for what is random about one item in one epoch, such as its augmentation.

    It does not depend on the batch, the process or the worker that reads the item, so neither do
    the numbers that are drawn with it.

    Args:
        seed: Of the run.
        epoch: The epoch.
        index: The item.

    Returns:
        A number from 0 to 2⁶³ − 1.

    Raises:
        TypeError: An argument is not a whole number.
        ValueError: An argument is below 0.

    >>> item_seed(0, 0, 1) == item_seed(0, 0, 1) != item_seed(0, 1, 1)
    True
    """
    epoch, index = at_least(0, "epoch", epoch), at_least(0, "index", index)
    return key(check_seed(seed), _DRAWS, epoch, index) >> 1


def item_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A generator for what is random about one item in one epoch; see :func:`item_seed`."""
    epoch, index = at_least(0, "epoch", epoch), at_least(0, "index", index)
    return torch.Generator().manual_seed(item_seed(seed, epoch, index))


def _cut(
    first: int, count: int, rows: int, drop_last: bool, rank: int, world_size: int
) -> np.ndarray:
    """Where a rank's batches of a bucket begin and end in the order: ``(2, batches)``."""
    whole, rest = divmod(count, rows * world_size)
    starts = first + (np.arange(whole) * world_size + rank) * rows
    stops = starts + rows
    if rest and not drop_last:
        # Evenly: 5 items are 3 and 2, and 2 items for 3 processes 1, 1, 1, the first one twice.
        share = -(-rest // world_size) if rank < rest % world_size else rest // world_size
        begin = rank * (rest // world_size) + min(rank, rest % world_size)
        if share == 0:
            begin, share = rank % rest, 1
        start = first + whole * rows * world_size + begin
        starts, stops = np.append(starts, start), np.append(stops, start + share)
    return np.stack([starts, stops])


def _longest_of_buckets(sizes: np.ndarray, buckets: int, levels: int = 256) -> list[int]:
    """The longest length of each bucket, for the least padding; by dynamic programming."""
    values, counts = np.unique(sizes, return_counts=True)
    if len(values) > levels:
        # Lengths in samples are nearly all different. A cut every 1/256 of the items is enough.
        ends = np.unique(
            np.searchsorted(np.cumsum(counts), np.linspace(0, len(sizes), levels + 1)[1:])
        )
        counts = np.add.reduceat(counts, np.concatenate([[0], ends[:-1] + 1]))
        values = values[ends]
    # cost[i, j]: padded size of one bucket with the lengths i … j. The sum of the lengths
    # themselves is the same for all cuts, so the padded size stands for the padding.
    before = np.concatenate([[0], np.cumsum(counts)])
    cost = np.triu((before[None, 1:] - before[:-1, None]) * values[None, :]).astype(float)
    cost[np.tril_indices(len(values), -1)] = np.inf
    best, choices = cost[0], []
    for _ in range(min(buckets, len(values)) - 1):
        # The last bucket begins at i: the ones before end at i - 1.
        totals = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        choices.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    last, found = len(values) - 1, []
    for choice in reversed(choices):
        found.append(int(values[last]))
        last = int(choice[last]) - 1
    return [int(values[last]), *reversed(found)]


def _lengths(lengths: object) -> np.ndarray:
    """Lengths as an array of whole numbers, none below 0."""
    sizes = np.asarray(lengths)
    if sizes.ndim != 1 or not len(sizes):
        raise ValueError(f"lengths must be one number an item: got shape {sizes.shape}")
    if sizes.dtype.kind not in "iu":
        raise TypeError(f"lengths must be whole numbers: got dtype {sizes.dtype}")
    if sizes.min() < 0:
        raise ValueError(f"lengths must not be below 0: got {sizes.min()}")
    return sizes.astype(np.int64)


def at_least(low: int, name: str, value: object) -> int:
    """The value as an int; ``TypeError`` or ``ValueError`` unless it is whole and not below."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number: got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}: got {value}")
    return int(value)

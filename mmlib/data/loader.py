"""Items read, changed at random and put together to batches: by number, with workers or without."""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from mmlib.data.collation import collate
from mmlib.data.samplers import BatchSampler, at_least, item_generator
from mmlib.data.scenes.draws import check_seed

__all__ = ["Loader"]

BatchT = TypeVar("BatchT")


class Loader(Generic[BatchT]):
    """The batches of a data set, as a function of the batch's number.

    :func:`mmlib.training.fit` takes it as it is, and a run that is resumed continues with the next
    batch, in the middle of an epoch as well: ``fit`` asks for batch 1000, and workers start there.
    What workers read ahead does not count, since only what is asked for does.

    A loop of one's own goes through it epoch by epoch, and keeps :meth:`state_dict`::

        loader = Loader(pairs, BatchSampler(len(pairs), 64, seed=0), workers=2)
        for batch in loader:  # the rest of the epoch
            ...
            torch.save(loader.state_dict(), path)

    **Workers change nothing.** What is random about an item comes from the generator that
    ``transform`` gets, which depends on the seed, the epoch and the item alone. (Numbers from
    torch's or Python's global generator would depend on the worker.) So 0 and 3 workers give the
    same batches bit for bit, and one process gives what several do.

    Args:
        dataset: Anything with ``dataset[index]``. With workers it is copied to each (and pickled,
            where processes are spawned).
        sampler: Which items make up a batch.
        transform: ``transform(item, generator)`` gives the item to collate; done in the worker.
        collate_fn: Makes a batch of a list of items.
        seed: Of the generators for ``transform``; None is the sampler's.
        workers: How many processes read ahead; 0 reads when asked.
        prefetch: How many batches each worker reads ahead.
        pin_memory: Whether batches are copied to page-locked memory, for a GPU.
        start_method: How processes start: ``"fork"``, ``"spawn"``, ``"forkserver"``, or None for
            Python's default on this system.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: A number is out of range, or the start method is unknown.

    >>> loader = Loader([{"text": [i]} for i in range(5)], BatchSampler(5, 2, seed=0))
    >>> [batch.text[:, 0].tolist() for batch in loader]
    [[0, 1], [4, 3], [2]]
    >>> loader(1).text[:, 0].tolist()
    [4, 3]
    """

    def __init__(
        self,
        dataset: Any,
        sampler: BatchSampler,
        *,
        transform: Callable[[Any, torch.Generator], Any] | None = None,
        collate_fn: Callable[[list], BatchT] = collate,
        seed: int | None = None,
        workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        start_method: str | None = None,
    ) -> None:
        if not hasattr(dataset, "__getitem__"):
            raise TypeError(f"dataset must have dataset[index]: got {type(dataset).__name__}")
        if not isinstance(sampler, BatchSampler):
            raise TypeError(f"sampler must be a BatchSampler: got {type(sampler).__name__}")
        if hasattr(dataset, "__len__") and len(dataset) != sampler.size:
            raise ValueError(
                f"sampler must be for as many items as dataset has: got {sampler.size}, "
                f"dataset has {len(dataset)}"
            )
        at_least(0, "workers", workers)
        at_least(1, "prefetch", prefetch)
        methods = multiprocessing.get_all_start_methods()
        if start_method is not None and start_method not in methods:
            raise ValueError(
                f"start_method must be one of {', '.join(methods)}, or None: got {start_method!r}"
            )
        self.sampler = sampler
        self._items = _Items(dataset, transform, sampler.seed if seed is None else check_seed(seed))
        self._collate, self._pin = collate_fn, bool(pin_memory)
        self._workers: dict[str, Any] = {}
        if workers:
            self._workers = {
                "num_workers": workers,
                "prefetch_factor": prefetch,
                "multiprocessing_context": start_method,
            }
        #: How many batches were handed out to who iterates: the number of the next one.
        self.number = 0
        self._source: Iterator[BatchT] | None = None
        self._next = 0

    def __call__(self, number: int) -> BatchT:
        """The batch of a number, counted from the first of epoch 0 without an end.

        Numbers one after another are quick; any other starts the workers anew.

        Raises:
            TypeError: The number is not whole.
            ValueError: It is below 0.
        """
        number = at_least(0, "number", number)
        if self._source is None or number != self._next:
            self._source = iter(
                DataLoader(
                    self._items,
                    batch_sampler=_Keys(self.sampler, number),
                    collate_fn=self._collate,
                    pin_memory=self._pin,
                    # Without one of its own it draws a number from torch's global generator.
                    generator=torch.Generator(),
                    **self._workers,
                )
            )
        try:
            batch = next(self._source)
        except BaseException:
            self._source = None  # what comes after a failure starts anew
            raise
        self._next = number + 1
        return batch

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[BatchT]:
        """The batches of the epoch from :attr:`number` on, each counted as it is handed out."""
        epoch = self.epoch
        while self.epoch == epoch:
            batch = self(self.number)
            self.number += 1
            yield batch

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, counted from 0."""
        return self.sampler.epoch(self.number)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs: plain numbers, the same in all processes."""
        return {"number": self.number, "item_seed": self._items.seed, **self.sampler.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the batch that would have come next when the state was taken.

        Raises:
            ValueError: The state is of another size, seed or global batch size, with which the
                batches would be others.
        """
        now, then = self.state_dict(), dict(state)
        changed = [n for n in {**now, **then} if n != "number" and now.get(n) != then.get(n)]
        if changed or "number" not in then:
            what = ", ".join(f"{n} was {then.get(n)!r}, is {now.get(n)!r}" for n in changed)
            raise ValueError(f"state must be of a loader with the same batches: {what or then!r}")
        self.number = at_least(0, "number", then["number"])

    def close(self) -> None:
        """Stop the workers; asking for a batch starts them again."""
        self._source = None


class _Items(Dataset):
    """The data set, by pairs (epoch, index), as workers read it."""

    def __init__(self, dataset: Any, transform: Callable | None, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitem__(self, where: tuple[int, int]) -> Any:
        epoch, index = where
        try:
            item = self.dataset[index]
            if self.transform is None:
                return item
            return self.transform(item, item_generator(self.seed, epoch, index))
        except Exception as error:
            error.add_note(f"This was item {index} of the data set, in epoch {epoch}.")
            raise


class _Keys:
    """What the items of each batch are read by, from a number on, without an end."""

    def __init__(self, sampler: BatchSampler, start: int) -> None:
        self.sampler, self.start = sampler, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.start
        while True:
            epoch = self.sampler.epoch(number)
            yield [(epoch, index) for index in self.sampler(number)]
            number += 1

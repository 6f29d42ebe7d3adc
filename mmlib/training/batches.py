"""Batches without an end, that a resumed run finds again."""

import itertools
from collections.abc import Iterator
from typing import Any

from mmlib.training import rng

_END = object()


def stream(batches: Any, total: int, seed: int, start: int = 0) -> Iterator:
    """The batches from number ``start`` on, again and again.

    Args:
        batches: A function of a batch's number, or something to iterate over.
        total: How many are wanted; for the message.
        seed: Of loaders that draw from torch's global generator.
        start: How many to leave out: those a run had before it was stopped.

    Raises:
        ValueError: There is nothing more to iterate over.

    >>> batches = stream(["a", "b"], total=5, seed=0, start=1)
    >>> next(batches), next(batches), next(batches)
    ('b', 'a', 'b')
    """
    if callable(batches):
        yield from map(batches, itertools.count(start))
    # A loader that shuffles draws from the global generator. It gets one of its own, so that its
    # order does not depend on dropout, and so that a resumed run can go through it again.
    order, number = rng.Stream(seed), 0
    while True:
        with order.active():
            iterator = iter(batches)
        empty = True
        while True:
            with order.active():
                batch = next(iterator, _END)
            if batch is _END:
                break
            empty, number = False, number + 1
            if number > start:
                yield batch
        if empty:
            raise ValueError(
                f"batches ran out after {number} of {total}: give a "
                "list, a DataLoader or a function of the batch's number, which do not run out"
            )

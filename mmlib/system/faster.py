"""What makes large runs faster or smaller and changes no result, but for rounding.

- :class:`Ahead`: other processes work batches out before they are asked for, since a GPU would wait
  for words otherwise;
- :func:`compiled`: the blocks as few fused kernels;
- :func:`recomputed`: blocks that forget what they computed, and compute it again for the gradient.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from mmlib.training.distributed import world_size

__all__ = ["Ahead", "attention_kernel", "compiled", "recomputed", "workers"]

MOST_WORKERS = 12


def workers() -> int:
    """How many processes work batches out: none without a GPU, where they would be in the way.

    None either where processes cannot be forked.
    """
    if not torch.cuda.is_available() or sys.platform != "linux":
        return 0
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 2))


class Ahead:
    """Batches of a function of their number, worked out ahead in other processes.

    They come as the function gives them, so that a run finds the same batches with and without.
    Processes of one training take turns, so that each skips the batches of the others.

    Args:
        batches: The function. It must not use a GPU.
        workers: How many processes, at least 1. They are forked, and share the function's data.

    Raises:
        ValueError: ``workers`` is below 1.
    """

    def __init__(self, batches: Callable[[int], Any], workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1: got {workers}")
        self.batches, self.workers = batches, workers
        self.next: int | None = None
        self.coming: Iterator | None = None

    def __call__(self, number: int) -> Any:
        """A batch; the one after it comes fastest."""
        if number != self.next:
            loader = DataLoader(
                _Numbered(self.batches),
                batch_size=None,
                sampler=range(number, 2**62, world_size()),
                collate_fn=_as_it_is,
                num_workers=self.workers,
                multiprocessing_context="fork",
            )
            self.coming = iter(loader)
        self.next = number + world_size()
        return next(self.coming)


class _Numbered(Dataset):
    def __init__(self, batches: Callable[[int], Any]) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> Any:
        return self.batches(number)


def _as_it_is(batch: Any) -> Any:
    return batch


def attention_kernel() -> AbstractContextManager:
    """The fastest attention for short rows: without a GPU plain products, not the fused kernel.

    Its gradient is slow in bf16 on a CPU: a step of profile ``cpu`` took 0.13 s with it and 0.11 s
    without, on one core of a busy machine.
    """
    return nullcontext() if torch.cuda.is_available() else sdpa_kernel([SDPBackend.MATH])


@contextmanager
def recomputed(blocks: Iterable[nn.Module], on: bool = True) -> Iterator[None]:
    """Blocks that keep nothing but their input for the gradient (activation checkpointing).

    The memory of activations shrinks from that of all blocks to that of one, and the input of each;
    the forward pass is done twice, so that a step takes about a third longer. Values and gradients
    are the same, dropout's random numbers too.

    Args:
        blocks: They are as before when the context ends.
        on: Whether to do so.

    References:
        Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016.
    """
    chosen = list(blocks) if on else []
    for block in chosen:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in chosen:
            del block.forward


@contextmanager
def compiled(model: Any, on: bool = True) -> Iterator[None]:
    """A model whose blocks are compiled by ``torch.compile``.

    Each block is compiled by itself: all have the same shapes, so that one compilation serves all,
    and the number of rows may differ from batch to batch.

    Args:
        model: Its ``decoder.blocks`` are compiled; they are as before when the context ends.
        on: Whether to do so.
    """
    chosen = list(model.decoder.blocks) if on else []
    for block in chosen:
        block.compile(dynamic=True)
    try:
        yield
    finally:
        for block in chosen:
            block._compiled_call_impl = None

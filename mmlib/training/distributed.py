"""Several processes: who am I, features of all ranks with their gradients, and a way to try it."""

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


def rank() -> int:
    """This process's number, 0 when there is only one.

    >>> rank(), world_size(), is_main()
    (0, 1, True)
    """
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return rank() == 0


def all_gather(tensor: Tensor) -> Tensor:
    r"""Concatenate every rank's tensor along the first axis, and let gradients flow back to all.

    ``torch.distributed.all_gather`` cuts the graph: a contrastive loss over its result has the
    right value and wrong gradients. Here the backward pass sums, over the ranks, the gradients
    that each one's loss sends to this rank's part:

    .. math:: \partial x_r = \sum_s \partial L_s / \partial x_r

    With DistributedDataParallel, which averages over the ranks, that is the gradient of the mean
    loss, as on one rank.

    Args:
        tensor: ``(batch, ...)``, of the same shape on every rank.

    Returns:
        ``(world_size * batch, ...)``, the same on every rank, in the order of the ranks.

    Raises:
        ValueError: The tensor has no axis, or the ranks' shapes differ.
    """
    if tensor.ndim == 0:
        raise ValueError("tensor must have a batch axis: got a tensor without axes")
    if world_size() == 1:
        return tensor
    # Unequal shapes would hang or mix up rows, so they are compared first, by a short message.
    shapes: list[Any] = [None] * world_size()
    dist.all_gather_object(shapes, tuple(tensor.shape))
    if len(set(shapes)) > 1:
        raise ValueError(f"tensor must have one shape on all ranks: got {shapes}")
    return _AllGather.apply(tensor)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.batch = tensor.shape[0]
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()  # all_reduce writes into it
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.batch : (rank() + 1) * ctx.batch]


def spawn(function: Callable[..., Any], processes: int, *args: Any) -> list[Any]:
    """Run a function in several CPU processes that can talk to each other (gloo).

    Made for tests and for trying things on one machine; real runs start with
    ``accelerate launch`` or ``torchrun``.

    Args:
        function: A function of a module (no lambda), called as ``function(*args)`` in each.
        processes: How many.
        *args: Its arguments, which are pickled.

    Returns:
        What it returned in each process, in the order of the ranks: tensors, numbers, strings,
        and dicts and lists of these.

    Raises:
        ValueError: ``processes`` is not positive.
        RuntimeError: A process failed; with its traceback.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1: got {processes}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(_child, (processes, folder, function, args), nprocs=processes)
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            # When one rank fails the others only see a lost connection: show the first failure.
            reports = sorted(Path(folder).glob("*.error"), key=lambda p: p.stat().st_mtime_ns)
            text = reports[0].read_text(encoding="utf-8") if reports else str(error)
            raise RuntimeError(f"a process of {processes} failed:\n{text}") from None
        files = [Path(folder) / f"{i}.pt" for i in range(processes)]
        return [torch.load(file, weights_only=True) for file in files]


def _child(index: int, processes: int, folder: str, function: Callable, args: tuple) -> None:
    os.environ |= {
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    if sys.platform == "linux":
        # The machine's own name may not resolve to an address; all processes are on it anyway.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=index, world_size=processes)
    try:
        torch.save(function(*args), f"{folder}/{index}.pt")
        dist.barrier()  # nobody leaves while another may still need an answer
    except Exception:
        Path(folder, f"{index}.error").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    finally:
        dist.destroy_process_group()

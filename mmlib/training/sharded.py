"""A model of which each process holds a part (FSDP): weights, gradients and optimiser's state.

DistributedDataParallel keeps everything in every process: with AdamW in fp32 that is 16 bytes a
weight (the weight, its gradient, two running means), however many processes there are. Here each of
P processes keeps 1/P of every tensor. A block's weights are brought together just before it
computes, forward or backward, and forgotten after it; its gradients are added up over the processes
and divided at once. What is computed is the same, but for rounding.

:class:`ShardedModel` is torch's ``fully_shard`` with what a run needs beside it: the whole model
for evaluations and checkpoints, in the main process alone, and whole again at the end. It works
with NCCL on GPUs and with gloo on CPUs. accelerate's own FSDP is for accelerators only.

References:
    Rajbhandari et al., *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*,
    SC 2020. Zhao et al., *PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel*,
    VLDB 2023.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from mmlib.training.distributed import is_main, world_size

__all__ = ["ShardedModel", "divided_state", "held_bytes", "whole_state"]


class ShardedModel:
    """A model that is divided among the processes.

    All processes make one, of equal models, and call its methods at the same time. The model
    itself, an ordinary module, is left without weights until :meth:`finish`, but for the time in
    :meth:`whole`; a copy of it learns.

    What is brought together at a time: each member of an ``nn.ModuleList`` (a block of a
    Transformer), which must be called as a module, and the rest. Buffers stay whole; nothing may
    change them, or weights, while it computes, as :class:`~mmlib.contrastive.LogitScale` and
    batch norms do. Frozen weights are divided too.

    Args:
        model: Where the weights come from: those of the main process count. Blocks that are
            recomputed or compiled are so in the copy.
        device: Where to compute.
        bf16: Whether weights are brought together in bf16; gradients are added up in fp32 anyway.

    Attributes:
        model: As given.
        copy: The copy; its parameters are ``DTensor``.

    Raises:
        ValueError: The model has a weight without an axis, which cannot be divided.
    """

    def __init__(self, model: nn.Module, device: torch.device, bf16: bool = False) -> None:
        scalars = [name for name, p in model.named_parameters() if not p.ndim]
        if scalars:
            raise ValueError(
                "shard must be False for a model with weights that have no axis: got "
                f"{', '.join(scalars)}"
            )
        self.model, self.device = model.to(device), device
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.grad = None
            dist.broadcast(tensor.data, 0)
        self.copy = copy.deepcopy(model)
        self.options: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (world_size(),)),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=torch.bfloat16 if bf16 else None,
                reduce_dtype=torch.float32 if bf16 else None,
                cast_forward_inputs=False,
            ),
        }
        lists = [m for m in self.copy.modules() if isinstance(m, nn.ModuleList)]
        for blocks in reversed(lists):  # inner ones first
            for block in blocks:
                if not isinstance(block, nn.ModuleList | nn.ModuleDict):  # these do not compute
                    fully_shard(block, **self.options)
        for old, new in zip(model.modules(), self.copy.modules(), strict=True):
            if old._compiled_call_impl is not None:  # a copy of a module is never compiled
                new.compile(dynamic=True)
        self._empty()

    def root(self, module: nn.Module) -> nn.Module:
        """Divide what blocks leave of a module that has the copy inside, and return it."""
        return fully_shard(module, **self.options)

    def state(self) -> dict[str, Tensor]:
        """All weights, on the CPU, as ``model.state_dict()``; other processes get nothing."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.copy, options=options)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over weights, which each process gives whole."""
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self.copy, dict(state), options=options)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """In the main process the model has all weights, until the context ends."""
        self._fill()
        try:
            yield
        finally:
            self._empty()

    def finish(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Give the model all its weights in every process: it is an ordinary module again.

        Args:
            state: Others than the last, of the main process.
        """
        self._fill()
        if state is not None and is_main():
            self.model.load_state_dict(state)
        shapes = {name: p.shape for name, p in self.copy.named_parameters()}
        for name, parameter in self.model.named_parameters():
            if not is_main():
                parameter.data = parameter.data.new_empty(shapes[name])
            dist.broadcast(parameter.data, 0)
        for buffer in self.model.buffers():
            dist.broadcast(buffer, 0)

    @torch.no_grad()
    def _fill(self) -> None:
        state = self.state()
        if is_main():
            for name, parameter in self.model.named_parameters():
                parameter.data = state[name].to(self.device)
        for mine, its in zip(self.model.buffers(), self.copy.buffers(), strict=True):
            mine.copy_(its)

    def _empty(self) -> None:
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)


def whole_state(state: Any) -> Any:
    """The state of an optimiser with all of what was divided; other processes get None for it.

    Args:
        state: From ``optimizer.state_dict()``; all processes must call at the same time.
    """

    def whole(tensor: DTensor) -> Tensor | None:
        full = tensor.full_tensor()
        return full.cpu() if is_main() else None

    return tree_map_only(DTensor, whole, state)


def divided_state(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The part of an optimiser's state that belongs to this process's part of the parameters.

    Args:
        state: Of the whole parameters, as ``optimizer.state_dict()`` gives it.
        parameters: The divided ones, in the optimiser's order.
    """
    found: dict[int, Any] = {}
    for number, its in state["state"].items():
        like = parameters[number]

        def part(value: Any, like: Any = like) -> Any:
            if not isinstance(value, Tensor) or not value.ndim or not isinstance(like, DTensor):
                return value
            value = value.to(like.device)
            return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)

        found[number] = {key: part(value) for key, value in its.items()}
    return {**state, "state": found}


def held_bytes(tensors: Any) -> int:
    """Bytes of tensors in this process; of divided ones its part.

    Args:
        tensors: Tensors in lists, dicts and the like, such as an optimiser's state.

    >>> held_bytes({"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.bfloat16)]})
    16
    """
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        total += local.numel() * local.element_size()
        return tensor

    tree_map_only(Tensor, count, tensors)
    return total

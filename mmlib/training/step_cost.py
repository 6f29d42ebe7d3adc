"""What a training step costs: operations and memory, worked out without doing the work.

The step runs once on fake tensors, which have shapes and a device but no memory. So a model of
seven billion parameters can be costed on a laptop, before a GPU is rented for it.
"""

import dataclasses
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, is_fake
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from mmlib.training.optimizer import adamw

# torch counts the GPU's kernels of attention, but not (2.14) the CPU's, which is what runs here.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}


@dataclass(frozen=True)
class StepCost:
    """The cost of one training step. Memory is in bytes.

    Attributes:
        parameters: How many numbers are trained or frozen.
        flops: Floating-point operations of the matrix products and convolutions, forward and
            backward; a multiplication and an addition are two.
        weights: Parameters and buffers.
        optimizer: What AdamW keeps: two numbers for each that is trained.
        batch: The batch itself.
        peak: The most that is alive at once during the step, with all of the above.
    """

    parameters: int
    flops: int
    weights: int
    optimizer: int
    batch: int
    peak: int

    @property
    def working(self) -> int:
        """Bytes beside weights, optimiser and batch at the peak: activations and gradients."""
        return self.peak - self.weights - self.optimizer - self.batch


def step_cost(
    make_model: Callable[[], nn.Module],
    make_batch: Callable[[], Any],
    loss_fn: Callable[[nn.Module, Any], Any],
    *,
    bf16: bool = False,
) -> StepCost:
    r"""Work out what a training step with AdamW costs.

    A dense Transformer of :math:`N` parameters takes about :math:`6N` operations a token (Kaplan
    et al. 2020): two for each weight in the forward pass and four in the backward pass. Here the
    operations are counted one by one instead, with attention and whatever else the model does.
    Memory is that of every tensor between its creation and its end, as PyTorch itself would hold
    them on a CPU; an allocator's rounding, its fragments and the libraries' own buffers come on
    top, on a GPU commonly a tenth to a fifth more.

    Args:
        make_model: Makes the model. Called with fake tensors: it must load no weights.
        make_batch: Makes a batch, which may be of ``torch.zeros``.
        loss_fn: As for :func:`~mmlib.training.fit`: a mean, or the sum and the count. It must not
            look at the numbers of a tensor (``.item()``, ``bool``, boolean indices): there are
            none.
        bf16: Whether matrices are multiplied in bf16, as with ``precision="bf16"``.

    Returns:
        The cost.

    Raises:
        ValueError: The model or the batch has tensors that were made before the call, or loss_fn
            needs the numbers of a tensor.

    >>> cost = step_cost(
    ...     lambda: nn.Linear(10, 20, bias=False),
    ...     lambda: torch.zeros(5, 10),
    ...     lambda model, batch: model(batch).square().mean(),
    ... )
    >>> cost.parameters, cost.weights, cost.optimizer, cost.batch
    (200, 800, 1604, 200)
    >>> cost.flops == 2 * 5 * 10 * 20 * 2  # no gradient is needed of the batch
    True
    """
    with FakeTensorMode(), ExitStack() as stack:
        model = make_model().train()
        batch = make_batch()
        given = list(vars(batch).values()) if dataclasses.is_dataclass(batch) else batch
        own = [*model.parameters(), *model.buffers()]
        for name, tensors in (("make_model", own), ("make_batch", tree_leaves(given))):
            if any(isinstance(t, Tensor) and not is_fake(t) for t in tensors):
                raise ValueError(f"{name} must make its tensors itself: got one made before")
        optimizer = adamw(model, 1e-3, 0.0)
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
            _step(model, optimizer, batch, loss_fn, bf16)  # AdamW's numbers appear here
        live = _Live()
        weights = live.hold(own)
        state = live.hold(list(optimizer.state.values()))
        held = live.hold(given)
        stack.enter_context(live)
        _step(model, optimizer, batch, loss_fn, bf16)
    return StepCost(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=counter.get_total_flops(),
        weights=weights,
        optimizer=state,
        batch=held,
        peak=live.peak,
    )


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    loss_fn: Callable[[nn.Module, Any], Any],
    bf16: bool,
) -> None:
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            result = loss_fn(model, batch)
        (result[0] if isinstance(result, tuple) else result).backward()
    except DataDependentOutputException as error:
        raise ValueError(
            f"loss_fn must not look at the numbers of a tensor: it called {error.func}"
        ) from None
    optimizer.step()
    optimizer.zero_grad()


class _Live(TorchDispatchMode):
    """Adds up the bytes of all tensors that are alive, and keeps the largest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def hold(self, given: Any) -> int:
        """Count tensors that are there already; how many bytes they are."""
        before = self.now
        for value in tree_leaves(given):
            self.see(value)
        return self.now - before

    def see(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()  # views share it
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.end, key)

    def end(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self.see(value)
        return result

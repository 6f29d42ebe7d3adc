"""The one place that makes an Accelerator."""

import contextlib
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from mmlib.training.precision import choose_precision


@contextlib.contextmanager
def accelerator(precision: str, cpu: bool = False, verbose: bool = True) -> Iterator[Accelerator]:
    """An Accelerator of one's own.

    accelerate keeps precision and device in global singletons, so that a second Accelerator in a
    process could not have another precision. They are put back after the block.

    Args:
        precision: ``"fp32"``, ``"bf16"`` or ``"auto"``.
        cpu: Whether to leave a GPU unused.
        verbose: Whether ``"auto"`` says what it chose.
    """
    singletons = [cls._shared_state for cls in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in singletons]
    for state in singletons:
        state.clear()
    try:
        if precision == "auto":
            precision = choose_precision(PartialState(cpu=cpu).device, verbose=verbose)
        yield Accelerator(cpu=cpu, mixed_precision="bf16" if precision == "bf16" else "no")
    finally:
        for state, old in zip(singletons, before, strict=True):
            state.clear()
            state.update(old)

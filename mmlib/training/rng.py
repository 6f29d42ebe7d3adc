"""torch's global random state: looked at, set, and always put back."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

RngState = dict[str, Tensor | list[Tensor]]


def get_state() -> RngState:
    """The state of the CPU's generator and, where they are in use, of the GPUs'."""
    state: RngState = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_state(state: RngState) -> None:
    """Set what :func:`get_state` returned."""
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Whatever the block draws, the state afterwards is the state before."""
    before = get_state()
    try:
        yield
    finally:
        set_state(before)


class Stream:
    """A random state of its own for a part of the program, apart from the global one.

    Args:
        seed: Where the stream starts.
    """

    def __init__(self, seed: int) -> None:
        self._state = torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let torch's CPU generator draw from the stream in this block."""
        outer = torch.random.get_rng_state()
        torch.random.set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = torch.random.get_rng_state()
            torch.random.set_rng_state(outer)

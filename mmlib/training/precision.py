"""fp32 or bf16: which is faster on this machine, found by trying both."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

# Mixed precision also casts weights and activations, so a small gain of the product is a loss.
MARGIN = 1.5


def choose_precision(
    device: torch.device | str | None = None,
    shape: tuple[int, int, int] = (512, 512, 512),
    verbose: bool = True,
) -> str:
    """Time a matrix product in both precisions for some milliseconds and choose.

    Processors with matrix units (AMX) multiply bf16 about 8 times as fast as fp32. One without any
    support of bf16 was measured 300 times slower than in fp32: a small product, timed first,
    recognises it, so that the trial never takes longer than some tens of milliseconds.

    Args:
        device: Where to measure; by default the GPU where there is one, else the CPU.
        shape: The product to time, ``(rows, inner, columns)``: best one that the model does often.
        verbose: Whether to print what was measured and chosen.

    Returns:
        ``"bf16"`` when it is at least 1.5 times as fast, else ``"fp32"``.

    Raises:
        ValueError: ``shape`` is not three positive numbers.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (rows, inner, columns), all positive: got {shape}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return _tell("fp32", "this GPU has no bf16", verbose)
    small = tuple(min(size, 128) for size in shape)
    for trial in (small, shape):
        fp32, bf16 = _times(device, trial)
        size = "×".join(map(str, trial))
        what = f"{size} product: {bf16 * 1e3:.3g} ms in bf16, {fp32 * 1e3:.3g} ms in fp32"
        if bf16 > 3 * fp32:
            return _tell("fp32", what, verbose)
    return _tell("bf16" if MARGIN * bf16 <= fp32 else "fp32", what, verbose)


def _tell(choice: str, why: str, verbose: bool) -> str:
    if verbose:
        print(f"precision {choice} ({why})")
    return choice


def _times(device: torch.device, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Seconds of the fastest of a few products, in fp32 and in bf16."""
    rows, inner, columns = shape
    products = []
    for dtype in (torch.float32, torch.bfloat16):
        # Zeros would do for the time on a CPU, but a GPU draws less power and runs faster on them.
        generator = torch.Generator(device).manual_seed(0)
        a = torch.randn(rows, inner, device=device, generator=generator).to(dtype)
        b = torch.randn(inner, columns, device=device, generator=generator).to(dtype)
        products.append((a, b))
    best = [float("inf"), float("inf")]
    for repeat in range(4):  # in turn, so that a busy moment of the machine hits both
        for i, (a, b) in enumerate(products):
            seconds = _time(lambda a=a, b=b: a @ b, device)
            if repeat:  # the first product also chooses a kernel
                best[i] = min(best[i], seconds)
        if best[1] > 10 * best[0] and repeat:
            break
    return best[0], best[1]


def _time(function: Callable[[], Tensor], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    function()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

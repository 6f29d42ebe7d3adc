"""Speed and peak memory of the library beside its peers: ``make bench``, alone on the machine.

A bench test takes the fixture ``side_by_side``, names its contestants, and may be strict::

    def test_attention(side_by_side):
        table = side_by_side("self-attention", {"mmlib": ours, "torch": theirs})
        assert table.as_fast("mmlib", "torch")              # time, but for noise
        assert table.memory("mmlib") < 1.15 * table.memory("torch") + 1

Contestants take turns, so that a busy moment of the machine hits all of them, and the fastest of
many short samples counts, which is the one that was disturbed least. Where that looks too slow the
same is measured again and again: noise goes, a real difference stays. The tables come at the end
of the run, with a warning when the machine was doing other work.
"""

import ctypes
import gc
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
import torch

from mmlib import machine

_tables: list["Table"] = []
Contestants = Mapping[str, Callable[[], object]]


class Table:
    """What was measured of each contestant."""

    def __init__(self, title: str, contestants: Contestants, rounds: int | None):
        self.title, self._contestants = title, dict(contestants)
        # Warm up: kernels, caches, lazy imports. What takes seconds is warm after one call.
        for function in contestants.values():
            if _time(function, 1) < 1:
                function(), function()
        slowest = max(_time(function, 1) for function in contestants.values())
        self._calls = max(1, round(0.003 / slowest))  # a sample takes milliseconds, not micro-
        # About a second for each contestant.
        self._rounds = rounds or min(200, max(20, round(1 / (self._calls * slowest))))
        self._seconds: dict[str, list[float]] = {name: [] for name in contestants}
        self._measure()
        # More often where it costs nothing: with gradients, small peaks settle after some calls.
        times = 10 if slowest < 0.3 else 3 if slowest < 3 else 1
        self._memory = peak_memory(contestants, times)

    def _measure(self) -> None:
        gc.collect()
        gc.disable()
        try:
            for turn in range(self._rounds):
                names = list(self._contestants)
                for name in names if turn % 2 else names[::-1]:
                    self._seconds[name].append(_time(self._contestants[name], self._calls))
        finally:
            gc.enable()

    def close(self) -> None:
        """Let go of the contestants, whose weights would fill the memory of later tests."""
        self._contestants.clear()

    def seconds(self, name: str) -> float:
        """The time of one call, the fastest that was seen."""
        return min(self._seconds[name])

    def as_fast(self, name: str, peer: str, factor: float = 1.1) -> bool:
        """Whether ``name`` takes at most ``factor`` times as long as ``peer``.

        A tenth of a millisecond is free: checks of the input take microseconds. Before it says
        no, everything is measured three times more.
        """
        for again in range(4):
            if again:
                self._measure()
            if self.seconds(name) < factor * self.seconds(peer) + 1e-4:
                return True
        return False

    def ratio(self, name: str, other: str) -> float:
        """How many times as long ``name`` takes as ``other``; below 1 is faster."""
        return self.seconds(name) / self.seconds(other)

    def memory(self, name: str) -> float:
        """The most MiB that a call held on top of what was there before it."""
        return self._memory[name]

    def __str__(self) -> str:
        first = next(iter(self._seconds))
        lines = [self.title, f"  {'':24}{'fastest':>12}{'time':>9}{'peak memory':>15}"]
        for name in self._seconds:
            times = f"{self.ratio(name, first):.2f} ×"
            milliseconds, peak = (
                f"{self.seconds(name) * 1e3:.3f} ms",
                f"{self.memory(name):.1f} MiB",
            )
            lines.append(f"  {name:24}{milliseconds:>12}{times:>9}{peak:>15}")
        return "\n".join(lines)


@pytest.fixture
def side_by_side(benchmark):
    """Measure contestants against each other; see the module."""
    benchmark.pedantic(lambda: None)  # pytest-benchmark only runs what uses its fixture

    mine: list[Table] = []

    def measure(title: str, contestants: Contestants, rounds: int | None = None) -> Table:
        mine.append(Table(title, contestants, rounds))
        return mine[-1]

    yield measure
    for table in mine:
        table.close()
    _tables.extend(mine)


def _time(function: Callable[[], object], calls: int) -> float:
    _synchronise()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _synchronise()
    return (time.perf_counter() - start) / calls


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(contestants: Contestants, times: int) -> dict[str, float]:
    """MiB that a call holds at most, on top of what the process (or the GPU) held before.

    glibc keeps freed blocks of up to 32 MiB for later, and whether the next tensor fits into one
    differs from call to call: the same ViT took 35 to 43 MiB, of which its tensors were 24.5. So
    while memory is measured every block from 64 KiB goes back to the kernel when it is freed, and
    the peak is what was alive. The least of several calls, in turns: other threads allocate too,
    and with gradients the first calls hold more than later ones.
    """
    gc.collect()
    glibc = platform.libc_ver()[0] == "glibc" and not torch.cuda.is_available()
    if glibc:
        _set_malloc(_M_MMAP_THRESHOLD, 64 * 2**10)
    try:
        turns = [{name: _peak_of_one(f) for name, f in contestants.items()} for _ in range(times)]
        return {name: min(turn[name] for turn in turns) for name in contestants}
    finally:
        if glibc:  # what glibc itself arrives at once a large block was freed
            _set_malloc(_M_MMAP_THRESHOLD, 32 * 2**20)
            _set_malloc(_M_TRIM_THRESHOLD, 64 * 2**20)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def _set_malloc(option: int, value: int) -> None:
    if not ctypes.CDLL(None).mallopt(option, value):
        raise OSError(f"mallopt refused {value} for option {option}")


def _peak_of_one(function: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if platform.libc_ver()[0] == "glibc":  # give free memory back, so that using it again shows
        ctypes.CDLL(None).malloc_trim(0)
    reset = Path("/proc/self/clear_refs")
    if sys.platform == "linux" and reset.exists():
        before = _status("VmRSS")
        reset.write_text("5")  # the kernel's peak starts anew
        function()
        return max(0.0, _status("VmHWM") - before)
    return _sampled_peak(function)


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"the kernel reports no {field}")


def _sampled_peak(function: Callable[[], object]) -> float:
    """Elsewhere the memory is looked at every millisecond: a lower bound."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    function()
    done.set()
    thread.join()
    return (peak - before) / 2**20


def pytest_sessionstart():
    """``make bench`` may use the threads that it says; the other tests use one."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter):
    """Print the tables after everything else."""
    if _tables:
        load, cores = psutil.getloadavg()[0], os.cpu_count() or 1
        terminalreporter.section(f"side by side ({machine.describe()})")
        if load > cores + 0.5:
            terminalreporter.write_line(
                f"The machine is busy (load {load:.1f} on {cores} cores): do not trust these."
            )
        for table in _tables:
            terminalreporter.write_line(f"\n{table}")

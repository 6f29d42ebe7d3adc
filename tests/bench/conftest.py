"""Speed and peak memory of the library beside its peers: ``make bench``, alone on the machine.

A bench test takes the fixture ``side_by_side``, names its contestants, and says what it wants::

    def test_attention(side_by_side):
        table = side_by_side("self-attention", {"mmlib": ours, "torch": theirs})
        table.as_fast("mmlib", "torch")                  # time, but for noise
        table.light("mmlib", "torch")                    # memory
        table.goal("cosines a second", 1e6 / table.seconds("mmlib"), at_least=1e7)

What has no table takes the fixture ``goal``. A goal that is missed does not end the test: it is
written down, and the test fails when it is done. A goal that is known to be missed says why
(``known="..."``); it is reported as missed and fails nothing.

Contestants take turns, so that a busy moment of the machine hits all of them, and the fastest of
many short samples counts, which is the one that was disturbed least. Where that looks too slow the
same is measured again and again: noise goes, a real difference stays. The tables come at the end
of the run, with a warning when the machine was doing other work. With ``MMLIB_BENCH_REPORT`` they
and the goals are written to that file, and as a page beside it; see
``book/scripts/performance.py``. With ``MMLIB_BENCH_QUICK=1`` there are few calls, to see whether
everything runs.
"""

import ast
import ctypes
import datetime
import functools
import gc
import importlib.metadata
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import performance
import psutil
import pytest
import torch
from performance import Goal

from mmlib import machine

Contestants = Mapping[str, Callable[[], object]]

# A look at whether everything runs, with few calls: its numbers are worth nothing.
QUICK = os.environ.get("MMLIB_BENCH_QUICK", "") not in ("", "0")

# Everything that is reported, by file; the goals of the test that runs now; what went wrong.
_tables: dict[str, list["Table"]] = {}
_goals: dict[str, list[Goal]] = {}
_now: list[Goal] = []
_failed: list[str] = []


class Table:
    """What was measured of each contestant."""

    def __init__(self, title: str, contestants: Contestants, rounds: int | None):
        self.title, self._contestants = title, dict(contestants)
        self._count, self._unit = 0.0, ""
        # Warm up: kernels, caches, lazy imports. What takes seconds is warm after one call.
        first = {}
        for name, function in contestants.items():
            first[name] = _time(function, 1)
            if first[name] < 1:
                function()
                first[name] = _time(function, 1)
        slowest, total = max(first.values()), sum(first.values())
        self._calls = max(1, round(0.003 / slowest))  # a sample takes milliseconds, not micro-
        # About half a second for each contestant, and ten for all if that is enough.
        wanted = rounds or min(100, max(10, round(0.5 / (self._calls * slowest))))
        self._rounds = min(wanted, max(3, int(10 / (self._calls * total))), 2 if QUICK else 100)
        # Of what takes this long, the first call is as good as any.
        long = slowest > 4 and self._rounds == 1
        self._seconds = {name: [first[name]] if long else [] for name in contestants}
        if not long:
            self._measure()
        # More often where it costs nothing: with gradients, small peaks settle after some calls.
        times = 1 if QUICK else max(2, min(10, int(3 / total)))
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

    def as_fast(
        self, name: str, peer: str, factor: float = 1.1, *, free: float = 1e-4, known: str = ""
    ) -> bool:
        """Goal: ``name`` takes at most ``factor`` times as long as ``peer``.

        A tenth of a millisecond is free: checks of the input take microseconds. Before it says
        no, everything is measured three times more.
        """
        for again in range(1 if known or QUICK else 4):
            if again:
                self._measure()
            most = factor + free / self.seconds(peer)
            if self.ratio(name, peer) <= most:
                break
        also = f", and {free * 1e3:.1f} ms" if free else ""
        what = f"{name} takes at most {factor:g} times as long as {peer}{also}"
        if factor == 1 and not free:
            what = f"{name} takes no longer than {peer}"
        return self.goal(what, self.ratio(name, peer), at_most=most, unit="×", known=known)

    def at_most(self, name: str, other: str, factor: float, known: str = "") -> bool:
        """Goal: ``name`` takes at most ``factor`` times as long as ``other``, with nothing free."""
        return self.as_fast(name, other, factor, free=0.0, known=known)

    def times_as_fast(self, name: str, peers: list[str], factor: float, known: str = "") -> bool:
        """Goal: ``name`` is at least ``factor`` times as fast as the fastest of its peers."""
        best = min(self.seconds(peer) for peer in peers)
        which = peers[0] if len(peers) == 1 else f"the fastest of {' and '.join(peers)}"
        what = f"{name} is {factor:g} times as fast as {which}"
        return self.goal(what, best / self.seconds(name), at_least=factor, unit="×", known=known)

    def light(self, name: str, peer: str, factor: float = 1.15, more: float = 1.0) -> bool:
        """Goal: ``name`` holds at most ``factor`` times the memory of ``peer``, and some MiB."""
        most = factor * self.memory(peer) + more
        also = f", and {more:g} MiB" if more else ""
        what = f"{name} holds at most {factor:.3g} times the memory of {peer}{also}"
        return self.goal(what, self.memory(name), at_most=most, unit="MiB")

    def goal(self, what: str, measured: float, **bounds) -> bool:
        """A goal about these contestants; the arguments are those of the fixture ``goal``."""
        return _record(self.title, what, measured, **bounds)

    def per_second(self, count: float, unit: str) -> None:
        """Also report how many of ``unit`` each contestant does in a second: a call has ``count``.

        It is worked out at the end of the test, when everything was measured.
        """
        self._count, self._unit = count, unit

    def ratio(self, name: str, other: str) -> float:
        """How many times as long ``name`` takes as ``other``; below 1 is faster."""
        return self.seconds(name) / self.seconds(other)

    def memory(self, name: str) -> float:
        """The most MiB that a call held on top of what was there before it."""
        return self._memory[name]

    def report(self) -> dict:
        """What the page shows of it."""
        first = next(iter(self._seconds))
        rows = [
            {
                "name": name,
                "seconds": _short(self.seconds(name)),
                "ratio": _short(self.ratio(name, first)),
                "peak_mib": round(self.memory(name), 1),
            }
            | ({"rate": _short(self._count / self.seconds(name))} if self._unit else {})
            for name in self._seconds
        ]
        return {"title": self.title, "unit": self._unit, "rows": rows}

    def __str__(self) -> str:
        first = next(iter(self._seconds))
        lines = [self.title, f"  {'':24}{'fastest':>12}{'time':>9}{'peak memory':>15}"]
        for name in self._seconds:
            times = f"{self.ratio(name, first):.2f} ×"
            milliseconds, peak = (
                f"{self.seconds(name) * 1e3:.3f} ms",
                f"{self.memory(name):.1f} MiB",
            )
            line = f"  {name:24}{milliseconds:>12}{times:>9}{peak:>15}"
            if self._unit:
                line += f"{self._count / self.seconds(name):>12,.1f} {self._unit} a second"
            lines.append(line)
        return "\n".join(lines)


def _record(
    title: str,
    what: str,
    measured: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    unit: str = "",
    known: str = "",
) -> bool:
    if (at_most is None) == (at_least is None):
        raise ValueError("a goal has at_most or at_least, and not both")
    # Decided by the numbers that are reported.
    measured, bound = _short(measured), _short(at_most if at_least is None else at_least)
    met = measured <= bound if at_least is None else measured >= bound
    sense = "at most" if at_least is None else "at least"
    _now.append(Goal(title, what, measured, sense, bound, unit, met, "" if met else known))
    return met


def _short(number: float) -> float:
    """Four digits: a fifth is noise."""
    return float(f"{number:.4g}")


@pytest.fixture
def _benchmark(benchmark) -> None:
    """pytest-benchmark only runs what uses its fixture, and once."""
    benchmark.pedantic(lambda: None)


@pytest.fixture
def side_by_side(_benchmark, request):
    """Measure contestants against each other; see the module."""
    mine: list[Table] = []

    def measure(title: str, contestants: Contestants, rounds: int | None = None) -> Table:
        mine.append(Table(title, contestants, rounds))
        return mine[-1]

    yield measure
    for table in mine:
        table.close()
    _tables.setdefault(request.path.name, []).extend(mine)


@pytest.fixture
def goal(_benchmark, request):
    """Record a goal that belongs to no table; it says whether the goal is met.

    ``goal(what, measured, at_most=..., at_least=..., unit="", known="")``, one of the two bounds;
    ``known`` is the reason why a goal is missed, if that is known.
    """

    def record(what: str, measured: float, **bounds) -> bool:
        return _record(request.node.originalname[5:].replace("_", " "), what, measured, **bounds)

    return record


@pytest.fixture(scope="session")
def matrix_peak():
    """``matrix_peak("bf16")``: operations a second of the fastest large product, as measured."""

    @functools.cache
    def measure(precision: str) -> float:
        dtype, best = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], 0.0
        for size in (512, 1024, 2048):
            a, b = torch.randn(2, size, size).to(dtype)
            seconds = min(_time(lambda a=a, b=b: a @ b, 1) for _ in range(2**36 // size**3 + 3))
            best = max(best, 2 * size**3 / seconds)
        return best

    return measure


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that is done and has missed a goal, unless it was known."""
    _now.clear()
    try:
        result = yield
    finally:
        _goals.setdefault(item.path.name, []).extend(_now)
    missed = [goal for goal in _now if not goal.met and not goal.reason]
    if missed:
        pytest.fail("missed:\n" + "\n".join(map(str, missed)), pytrace=False)
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember the tests that did not pass."""
    if report.failed:
        _failed.append(report.nodeid.rpartition("/")[2])


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
    _begun.update(_clocks(), load=psutil.getloadavg()[0], date=datetime.datetime.now(datetime.UTC))


_begun: dict = {}


def _clocks() -> dict[str, float]:
    """Seconds: by the clock, of this process and its children, and of everything that runs."""
    own, everything = os.times(), psutil.cpu_times()
    waiting = everything.idle + getattr(everything, "iowait", 0.0)
    return {
        "clock": time.perf_counter(),
        "own": sum(own[:4]),
        "all": sum(everything[:8]) - waiting,  # what guests use is counted twice
    }


def _run() -> dict:
    """Where, when and how was measured."""
    spent = {name: value - _begun[name] for name, value in _clocks().items()}
    cores = psutil.cpu_count() or 1
    others = max(0.0, spent["all"] - spent["own"]) / (cores * spent["clock"])
    return {
        "date": f"{_begun['date']:%Y-%m-%d}",
        "minutes": round(spent["clock"] / 60, 1),
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "quick": QUICK,
        "load_before": round(_begun["load"], 2),
        "share_of_others": round(others, 3),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    """Of every package that a bench file imports."""
    names: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    known = importlib.metadata.packages_distributions()
    found = {dist for name in names for dist in known.get(name, [])} - {"mmlib"}
    return {name: importlib.metadata.version(name) for name in sorted(found, key=str.lower)}


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the report, unless the run was broken off."""
    path = os.environ.get("MMLIB_BENCH_REPORT")
    if not path or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return
    areas = []
    for module in dict.fromkeys(item.getparent(pytest.Module) for item in session.items):
        tables = _tables.get(module.path.name, [])
        areas.append(
            {
                "file": module.path.name,
                "name": module.obj.AREA,
                "about": module.obj.__doc__.strip().partition("\n\n")[0].replace("\n", " "),
                "tables": [table.report() for table in tables],
                "goals": [vars(goal) for goal in _goals.get(module.path.name, [])],
            }
        )
    performance.write({"run": _run(), "failed": _failed, "areas": areas}, Path(path))


def pytest_terminal_summary(terminalreporter):
    """Print the tables and goals after everything else."""
    if not _tables and not _goals:
        return
    load, cores = psutil.getloadavg()[0], os.cpu_count() or 1
    terminalreporter.section(f"side by side ({machine.describe()})")
    if load > cores + 0.5:
        terminalreporter.write_line(
            f"The machine is busy (load {load:.1f} on {cores} cores): do not trust these."
        )
    for table in sum(_tables.values(), []):
        terminalreporter.write_line(f"\n{table}")
    terminalreporter.section("goals")
    for goal in sum(_goals.values(), []):
        terminalreporter.write_line(str(goal))

"""The machine that a number was measured on."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil
import torch


def describe() -> str:
    """The processor, its cores, torch's threads and the accelerator; no name of a host."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [_cpu_model(), f"{cores} cores", f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    elif torch.backends.mps.is_available():
        parts.append("Apple GPU")
    return ", ".join(re.sub(r"^1 (core|thread)s$", r"1 \1", part) for part in parts)


def peak_memory() -> int:
    """Bytes of memory that the process held at its peak."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_model() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    info = Path("/proc/cpuinfo")
    found = info.exists() and re.search(r"model name\s*:\s*(.+)", info.read_text())
    return found[1].strip() if found else platform.machine()

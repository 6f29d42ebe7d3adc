"""Write the exact versions that are installed, and were tested, into two files.

    requirements.lock   every package of every platform with the hashes of its files
    constraints.txt     the same without hashes: what `make` and CI install by

uv looks up what the other platforms and Python versions need beside what is installed here,
and keeps to the installed versions. It is asked to write no index address.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, write_atomically

LOCK, CONSTRAINTS = ROOT / "requirements.lock", ROOT / "constraints.txt"
HEADER = "# Written by `make lock`: the versions that were tested, on every platform.\n"


def clean_freeze(text: str) -> str:
    """The pins of ``pip freeze``: no editable install, no path, no comment."""
    pins = [line for line in text.splitlines() if re.fullmatch(r"[\w.\-]+==[\w.\-!]+", line)]
    return "\n".join(pins) + "\n"


def without_hashes(lock: str) -> str:
    """The constraints that say the same as a lock file."""
    lines = [
        line.rstrip("\\").rstrip()
        for line in lock.splitlines()
        if line.strip() and not line.lstrip().startswith(("--hash", "#"))
    ]
    return HEADER + "\n".join(lines) + "\n"


def main() -> int:
    """Write both files; the exit status."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "uv"], check=True)
    freeze = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True)
    with tempfile.TemporaryDirectory() as folder:
        # Pins that are already in the output file are kept wherever they can be.
        target = Path(folder) / "lock.txt"
        target.write_text(clean_freeze(freeze.stdout), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml"]
        command += ["--extra", "dev", "--universal", "--generate-hashes", "--quiet"]
        command += ["--python-version", "3.11"]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--no-header", "--no-annotate"]
        subprocess.run([*command, "--output-file", str(target)], check=True, cwd=ROOT)
        lock = target.read_text(encoding="utf-8")
    write_atomically(LOCK, HEADER + lock)
    write_atomically(CONSTRAINTS, without_hashes(lock))
    print(f"{LOCK.name} and {CONSTRAINTS.name}: {without_hashes(lock).count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())

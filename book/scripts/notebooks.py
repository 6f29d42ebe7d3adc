"""Run every chapter once, as Colab would, with nbval.

    python book/scripts/notebooks.py [CHAPTER ...]

Each notebook is copied alone into an empty folder, far from the repository. Two workers run
them, each in a virtual environment of its own that sees the packages installed here **but not
mmlib**: as in Colab, the setup cell's ``%pip install`` must bring it, from the wheel that is
built first, and must leave torch and numpy as they are. ``google.colab`` is a stub that is
loaded when the interpreter starts. Ledger rows are checked, not written.

nbval calls a failed ``%pip install`` green; ``mmlib.require`` in the setup cell makes it red,
which ``tests/book/test_notebooks.py`` proves.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from common import ONE_THREAD, ROOT, choose

WORKERS = 2
CELL_TIMEOUT = 300  # seconds; this and the next guard against hangs, the caps below only report
RUN_TIMEOUT = 45 * 60
CAP, CAPS = 120, {"16_full_system": 240}  # seconds a chapter may take, printed when exceeded
KEPT = ("torch", "numpy")  # what the setup cell must not touch

STUB = '''"""Stands in for Colab's own module, which notebooks look for in sys.modules."""
import importlib.util
import sys
from importlib.machinery import ModuleSpec

# With a spec, as a real module has: accelerate asks for it with importlib.util.find_spec.
stub = importlib.util.module_from_spec(ModuleSpec("google.colab", loader=None))
sys.modules["google.colab"] = stub
'''

PYTEST_INI = "[pytest]\naddopts = -p no:cacheprovider\n"


def build_wheel(folder: Path) -> Path:
    """Build mmlib's wheel from this repository, with the build backend that is installed."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return next(folder.glob("mmlib-*.whl"))


def mirror_packages(target: Path) -> None:
    """Link every package installed for this Python into ``target``, except mmlib."""
    target.mkdir(parents=True)
    for folder in map(Path, sys.path):
        if folder.name not in ("site-packages", "dist-packages") or not folder.is_dir():
            continue
        for entry in folder.iterdir():
            ours = "mmlib" in entry.name
            if not ours and entry.name != "__pycache__" and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)


def make_worker(folder: Path, packages: Path) -> Path:
    """Make an environment that sees ``packages`` and stubs Colab; return its Python."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    python = folder / "bin" / "python"
    site = Path(_run(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (site / "colab_stub.py").write_text(STUB, encoding="utf-8")
    # A .pth file may name a folder to add and a module to import at start-up.
    (site / "colab.pth").write_text(f"{packages}\nimport colab_stub\n", encoding="utf-8")
    found = _run(python, "import importlib.util as u; print(u.find_spec('mmlib'))")
    if found != "None":
        raise RuntimeError(f"mmlib must come from the wheel alone, yet is importable: {found}")
    return python


def _run(python: Path, code: str) -> str:
    command = [str(python), "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=python.parent)
    return done.stdout.strip()


def versions(python: Path) -> dict[str, str]:
    """The versions of the packages that the setup cell must leave alone."""
    code = (
        "import importlib.metadata as m, json;"
        f"print(json.dumps({{n: m.version(n) for n in {KEPT!r}}}))"
    )
    return json.loads(_run(python, code))


def test_command(pythons: list[Path], report: Path, options: list[str]) -> list[str]:
    """The pytest command: one worker an environment, a notebook never split over two."""
    command = [str(pythons[0]), "-m", "pytest", "--nbval-lax", "--nbval-current-env"]
    command += [f"--nbval-cell-timeout={CELL_TIMEOUT}", f"--junitxml={report}"]
    command += ["--dist", "loadscope", *options]
    for python in pythons:
        command += ["--tx", f"popen//python={python}"]
    return command


class Cell(NamedTuple):
    """How one cell ended."""

    name: str
    seconds: float
    passed: bool


def run(
    notebooks: list[Path], work: Path, spec: str | None = None, workers: int = WORKERS
) -> tuple[int, dict[str, list[Cell]]]:
    """Run the notebooks under ``work``; pytest's status, and the cells of each notebook.

    Args:
        notebooks: The files; each is copied alone into its own folder.
        work: An empty folder outside the repository.
        spec: What the setup cell installs; by default the wheel, built here.
        workers: How many environments run side by side.

    Raises:
        RuntimeError: mmlib was importable before it was installed or came from elsewhere
            afterwards, or torch or numpy changed.
    """
    if spec is None:
        spec = f"mmlib[chapters] @ {build_wheel(work / 'wheel').as_uri()}"
        from_wheel = True
    else:
        from_wheel = False
    packages = work / "packages"
    mirror_packages(packages)
    pythons = [
        make_worker(work / f"worker{index}", packages)
        for index in range(min(workers, len(notebooks)))
    ]
    before = versions(pythons[0])
    runs = work / "run"
    for path in notebooks:
        (runs / path.stem).mkdir(parents=True)
        shutil.copy(path, runs / path.stem)
    (runs / "pytest.ini").write_text(PYTEST_INI, encoding="utf-8")

    environment = {**os.environ, **ONE_THREAD, "MMLIB_SPEC": spec, "MMLIB_LEDGER": "check"}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in ("PYTHONPATH", "MMLIB_LEDGER_DIR", "VIRTUAL_ENV", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    report = work / "report.xml"
    status = _watched(test_command(pythons, report, [str(runs)]), runs, environment)

    for python in pythons:
        if (after := versions(python)) != before:
            raise RuntimeError(f"the setup cell changed packages: {before} became {after}")
        code = "import importlib.util as u; s = u.find_spec('mmlib'); print(s and s.origin)"
        origin = _run(python, code)
        expected = origin == "None" or Path(origin).is_relative_to(python.parents[1])
        if from_wheel and not expected:
            raise RuntimeError(f"mmlib was not the wheel's: {origin}")
    return status, _cells(report)


def _watched(command: list[str], folder: Path, environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, cwd=folder, env=environment)
    try:
        return process.wait(timeout=RUN_TIMEOUT)
    except subprocess.TimeoutExpired:
        print(f"\nNo end after {RUN_TIMEOUT // 60} minutes: stopped.", file=sys.stderr)
        return 124
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _cells(report: Path) -> dict[str, list[Cell]]:
    cells: dict[str, list[Cell]] = defaultdict(list)
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            passed = case.find("failure") is None and case.find("error") is None
            cell = Cell(case.get("name", ""), float(case.get("time", 0)), passed)
            cells[case.get("classname", "").split(".")[0]].append(cell)
    return cells


def table(results: dict[str, list[Cell]]) -> str:
    """Every chapter's duration beside its cap, its slowest cells and how many failed."""
    lines = [f"{'notebook':<20} {'seconds':>8} {'cap':>5}  slowest cells"]
    for name, cells in sorted(results.items()):
        total, cap = sum(cell.seconds for cell in cells), CAPS.get(name, CAP)
        slowest = sorted(cells, key=lambda cell: -cell.seconds)[:3]
        line = f"{name:<20} {total:>8.1f} {cap:>5}  "
        line += ", ".join(f"{cell.name} {cell.seconds:.1f} s" for cell in slowest)
        if total > cap:
            line += "  <-- OVER ITS CAP"
        if failed := sum(not cell.passed for cell in cells):
            line += f"  <-- {failed} FAILED"
        lines.append(line)
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Run the named chapters (all without names); the exit status."""
    try:
        notebooks = choose(names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if not notebooks:
        print("No chapter in _toc.yml: nothing to run.", file=sys.stderr)
        return 1
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mmlib-colab-") as folder:
        status, results = run(notebooks, Path(folder).resolve())
    print("\n" + table(results))
    print(f"{len(notebooks)} notebooks in {time.perf_counter() - began:.0f} s, one thread a worker")
    missing = [path.stem for path in notebooks if path.stem not in results]
    if missing:
        print(f"Not run: {', '.join(missing)}", file=sys.stderr)
    return status or int(bool(missing))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

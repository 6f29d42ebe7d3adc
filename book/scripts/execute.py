"""Run chapters and store their outputs and their ledger rows.

    python book/scripts/execute.py [CHAPTER ...]

Each notebook runs in a new kernel of this Python and in an empty folder, so that nothing but
the library reaches it. The stored file is a function of what the cells printed: no timestamps,
no widget state, one stream per run of prints, only the last state of a progress bar. A cell
that fails leaves the notebook and the ledger as they were.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from common import ONE_THREAD, ROOT, choose, write_atomically
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

LEDGER = ROOT / "mmlib" / "ledger"
CELL_TIMEOUT = 900  # seconds: a guard against a hang, not a promise of speed
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
# The lexer is named because plain Python's stumbles over the setup cell's %pip.
LANGUAGE_INFO = {"name": "python", "pygments_lexer": "ipython3"}
NOISE = {"widgets", "vscode", "toc", "varInspector", "orig_nbformat", "signature"}
CELL_NOISE = {"execution", "ExecuteTime", "collapsed", "scrolled", "outputId", "vscode"}


def last_state(text: str) -> str:
    """What a terminal shows in the end: a carriage return starts its line anew."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).replace("\r\n", "\n")
    lines = []
    for line in text.split("\n"):
        states = [state for state in line.split("\r") if state.strip()]
        lines.append(states[-1].rstrip() if states else "")
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines) + "\n" if lines else ""


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook without what differs from run to run or editor to editor."""
    notebook = copy.deepcopy(notebook)
    metadata = {key: value for key, value in notebook.metadata.items() if key not in NOISE}
    notebook.metadata = nbformat.from_dict(
        metadata | {"kernelspec": KERNELSPEC, "language_info": LANGUAGE_INFO}
    )
    count = 0
    for cell in notebook.cells:
        for key in CELL_NOISE:
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        cell.source = "\n".join(line.rstrip() for line in cell.source.rstrip().split("\n"))
        if not cell.source:
            cell.execution_count, cell.outputs = None, []
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = _outputs(cell.outputs, count)
    return notebook


def _outputs(outputs: list, count: int) -> list:
    kept: list = []
    for output in outputs:
        if output.output_type == "stream":
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text += output.text
                continue
        elif output.output_type == "execute_result":
            output.execution_count = count
        if "metadata" in output:
            output.metadata.pop("ExecuteTime", None)
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = last_state(output.text)
        elif "data" in output and "text/plain" in output.data:
            output.data["text/plain"] = output.data["text/plain"].rstrip()
    return [out for out in kept if out.output_type != "stream" or out.text]


def run(path: Path, ledger: Path = LEDGER) -> list[tuple[float, int]]:
    """Execute one notebook, store it, and return the seconds of each of its cells.

    Raises:
        CellExecutionError: A cell raised; neither the notebook nor the ledger was touched.
        CellTimeoutError: A cell hung; likewise.
    """
    notebook = nbformat.read(path, as_version=4)
    seconds: list[tuple[float, int]] = []
    started: dict[int, float] = {}

    def on_start(cell: object, cell_index: int) -> None:
        started[cell_index] = time.perf_counter()

    def on_end(cell: object, cell_index: int) -> None:
        seconds.append((time.perf_counter() - started[cell_index], cell_index))

    with tempfile.TemporaryDirectory() as folder:
        empty, kernels, rows = (Path(folder) / name for name in ("empty", "jupyter", "ledger"))
        empty.mkdir()
        rows.mkdir()
        _copy_rows(ledger, rows, chapter=path.name[:2])
        write_kernel_spec(kernels / "kernels" / "python3")  # this Python and no other
        os.environ["JUPYTER_PATH"] = str(kernels)
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=CELL_TIMEOUT,
            record_timing=False,
            resources={"metadata": {"path": str(empty)}},
            on_cell_execute=on_start,
            on_cell_executed=lambda cell, cell_index, execute_reply: on_end(cell, cell_index),
        )
        environment = {
            **ONE_THREAD,
            **os.environ,
            "MMLIB_LEDGER": "write",
            "MMLIB_LEDGER_DIR": str(rows),
            "MMLIB_NOTEBOOK": str(path),
        }
        environment.pop("PYTHONPATH", None)
        client.execute(env=environment)
        write_atomically(path, nbformat.writes(normalise(notebook)).rstrip("\n") + "\n")
        ledger.mkdir(exist_ok=True)
        # Only this chapter's rows: those of others may have been written meanwhile.
        own = f"{path.name[:2]}.json"
        if (rows / own).exists():
            write_atomically(ledger / own, (rows / own).read_text(encoding="utf-8"))
    return seconds


def _copy_rows(ledger: Path, target: Path, chapter: str) -> None:
    """Copy the ledger, without what the notebooks of one chapter recorded when they last ran."""
    for path in ledger.glob("*.json"):
        if path.stem != chapter:
            shutil.copy2(path, target)
            continue
        kept = [row for row in json.loads(path.read_text("utf-8")) if row["origin"] == "train"]
        (target / path.name).write_text(json.dumps(kept), encoding="utf-8")


def main(names: list[str]) -> int:
    """Execute the named chapters (all without names); the exit status."""
    try:
        paths = choose(names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    failed = []
    for path in paths:
        print(f"{path.stem}: running ...", flush=True)
        try:
            seconds = run(path)
        except (CellExecutionError, CellTimeoutError) as error:
            print(f"{path.stem}: FAILED, file left as it was\n{error}", file=sys.stderr)
            failed.append(path.stem)
            continue
        slowest = ", ".join(f"cell {index} {s:.1f} s" for s, index in sorted(seconds)[:-4:-1])
        print(f"{path.stem}: {sum(s for s, _ in seconds):.1f} s (slowest: {slowest})", flush=True)
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The run of the chapters as in Colab, on notebooks of a few cells: that it runs them, and that
it is red when it must be."""

from pathlib import Path

import notebooks
import pytest
from nbformat import v4, write

SETUP = """import os
import sys

if "google.colab" in sys.modules:
    spec = os.environ.get("MMLIB_SPEC", "mmlib")
    %pip install -q "{spec}"
import mmlib

mmlib.require("0.1")"""
WHERE = """import os
import sys
from pathlib import Path

assert "worker" in mmlib.__file__
assert [p.suffix for p in Path.cwd().iterdir()] == [".ipynb"]
assert os.environ["MMLIB_LEDGER"] == "check"
assert os.environ["OMP_NUM_THREADS"] == "1"
assert "google.colab" in sys.modules
import accelerate  # looks for Colab's module in a way of its own"""


def make(folder: Path, name: str, *cells: str, outputs: list | None = None) -> Path:
    path = folder / f"{name}.ipynb"
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "someone-elses", "display_name": "Other"}
    for count, cell in enumerate(notebook.cells, 1):
        cell.execution_count = count
    notebook.cells[0].outputs = outputs or []
    write(notebook, path)
    return path


def verdicts(results: dict[str, list[notebooks.Cell]]) -> dict[str, list[bool]]:
    return {name: [cell.passed for cell in cells] for name, cells in results.items()}


@pytest.mark.slow
def test_right_notebooks_are_green_and_wrong_ones_red(tmp_path):
    changed = v4.new_output("stream", name="stdout", text="3\n")
    paths = [
        make(tmp_path, "01_right", SETUP, WHERE),
        make(tmp_path, "02_right_too", SETUP, WHERE),
        make(tmp_path, "03_assert", "assert 1 + 1 == 3", "1"),
        make(tmp_path, "04_output", "# NBVAL_CHECK_OUTPUT\nprint(2)", outputs=[changed]),
    ]
    (work := tmp_path / "work").mkdir()
    status, results = notebooks.run(paths, work)
    assert status == 1
    assert verdicts(results) == {
        "01_right": [True, True],
        "02_right_too": [True, True],
        "03_assert": [False, True],
        "04_output": [False],
    }


@pytest.mark.slow
def test_a_failed_install_is_red_though_nbval_calls_it_green(tmp_path):
    nothing = (tmp_path / "mmlib-0.1.0-py3-none-any.whl").as_uri()
    install = SETUP[: SETUP.index("import mmlib")]
    paths = [make(tmp_path, "01_install_alone", install), make(tmp_path, "02_setup_cell", SETUP)]
    (work := tmp_path / "work").mkdir()
    status, results = notebooks.run(paths, work, spec=f"mmlib @ {nothing}")
    assert status == 1
    assert verdicts(results) == {"01_install_alone": [True], "02_setup_cell": [False]}


def test_the_table_says_which_chapter_is_over_its_cap():
    results = {
        "01_attention": [notebooks.Cell("Cell 1", 100, True), notebooks.Cell("Cell 2", 30, False)],
        "02_transformer": [notebooks.Cell("Cell 1", 50, True)],
        "16_full_system": [notebooks.Cell("Cell 1", 200, True)],
    }
    first, second, third = notebooks.table(results).splitlines()[1:]
    assert "130.0" in first
    assert "Cell 1 100.0 s" in first
    assert "OVER" in first
    assert "1 FAILED" in first
    assert "OVER" not in second
    assert "OVER" not in third


def test_a_hung_run_is_stopped(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(notebooks, "RUN_TIMEOUT", 0.2)
    command = ["sleep", "60"]
    assert notebooks._watched(command, tmp_path, {"PATH": "/usr/bin:/bin"}) == 124
    assert "stopped" in capfd.readouterr().err


def test_mmlib_is_left_out_of_the_mirrored_packages(tmp_path):
    notebooks.mirror_packages(tmp_path / "packages")
    names = {path.name for path in (tmp_path / "packages").iterdir()}
    assert "torch" in names
    assert not [name for name in names if "mmlib" in name]

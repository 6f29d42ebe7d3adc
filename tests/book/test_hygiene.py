"""Every committed chapter is as a chapter must be, and every check of that can fail."""

import copy
from pathlib import Path

import common
import hygiene
import nbformat
import pytest
from nbformat import v4

CHAPTERS = common.chapters()
SVG = '<svg role="img"><title>A line that rises.</title></svg>'
SETUP = """import os
import sys

if "google.colab" in sys.modules:
    spec = os.environ.get("MMLIB_SPEC", "mmlib")
    %pip install -q "{spec}"
import mmlib

mmlib.require("0.1")"""


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter(path):
    problems = {check.__name__: check(read(path)) for check in hygiene.checks_of(path)}
    assert {name: found for name, found in problems.items() if found} == {}


def test_only_the_setup_notebook_has_no_exercises():
    every = set(hygiene.CHECKS)
    assert set(hygiene.checks_of(Path("01_attention.ipynb"))) == every
    assert every - set(hygiene.checks_of(Path("00_setup.ipynb"))) == {hygiene.exercises}


def test_the_setup_cell_is_the_same_in_every_chapter():
    sources = {path.stem: hygiene.setup_source(read(path)) for path in CHAPTERS}
    assert len(set(sources.values())) == 1, sources


# ---- every check passes on a good notebook, and fails on the same notebook with one flaw


def exercise(number: int) -> list[nbformat.NotebookNode]:
    verdict = v4.new_output("execute_result", {"text/plain": "✗ Not yet: not solved yet."})
    stub = v4.new_code_cell(f"answer{number} = ...\nexercises.ch01.check_x(answer{number})")
    stub.metadata.tags, stub.outputs = ["exercise-stub"], [verdict]
    hint = v4.new_markdown_cell("<details><summary>Hint</summary>Think.</details>")
    solution = v4.new_code_cell("# @title Solution\nassert exercises.ch01.check_x(1)")
    solution.metadata.tags = ["exercise-solution", "hide-input"]
    return [stub, hint, solution]


def good() -> nbformat.NotebookNode:
    picture = v4.new_output("display_data", {"image/svg+xml": SVG, "text/plain": "<SVG>"})
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# Title\n\n![A line](line.svg) and a/path/tmp/x, 1/2"),
            v4.new_code_cell(SETUP),
            v4.new_code_cell("draw()", outputs=[picture]),
            v4.new_code_cell("2 + 2  # NBVAL_CHECK_OUTPUT"),
            *(cell for number in range(4) for cell in exercise(number)),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    for count, (_, cell) in enumerate(hygiene.code_cells(notebook), 1):
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    return notebook


@pytest.mark.parametrize("check", hygiene.CHECKS, ids=lambda check: check.__name__)
def test_a_good_notebook_passes(check):
    assert check(good()) == []


def stream(name: str, text: str) -> nbformat.NotebookNode:
    return v4.new_output("stream", name=name, text=text)


def bad_format(nb):
    nb.cells[2].outputs[0].output_type = "picture"


def same_id(nb):
    nb.cells[3].id = nb.cells[2].id


def no_id(nb):
    del nb.cells[3]["id"]


def out_of_order(nb):
    nb.cells[2].execution_count = 7


def not_run(nb):
    nb.cells[2].execution_count = None


def raised(nb):
    nb.cells[2].outputs = [v4.new_output("error", ename="ValueError", evalue="no", traceback=[])]


def warned(nb):
    nb.cells[2].outputs = [stream("stderr", "x.py:1: UserWarning: careful\n")]


def foreign_kernel(nb):
    nb.metadata.kernelspec.name = "my-env"


def no_kernel(nb):
    del nb.metadata["kernelspec"]


def widget_state(nb):
    nb.metadata["widgets"] = {}


def widget_output(nb):
    nb.cells[2].outputs[0].data["application/vnd.jupyter.widget-view+json"] = {}


def timestamps(nb):
    nb.cells[2].metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}


def path_in_source(nb):
    nb.cells[3].source += "\nopen('" + "/" + "home/me/x')"


def path_in_output(nb):
    nb.cells[2].outputs = [stream("stdout", "saved to " + "/" + "tmp/x\n")]


def windows_path(nb):
    nb.cells[2].outputs = [stream("stdout", "saved to C:\\Users\\me\n")]


def too_big(nb):
    nb.cells[2].outputs = [stream("stdout", "x" * 1_600_000)]


def svg_without_title(nb):
    nb.cells[2].outputs[0].data["image/svg+xml"] = "<svg></svg>"


def svg_with_empty_title(nb):
    nb.cells[2].outputs[0].data["image/svg+xml"] = "<svg><title> </title></svg>"


def png_without_alt(nb):
    nb.cells[2].outputs[0].data["image/png"] = "aGVsbG8="


def html_without_alt(nb):
    nb.cells[2].outputs[0].data["text/html"] = "<img src='x.png'>"


def markdown_without_alt(nb):
    nb.cells[0].source += "\n![](x.png)"


def markdown_img_without_alt(nb):
    nb.cells[0].source += '\n<img src="x.png" alt="">'


def long_cell(nb):
    nb.cells[2].source = "\n".join(f"x{i} = {i}" for i in range(26))


def no_setup(nb):
    del nb.cells[1]


def two_setups(nb):
    nb.cells.append(copy.deepcopy(nb.cells[1]))


def setup_late(nb):
    nb.cells.insert(0, v4.new_code_cell("import torch"))


def setup_without_install(nb):
    nb.cells[1].source = 'import mmlib\n\nmmlib.require("0.1")'


def four_checks(nb):
    nb.cells[3].source = "2 + 2  # assert nothing"


def compared_record(nb):
    nb.cells[3].source = 'results.record("01.x", 1)\n# NBVAL_CHECK_OUTPUT'


def three_exercises(nb):
    nb.cells = nb.cells[:-3]


def stub_that_passes(nb):
    nb.cells[4].outputs[0].data["text/plain"] = "✓ Correct."


def stub_without_verdict(nb):
    nb.cells[4].outputs = []


def no_hint(nb):
    nb.cells[5].source = "A hint that is open."


def no_solution(nb):
    nb.cells[6].metadata.tags = []


def open_solution(nb):
    nb.cells[6].metadata.tags = ["exercise-solution"]


def solution_without_title(nb):
    nb.cells[6].source = "assert exercises.ch01.check_x(1)"


def solution_unchecked(nb):
    nb.cells[6].source = "# @title Solution\nexercises.ch01.check_x(1)"


def solution_that_asserts_something_else(nb):
    nb.cells[6].source = "# @title Solution\nassert True"


FLAWS = {
    hygiene.valid: [bad_format],
    hygiene.unique_ids: [same_id, no_id],
    hygiene.counts: [out_of_order, not_run],
    hygiene.no_errors: [raised, warned],
    hygiene.kernel: [foreign_kernel, no_kernel],
    hygiene.no_widgets: [widget_state, widget_output],
    hygiene.no_times: [timestamps],
    hygiene.no_paths: [path_in_source, path_in_output, windows_path],
    hygiene.small: [too_big],
    hygiene.alt_text: [
        svg_without_title,
        svg_with_empty_title,
        png_without_alt,
        html_without_alt,
        markdown_without_alt,
        markdown_img_without_alt,
    ],
    hygiene.short_cells: [long_cell],
    hygiene.setup_first: [no_setup, two_setups, setup_late, setup_without_install],
    hygiene.checked: [four_checks],
    hygiene.records_alone: [compared_record],
    hygiene.exercises: [
        three_exercises,
        stub_that_passes,
        stub_without_verdict,
        no_hint,
        no_solution,
        open_solution,
        solution_without_title,
        solution_unchecked,
        solution_that_asserts_something_else,
    ],
}


def test_every_check_has_a_notebook_that_it_fails():
    assert set(FLAWS) == set(hygiene.CHECKS)


@pytest.mark.parametrize(
    ("check", "flaw"),
    [(check, flaw) for check, flaws in FLAWS.items() for flaw in flaws],
    ids=lambda item: item.__name__,
)
def test_a_bad_notebook_fails(check, flaw):
    notebook = good()
    flaw(notebook)
    problems = check(notebook)
    assert problems
    assert all(isinstance(problem, str) for problem in problems)

"""What a committed chapter must be like. Each check takes a notebook and returns its problems.

    python book/scripts/hygiene.py [CHAPTER ...]

``tests/book/test_hygiene.py`` runs every check on every chapter, and on a small bad notebook
that it must catch.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from common import choose
from nbformat import NotebookNode

SIZE_CAP = 1_500_000  # bytes: a page must open on a phone
LINES_CAP = 25  # lines of code a cell: what a reader keeps in mind
CHECKED_CELLS = 5
EXERCISES = 4
WIDGETS = "application/vnd.jupyter.widget"
TIMES = {"execution", "ExecuteTime"}
ABSOLUTE = re.compile(
    r"(?<![\w.:/-])/(?:root|home|work|Users|tmp|opt|usr|var|private|mnt)/\w|\b[A-Z]:\\\w|file:///"
)
MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def valid(notebook: NotebookNode) -> list[str]:
    """The notebook follows the notebook format."""
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"not valid: {error.message if hasattr(error, 'message') else error}"]
    return []


def unique_ids(notebook: NotebookNode) -> list[str]:
    """Every cell has an id of its own (nbformat only warns)."""
    ids = [cell.get("id") for cell in notebook.cells]
    problems = [f"cell {i} has no id" for i, name in enumerate(ids) if not name]
    twice = sorted({name for name in ids if name and ids.count(name) > 1})
    return problems + [f"id {name} is used twice" for name in twice]


def counts(notebook: NotebookNode) -> list[str]:
    """The code cells were run once each, from first to last."""
    found = [cell.execution_count for _, cell in code_cells(notebook)]
    wanted = list(range(1, len(found) + 1))
    return [] if found == wanted else [f"execution counts are {found}: run make execute"]


def no_errors(notebook: NotebookNode) -> list[str]:
    """No cell raised, and none printed a warning."""
    problems = []
    for index, output in outputs(notebook):
        if output.output_type == "error":
            problems.append(f"cell {index} raised {output.ename}: {output.evalue}")
        elif output.get("name") == "stderr" and re.search(r"\w*Warning\b", output.text):
            problems.append(f"cell {index} warned: {output.text.strip().splitlines()[0]}")
    return problems


def kernel(notebook: NotebookNode) -> list[str]:
    """The kernel has the one name that exists everywhere."""
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"kernelspec is {name!r}, not 'python3'"]


def no_widgets(notebook: NotebookNode) -> list[str]:
    """No state of widgets: the page would fetch their code from elsewhere."""
    problems = ["the metadata hold widget state"] if "widgets" in notebook.metadata else []
    for index, output in outputs(notebook):
        if any(mime.startswith(WIDGETS) for mime in output.get("data", {})):
            problems.append(f"cell {index} shows a widget: use plain tqdm and matplotlib")
    return problems


def no_times(notebook: NotebookNode) -> list[str]:
    """No timestamps: an unchanged run must not change the file."""
    cells = enumerate(notebook.cells)
    return [f"cell {i} holds timestamps" for i, cell in cells if TIMES & set(cell.metadata)]


def no_paths(notebook: NotebookNode) -> list[str]:
    """No path of one machine, neither in what is written nor in what was printed."""
    texts = [(index, cell.source) for index, cell in enumerate(notebook.cells)]
    texts += [(index, text) for index, output in outputs(notebook) for text in _texts(output)]
    found = [(index, match) for index, text in texts if (match := ABSOLUTE.search(text))]
    return [f"cell {index} holds an absolute path: {match[0]}…" for index, match in found]


def small(notebook: NotebookNode) -> list[str]:
    """The file stays below the cap, and the message says which cells weigh most."""
    size = len(nbformat.writes(notebook).encode())
    if size <= SIZE_CAP:
        return []
    weights: dict[int, int] = {}
    for index, output in outputs(notebook):
        weights[index] = weights.get(index, 0) + len(str(output))
    heavy = sorted(weights, key=weights.__getitem__)[:-4:-1]
    return [f"{size} bytes, the cap is {SIZE_CAP}; the heaviest cells: {heavy}"]


def alt_text(notebook: NotebookNode) -> list[str]:
    """Every picture says in words what it shows."""
    problems = []
    for index, output in outputs(notebook):
        data = output.get("data", {})
        for mime, content in data.items():
            if mime == "image/svg+xml":
                described = _svg_described(content)
            elif mime.startswith("image/"):
                described = bool(output.metadata.get(mime, {}).get("alt", "").strip())
            elif mime == "text/html":
                described = _html_described(content)
            else:
                continue
            if not described:
                problems.append(f"cell {index} shows {mime} without alt text: use plotting.show")
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and not _html_described(cell.source):
            problems.append(f"cell {index} has an <img> or <svg> without alt text")
        if cell.cell_type == "markdown" and re.search(r"!\[\s*\]\(", cell.source):
            problems.append(f"cell {index} has a picture without alt text")
    return problems


def short_cells(notebook: NotebookNode) -> list[str]:
    """No cell has more lines of code than a reader keeps in mind."""
    problems = []
    for index, cell in code_cells(notebook):
        count = sum(
            bool(line.strip()) and not line.lstrip().startswith("#")
            for line in cell.source.split("\n")
        )
        if count > LINES_CAP:
            problems.append(f"cell {index} has {count} lines of code, the cap is {LINES_CAP}")
    return problems


def setup_source(notebook: NotebookNode) -> str:
    """The source of the setup cell; empty when there is none."""
    found = [cell.source for _, cell in code_cells(notebook) if "mmlib.require(" in cell.source]
    return found[0] if len(found) == 1 else ""


def setup_first(notebook: NotebookNode) -> list[str]:
    """The setup cell exists once, is the first code cell, installs and verifies mmlib."""
    source = setup_source(notebook)
    if not source:
        return ["there must be exactly one setup cell, which calls mmlib.require"]
    problems = []
    if next(code_cells(notebook))[1].source != source:
        problems.append("the setup cell is not the first code cell")
    if "%pip install" not in source or '"google.colab" in sys.modules' not in source:
        problems.append("the setup cell does not install mmlib in Colab")
    return problems


def checked(notebook: NotebookNode) -> list[str]:
    """Enough cells would fail if the code were wrong."""
    count = sum(_checks(cell.source) for _, cell in code_cells(notebook))
    if count >= CHECKED_CELLS:
        return []
    return [f"{count} cells check something (assert, NBVAL_CHECK_OUTPUT), {CHECKED_CELLS} must"]


def records_alone(notebook: NotebookNode) -> list[str]:
    """No cell that records a result is compared as text: beside the ledger it says more."""
    return [
        f"cell {index} records a result: drop NBVAL_CHECK_OUTPUT, the ledger is what is compared"
        for index, cell in code_cells(notebook)
        if "results.record(" in cell.source and "NBVAL_CHECK_OUTPUT" in cell.source
    ]


def exercises(notebook: NotebookNode) -> list[str]:
    """Each exercise has a stub that does not pass, a folded hint and a folded solution."""
    problems, stubs = [], []
    for index, cell in enumerate(notebook.cells):
        if "exercise-stub" in cell.metadata.get("tags", []):
            stubs.append(index)
    if len(stubs) < EXERCISES:
        problems.append(f"{len(stubs)} exercises, at least {EXERCISES} are wanted")
    for stub, following in zip(stubs, [*stubs[1:], len(notebook.cells)], strict=True):
        cell, after = notebook.cells[stub], notebook.cells[stub + 1 : following]
        shown = " ".join(text for output in cell.get("outputs", []) for text in _texts(output))
        if "✓" in shown or "✗" not in shown:
            problems.append(f"cell {stub}: the unchanged stub must be reported as not solved")
        if not any(c.cell_type == "markdown" and "<details" in c.source for c in after):
            problems.append(f"cell {stub}: no folded hint (<details>) follows the stub")
        solutions = [c for c in after if "exercise-solution" in c.metadata.get("tags", [])]
        if len(solutions) != 1:
            problems.append(f"cell {stub}: {len(solutions)} solution cells follow the stub, not 1")
        for solution in solutions:
            if "hide-input" not in solution.metadata.tags:
                problems.append(f"cell {stub}: its solution is not folded (tag hide-input)")
            if not re.match(r"# ?@title", solution.source):
                problems.append(f"cell {stub}: its solution does not begin with # @title (Colab)")
            asserted = re.search(r"^assert\b", solution.source, re.MULTILINE)
            if not asserted or not re.search(r"\bcheck_\w+\(", solution.source):
                problems.append(f"cell {stub}: its solution does not assert the checker's verdict")
    return problems


CHECKS = (
    valid,
    unique_ids,
    counts,
    no_errors,
    kernel,
    no_widgets,
    no_times,
    no_paths,
    small,
    alt_text,
    short_cells,
    setup_first,
    checked,
    records_alone,
    exercises,
)


def checks_of(path: Path) -> list[Callable[[NotebookNode], list[str]]]:
    """The checks that a notebook must pass; only the one before chapter 01 has no exercises."""
    return [check for check in CHECKS if check is not exercises or not path.stem.startswith("00")]


def code_cells(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    """The code cells that are not empty, with their place in the notebook."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip():
            yield index, cell


def outputs(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    """Every stored output, with the place of its cell."""
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            yield index, output


def _texts(output: NotebookNode) -> Iterator[str]:
    yield output.get("text", "")
    for mime, content in output.get("data", {}).items():
        if mime.startswith("text/"):
            yield content
    yield "\n".join(output.get("traceback", []))


def _svg_described(svg: str) -> bool:
    title = re.search(r"<title[^>]*>([^<]+)</title>", svg)
    return bool(title and title[1].strip())


def _html_described(html: str) -> bool:
    images = re.findall(r"<img\b[^>]*>", html)
    described = all(re.search(r"""\balt=(["'])\s*[^"'\s]""", image) for image in images)
    graphics = re.findall(r"<svg\b.*?</svg>", html, re.DOTALL)
    return described and all(_svg_described(graphic) for graphic in graphics)


def _checks(source: str) -> bool:
    if "# NBVAL_CHECK_OUTPUT" in source:
        return True
    try:
        tree = ast.parse(MAGIC.sub(r"\1pass", source))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def main(names: list[str]) -> int:
    """Print the problems of the named chapters (all without names); the exit status."""
    problems = 0
    for path in choose(names):
        notebook = nbformat.read(path, as_version=4)
        for check in checks_of(path):
            for problem in check(notebook):
                problems += 1
                print(f"{path.stem}: {check.__name__}: {problem}")
    return int(problems > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

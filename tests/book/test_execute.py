"""`make execute`: what it stores, what it leaves out, and that a failure changes nothing."""

import json
from pathlib import Path

import common
import execute
import nbformat
import pytest
from nbformat import v4

CELLS = {
    "print": "print('one  ')\nprint('two')",
    "progress": """import sys
for i in range(3):
    _ = sys.stderr.write(f"\\r{i}/3")
    sys.stderr.flush()
_ = sys.stderr.write("\\r3/3 done\\n")""",
    "empty": "",
    "value": "1 + 1   ",
    "where": "import os\nos.listdir(), os.environ['MMLIB_LEDGER']",
    "threads": "os.environ['OMP_NUM_THREADS']",
}
RECORD = """from mmlib.results import record
record("99.number", {value}, tolerance=0.1)"""


def write(path: Path, cells: list[str]) -> Path:
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells])
    notebook.metadata["widgets"] = {"state": {}}
    notebook.metadata["kernelspec"] = {"name": "someone-elses", "display_name": "Other"}
    for cell in notebook.cells:
        cell.metadata["execution"] = {"shell.execute_reply": "2026-01-01T00:00:00Z"}
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("execute")
    path = write(folder / "99_small.ipynb", list(CELLS.values()))
    seconds = execute.run(path, folder / "ledger")
    return path, nbformat.read(path, as_version=4), seconds


def test_outputs_and_counts_are_stored(executed):
    _, notebook, seconds = executed
    cells = dict(zip(CELLS, notebook.cells, strict=True))
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells]
    assert counts == [1, 2, None, 3, 4, 5]
    assert cells["print"].outputs[0].text == "one\ntwo\n"
    assert cells["value"].outputs[0].data["text/plain"] == "2"
    assert cells["value"].outputs[0].execution_count == 3
    assert cells["value"].source == "1 + 1"
    assert len(seconds) == 5
    assert all(s > 0 for s, _ in seconds)


def test_only_the_last_state_of_a_progress_bar_is_stored(executed):
    _, notebook, _ = executed
    (output,) = notebook.cells[1].outputs
    assert output.text == "3/3 done\n"


def test_a_cell_runs_in_an_empty_folder_on_one_thread_and_writes_the_ledger(executed):
    _, notebook, _ = executed
    assert notebook.cells[4].outputs[0].data["text/plain"] == "([], 'write')"
    assert notebook.cells[5].outputs[0].data["text/plain"] == "'1'"


def test_the_file_holds_nothing_of_editor_or_time(executed):
    path, notebook, _ = executed
    assert dict(notebook.metadata) == {
        "kernelspec": execute.KERNELSPEC,
        "language_info": execute.LANGUAGE_INFO,
    }
    assert all("execution" not in cell.metadata for cell in notebook.cells)
    assert path.read_bytes().endswith(b"}\n")


def test_a_second_run_gives_the_same_bytes(executed, tmp_path):
    path, _, _ = executed
    before = path.read_bytes()
    execute.run(path, tmp_path / "ledger")
    assert path.read_bytes() == before


def test_the_ledger_gets_new_rows_and_loses_those_no_longer_recorded(tmp_path):
    ledger = tmp_path / "ledger"
    path = write(tmp_path / "99_small.ipynb", [RECORD.format(value=1.5)])
    execute.run(path, ledger)
    (row,) = json.loads((ledger / "99.json").read_text())
    assert (row["id"], row["value"], row["origin"]) == ("99.number", 1.5, "execute")
    trained = row | {"id": "99.long", "origin": "train"}
    other = row | {"id": "98.number", "chapter": "98"}
    (ledger / "99.json").write_text(json.dumps([row | {"id": "99.gone"}, row, trained]))
    (ledger / "98.json").write_text(json.dumps([other]))
    execute.run(path, ledger)
    rows = json.loads((ledger / "99.json").read_text())
    assert sorted(row["id"] for row in rows) == ["99.long", "99.number"]
    assert json.loads((ledger / "98.json").read_text()) == [other]


def test_rows_that_another_chapter_records_meanwhile_are_kept(tmp_path):
    ledger, path = tmp_path / "ledger", tmp_path / "99_small.ipynb"
    ledger.mkdir()
    other = ledger / "98.json"
    other.write_text("[]")
    meanwhile = f"from pathlib import Path\nPath({str(other)!r}).write_text('[\\n]')"
    execute.run(write(path, [RECORD.format(value=1.5), meanwhile]), ledger)
    assert other.read_text() == "[\n]"
    assert json.loads((ledger / "99.json").read_text())[0]["id"] == "99.number"


def test_a_failing_cell_changes_neither_notebook_nor_ledger(tmp_path):
    ledger = tmp_path / "ledger"
    path = write(tmp_path / "99_small.ipynb", [RECORD.format(value=1.5), "1 / 0"])
    before = path.read_bytes()
    with pytest.raises(execute.CellExecutionError, match="ZeroDivisionError"):
        execute.run(path, ledger)
    assert path.read_bytes() == before
    assert not list(ledger.glob("*"))


def test_normalising_does_not_change_its_input():
    notebook = v4.new_notebook(cells=[v4.new_code_cell("1", metadata={"execution": {}})])
    execute.normalise(notebook)
    assert notebook.cells[0].metadata == {"execution": {}}


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("", ""),
        ("a\n", "a\n"),
        ("a\rb", "b\n"),
        ("a\rb\r", "b\n"),
        ("1\r2\n3\r4\n", "2\n4\n"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("\x1b[31mred\x1b[0m", "red\n"),
        ("\n\n", ""),
        ("a\n\nb\n", "a\n\nb\n"),
    ],
)
def test_last_state(text, last):
    assert execute.last_state(text) == last


@pytest.mark.parametrize(
    "name", ["5", "05", "contrastive", "05_contrastive", "chapters/05_contrastive.ipynb"]
)
def test_a_chapter_has_many_names(name, tmp_path):
    available = [tmp_path / f"{n}.ipynb" for n in ("01_attention", "05_contrastive", "15_clip")]
    assert common.find_chapter(name, available) == available[1]


@pytest.mark.parametrize("name", ["", "6", "contrast", "x"])
def test_an_unknown_chapter_is_named_with_those_there_are(name, tmp_path):
    with pytest.raises(ValueError, match="there are: 01_attention"):
        common.find_chapter(name, [tmp_path / "01_attention.ipynb"])


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(TypeError):
        common.write_atomically(path, 5)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

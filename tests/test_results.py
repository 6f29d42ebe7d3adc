"""The ledger: what is written, what is checked, when a row is stale, what the prose may say."""

import inspect
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlib import fingerprint, machine, results

ROOT = Path(__file__).parent.parent


def notebook(path, *cells, markdown="# Title"):
    cells = [{"cell_type": "code", "source": c, "outputs": [], "metadata": {}} for c in cells]
    cells.insert(0, {"cell_type": "markdown", "source": markdown, "metadata": {}})
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}))
    return path


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A small book: a notebook, an empty ledger, and the environment of `make execute`."""
    (tmp_path / "chapters").mkdir()
    (tmp_path / "ledger").mkdir()
    path = notebook(tmp_path / "chapters" / "01_attention.ipynb", "x = 1  # one")
    monkeypatch.setenv("MMLIB_LEDGER", "write")
    monkeypatch.setenv("MMLIB_LEDGER_DIR", str(tmp_path / "ledger"))
    monkeypatch.setenv("MMLIB_NOTEBOOK", str(path))
    monkeypatch.delenv("MMLIB_TRAINING", raising=False)
    return tmp_path


# --- record -------------------------------------------------------------------------------------


def test_a_row_holds_everything(book, capsys):
    torch.ones(1)
    value = results.record(
        "01.recall", 0.75, baseline=0.125, tolerance=0.02, unit="", metric="recall", seed=3
    )
    assert value == 0.75
    (row,) = json.loads((book / "ledger" / "01.json").read_text())
    assert {k: row[k] for k in ("id", "chapter", "metric", "value", "baseline", "tolerance")} == {
        "id": "01.recall",
        "chapter": "01",
        "metric": "recall",
        "value": 0.75,
        "baseline": 0.125,
        "tolerance": 0.02,
    }
    assert (row["unit"], row["seed"], row["origin"]) == ("", 3, "execute")
    assert row["versions"]["torch"] == torch.__version__
    assert row["machine"] == machine.describe()
    assert "core" in row["machine"]
    assert os.uname().nodename not in row["machine"]
    assert 0 < row["minutes"] < 600
    assert 10 < row["peak_memory_mb"] < 1e6
    assert "01_attention.ipynb" in row["sources"]
    assert "mmlib.results" not in row["sources"]
    assert capsys.readouterr().out == "01.recall: 0.75 (baseline 0.125)\n"


def test_start_restarts_the_clock(book):
    results.start()
    results.record("01.a", 1, tolerance=0)
    assert results.table(1, book / "ledger")[0]["minutes"] < 0.1


def test_loaded_modules_are_sources(book):
    code = (
        "import mmlib.attention; from mmlib import results; results.record('01.a', 1, tolerance=0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    sources = results.read(book / "ledger")["01.a"]["sources"]
    assert sources["mmlib.attention"] == fingerprint.hash_module(ROOT / "mmlib" / "attention.py")
    used = {"mmlib.attention", "mmlib.cache", "mmlib.masks"}
    assert set(sources) == {"01_attention.ipynb"} | used


def test_rows_are_sorted_replaced_and_stable(book):
    for id, value in [("01.b", 2.0), ("01.a", 1.0), ("02.c", 3), ("01.b", 2.5)]:
        results.record(id, value, tolerance=0)
    path = book / "ledger" / "01.json"
    assert [(r["id"], r["value"]) for r in json.loads(path.read_text())] == [
        ("01.a", 1.0),
        ("01.b", 2.5),
    ]
    assert [row["id"] for row in results.table(None, book / "ledger")] == ["01.a", "01.b", "02.c"]
    before = path.read_text().splitlines()
    results.record("01.a", 1.5, tolerance=0)
    after = path.read_text().splitlines()
    assert len(before) == len(after)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    allowed = ('"value"', '"minutes"', '"peak_memory_mb"')
    assert all(line.strip().startswith(allowed) for line in changed)
    assert [p.name for p in path.parent.iterdir()] == ["01.json", "02.json"]  # nothing half-written


def write_many(chapter):
    for i in range(20):
        results.record(f"{chapter}.row_{i}", i, tolerance=0)


def test_writers_of_different_chapters_do_not_clash(book):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(write_many, ["01", "02"])
    assert len(results.table(1, book / "ledger")) == len(results.table(2, book / "ledger")) == 20


def test_a_write_that_dies_leaves_the_old_file(book, monkeypatch):
    results.record("01.a", 1, tolerance=0)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        results.record("01.a", 2, tolerance=0)
    assert results.read(book / "ledger")["01.a"]["value"] == 1


def test_check(book, monkeypatch):
    results.record("01.a", 0.3, tolerance=0.1)
    monkeypatch.setenv("MMLIB_LEDGER", "check")
    results.record(
        "01.a", 0.2, tolerance=5
    )  # 0.3 - 0.2 > 0.1 in floats; the stored tolerance counts
    with pytest.raises(AssertionError, match=r"01\.a = 0\.19, but the ledger has 0\.3 ± 0\.1"):
        results.record("01.a", 0.19, tolerance=5)
    with pytest.raises(AssertionError, match=r"01\.b is not in the ledger"):
        results.record("01.b", 0.2, tolerance=1)
    assert results.read(book / "ledger")["01.a"]["value"] == 0.3  # checking writes nothing


def test_a_reader_is_never_stopped(book, monkeypatch, capsys):
    results.record("01.time", 12.0, tolerance=1, unit="ms")
    capsys.readouterr()
    monkeypatch.delenv("MMLIB_LEDGER")
    results.record("01.time", 12.5, tolerance=1, unit="ms")
    results.record("01.time", 100.0, tolerance=1, unit="ms")
    results.record("01.new", 20_000, tolerance=1)
    assert capsys.readouterr().out.splitlines() == [
        "01.time: 12.5 ms (the book: 12 ± 1)",
        "01.time: 100 ms (the book: 12 ± 1; outside the tolerance)",
        "01.new: 20,000 (not in the book's ledger)",
    ]
    assert results.read(book / "ledger")["01.time"]["value"] == 12


def test_a_long_runs_row_is_not_overwritten_by_execute(book, monkeypatch):
    script = book / "ch01.py"
    script.write_text("def main(): ...")
    monkeypatch.setenv("MMLIB_TRAINING", str(script))
    results.record("01.long", 0.9, tolerance=0.01)
    row = results.read(book / "ledger")["01.long"]
    assert row["origin"] == "train"
    assert "ch01.py" in row["sources"]
    monkeypatch.delenv("MMLIB_TRAINING")
    results.record("01.long", 0.905, tolerance=0.01)
    assert results.read(book / "ledger")["01.long"] == row
    with pytest.raises(AssertionError, match=r"01\.long = 0\.8"):
        results.record("01.long", 0.8, tolerance=0.01)
    monkeypatch.setenv("MMLIB_TRAINING", str(script))
    results.record("01.long", 0.8, tolerance=0.01)
    assert results.read(book / "ledger")["01.long"]["value"] == 0.8


@pytest.mark.parametrize(
    "value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0), np.ones(1) * 2]
)
def test_numbers_of_every_kind(book, value):
    recorded = results.record("01.a", value, tolerance=0)
    assert recorded == 2
    assert type(recorded) in (int, float)
    assert results.read(book / "ledger")["01.a"]["value"] == 2


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"id": "1.recall"}, ValueError, "id must be .* got '1.recall'"),
        ({"id": "01.Recall"}, ValueError, "id"),
        ({"id": "01."}, ValueError, "id"),
        ({"id": None}, ValueError, "id"),
        ({"value": float("nan")}, ValueError, "value must be finite: got nan"),
        ({"value": torch.tensor(float("inf"))}, ValueError, "value must be finite"),
        ({"value": "3"}, TypeError, "value must be a number: got '3'"),
        ({"value": True}, TypeError, "value must be a number"),
        ({"value": None}, TypeError, "value"),
        ({"value": torch.ones(2)}, TypeError, "value must be one number"),
        ({"value": np.ones(2)}, TypeError, "value must be one number"),
        ({"tolerance": -1}, ValueError, "tolerance must not be negative: got -1"),
        ({"tolerance": "x"}, TypeError, "tolerance"),
        ({"baseline": float("nan")}, ValueError, "baseline must be finite"),
    ],
)
def test_bad_input(book, kwargs, error, says):
    record = inspect.unwrap(results.record)
    with pytest.raises(error, match=says):
        record(**({"id": "01.a", "value": 1.0, "tolerance": 0.1} | kwargs))
    assert not list((book / "ledger").iterdir())


def test_bad_modes(book, monkeypatch):
    monkeypatch.delenv("MMLIB_NOTEBOOK")
    with pytest.raises(ValueError, match="make execute and make train set it"):
        results.record("01.a", 1, tolerance=0)
    monkeypatch.setenv("MMLIB_LEDGER", "wirte")
    with pytest.raises(ValueError, match="got 'wirte'"):
        results.record("01.a", 1, tolerance=0)


def test_a_broken_file_is_named(book):
    (book / "ledger" / "01.json").write_text("[{")
    with pytest.raises(ValueError, match=r"01\.json cannot be read"):
        results.read(book / "ledger")


# --- stale rows ---------------------------------------------------------------------------------


def stale(book):
    return results.stale_rows(book / "ledger", book / "chapters")


def test_stale_rows(book):
    results.record("01.a", 1, tolerance=0)
    path = book / "chapters" / "01_attention.ipynb"
    assert stale(book) == {}
    notebook(path, "# another comment\nx  =  1", markdown="# Another title")
    assert stale(book) == {}
    notebook(path, "x = 2")
    assert list(stale(book)) == ["01.a"]
    assert "01_attention.ipynb has changed; run make execute CHAPTER=01" in stale(book)["01.a"]
    path.unlink()
    assert "01_attention.ipynb is gone" in stale(book)["01.a"]


def test_a_row_of_another_module_version_is_stale(book):
    results.record("01.a", 1, tolerance=0)
    path = book / "ledger" / "01.json"
    rows = json.loads(path.read_text())
    rows[0]["sources"]["mmlib.attention"] = "0" * 12
    path.write_text(json.dumps(rows))
    assert "mmlib.attention has changed" in stale(book)["01.a"]


def test_a_changed_training_script_makes_its_rows_stale(book, monkeypatch):
    script = book / "book" / "training" / "ch01.py"
    script.parent.mkdir(parents=True)
    script.write_text("steps = 10")
    monkeypatch.setenv("MMLIB_TRAINING", str(script))
    results.record("01.a", 1, tolerance=0)
    assert stale(book) == {}
    script.write_text("steps = 11")
    assert "ch01.py has changed; run make train CHAPTER=01" in stale(book)["01.a"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1", "x = 1  # comment", True),
        ('def f():\n    """Doc."""\n    return 1', "def f():\n    return 1", True),
        ('class A:\n    """Doc."""\n    x = 1', 'class A:\n    """Other."""\n    x = 1', True),
        ("f(a, b)", "f(\n    a,\n    b,\n)", True),
        ("x = 'a'", 'x = "a"', True),
        ("x = 1", "x = 1.0", False),
        ("x = 1", "x = True", False),
        ("x = 'a'", "x = b'a'", False),
        ("x + y", "x - y", False),
        ("def f(a, b): pass", "def f(b, a): pass", False),
        ("f(x=1)", "f(1)", False),
        ("return_ = None", "return_ = ...", False),
        ('def f():\n    x = """no doc"""', 'def f():\n    x = """else"""', False),
        ("%matplotlib inline\nx = 1", "%matplotlib inline\nx = 1 # c", True),
        ("%pip install a\nx = 1", "%pip install b\nx = 1", False),
        ("if x:\n    %pip install a", "if x:\n    %pip install a  ", True),
        ("x = (7\n% 4)", "x = (7 % 4)", True),
        ("%%bash\nls", "%%bash\nls -l", False),
        ("!ls", "!ls -l", False),
        ("x[0]", "x[1]", False),
        ("[1, 2]", "(1, 2)", False),
        ("x = -0.0", "x = 0.0", False),
    ],
)
def test_hash_code(one, other, same):
    assert (fingerprint.hash_code(one) == fingerprint.hash_code(other)) == same


def test_the_hash_is_the_same_in_every_python():
    # Type parameters, f-strings, walrus, match: what changed in `ast` from 3.11 to 3.13.
    source = """
def f(a, /, b: int = 1, *c, d, **e) -> str:
    if (n := len(c)) > 1:
        return f"{a!r:>{b}} {n}" "x" + 'y'
    match a:
        case {"k": [1, *_]} | str():
            return lambda: (yield)
"""
    assert fingerprint.hash_code(source) == "8bc6ea6ccff8"


def test_the_setup_cell_is_not_hashed(tmp_path):
    setup = 'import mmlib\n%pip install -q "{}"\nmmlib.require("0.1")'
    one = notebook(tmp_path / "a.ipynb", setup.format("git+https://one"), "x = 1")
    two = notebook(tmp_path / "b.ipynb", setup.format("git+https://two"), "x = 1")
    assert fingerprint.hash_notebook(one) == fingerprint.hash_notebook(two)


def test_the_order_of_cells_counts(tmp_path):
    one = notebook(tmp_path / "a.ipynb", "x = 1", "x = 2")
    two = notebook(tmp_path / "b.ipynb", "x = 2", "x = 1")
    assert fingerprint.hash_notebook(one) != fingerprint.hash_notebook(two)


def test_a_file_that_is_no_notebook(tmp_path):
    (tmp_path / "a.ipynb").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.ipynb is not a notebook"):
        fingerprint.hash_notebook(tmp_path / "a.ipynb")


# --- numbers in the prose -----------------------------------------------------------------------

ROWS = {
    "01.share": {"value": 0.99231, "unit": ""},
    "01.percent": {"value": 99.231, "unit": "%"},
    "01.count": {"value": 12500, "unit": ""},
    "01.time": {"value": 3.14159, "unit": "ms"},
    "01.small": {"value": 1.53e-4, "unit": ""},
    "01.ratio": {"value": 3.52, "unit": "×"},
    "01.negative": {"value": -2.5, "unit": ""},
}


@pytest.mark.parametrize(
    "text",
    [
        "It recalls 0.99<!--L:01.share--> of 8",
        "It recalls **0.992**<!--L:01.share-->.",
        "It recalls 99.2 %<!--L:01.share-->, not 12 %.",
        "It recalls 99.2%<!-- L:01.share -->.",
        "It recalls `99 %`<!--L:01.percent-->.",
        r"It recalls $99\,\%$<!--L:01.percent-->.",
        "| 8 | 99.23 % <!--L:01.percent--> | 3.1 ms<!--L:01.time--> |",
        "12,500<!--L:01.count--> steps",
        "12500<!--L:01.count--> steps",
        "12\u202f500<!--L:01.count--> steps",
        "$12{,}500$<!--L:01.count-->",
        "1.25e4<!--L:01.count-->",
        "3.142 ms<!--L:01.time-->",
        "3<!--L:01.time-->",
        r"$1.5 \times 10^{-4}$<!--L:01.small-->",
        "1.5e-4<!--L:01.small-->",
        "1.5×10^-4<!--L:01.small-->",
        "3.5×<!--L:01.ratio-->",
        r"$3.5\times$<!--L:01.ratio-->",
        "3.5x<!--L:01.ratio-->",
        "-2.5<!--L:01.negative-->",
        "\u22122.5<!--L:01.negative-->",
        "from 1-12,500<!--L:01.count-->",
        "write `0.5<!--L:01.unknown-->`, or\n```\n1<!--L:01.unknown-->\n```\nno more",
        "no mark at all: 7",
    ],
)
def test_numbers_that_are_right(text):
    assert results.check_markdown(text, ROWS) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.98<!--L:01.share-->", "01.share: the text says 0.98, the ledger 0.99231"),
        ("0.993<!--L:01.share-->", "the text says 0.993"),
        ("99.3 %<!--L:01.share-->", "the text says 99.3%, the ledger 99.231"),
        ("0.99 %<!--L:01.percent-->", "the text says 0.99%"),
        ("99.2<!--L:01.percent-->", "in percent"),
        ("99.2<!--L:01.share-->", "the text says 99.2"),
        ("12,600<!--L:01.count-->", "12,600"),
        ("3.1 s<!--L:01.time-->", "the text has the unit 's', the ledger 'ms'"),
        ("1.5e-3<!--L:01.small-->", "the text says 1.5e-3"),
        ("2.5<!--L:01.negative-->", "the text says 2.5, the ledger -2.5"),
        ("0.99<!--L:01.unknown-->", "01.unknown: there is no such row in the ledger"),
        ("all<!--L:01.share-->", "no number comes before the mark"),
        ("0.99\nall<!--L:01.share-->", "no number comes before the mark"),
        ("0.99<!--L:01.share--> and<!--L:01.share-->", "no number comes before the mark"),
    ],
)
def test_numbers_that_are_wrong(text, says):
    (problem,) = results.check_markdown(text, ROWS)
    assert says in problem


# --- the book itself ----------------------------------------------------------------------------


def pages():
    for path in sorted((ROOT / "chapters").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        yield pytest.param(text, id=path.name)
    for path in [*sorted((ROOT / "book").glob("*.md")), ROOT / "README.md"]:
        yield pytest.param(path.read_text(), id=path.name)


@pytest.mark.parametrize("text", list(pages()))
def test_the_prose_says_what_the_ledger_says(text):
    assert results.check_markdown(text, results.read()) == []


def test_no_row_of_the_book_is_stale():
    stale = results.stale_rows(results.LEDGER, ROOT / "chapters")
    rows = results.read()
    # A long run may wait for the next `make train`: its rows are named, but do not fail.
    long_runs = {id: why for id, why in stale.items() if rows[id]["origin"] == "train"}
    if long_runs:
        warnings.warn(f"rows of long runs that are stale: {long_runs}", stacklevel=1)
    assert {id: why for id, why in stale.items() if id not in long_runs} == {}

"""The ``{ledger}`` directive: every measured number of the book, from the ledger's files.

The rows are those that ``mmlib.results.record`` wrote, one JSON file a chapter. A book
without any row still builds, and says that it has none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

FOLDER = "mmlib/ledger"
COLUMNS = ("Result", "Value", "Baseline", "Tolerance", "Seed", "Minutes", "Memory", "Run")


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of every chapter that has some, in the order of the chapters."""
    chapters = {}
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text("utf8"))
        if rows:
            chapters[path.stem] = sorted(rows, key=lambda row: row["id"])
    return chapters


def number(value: object, unit: str = "") -> str:
    """A value as the book prints it: four figures at most, a dash for nothing.

    >>> number(0.98765432), number(128), number(None), number(0.5, "%"), number(1500.0, "ms")
    ('0.9877', '128', '–', '0.5 %', '1,500 ms')
    """
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        # Four figures, but never an exponent for a number that is long and whole.
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    else:
        text = str(value)
    return f"{text} {unit}".strip()


def memory_of(row: dict[str, Any]) -> str:
    """The peak memory of a row, and the accelerator's where there was one.

    >>> memory_of({"peak_memory_mb": 811.6, "peak_gpu_memory_mb": 2048})
    '812 MB, GPU 2,048 MB'
    """
    found = [("", row.get("peak_memory_mb")), ("GPU ", row.get("peak_gpu_memory_mb"))]
    return ", ".join(f"{name}{round(size):,} MB" for name, size in found if size) or "–"


def run_of(row: dict[str, Any]) -> str:
    """What a row was measured with, in one line."""
    versions = row.get("versions") or {}
    machine = row.get("machine") or "unknown machine"
    if isinstance(machine, dict):
        machine = ", ".join(str(part) for part in machine.values())
    how = {"execute": "make execute", "train": "make train"}.get(row.get("origin", ""), "")
    parts = [how, str(machine), *(f"{name} {version}" for name, version in versions.items())]
    parts.append(str(row.get("date") or "")[:10])
    return "; ".join(filter(None, parts))


class Ledger(SphinxDirective):
    """A table for each chapter: value, baseline, tolerance, seed, cost and the run it is from."""

    has_content = False
    option_spec = {"chapter": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Build the sections."""
        self.env.mmbook_ledger = {*getattr(self.env, "mmbook_ledger", ()), self.env.docname}
        chapters = read(Path(self.env.srcdir) / FOLDER)
        if only := self.options.get("chapter"):
            chapters = {name: rows for name, rows in chapters.items() if name == only}
        if not chapters:
            return [nodes.paragraph("", "No number has been recorded yet.")]
        return [self.section(name, rows) for name, rows in chapters.items()]

    def section(self, chapter: str, rows: list[dict[str, Any]]) -> nodes.section:
        """One chapter: a link to it, its table, and the runs that the table names."""
        section = nodes.section(ids=[f"ledger-{chapter}"], names=[f"ledger-{chapter}"])
        found = sorted(
            name for name in self.env.found_docs if name.startswith(f"chapters/{chapter}_")
        )
        title = found[0].split("_", 1)[1].replace("_", " ") if found else ""
        section += nodes.title("", f"Chapter {chapter}" + (f": {title}" if title else ""))
        if found:
            link = addnodes.pending_xref(
                "", nodes.inline("", ""), refdomain="std", reftype="doc", refexplicit=False,
                reftarget=f"/{found[0]}", refdoc=self.env.docname, refwarn=True,
            )  # fmt: skip
            section += nodes.paragraph("", "", nodes.Text("Measured in "), link, nodes.Text("."))
        runs: dict[str, str] = {}
        for row in rows:
            runs.setdefault(run_of(row), chr(ord("a") + len(runs)))
        section += self.table(chapter, rows, runs)
        listing = nodes.definition_list(classes=["ledger-runs"])
        for text, letter in runs.items():
            listing += nodes.definition_list_item(
                "",
                nodes.term("", f"Run {letter}"),
                nodes.definition("", nodes.paragraph("", text)),
            )
        section += listing
        return section

    def table(
        self, chapter: str, rows: list[dict[str, Any]], runs: dict[str, str]
    ) -> nodes.container:
        """The numbers of one chapter, in a box that scrolls when the page is narrow."""
        table = nodes.table(classes=["ledger"])
        group = nodes.tgroup(cols=len(COLUMNS))
        table += group
        group += [nodes.colspec(colwidth=1) for _ in COLUMNS]
        group += nodes.thead("", self.line([nodes.Text(name) for name in COLUMNS]))
        body = nodes.tbody()
        group += body
        for row in rows:
            unit = row.get("unit") or ""
            label = nodes.paragraph("", row.get("metric") or "")
            label += nodes.literal("", row["id"], classes=["ledger-id"])
            cells: list[nodes.Node] = [
                label,
                nodes.Text(number(row["value"], unit)),
                nodes.Text(number(row.get("baseline"), unit)),
                nodes.Text("± " + number(row.get("tolerance"))),
                nodes.Text(number(row.get("seed"))),
                nodes.Text(number(row.get("minutes"))),
                nodes.Text(memory_of(row)),
                nodes.Text(runs[run_of(row)]),
            ]
            line = self.line(cells)
            line["ids"] = [f"ledger-{row['id'].replace('.', '-').replace('_', '-')}"]
            body += line
        return nodes.container("", table, classes=["table-scroll"])

    @staticmethod
    def line(cells: list[nodes.Node]) -> nodes.row:
        """One row of a table."""
        line = nodes.row()
        for cell in cells:
            inside = cell if isinstance(cell, nodes.paragraph) else nodes.paragraph("", "", cell)
            line += nodes.entry("", inside)
        return line


def always_read(app: Sphinx, env: BuildEnvironment, *changed: object) -> list[str]:
    """Pages with a ledger are read at every build: a new file of rows must show at once."""
    return sorted(getattr(env, "mmbook_ledger", set()) & env.found_docs)


def merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Join what parallel readers noted."""
    env.mmbook_ledger = getattr(env, "mmbook_ledger", set()) | getattr(
        other, "mmbook_ledger", set()
    )


def register(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("ledger", Ledger)
    app.connect("env-get-outdated", always_read)
    app.connect("env-merge-info", merge)

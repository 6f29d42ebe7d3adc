"""Write the page on speed and memory from what `make bench` measured.

    python book/scripts/performance.py

`make bench` writes ``book/performance.json`` and this page, ``book/performance.md``. No number on
it is typed by hand; ``tests/book/test_performance_page.py`` writes it again and compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, write_atomically

REPORT = ROOT / "book" / "performance.json"
#: Share of the processors above which other work may have disturbed what was measured.
BUSY = 0.05

INTRODUCTION = """\
# Speed and memory

Code that is easy to read need not be slow.
`make bench` measures the library beside packages that do the same, with equal weights, on equal inputs, and with equal results, which is checked before anything is timed.
This page is what one run of it wrote; nobody types the numbers.

How to read it:

- A **goal** was set before it was measured: to be as fast as a peer, to hold no more memory, to gain so much by a cache. A goal that is missed stands here as missed. If the reason is known it is given, and the run goes on; any other miss makes the run fail.
- **Time** is the fastest of many calls. Contestants take turns, and the fastest call is the one that other work disturbed least. What looks too slow is measured up to four times.
- **Times** is how many times as long a contestant takes as the first of its group: below 1 is faster.
- **Memory** is the most that a call held on top of what the process held before it.
- Where a goal says "and 0.1 ms", that much is free: checks of the input take microseconds, which is a tenth of an operation of a tenth of a millisecond and nothing of a real one.

Two cores of one machine are one case. Ratios carry over to similar machines, times do not; on a GPU both are different.
"""  # noqa: E501


@dataclass(frozen=True)
class Goal:
    """What was asked, and what was measured.

    Attributes:
        title: What was measured.
        what: The goal in words.
        measured: The number.
        sense: ``"at most"`` or ``"at least"``.
        bound: What it was to be.
        unit: Of both.
        met: Whether it is.
        reason: Why it is missed, if that is known.
    """

    title: str
    what: str
    measured: float
    sense: str
    bound: float
    unit: str
    met: bool
    reason: str = ""

    def __str__(self) -> str:
        verdict = "met" if self.met else f"MISSED ({self.reason or 'not known why'})"
        values = with_unit(self.measured, self.unit), with_unit(self.bound, self.unit)
        return f"{verdict}: {self.title}: {self.what}: {values[0]}, {self.sense} {values[1]}"


def number(value: float) -> str:
    """Three digits, thousands apart."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    if abs(value) < 0.1 and value:
        return f"{value:.2g}"
    return f"{value:,.{digits}f}"


def with_unit(value: float, unit: str = "") -> str:
    """A number and its unit."""
    return f"{number(value)} {unit}".strip()


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    if value >= 1:
        return f"{number(value)} s"
    return f"{number(1e3 * value)} ms" if value >= 1e-3 else f"{number(1e6 * value)} µs"


def page(report: dict) -> str:
    """The page as Markdown."""
    goals = [Goal(**goal) for area in report["areas"] for goal in area["goals"]]
    parts = [INTRODUCTION, *_run(report, goals)]
    for area in report["areas"]:
        parts += [f"## {_cell(area['name'])}", f"{area['about']}", *_goals(area), *_tables(area)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write(report: dict, path: Path = REPORT) -> None:
    """Write the report, and the page beside it."""
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_atomically(path.with_suffix(".md"), page(report))


def _run(report: dict, goals: list[Goal]) -> Iterator[str]:
    """Where it was measured, and what came of it in short."""
    run = report["run"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    share = run["share_of_others"]
    quiet = "" if share <= BUSY else " **The machine was busy: do not trust these times.**"
    quiet += " **A quick look with few calls: do not trust these times.**" if run["quick"] else ""
    yield (
        f"Measured on {run['date']} in {number(run['minutes'])} minutes on {run['machine']}, with "
        f"{run['threads']} threads; other work took {share:.1%} of the processors.{quiet}\n"
        f"Python {run['python']}; {versions}."
    )
    missed = [goal for goal in goals if not goal.met]
    summary = f"**{len(goals) - len(missed)} of {len(goals)} goals are met.**"
    if missed:
        summary += " These are not:\n\n" + _table(
            ("what", "goal", "measured", "why"),
            [
                (
                    goal.title,
                    goal.what,
                    with_unit(goal.measured, goal.unit),
                    goal.reason or "not known",
                )
                for goal in missed
            ],
        )
    yield summary
    if report["failed"]:
        names = ", ".join(f"`{name}`" for name in report["failed"])
        yield f"The run failed in {names}."


def _goals(area: dict) -> Iterator[str]:
    goals = [Goal(**goal) for goal in area["goals"]]
    if goals:
        yield _table(
            ("what", "goal", "measured", "wanted", ""),
            [
                (
                    title,
                    goal.what,
                    with_unit(goal.measured, goal.unit),
                    f"{goal.sense} {with_unit(goal.bound, goal.unit)}",
                    "met" if goal.met else "**missed**",
                )
                for title, goal in zip(_once(goal.title for goal in goals), goals, strict=True)
            ],
        )


def _tables(area: dict) -> Iterator[str]:
    rows = []
    for table in area["tables"]:
        for at, row in enumerate(table["rows"]):
            rows.append(
                (
                    "" if at else table["title"],
                    row["name"],
                    seconds(row["seconds"]),
                    number(row["ratio"]),
                    f"{row['peak_mib']:,.1f} MiB",
                    f"{number(row['rate'])} {table['unit']}" if "rate" in row else "",
                )
            )
    if rows:
        head = ("what", "contestant", "time", "times", "memory", "in a second")
        if not any(row[-1] for row in rows):
            head, rows = head[:-1], [row[:-1] for row in rows]
        yield ":::{dropdown} All that was measured\n" + _table(head, rows) + "\n:::"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for sign in ("\\", "|", "*", "_", "<", "[", "`", "$", "~"):
        text = text if text in ("**missed**",) else text.replace(sign, "\\" + sign)
    return text


def _once(titles: Iterator[str]) -> Iterator[str]:
    """Each title where it comes first, and nothing where it is repeated."""
    last = None
    for title in titles:
        yield "" if title == last else title
        last = title


if __name__ == "__main__":
    write(json.loads(REPORT.read_text(encoding="utf-8")))

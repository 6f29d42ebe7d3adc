"""Everything that must hold, in one run: `make test`.

Stages run one after the other, each with two workers of one thread, because two stages side by
side on two cores only slow each other down. All stages run even when one fails, so that one
run says all that is wrong; the last line sums them up.

    NO_BROWSER=1   leaves the browser tests out, and says so
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import NamedTuple

from common import ONE_THREAD, ROOT

PYTEST = [sys.executable, "-m", "pytest"]
#: Apart from the others: Playwright leaves an event loop running in its process.
BROWSER = ["tests/book/test_browser.py", "tests/book/test_serving_page.py"]


class Stage(NamedTuple):
    """One command of the run and the environment it needs."""

    name: str
    command: list[str]
    environment: dict[str, str] = {}


class Outcome(NamedTuple):
    """How a stage ended; ``skipped`` says why it did not run."""

    name: str
    passed: bool
    seconds: float = 0.0
    skipped: str = ""


def stages() -> list[Stage]:
    """The stages in order: the built book comes first, because tests look at its pages."""
    scripts = ROOT / "book" / "scripts"
    apart = [f"--ignore={path}" for path in ("tests/bench", *BROWSER)]
    tests = [*PYTEST, "tests", *apart, "-n", "2"]
    # The shape checks wrap functions, and doctest passes over wrapped functions.
    doctests = [*PYTEST, "mmlib", "--doctest-modules"]
    return [
        Stage("book", [sys.executable, str(scripts / "build.py"), "html"]),
        Stage("tests", [*tests, "--durations=8", "--durations-min=5"]),
        Stage("doctests", doctests, {"MMLIB_NO_SHAPES": "1"}),
        Stage("notebooks", [sys.executable, str(scripts / "notebooks.py")]),
        Stage("browser", [*PYTEST, *BROWSER]),
    ]


def run(stage: Stage) -> Outcome:
    """Run one stage, with its output passed through."""
    if stage.name == "browser" and os.environ.get("NO_BROWSER", "") not in ("", "0"):
        print("\n=== browser: LEFT OUT, because NO_BROWSER is set ===", flush=True)
        return Outcome(stage.name, True, skipped="NO_BROWSER")
    print(f"\n=== {stage.name} ===", flush=True)
    began = time.perf_counter()
    environment = {**os.environ, **ONE_THREAD, **stage.environment}
    done = subprocess.run(stage.command, cwd=ROOT, env=environment)
    return Outcome(stage.name, done.returncode == 0, time.perf_counter() - began)


def summary(outcomes: list[Outcome]) -> str:
    """One line: every stage, how it ended and how long it took."""
    words = []
    for name, passed, seconds, skipped in outcomes:
        if skipped:
            words.append(f"{name} LEFT OUT ({skipped})")
        else:
            words.append(f"{name} {'ok' if passed else 'FAILED'} {seconds:.0f} s")
    verdict = "all passed" if all(outcome.passed for outcome in outcomes) else "FAILED"
    return f"make test: {verdict} | " + " | ".join(words)


def main(names: list[str]) -> int:
    """Run the named stages (all without names); the exit status."""
    known = stages()
    if unknown := set(names) - {stage.name for stage in known}:
        stage_names = ", ".join(stage.name for stage in known)
        print(f"No stage {', '.join(sorted(unknown))}; there are: {stage_names}", file=sys.stderr)
        return 2
    outcomes = [run(stage) for stage in known if not names or stage.name in names]
    print("\n" + summary(outcomes), flush=True)
    return 0 if all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

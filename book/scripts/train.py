"""Run the long run of one chapter: ``make train CHAPTER=05``.

The run is the function ``main()`` of ``book/training/ch05.py``. Such a script says in its
docstring what it trains, and in ``MINUTES`` how long that takes on two cores. It calls
``mmlib.training.fit`` with ``checkpoint=..., resume=True``, so that a run that was stopped goes on
where it was, ``save_weights`` into ``mmlib/checkpoints``, and ``results.record`` for each number
that the chapter states. Those rows have the origin ``train`` and are left alone by
``make execute``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from pathlib import Path

from common import ROOT, chapters, find_chapter

TRAINING = ROOT / "book" / "training"


class CannotTrain(Exception):
    """There is nothing to run; the message says why."""


def find_script(name: str, folder: Path, available: list[Path]) -> Path:
    """The script of the chapter called ``5``, ``05``, ``contrastive`` or ``05_contrastive``.

    ``16_kills`` is a second script of chapter 16, ``ch16_kills.py``.

    Raises:
        CannotTrain: There is no such chapter, or it has no long run.
    """
    if re.fullmatch(r"\d\d_\w+", name) and (folder / f"ch{name}.py").exists():
        return folder / f"ch{name}.py"
    number = f"{int(name):02d}" if name.isdigit() else None
    if number is None:
        try:
            number = find_chapter(name, available).stem[:2]
        except ValueError as error:
            raise CannotTrain(str(error)) from None
    path = folder / f"ch{number}.py"
    if not path.exists():
        others = ", ".join(p.stem[2:] for p in sorted(folder.glob("ch[0-9][0-9].py")))
        raise CannotTrain(
            f"Chapter {number} has no long run: its notebook trains all it needs. "
            f"Chapters that have one: {others or 'none yet'}."
        )
    return path


def load(path: Path) -> tuple[object, str, float]:
    """The script as a module, what it does in one line, and how many minutes it takes.

    Raises:
        CannotTrain: It has no ``main()``, no docstring or no ``MINUTES``.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # so that other processes find its functions
    spec.loader.exec_module(module)
    what = (module.__doc__ or "").strip().split("\n")[0]
    minutes = getattr(module, "MINUTES", None)
    if not callable(getattr(module, "main", None)) or not what or not minutes:
        raise CannotTrain(
            f"{path.name} must have a docstring that says what it trains, MINUTES (on two "
            "cores) and a function main()."
        )
    return module, what, float(minutes)


def run(name: str, folder: Path = TRAINING, ledger: Path | None = None) -> None:
    """Say what will happen, run it, and say what was recorded.

    Raises:
        CannotTrain: There is nothing to run.
    """
    path = find_script(name, folder, chapters())
    os.environ |= {"MMLIB_LEDGER": "write", "MMLIB_TRAINING": str(path)}
    os.environ.pop("MMLIB_NOTEBOOK", None)
    if ledger is not None:
        os.environ["MMLIB_LEDGER_DIR"] = str(ledger)
    module, what, minutes = load(path)
    print(f"Chapter {path.stem[2:]}: {what}", flush=True)
    print(f"Takes about {minutes:g} minutes on two cores. Ctrl-C stops it.", flush=True)
    started = time.time()
    module.main()
    print(f"Done in {(time.time() - started) / 60:.1f} minutes.")


def main(arguments: list[str]) -> int:
    """Run the chapter named on the command line; the exit status."""
    if len(arguments) != 1:
        print("Say which chapter: make train CHAPTER=05", file=sys.stderr)
        return 2
    try:
        run(arguments[0])
    except CannotTrain as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

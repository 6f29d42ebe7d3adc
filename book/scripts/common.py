"""What the scripts share: where the repository is and which chapters the book has."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def toc_files(root: Path = ROOT) -> list[str]:
    """Every page of ``_toc.yml``, in reading order, without suffix."""
    found: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            found.extend(str(node[key]) for key in ("root", "file") if key in node)
            for key in ("parts", "chapters", "sections"):
                walk(node.get(key))
        elif isinstance(node, list):
            for item in node:
                walk(item)

    toc = root / "_toc.yml"
    if toc.exists():
        walk(yaml.safe_load(toc.read_text(encoding="utf-8")))
    return found


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks of ``_toc.yml``, in reading order."""
    return [
        root / f"{name.removesuffix('.ipynb')}.ipynb"
        for name in toc_files(root)
        if name.startswith("chapters/")
    ]


def find_chapter(name: str, available: list[Path]) -> Path:
    """The chapter called ``1``, ``01``, ``attention``, ``01_attention`` or by its path.

    Raises:
        ValueError: No chapter has that name.
    """
    wanted = Path(name).name.removesuffix(".ipynb")
    for path in available:
        number, _, word = path.stem.partition("_")
        if wanted in (path.stem, word, number) or (wanted.isdigit() and int(wanted) == int(number)):
            return path
    known = ", ".join(path.stem for path in available) or "none yet"
    raise ValueError(f"CHAPTER must name a chapter: got {name!r}, there are: {known}")


def choose(names: list[str], root: Path = ROOT) -> list[Path]:
    """The chapters named on a command line; all of them when none is named."""
    available = chapters(root)
    return [find_chapter(name, available) for name in names] if names else available


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a half."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

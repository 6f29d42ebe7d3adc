"""What the scripts that build the shipped data share: digests, and writing or comparing files."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import features


def with_sums(files: dict[str, bytes], target: Path) -> dict[str, bytes]:
    """The built files, and the SHA256SUMS of them and of the texts that lie beside them."""
    committed = {
        path.name: path.read_bytes() for path in target.iterdir() if path.suffix in (".md", ".txt")
    }
    sums = sorted((files | committed).items())
    text = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sums)
    return files | {"SHA256SUMS": text.encode()}


def run(what: str, build: Callable[[Path], dict[str, bytes]], target: Path) -> int:
    """The command line of a build: write what ``build`` makes, or compare it; the exit status.

    Args:
        what: What is built, for the help.
        build: Gives the contents of the files; called with a folder for what it downloads.
        target: Where the files lie.
    """
    parser = argparse.ArgumentParser(description=f"Build the {what} that mmlib ships.")
    parser.add_argument("--cache", type=Path, help="keep the downloaded packages in this folder")
    parser.add_argument("--check", action="store_true", help="only compare with what is there")
    arguments = parser.parse_args()
    print(f"libwebp {features.version('webp')}")
    with tempfile.TemporaryDirectory() as temporary:
        files = build(arguments.cache or Path(temporary))
    same = True
    for name, data in files.items():
        path = target / name
        equal = path.exists() and path.read_bytes() == data
        same &= equal
        print(f"{name}: {len(data):,} bytes, {'unchanged' if equal else 'different'}")
        if not (arguments.check or equal):
            path.write_bytes(data)
    return 1 if arguments.check and not same else 0

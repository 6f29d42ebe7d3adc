"""Write the repository's public address wherever it stands.

    python book/scripts/address.py https://github.com/owner/name

The one source is ``[project.urls] Repository`` in ``pyproject.toml``. From it follow the
address of the repository itself, of the notebooks in Colab, and of the pages. Every tracked
text file is rewritten: setup cells, badges, ``_config.yml``, ``CITATION.cff``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

from common import ROOT, write_atomically

# GitHub's rules, but for the leading hyphen, which marks an address not yet set.
PATTERN = re.compile(r"https://github\.com/(-?[A-Za-z0-9][A-Za-z0-9-]*)/([A-Za-z0-9._-]+)")


class Address(NamedTuple):
    """A repository on GitHub, and the addresses that follow from it."""

    owner: str
    name: str

    @property
    def slug(self) -> str:
        """``owner/name``, as Colab and git want it after a host."""
        return f"{self.owner}/{self.name}"

    @property
    def repository(self) -> str:
        """The page of the repository."""
        return f"https://github.com/{self.slug}"

    @property
    def pages(self) -> str:
        """Where GitHub Pages serves the book; Sphinx wants the slash at the end."""
        return f"https://{self.owner}.github.io/{self.name}/"


def parse(url: str) -> Address:
    """Read the address of a repository on GitHub.

    Raises:
        ValueError: It is something else. Colab opens notebooks from GitHub only.
    """
    match = PATTERN.fullmatch(url.rstrip("/").removesuffix(".git"))
    if not match:
        raise ValueError(f"URL must look like https://github.com/owner/name: got {url!r}")
    return Address(*match.groups())


def current(root: Path = ROOT) -> Address:
    """The address in ``pyproject.toml``."""
    with (root / "pyproject.toml").open("rb") as stream:
        return parse(tomllib.load(stream)["project"]["urls"]["Repository"])


def rewrite(text: str, old: Address, new: Address) -> str:
    """The text with every address that follows from ``old`` made one of ``new``."""
    ends = r"(?![A-Za-z0-9_-])"  # so that a longer name is left alone
    text = re.sub(
        rf"(github\.com[/:]|/github/){re.escape(old.slug)}{ends}",
        lambda match: match[1] + new.slug,
        text,
    )
    pages = re.escape(f"{old.owner}.github.io/{old.name}")
    return re.sub(rf"{pages}{ends}", f"{new.owner}.github.io/{new.name}", text)


def tracked(root: Path = ROOT) -> list[Path]:
    """The files that git tracks and that exist."""
    command = ["git", "-C", str(root), "ls-files", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := root / name).is_file()]


def set_address(url: str, root: Path = ROOT) -> list[Path]:
    """Write a new address into every tracked text file; the files that changed.

    Raises:
        ValueError: The address is not one of a repository on GitHub.
    """
    old, new = current(root), parse(url)
    changed = []
    for path in tracked(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        after = rewrite(text, old, new)
        if after != text:
            write_atomically(path, after)
            changed.append(path)
    return changed


def main(arguments: list[str]) -> int:
    """Write the address given on the command line, or print the current one."""
    if not arguments:
        print(current().repository)
        return 0
    try:
        changed = set_address(arguments[0])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for path in changed:
        print(path.relative_to(ROOT))
    print(f"{len(changed)} files changed. Build and test again: make test")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

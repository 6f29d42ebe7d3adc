"""Files that are already on this machine: in an installed package, or in a cache."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock  # torch depends on it

from mmlib.download.source import WHOLE, File, Hub, NotThisWay, Source, Web, Wheel


def cache_folder() -> Path:
    """Say where fetched files are kept: ``MMLIB_CACHE``, or ``mmlib`` in the user's cache.

    The user's cache is ``XDG_CACHE_HOME`` or ``~/.cache``. The folder need not exist yet.
    """
    if folder := os.environ.get("MMLIB_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmlib"


def is_offline() -> bool:
    """Say whether ``MMLIB_OFFLINE`` or ``HF_HUB_OFFLINE`` forbids to use the network."""
    flags = (os.environ.get(name, "") for name in ("MMLIB_OFFLINE", "HF_HUB_OFFLINE"))
    return any(flag.upper() in ("1", "ON", "YES", "TRUE") for flag in flags)


def from_package(source: Source) -> dict[str, Path]:
    """Find the files in the installed package.

    Raises:
        NotThisWay: They are not there, or are other files.
    """
    wheel = source.wheel
    if wheel is None:
        raise NotThisWay("no package holds it")
    if any(file.path == WHOLE for file in wheel.files.values()):
        raise NotThisWay("of no use, the wheel itself is needed")
    try:
        package = importlib.metadata.distribution(wheel.package)
    except importlib.metadata.PackageNotFoundError:
        raise NotThisWay(f"{wheel.package} is not installed") from None
    found = {role: Path(str(package.locate_file(f.path))) for role, f in wheel.files.items()}
    for role, file in wheel.files.items():
        if problem := file.problem(found[role]):
            raise NotThisWay(f"{wheel.package} {package.version} is installed, but {problem}")
    return found


def from_cache(source: Source) -> dict[str, Path]:
    """Find the files in the cache folder, or in that of the hub's own library.

    Raises:
        NotThisWay: One is missing or damaged.
    """
    reasons = []
    for origin in filter(None, (source.wheel, source.hub)):
        if isinstance(origin, Hub):
            where, found = f"the hub's cache of {origin.repo}", _cached_by_hub(origin)
        else:
            where, found = str(folder_of(source, origin)), places(source, origin)
        if not any(path.is_file() for path in found.values()):
            reasons.append(f"nothing in {where}")
            continue
        problems = [file.problem(found.get(role)) for role, file in origin.files.items()]
        if not any(problems):
            return found
        reasons += filter(None, problems)
    raise NotThisWay("; ".join(reasons))


def folder_of(source: Source, origin: Wheel | Web) -> Path:
    """Say in which folder of the cache the files of an origin belong."""
    version = origin.version if isinstance(origin, Wheel) else "web"
    return cache_folder() / f"{source.name}-{version}"


def places(source: Source, origin: Wheel | Web) -> dict[str, Path]:
    """Say where in the cache each file of an origin belongs."""

    def name(file: File) -> str:
        return f"{source.name}.whl" if file.path == WHOLE else file.name

    folder = folder_of(source, origin)
    return {role: folder / name(file) for role, file in origin.files.items()}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and hold its lock, so that two processes do not download the same.

    Raises:
        NotThisWay: The folder cannot be written to.
    """
    lock = FileLock(f"{folder}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise NotThisWay(
            f"cannot write to {folder} ({error.strerror or error}): "
            "set MMLIB_CACHE to a folder where you may write"
        ) from None
    try:
        yield
    finally:
        lock.release()


def name_damaged(path: Path, file: File) -> bool:
    """Say whether a file of the cache must be fetched, with a warning if it lies there damaged."""
    problem = file.problem(path)
    if problem and path.exists():
        warnings.warn(f"{problem}; fetching it again", stacklevel=2)
    return problem is not None


def _cached_by_hub(hub: Hub) -> dict[str, Path]:
    """Find what huggingface_hub has in its cache, without a network."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return {}
    cached = {
        role: try_to_load_from_cache(hub.repo, file.path, revision=hub.revision)
        for role, file in hub.files.items()
    }
    # Besides a path it may be None, or a marker that the file is known not to exist.
    return {role: Path(path) for role, path in cached.items() if isinstance(path, str)}

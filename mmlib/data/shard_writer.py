"""Write samples into tar files that webdataset reads: see :mod:`mmlib.data.shards`."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["INDEX", "PICTURES", "write_shards"]

#: The file beside the shards that lists them, with the number of samples of each.
INDEX = "index.json"
#: Extensions of pictures that a shard may hold.
PICTURES = ("jpg", "jpeg", "png", "webp")
_KEY = re.compile(r"[A-Za-z0-9_-]+")


def write_shards(
    records: Iterable[dict], folder: str | os.PathLike, per_shard: int = 1000
) -> list[Path]:
    """Write shards, and a file :data:`INDEX` that lists them.

    The same records give the same bytes. Pictures are copied as they are, not encoded anew. A
    shard gets its name when it is complete, and the index comes last.

    Args:
        records: Dictionaries with ``key`` (letters, digits, hyphens and underscores; no two
            alike), ``image`` (a file, whose extension is kept: jpg, jpeg, png or webp) and
            ``record`` (what JSON can hold).
        folder: Where to; made if it is not there. It must not contain shards.
        per_shard: How many samples a shard holds; the last one may hold fewer.

    Returns:
        The shards.

    Raises:
        ValueError: ``per_shard`` is below 1, the folder contains shards, there is no record, or a
            record is not as above; the message names it.
        FileNotFoundError: A picture does not exist.
        ImportError: webdataset is not installed.

    >>> from tempfile import TemporaryDirectory
    >>> from mmlib.data import vqa_v2
    >>> from mmlib.data.coco_example import write_example
    >>> with TemporaryDirectory() as folder:
    ...     files = write_example(folder, images=10)
    ...     data = vqa_v2.VQA(files.val_questions, files.val_annotations, files.val_images)
    ...     [path.name for path in write_shards(data.records(), files.root / "shards", 3)]
    ['000000.tar', '000001.tar']
    """
    if per_shard < 1:
        raise ValueError(f"per_shard must be at least 1: got {per_shard}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists() or any(folder.glob("*.tar")):
        raise ValueError(f"folder must not contain shards: {folder} does")
    rows: list[dict] = []
    seen: set[str] = set()
    batch: list[dict] = []
    for record in records:
        batch.append(_members(record, seen))
        if len(batch) == per_shard:
            rows.append(_write_shard(folder, len(rows), batch))
            batch = []
    if batch:
        rows.append(_write_shard(folder, len(rows), batch))
    if not rows:
        raise ValueError("records must not be empty: got none")
    (folder / INDEX).write_text(json.dumps({"shards": rows}, indent=1) + "\n", encoding="utf-8")
    return [folder / row["name"] for row in rows]


def _members(record: dict, seen: set[str]) -> dict:
    """One sample as the library's writer takes it."""
    name = record["key"]
    if not isinstance(name, str) or not _KEY.fullmatch(name):
        # A full stop would end the key in the middle: the first one begins the extension.
        raise ValueError(f"key must be of letters, digits, '-' and '_': got {name!r}")
    if name in seen:
        raise ValueError(f"key must not come twice: got {name!r}")
    seen.add(name)
    path = Path(record["image"])
    extension = path.suffix[1:].lower()
    if extension not in PICTURES:
        kinds = ", ".join(PICTURES)
        raise ValueError(f"image of {name} must be one of {kinds}: got {path.name}")
    text = json.dumps(record["record"], sort_keys=True, ensure_ascii=False)
    return {"__key__": name, extension: path.read_bytes(), "json": text.encode()}


def _write_shard(folder: Path, number: int, batch: list[dict]) -> dict:
    """Write one shard; its row of the index."""
    path = folder / f"{number:06d}.tar"
    partial = path.with_suffix(".partial")
    # A file object: the library takes a string for an address, and "pipe:" for a command.
    try:
        import webdataset
    except ImportError as error:
        raise ImportError('write_shards needs webdataset: pip install "mmlib[coco]"') from error
    options = {"encoder": False, "user": "", "group": "", "mtime": 0}
    with open(partial, "wb") as file, webdataset.TarWriter(file, **options) as writer:
        for sample in batch:
            writer.write(sample)
    partial.rename(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": path.name, "samples": len(batch), "sha256": digest}

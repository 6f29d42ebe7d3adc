"""Spoken sets on disk, so that a set is spoken once.

A set is one safetensors file: all samples one after the other as 16-bit numbers, the lengths, and
what is known of each utterance as JSON. Its name is a digest of everything that was asked for, of
the versions that speak it and of this package's own code, so that no change of any of them finds an
old file. A file that cannot be read, or whose checksum is wrong, is spoken again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from functools import cache
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmlib.data.speech import espeak
from mmlib.download import cache_folder


def path_of(request: list) -> Path:
    """Where a set is kept: a file named by the request and by all that speaks it.

    Raises:
        ImportError: if ``espeakng-loader`` is missing.
    """
    asked = {
        "espeak-ng": espeak.version(),
        "loader": metadata.version("espeakng-loader"),
        "code": _code(),
        "request": request,
    }
    text = json.dumps(asked, ensure_ascii=True, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return cache_folder() / "speech" / f"{digest[:32]}.safetensors"


def read(path: Path) -> tuple[Tensor, Tensor, list[dict]] | None:
    """Samples, lengths and facts of a stored set, or None if there is no sound file."""
    try:
        with safe_open(path, framework="pt") as file:
            samples, lengths = file.get_tensor("samples"), file.get_tensor("lengths")
            facts = file.metadata() or {}
        if facts["checksum"] != _checksum(samples, lengths, facts["utterances"]):
            return None
        return samples, lengths, json.loads(facts["utterances"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def write(path: Path, samples: Tensor, lengths: Tensor, utterances: list[dict]) -> None:
    """Store a set, if the folder can be written; a reader never sees half a file."""
    text = json.dumps(utterances, ensure_ascii=True)
    facts = {"utterances": text, "checksum": _checksum(samples, lengths, text)}
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        save_file({"samples": samples, "lengths": lengths}, scratch, metadata=facts)
        os.replace(scratch, path)
    except (OSError, SafetensorError):
        # A full or read-only disk costs time, not the result.
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)


@cache
def _code() -> str:
    """A digest of this package's source."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _checksum(samples: Tensor, lengths: Tensor, text: str) -> str:
    value = zlib.crc32(text.encode())
    for tensor in (lengths, samples):
        value = zlib.crc32(tensor.numpy().data, value)
    return f"{value:08x}"

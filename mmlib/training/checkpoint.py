"""Weights to share (safetensors with a card) and states to continue from.

Every file is written under another name and then renamed, so that a run that is stopped leaves
the old file or the new one, never half of one.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def save_weights(
    model: nn.Module,
    path: Path | str,
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Write a model's weights, and a card beside them that says where they are from.

    Tied weights are written once.

    Args:
        model: The model.
        path: ``….safetensors``; the card has the same name with ``.json``.
        card: What a user of the weights wants to know: command, data, seed, minutes, metrics.
        dtype: Floating-point weights are cast to it, ``torch.bfloat16`` halves the file.

    Returns:
        The card as written: with the file's SHA-256, its size and the number of parameters.

    Raises:
        ValueError: The path has another suffix, or the card cannot be written as JSON.
    """
    path = _weights_path(path)
    tensors, aliases = {}, {}
    first: dict[tuple, str] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        cast = dtype is not None and tensor.is_floating_point()
        # A copy: safetensors refuses views of one memory, and wants them contiguous.
        tensors[name] = tensor.detach().to("cpu", dtype if cast else None, copy=True).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _written(path) as temporary:
        save_file(tensors, temporary, metadata={"aliases": json.dumps(aliases)})
        card = {
            **(card or {}),
            "parameters": sum(p.numel() for p in model.parameters()),
            "megabytes": round(temporary.stat().st_size / 1e6, 3),
            "sha256": _sha256(temporary),
        }
        try:
            text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        except TypeError as error:
            raise ValueError(f"card must hold what JSON can: {error}") from error
    with _written(path.with_suffix(".json")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return card


def load_weights(model: nn.Module, path: Path | str) -> dict[str, Any]:
    """Load weights that :func:`save_weights` wrote, after checking them against their card.

    Nothing is loaded unless everything fits: each name, each shape.

    Args:
        model: The model to fill; weights are cast to its dtypes.
        path: ``….safetensors``.

    Returns:
        The card.

    Raises:
        FileNotFoundError: The weights or their card are not there.
        ValueError: The file is not the one its card describes, or does not fit the model.
    """
    path = _weights_path(path)
    for file in (path, path.with_suffix(".json")):
        if not file.exists():
            raise FileNotFoundError(f"there is no {file.name} in {file.parent}")
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    found = _sha256(path)
    if found != card.get("sha256"):
        raise ValueError(
            f"{path.name} is not the file its card describes: its SHA-256 begins with "
            f"{found[:12]}, the card's with {str(card.get('sha256'))[:12]}; get it again"
        )
    with safetensors.safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    state |= {name: state[kept] for name, kept in aliases.items()}
    _check_fit(state, model.state_dict(), path.name)
    model.load_state_dict(state)
    return card


def save_state(state: Mapping[str, Any], path: Path | str) -> None:
    """Write the state of a run: tensors, numbers, strings, and dicts and lists of these.

    Raises:
        TypeError: It holds an object of another kind, which :func:`load_state` would refuse.
    """
    _check_plain(state, "state")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _written(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path | str) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, on the CPU and without running any code in the file."""
    return torch.load(Path(path), map_location="cpu", weights_only=True)


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # on the disk before the name points to it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _weights_path(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors: got {path.name!r}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_fit(state: dict[str, Tensor], wanted: dict[str, Tensor], name: str) -> None:
    missing = sorted(wanted.keys() - state.keys())
    unknown = sorted(state.keys() - wanted.keys())
    other = [
        f"{key} is {tuple(state[key].shape)}, the model's is {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("other shape", other))
        if keys
    ]
    if problems:
        raise ValueError(
            f"{name} does not fit the model ({'; '.join(problems)}): "
            "was the model built with the configuration that the weights were trained with?"
        )


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif not (value is None or isinstance(value, Tensor | bool | int | float | str)):
        raise TypeError(f"{where} must be a tensor, number or string: got {type(value).__name__}")

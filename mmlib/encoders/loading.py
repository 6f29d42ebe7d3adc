"""Weights under other people's names: what a checkpoint must hold, no more and no less."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["load_renamed", "read_checkpoint"]


def load_renamed(
    model: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, Sequence[str]],
    ignore: Sequence[str] = (),
) -> None:
    """Copy a foreign state dict into a model; nothing may be missing, and nothing left over.

    The model takes on the dtype and device of the weights.

    Args:
        model: Ours; it may be on the meta device, which draws no initial weights in vain.
        state: Theirs.
        names: For each of our parameters, their tensors' names; several are joined along the
            first axis (query, key and value into one projection).
        ignore: Beginnings of their names that may be left over.

    Raises:
        ValueError: tensors are missing, left over, or of another shape; the message names them.
    """
    wanted = [their for theirs in names.values() for their in theirs]
    missing = [name for name in wanted if name not in state]
    extra = [
        name for name in sorted(set(state) - set(wanted)) if not name.startswith(tuple(ignore))
    ]
    if missing or extra:
        raise ValueError(
            f"the weights do not fit {type(model).__name__}: "
            f"missing {_some(missing)}; left over {_some(extra)}"
        )
    joined = {}
    for name, parameter in model.state_dict().items():
        value = torch.cat([state[their] for their in names[name]])
        if value.shape != parameter.shape:
            raise ValueError(
                f"{' + '.join(names[name])} must have shape {tuple(parameter.shape)}: "
                f"got {tuple(value.shape)}"
            )
        joined[name] = value  # a copy, even of one: training our model must not change theirs
    model.load_state_dict(joined, assign=True)


def read_checkpoint(folder: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """The configuration and weights of a folder in transformers' layout.

    Args:
        folder: Holds ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``, the
            latter read with ``weights_only=True``.

    Raises:
        FileNotFoundError: a file is missing.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if (folder / "model.safetensors").exists():
        return config, load_file(folder / "model.safetensors")
    if (folder / "pytorch_model.bin").exists():
        path = folder / "pytorch_model.bin"
        return config, dict(torch.load(path, map_location="cpu", weights_only=True))
    raise FileNotFoundError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8]) or "nothing"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")

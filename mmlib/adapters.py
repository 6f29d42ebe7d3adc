"""Named adapters of a whole model (适配器): switched, and saved apart from it, for chapter 13.

A model stays as it was trained; for each task an adapter is hung on it, which is a
:class:`~mmlib.lora.LoRALinear` addition to each of some layers and a head of its own.

References:
    Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, ICML 2019, whose adapters are
    small layers between the model's; those here are the additions of :mod:`mmlib.lora`.
"""

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mmlib.lora import LoRALinear

__all__ = ["Adapters", "Heads"]


class Heads(nn.Module):
    """One copy of a module for each adapter, and the one that was there before.

    Args:
        base: The module; frozen.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.own = nn.ModuleDict()
        self.active: str | None = None

    def forward(self, *args, **kwargs):
        """Call the copy of the adapter in use."""
        return (self.base if self.active is None else self.own[self.active])(*args, **kwargs)


class Adapters:
    """Named LoRA adapters of one model, each with heads of its own.

    The model is changed in place: the linear layers named by ``targets`` become
    :class:`~mmlib.lora.LoRALinear`, the modules named by ``heads`` become :class:`Heads`, and
    nothing but the adapter in use learns. With no adapter in use the model computes what it
    computed before.

    Args:
        model: The model.
        targets: Ends of the names of linear layers, such as ``"qkv_proj"``; a dot before an end
            is understood.
        heads: Names of modules of which each adapter has its own.

    Attributes:
        model: As given.
        layers: The layers with additions by name.
        heads: The heads by name.
        active: The name of the adapter in use, or None.

    Raises:
        ValueError: A target fits no linear layer, a head is no module of the model, or the model
            has adapters already.

    >>> from mmlib.trainable import count
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> adapters = Adapters(model, targets=["0"], heads=["2"])
    >>> adapters.add("colours", rank=2, new_heads={"2": nn.Linear(8, 5)})
    >>> model(torch.zeros(1, 8)).shape, count(model)
    (torch.Size([1, 5]), 77)
    >>> adapters.use(None)
    >>> model(torch.zeros(1, 8)).shape
    torch.Size([1, 3])
    """

    def __init__(
        self, model: nn.Module, targets: Sequence[str], heads: Sequence[str] = ("head",)
    ) -> None:
        if isinstance(targets, str) or isinstance(heads, str):
            raise TypeError("targets and heads must be sequences of names: got one string")
        if any(isinstance(module, LoRALinear) for module in model.modules()):
            raise ValueError("model must have no adapters yet: use the Adapters that made them")
        named = dict(model.named_modules())
        linear = [name for name, module in named.items() if isinstance(module, nn.Linear)]
        chosen = []
        for target in targets:
            found = [name for name in linear if f".{name}".endswith(f".{target}")]
            if not found:
                raise ValueError(f"targets must each end a linear layer's name: got {target!r}")
            chosen += [name for name in found if name not in chosen]
        for head in heads:
            if head not in named or not head:
                raise ValueError(f"heads must be names of modules of the model: got {head!r}")
        model.requires_grad_(False)
        self.model, self.active = model, None
        self.layers = {name: LoRALinear(named[name]) for name in chosen}
        self.heads = {name: Heads(named[name]) for name in heads}
        for name, module in (self.layers | self.heads).items():
            _replace(model, name, module)

    def add(
        self,
        name: str,
        rank: int,
        alpha: float | None = None,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        new_heads: dict[str, nn.Module] | None = None,
    ) -> None:
        """Add an adapter and use it.

        Args:
            name: Of the adapter.
            rank: Of each addition; lower where a layer is narrower.
            alpha: See :meth:`mmlib.lora.LoRALinear.add`.
            dropout: The same.
            seed: Of the random draw.
            new_heads: Modules in place of copies of the model's heads.

        Raises:
            ValueError: The name is taken, a number out of range, or an unknown head.
        """
        unknown = set(new_heads or {}) - set(self.heads)
        if unknown:
            raise ValueError(f"new_heads must be among {tuple(self.heads)}: got {sorted(unknown)}")
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            layer.add(name, rank, alpha, dropout, generator)
        for place, head in self.heads.items():
            own = (new_heads or {}).get(place)
            head.own[name] = copy.deepcopy(head.base) if own is None else own
        self.use(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters there are."""
        layers = list(self.layers.values())
        return tuple(layers[0].down) if layers else ()

    def use(self, name: str | None) -> None:
        """Switch to an adapter, or to none; only its parameters learn from now on.

        Raises:
            ValueError: There is none of that name, or one is merged.
        """
        if name is not None and name not in self.names:
            raise ValueError(f"name must be one of {self.names} or None: got {name!r}")
        for layer in self.layers.values():
            layer.need_apart()
        for module in (*self.layers.values(), *self.heads.values()):
            module.active = name
        self.active = name
        self.model.requires_grad_(False)
        if name is not None:
            for layer in self.layers.values():
                layer.down[name].requires_grad_(True)
                layer.up[name].requires_grad_(True)
            for head in self.heads.values():
                head.own[name].requires_grad_(True)

    def merge(self) -> None:
        """Put the adapter in use into the matrices: no cost at inference."""
        for layer in self.layers.values():
            layer.merge()

    def unmerge(self) -> None:
        """Undo :meth:`merge`, exactly."""
        for layer in self.layers.values():
            layer.unmerge()

    def state(self, name: str) -> dict[str, Tensor]:
        """What makes up an adapter, and nothing of the model that it is for.

        Raises:
            ValueError: There is none of that name.
        """
        if name not in self.names:
            raise ValueError(f"name must be one of {self.names}: got {name!r}")
        state = {}
        for place, layer in self.layers.items():
            state[f"{place}.down"] = layer.down[name].detach().clone()
            state[f"{place}.up"] = layer.up[name].detach().clone()
            state[f"{place}.factor"] = torch.tensor(layer.factors[name], dtype=torch.float64)
        for place, head in self.heads.items():
            for key, value in head.own[name].state_dict().items():
                state[f"{place}.own.{key}"] = value.clone()
        return state

    def save(self, name: str, path: Path | str) -> None:
        """Write an adapter to a file of its own; merged or not, it is the same file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(self.state(name), part)
        os.replace(part, path)

    def load(
        self, name: str, path: Path | str, new_heads: dict[str, nn.Module] | None = None
    ) -> None:
        """Add the adapter of a file and use it.

        Args:
            name: What to call it here.
            path: The file.
            new_heads: Modules that the heads' weights fit into, where they are not shaped like
                the model's.

        Raises:
            ValueError: The file does not fit the layers with additions, or the name is taken.
        """
        with safe_open(path, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        wanted = {f"{place}.down" for place in self.layers}
        found = {key for key in state if key.endswith(".down")}
        if wanted != found:
            raise ValueError(
                f"the adapter must be for the layers {sorted(self.layers)}: "
                f"{Path(path).name} is for {sorted(key[:-5] for key in found)}"
            )
        rank = min(len(state[key]) for key in found)
        self.add(name, rank, new_heads=new_heads)
        with torch.no_grad():
            for place, layer in self.layers.items():
                layer.down[name].copy_(state[f"{place}.down"])
                layer.up[name].copy_(state[f"{place}.up"])
                layer.factors[name] = state[f"{place}.factor"].item()
        for place, head in self.heads.items():
            start = f"{place}.own."
            own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            head.own[name].load_state_dict(own)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)

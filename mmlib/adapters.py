r"""Fine-tuning with few parameters (参数高效微调): LoRA, BitFit, and which parameters learn.

A model stays as it was trained, and a small addition learns the new task. Two additions:

* **LoRA** (低秩适配) adds to a matrix :math:`W` a product of two thin ones,

  .. math:: W' = W + \frac{\alpha}{r}\, B A, \qquad
            A \in \mathbb{R}^{r \times d_\text{in}},\; B \in \mathbb{R}^{d_\text{out} \times r}

  with :math:`B = 0` at first, so that nothing changes before the first step. Merged into
  :math:`W` it costs nothing at inference.
* **BitFit** trains the biases, and nothing else.

A new task also has a new classifier, which must learn: what learns is always an explicit list
(:func:`train_only`), and the heads belong to it.

References:
    Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022. Ben Zaken et al.,
    *BitFit*, ACL 2022.
"""

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["Adapters", "Heads", "LoRALinear", "bitfit", "count", "head_only", "train_only"]


class LoRALinear(nn.Module):
    r"""A linear layer with low-rank additions, of which at most one is in use.

    .. math:: y = W x + b + \frac{\alpha}{r}\, B\,(A\,\operatorname{dropout}(x))

    Args:
        base: The layer; it is used itself, and frozen.

    Attributes:
        base: As given.
        down: :math:`A` of each addition by name, drawn as torch draws a linear layer's weights.
        up: :math:`B` of each, zeros at first.
        active: The name of the one in use, or None.
        merged: The name of the one that is inside ``base.weight`` at present, or None.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        if not isinstance(base, nn.Linear):
            raise TypeError(f"base must be a linear layer: got {type(base).__name__}")
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.factors: dict[str, float] = {}
        self.dropouts: dict[str, float] = {}
        self.active: str | None = None
        self.merged: str | None = None
        self._plain: Tensor | None = None

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        r"""The matrix in effect, :math:`W + \frac{\alpha}{r} B A`.

        Layers that use a part of a projection (queries only, in cross-attention) read this and
        not the layer's output; without it they would pass the addition by.
        """
        if self.active is None or self.merged is not None:
            return self.base.weight
        return self.base.weight + self.delta(self.active)

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        """That of the base."""
        return self.base.bias

    def add(
        self,
        name: str,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        r"""Add an addition and use it.

        Args:
            name: Of the addition.
            rank: :math:`r`.
            alpha: :math:`\alpha`, by default the rank: a factor of 1.
            dropout: Probability, on what enters :math:`A`.
            generator: Of the random draw.

        Raises:
            ValueError: A number is out of range, the name is taken, or one is merged.
        """
        wide = min(self.base.weight.shape)
        if not 1 <= rank <= wide:
            raise ValueError(f"rank must be from 1 to {wide}, the layer's smaller side: got {rank}")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1): got {dropout}")
        if not name or "." in name or name in self.down:
            raise ValueError(f"name must be new, not empty and without a dot: got {name!r}")
        self._need_apart()
        weight = self.base.weight
        bound = weight.shape[1] ** -0.5
        draw = torch.rand(rank, weight.shape[1], generator=generator)
        self.down[name] = nn.Parameter(((2 * draw - 1) * bound).to(weight))
        self.up[name] = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.factors[name] = (rank if alpha is None else alpha) / rank
        self.dropouts[name] = dropout
        self.active = name

    def delta(self, name: str) -> Float[Tensor, "out in"]:
        r"""What is added to the matrix: :math:`\frac{\alpha}{r} B A`."""
        return self.factors[name] * self.up[name] @ self.down[name]

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """Apply the base and the addition in use, without forming their sum."""
        y = self.base(x)
        if self.active is None or self.merged is not None:
            return y
        name = self.active
        low = F.linear(F.dropout(x, self.dropouts[name], self.training), self.down[name])
        return y + self.factors[name] * F.linear(low, self.up[name])

    @torch.no_grad()
    def merge(self) -> None:
        """Put the addition in use into the base's matrix, which is kept to be put back."""
        self._need_apart()
        if self.active is not None:
            self._plain = self.base.weight.detach().clone()
            self.base.weight.add_(self.delta(self.active))
            self.merged = self.active

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base's matrix back, bit for bit: subtracting would leave a rounding error."""
        if self.merged is not None:
            self.base.weight.copy_(self._plain)
            self._plain, self.merged = None, None

    def _need_apart(self) -> None:
        if self.merged is not None:
            raise ValueError(f"{self.merged!r} is merged into the weights: unmerge it first")


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
    :class:`LoRALinear`, the modules named by ``heads`` become :class:`Heads`, and nothing but the
    adapter in use learns. With no adapter in use the model computes what it computed before.

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
            alpha: See :meth:`LoRALinear.add`.
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
            layer._need_apart()
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


def train_only(model: nn.Module, wanted: Callable[[str], bool] | Sequence[str]) -> int:
    """Let these parameters learn, and no others.

    Args:
        model: The model.
        wanted: A function of a parameter's name, or the starts of names, each of which must fit
            at least one.

    Returns:
        How many numbers learn.

    Raises:
        ValueError: Nothing would learn, or one of the starts fits nothing.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> train_only(model, ["1."]), [p.requires_grad for p in model.parameters()]
    (8, [False, False, True, True])
    """
    names = [name for name, _ in model.named_parameters()]
    if not callable(wanted):
        starts = tuple(wanted)
        for start in starts:
            if not any(name.startswith(start) for name in names):
                raise ValueError(f"wanted must be starts of parameters' names: got {start!r}")
        wanted = lambda name: name.startswith(starts)  # noqa: E731
    chosen = {name for name in names if wanted(name)}
    if not chosen:
        raise ValueError("wanted must leave something to learn: it fits no parameter")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return count(model)


def head_only(model: nn.Module, heads: Sequence[str] = ("head",)) -> int:
    """Let the heads learn: a linear probe (线性探测). See :func:`train_only`."""
    return train_only(model, [f"{head}." for head in heads])


def bitfit(model: nn.Module, heads: Sequence[str] = ("head",)) -> int:
    """Let every bias learn, and the heads: BitFit. Those of norms are biases, too.

    >>> bitfit(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)), ["2"])
    14
    """
    starts = tuple(f"{head}." for head in heads)
    for start in starts:
        if not any(name.startswith(start) for name, _ in model.named_parameters()):
            raise ValueError(f"heads must be names of modules of the model: got {start[:-1]!r}")
    return train_only(model, lambda n: n.startswith(starts) or n.rpartition(".")[2] == "bias")


def count(model: nn.Module, *, all_parameters: bool = False) -> int:
    """How many numbers learn, or how many there are."""
    chosen = (p for p in model.parameters() if all_parameters or p.requires_grad)
    return sum(p.numel() for p in chosen)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)

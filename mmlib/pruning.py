r"""Leaving out weights (剪枝): the small ones anywhere, or whole units: chapter 15.

**By magnitude** (幅值剪枝): the share of all weights that are smallest becomes zero, over the whole
model at once, so that layers of small weights lose more. The file shrinks when it is packed;
a product of dense matrices takes as long as before. **Structured** (结构化剪枝): hidden units of a
multilayer perceptron are taken out, and with them rows of one matrix and columns of the next: a
smaller dense model, faster everywhere. The units that matter least are those whose paths are small:

.. math:: \text{importance}_h = \lVert W^{(1)}_{h,:} \rVert_2\, \lVert W^{(2)}_{:,h} \rVert_2

Either way a short training afterwards brings back most of what was lost.

References:
    Han et al., *Learning both Weights and Connections for Efficient Neural Networks*, NeurIPS 2015.
    Li et al., *Pruning Filters for Efficient ConvNets*, ICLR 2017 (norms of whole units).
"""

import copy
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["MaskKeeper", "magnitude_masks", "prune_hidden", "sparsity", "unit_importance"]


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """The weights of linear and convolutional layers by name: all but biases, norms and tables."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return {
        f"{name}.weight" if name else "weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


def magnitude_masks(model: nn.Module, share: float) -> dict[str, Bool[Tensor, "..."]]:
    """Which weights stay when the smallest are left out, over the whole model at once.

    Args:
        model: The model; it is not changed.
        share: Of the weights of linear and convolutional layers that go, in [0, 1).

    Returns:
        A mask by name of parameter; True stays. Exactly ``round(share * number)`` are False.

    Raises:
        ValueError: ``share`` is out of its range, or there is nothing to prune.

    >>> layer = nn.Linear(2, 2)
    >>> layer.weight.data = torch.tensor([[1.0, -3.0], [0.1, 2.0]])
    >>> magnitude_masks(layer, 0.5)["weight"]
    tensor([[False,  True],
            [False,  True]])
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must lie in [0, 1): got {share}")
    weights = prunable(model)
    if not weights:
        raise ValueError("model must have a linear or convolutional layer: got none")
    sizes = torch.cat([weight.detach().abs().float().flatten() for weight in weights.values()])
    keep = torch.ones_like(sizes, dtype=torch.bool)
    keep[sizes.argsort(stable=True)[: round(share * len(sizes))]] = False
    parts = keep.split([weight.numel() for weight in weights.values()])
    return {
        name: part.reshape(weight.shape)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


class MaskKeeper:
    """Holds the weights that were left out at zero.

    Args:
        model: The model; its weights are changed here and by :meth:`apply`.
        masks: By name of parameter; True stays.

    Raises:
        KeyError: The model has no such parameter.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Bool[Tensor, "..."]]) -> None:
        parameters = dict(model.named_parameters())
        self._pairs = [(parameters[name], mask) for name, mask in masks.items()]
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """To be called after each step: momentum moves weights whose gradient is zero."""
        for parameter, mask in self._pairs:
            parameter.mul_(mask.to(parameter.device))


def sparsity(model: nn.Module) -> float:
    """Share of the weights of linear and convolutional layers that are zero."""
    weights = prunable(model).values()
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def unit_importance(first: nn.Linear, second: nn.Linear) -> Float[Tensor, " hidden"]:
    """How much each unit between two layers can do: see the module.

    Raises:
        ValueError: The layers do not follow each other.
    """
    if first.out_features != second.in_features:
        raise ValueError(
            "second must take what first gives: "
            f"got {first.out_features} outputs and {second.in_features} inputs"
        )
    return first.weight.detach().norm(dim=1) * second.weight.detach().norm(dim=0)


def prune_hidden(model: nn.Module, pairs: Iterable[tuple[str, str]], share: float) -> nn.Module:
    """A copy with fewer hidden units in some perceptrons.

    Args:
        model: The model; it is not changed.
        pairs: Names of the two linear layers of each perceptron, with nothing between them but
            what treats each unit alone (an activation, dropout).
        share: Of the units of each pair that go, in [0, 1); at least one stays.

    Raises:
        ValueError: ``share`` is out of its range, or a pair does not fit.
        TypeError: A name is not that of a linear layer.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must lie in [0, 1): got {share}")
    model = copy.deepcopy(model)
    for names in pairs:
        layers = [model.get_submodule(name) for name in names]
        for name, layer in zip(names, layers, strict=True):
            if not isinstance(layer, nn.Linear):
                raise TypeError(f"{name} must be a linear layer: got {type(layer).__name__}")
        importance = unit_importance(*layers)
        count = max(1, round((1 - share) * len(importance)))
        stay = importance.topk(count).indices.sort().values
        model.set_submodule(names[0], _narrow(layers[0], rows=stay))
        model.set_submodule(names[1], _narrow(layers[1], columns=stay))
    return model


def _narrow(
    layer: nn.Linear,
    rows: Int[Tensor, " n"] | None = None,
    columns: Int[Tensor, " n"] | None = None,
) -> nn.Linear:
    weight = layer.weight.detach()
    bias = None if layer.bias is None else layer.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    narrow = nn.Linear(
        weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype
    )
    narrow.weight = nn.Parameter(weight.clone())
    if bias is not None:
        narrow.bias = nn.Parameter(bias.clone())
    return narrow.train(layer.training)

"""Which parameters learn (哪些参数学习): chapter 13.

A new task has a new classifier, which must learn whatever else does: what learns is always an
explicit list (:func:`train_only`), and the heads belong to it. Of two such lists the names are
known: the heads alone (:func:`head_only`), and with them every bias (:func:`bitfit`).

References:
    Ben Zaken et al., *BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models*, ACL 2022.
"""

from collections.abc import Callable, Sequence

from torch import nn

__all__ = ["bitfit", "count", "head_only", "train_only"]


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

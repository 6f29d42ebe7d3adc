"""The optimiser of every chapter: AdamW, which parameters decay, and the learning rate's course."""

import math
import re

import torch
from torch import nn

# Parameters of their own (no module's `weight`) that place, start or scale things.
_NOT_A_MATRIX = re.compile(r"pos|embed|token|scale|bias")


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Split the trainable parameters into those that decay and those that do not.

    Matrices and convolution kernels decay. Biases, norms, embeddings, learned tokens and
    ``logit_scale`` do not: decay would pull them to zero, which is no prior one wants of them. Nor
    do positions that are a parameter of the model (``positions``, ``pos_embed``); the ``table`` of
    :class:`mmlib.positions.LearnedPositions` looks like any other matrix, and decays.

    Args:
        model: The model; parameters with ``requires_grad=False`` are left out.
        weight_decay: The decay of the first group.

    Returns:
        Two parameter groups for a torch optimiser.

    Raises:
        ValueError: The model has no trainable parameter.

    >>> groups = decay_groups(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)), 0.1)
    >>> [[tuple(p.shape) for p in group["params"]] for group in groups]
    [[(3, 4)], [(5, 4), (3,)]]
    """
    decayed, kept, embeddings = [], [], set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            embeddings.add(id(module.weight))
    for name, parameter in model.named_parameters():  # tied parameters come once
        if not parameter.requires_grad:
            continue
        leaf = name.rpartition(".")[2]
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if is_matrix and not _NOT_A_MATRIX.search(leaf) else kept).append(parameter)
    if not decayed and not kept:
        raise ValueError("model has no parameter that requires a gradient")
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.98),
) -> torch.optim.AdamW:
    r"""AdamW (Loshchilov and Hutter, 2019) on the groups of :func:`decay_groups`.

    .. math::
        \theta \leftarrow (1 - \eta\lambda)\,\theta - \eta\,\hat m / (\sqrt{\hat v} + \epsilon)

    The decay :math:`\lambda` acts on the weights, not through the gradient. torch's fused version
    updates all parameters in one kernel, 2-3 times as fast as the loop for small models on a CPU.

    Args:
        model: The model, on its device already.
        learning_rate: :math:`\eta`.
        weight_decay: :math:`\lambda` of matrices.
        betas: How much of the running means of gradient and squared gradient each step keeps.
    """
    groups = [group for group in decay_groups(model, weight_decay) if group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def learning_rate_at(
    step: int, steps: int, peak: float, warmup: int = 0, final: float = 0.0
) -> float:
    r"""Linear warm-up, then half a cosine down.

    .. math::
        \eta_t = \begin{cases}
          \eta\,(t+1)/W & t < W \\
          \eta\left(f + (1-f)\,\tfrac12\left(1+\cos\pi\tfrac{t-W}{T-W}\right)\right) & t \ge W
        \end{cases}

    The first step has :math:`t=0` and already moves, unlike in ``transformers``, whose warm-up
    starts with a step of length zero.

    Args:
        step: :math:`t`, from 0.
        steps: :math:`T`, the steps of the whole run.
        peak: :math:`\eta`, the highest learning rate.
        warmup: :math:`W`, the steps of the warm-up.
        final: :math:`f`, the share of the peak that is left at the end.

    >>> [round(learning_rate_at(step, 4, 1.0, warmup=2), 3) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

r"""One batch that all processes work on together, in stages 1 and 2.

Stages 3 and 4 add up losses of documents, so that P processes with a batch each are one process
with P batches. In stages 1 and 2 a batch is more than the sum of its parts: each pair is compared
with every other, batch norms take its mean and variance, one variance is that of all its pictures'
errors, and codes that rest are moved to its vectors. So there a batch is divided: of B items each
of P processes takes B/P, and what is of the whole batch is worked out over all processes:

.. math:: \mu = \frac1{PN} \sum_{p, i} x_{pi}, \qquad
    \sigma^2 = \frac1{PN} \sum_{p, i} (x_{pi} - \mu)^2, \qquad
    v = \frac1P \sum_p \overline{(x_p - \hat x_p)^2}

Loss and gradients are those of one process with the whole batch, but for rounding. torch's
``SyncBatchNorm`` does the first two on GPUs only; :func:`together` does so everywhere.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from mmlib.discrete_vae import DiscreteVAE
from mmlib.likelihoods import Pixels, gaussian_log_density
from mmlib.tokenizer_training import TrainingBatch, object_loss
from mmlib.training.distributed import all_gather, is_main, rank, world_size

__all__ = ["autoencoder_loss", "own_part", "together"]


def own_part(items: Sequence[Any] | Tensor) -> Any:
    """This process's part of a batch: the first of P equal ones for the first process, and so on.

    Args:
        items: Whatever has a length and can be cut.

    Raises:
        ValueError: The number of processes does not divide the batch.

    >>> own_part([1, 2, 3])
    [1, 2, 3]
    """
    size, rest = divmod(len(items), world_size())
    if rest:
        raise ValueError(
            f"the number of processes must divide a batch of {len(items)}: got {world_size()}"
        )
    return items[rank() * size : (rank() + 1) * size]


@contextmanager
def together(model: nn.Module) -> Iterator[None]:
    """A model whose batch norms and resting codes see the parts of all processes in training.

    In one process nothing is changed.

    Args:
        model: It is as before when the context ends.
    """
    changed: list[tuple[nn.Module, str]] = []
    for module in model.modules() if world_size() > 1 else ():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.forward = functools.partial(_normalised, module)
            changed.append((module, "forward"))
        elif isinstance(module, DiscreteVAE):
            module._revive = functools.partial(_revive, module)
            module._count = functools.partial(_count, module)
            changed += [(module, "_revive"), (module, "_count")]
    try:
        yield
    finally:
        for module, name in changed:
            delattr(module, name)


def autoencoder_loss(
    model: DiscreteVAE, batch: TrainingBatch, total: float | int
) -> Float[Tensor, ""]:
    """The loss of stage 2, of this process's part: the negative bound and :func:`object_loss`.

    Both are per number of the pictures, and have the variance of the errors of all processes.

    Args:
        model: In training mode.
        batch: Scenes alone.
        total: Of each object's weights in :func:`~mmlib.tokenizer_training.object_loss`.
    """
    numbers = batch.pictures[0].numel()
    if world_size() == 1:
        terms = model(batch.pictures)
        return terms.loss / numbers + object_loss(batch, terms.pictures, total=total)
    terms = model(batch.pictures, variance=1.0)
    own = (batch.pictures - terms.pictures.detach()).square().mean().clamp(min=1e-12)
    variance = own.clone()
    dist.all_reduce(variance)
    variance /= world_size()
    pixels = Pixels(terms.pictures, (variance.log() / 2).expand_as(terms.pictures))
    reconstruction = gaussian_log_density(batch.pictures, pixels)
    loss = terms.loss + (terms.reconstruction - reconstruction).mean()
    # It divides by the variance of its own errors.
    objects = object_loss(batch, terms.pictures, total=total) * (own / variance)
    return loss / numbers + objects


def _normalised(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What a batch norm makes of this process's part, with mean and variance of all parts."""
    if not norm.training:
        return type(norm).forward(norm, x)
    wide, axes = x.to(torch.promote_types(x.dtype, torch.float32)), [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = world_size() * x.numel() // x.shape[1]
    mean = _sum(wide.sum(axes)) / count
    centred = wide - mean.view(shape)
    variance = _sum(centred.square().sum(axes)) / count
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    y = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


def _sum(tensor: Tensor) -> Tensor:
    """The sum over all processes; each one's gradient reaches every part."""
    return all_gather(tensor[None]).sum(0)


def _revive(model: DiscreteVAE, vectors: Tensor, generator: torch.Generator | None) -> None:
    """Move resting codes to vectors of all parts: the main process draws them."""
    every = all_gather(vectors)
    if is_main():
        DiscreteVAE._revive(model, every, generator)
    for tensor in (model.codebook.data, model.usage):
        dist.broadcast(tensor, 0)


def _count(model: DiscreteVAE, ids: Tensor) -> None:
    DiscreteVAE._count(model, all_gather(ids))

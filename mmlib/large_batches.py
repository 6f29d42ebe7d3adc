r"""Contrastive batches larger than memory, with the same loss and the same gradient: chapter 05.

Two things grow with the batch. The logits grow with its square: :func:`chunked_clip_loss` never
holds more than some rows of them. The encoders' activations grow with it: :func:`cached_backward`
encodes twice and holds those of one chunk at a time.

Accumulating the gradients of small batches is *not* the same, as it is for other losses: each
small batch has only its own negatives.

References:
    Gao et al., *Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup*,
    RepL4NLP 2021.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmlib.training import rng

__all__ = ["cached_backward", "chunked_clip_loss", "cosines", "in_row_chunks"]


def cosines(
    queries: Float[Tensor, "batch dim"], keys: Float[Tensor, "candidates dim"]
) -> Float[Tensor, "batch candidates"]:
    """All inner products of rows of unit length, in the inputs' own precision.

    Autocast would round them to bf16.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ keys.T


def in_row_chunks(
    function: Callable[..., Tensor],
    rows: Sequence[Tensor],
    shared: Tensor,
    chunk: int | None,
) -> Tensor:
    """Sum a function over chunks of rows, and compute each chunk again in the backward pass.

    Args:
        function: Called as ``function(*rows, shared)`` with some of the rows; gives one number.
        rows: Tensors of the same length.
        shared: What every chunk needs.
        chunk: Rows at a time; all by default, and then nothing is computed twice.

    Returns:
        The sum of what the function returned.
    """
    count = len(rows[0])
    if chunk is None or chunk >= count:
        return function(*rows, shared)
    parts = zip(*(tensor.split(chunk) for tensor in rows), strict=True)
    return sum(checkpoint(function, *part, shared, use_reentrant=False) for part in parts)


def chunked_clip_loss(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    logit_scale: Float[Tensor, ""] | float,
    groups: Int[Tensor, " batch"] | None,
    chunk: int,
) -> Float[Tensor, ""]:
    r"""CLIP's symmetric loss from a few rows of logits at a time; see the module.

    The columns' sums need all rows, so the forward pass keeps a running log-sum-exp for each
    column. The backward pass computes each chunk of logits again. With the rows' and the columns'
    softmax :math:`P` and :math:`Q` and the targets :math:`W`, its gradient is

    .. math:: \partial L / \partial Z = (P + Q - W - W^\top) / 2n

    Args:
        image: Features of unit length, ``(batch, dim)``.
        text: As many.
        logit_scale: The factor on the cosines.
        groups: Equal numbers for items that belong together, or None.
        chunk: Rows at a time.

    Returns:
        The loss. Its gradient cannot be differentiated once more.
    """
    scale = torch.as_tensor(logit_scale, dtype=image.dtype, device=image.device)
    numbers = torch.arange(len(image), device=image.device) if groups is None else groups
    return _ChunkedClipLoss.apply(image, text, scale, numbers, chunk)


class _ChunkedClipLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, groups: Tensor, chunk: int
    ) -> Tensor:
        share = _shares(groups, image.dtype)
        rows, columns, positive = [], None, image.new_zeros(())
        for part in torch.arange(len(image), device=image.device).split(chunk):
            logits = cosines(scale * image[part], text)
            rows.append(logits.logsumexp(1))
            new = logits.logsumexp(0)
            columns = new if columns is None else torch.logaddexp(columns, new)
            same = groups[part, None] == groups
            positive += (logits.where(same, 0.0).sum(1) * share[part]).sum()
        row_sums = torch.cat(rows)
        ctx.save_for_backward(image, text, scale, groups, share, row_sums, columns)
        ctx.chunk = chunk
        return (0.5 * (row_sums + columns).sum() - positive) / len(image)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradient.device.type, enabled=False):
            return _ChunkedClipLoss._gradients(ctx, gradient)

    @staticmethod
    def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, groups, share, rows, columns = ctx.saved_tensors
        factor = gradient / (2 * len(image))
        d_image, d_text = torch.empty_like(image), torch.zeros_like(text)
        for part in torch.arange(len(image), device=image.device).split(ctx.chunk):
            scaled = scale * image[part]
            logits = scaled @ text.T
            d_logits = (logits - rows[part, None]).exp_()
            d_logits += logits.sub_(columns).exp_()  # the logits are not needed any more
            same = groups[part, None] == groups
            d_logits -= torch.where(same, 2 * share[part, None], 0.0)
            d_logits *= factor
            d_image[part] = scale * (d_logits @ text)
            d_text.addmm_(d_logits.T, scaled)
        # Every logit is the scale times a cosine, and so is linear in both.
        d_scale = (d_image * image).sum() / scale
        return d_image, d_text, d_scale, None, None


def _shares(groups: Tensor, dtype: torch.dtype) -> Tensor:
    """One over the size of each item's group."""
    _, place, sizes = groups.unique(return_inverse=True, return_counts=True)
    return 1 / sizes[place].to(dtype)


def cached_backward(
    encode: Callable[[Any], Sequence[Tensor]],
    chunks: Sequence[Any],
    loss: Callable[..., Tensor],
) -> Tensor:
    """Backward pass of a loss over a whole batch, with the activations of one chunk in memory.

    Every chunk is encoded without a graph; the loss of all features together gives the gradient
    for each feature; every chunk is encoded again, now with a graph, and its features' gradients
    flow back. Dropout draws the same numbers both times. The gradient is exactly that of the whole
    batch, but for layers that mix items, as batch norm does, which would see one chunk.

    Args:
        encode: Gives the features of a chunk, a tensor ``(chunk, dim)`` for each modality.
        chunks: The batch in pieces; any pieces ``encode`` takes, not necessarily of one size.
        loss: Called with the features of the whole batch, one tensor for each modality; gives one
            number. Parameters of its own, such as a logit scale, get their gradients too.

    Returns:
        The loss, without a graph; gradients have been added to every parameter's ``grad``.

    Raises:
        ValueError: there is no chunk.
    """
    if not len(chunks):
        raise ValueError("chunks must hold at least one chunk: got none")
    states, pieces = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(rng.get_state())
            pieces.append(tuple(encode(chunk)))
    features = [torch.cat(parts).requires_grad_() for parts in zip(*pieces, strict=True)]
    value = loss(*features)
    value.backward()
    sizes = [len(piece[0]) for piece in pieces]
    gradients = zip(*(x.grad.split(sizes) for x in features), strict=True)
    with rng.preserved():
        for chunk, state, gradient in zip(chunks, states, gradients, strict=True):
            rng.set_state(state)
            torch.autograd.backward(tuple(encode(chunk)), gradient)
    return value.detach()

"""What the picture encoders share: checks of their input, and a feature map read as tokens."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mmlib.block import LayerWeights
from mmlib.encoders.encoded import Encoded

__all__ = ["check_images", "encode_map", "encode_tokens"]


def check_images(images: Tensor, keep: Tensor | None, channels: int) -> None:
    """Say what is wrong with a batch of pictures, before a convolution does in its own words.

    Raises:
        TypeError: ``images`` is not floating point, or ``keep`` is not boolean.
        ValueError: a wrong shape.
    """
    if not images.is_floating_point():
        raise TypeError(
            "images must be floating point, preprocessed for the model (uint8 pictures: divide by "
            f"255 first): got {images.dtype}"
        )
    if images.ndim != 4 or images.shape[1] != channels or 0 in images.shape:
        raise ValueError(
            f"images must have shape (batch, {channels}, height, width), not empty: "
            f"got {tuple(images.shape)}"
        )
    if keep is not None:
        if keep.dtype != torch.bool:
            raise TypeError(f"keep must be boolean (True = the picture exists): got {keep.dtype}")
        if keep.shape != images.shape[:1]:
            raise ValueError(
                f"keep must have shape ({len(images)},), one for each picture: "
                f"got {tuple(keep.shape)}"
            )


def encode_tokens(
    tokens: Float[Tensor, "batch length dim"],
    pooled: Float[Tensor, "batch dim"],
    keep: Bool[Tensor, " batch"] | None,
    weights: list[LayerWeights] | None = None,
) -> Encoded:
    """Put an encoder's results together; pictures that do not exist become zeros."""
    if keep is None:
        exists = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Encoded(tokens, exists, pooled, weights)
    # Filled and not multiplied: what stands for a missing picture may hold NaN.
    tokens = tokens.masked_fill(~keep[:, None, None], 0.0)
    pooled = pooled.masked_fill(~keep[:, None], 0.0)
    return Encoded(tokens, keep[:, None].expand(tokens.shape[:2]), pooled, weights)


def encode_map(
    features: Float[Tensor, "batch dim rows columns"], keep: Bool[Tensor, " batch"] | None
) -> Encoded:
    r"""Read a feature map as one token for each region, row by row, and pool it by its mean.

    .. math:: t_{r C + c} = F_{:, r, c}, \qquad \text{pooled} = \frac{1}{R C} \sum_{r,c} F_{:, r, c}

    >>> encode_map(torch.arange(4.0).reshape(1, 1, 2, 2), None).tokens.flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    tokens = rearrange(features, "batch dim rows columns -> batch (rows columns) dim")
    return encode_tokens(tokens, features.mean(dim=(2, 3)), keep)

"""How near two pictures are, and how many bits a picture takes."""

import math

from jaxtyping import Float
from torch import Tensor

__all__ = ["bits_per_dimension", "psnr"]


def psnr(
    pictures: Float[Tensor, "batch channels height width"],
    originals: Float[Tensor, "batch channels height width"],
) -> float:
    r"""Peak signal-to-noise ratio of pictures in [0, 1], in decibels.

    .. math:: \mathrm{PSNR} = -10 \log_{10} \frac1N \sum_{i=1}^N (\hat x_i - x_i)^2

    with the mean over all pixels of all pictures together. The mean of each picture's own ratio,
    which is also in use, is never lower and is led by the easiest pictures: one that is perfect
    makes it infinite.

    Args:
        pictures: In [0, 1].
        originals: What they should be, in [0, 1].

    Returns:
        Decibels; infinity for equal pictures.

    Raises:
        ValueError: other shapes, no picture, or a value outside [0, 1].

    >>> import torch
    >>> originals = torch.zeros(2, 3, 8, 8)
    >>> round(psnr(originals + 0.1, originals), 4)
    20.0
    """
    if pictures.shape != originals.shape:
        raise ValueError(
            "pictures and originals must be of one shape: "
            f"got {tuple(pictures.shape)} and {tuple(originals.shape)}"
        )
    if not pictures.numel():
        raise ValueError(f"pictures must hold at least one: got shape {tuple(pictures.shape)}")
    for name, values in (("pictures", pictures), ("originals", originals)):
        low, high = values.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} must lie in [0, 1]: got {low.item():g} to {high.item():g}")
    error = (pictures.double() - originals.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def bits_per_dimension(
    log_likelihood: Float[Tensor, " batch"], dimensions: int
) -> Float[Tensor, " batch"]:
    r"""Bits for each channel of each pixel.

    .. math:: -\frac{\log p(x)}{D \ln 2}

    A model that knows nothing takes 8 for pictures of 256 levels.

    Args:
        log_likelihood: Of each picture, in nats: a probability of whole levels, no density.
        dimensions: :math:`D`, channels × height × width.

    Raises:
        ValueError: ``dimensions`` is below 1, or a log-likelihood above 0, as only a density's is.

    >>> import torch
    >>> bits_per_dimension(torch.tensor([-12 * math.log(256)]), 12)
    tensor([8.])
    """
    if dimensions < 1:
        raise ValueError(f"dimensions must be at least 1: got {dimensions}")
    if bool((log_likelihood > 0).any()):
        raise ValueError(
            "log_likelihood must not be above 0, as that of whole levels never is: "
            f"got {log_likelihood.max().item():g}"
        )
    return -log_likelihood / (dimensions * math.log(2))

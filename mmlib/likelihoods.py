r"""How likely a picture is: distributions over the levels of its pixels, in nats per picture.

**Why whole numbers.** The pictures have 256 levels a channel. A density (say a normal with a
learned variance) grows without limit on the white around an emoji, a Bernoulli is no distribution
over levels at all, and neither gives bits that could be compared. A logistic density that is cut
into 256 parts is a distribution over levels: :func:`discretised_logistic`. So its bits per
dimension can be compared with those of any other model of the same pictures, as with those of
:class:`PixelHistogram`, which knows each pixel by itself.

References:
    Kingma et al., *Improved Variational Inference with Inverse Autoregressive Flow*, NeurIPS 2016.
    Salimans et al., *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
    Likelihood and Other Modifications*, ICLR 2017.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor

__all__ = ["PixelHistogram", "Pixels", "discretised_logistic", "gaussian_log_density"]

LEVELS = 256
LOG_TWO_PI = math.log(2 * math.pi)


class Pixels(NamedTuple):
    """What the decoder says of every channel of every pixel.

    Attributes:
        mean: Location; white is 1 and black is 0, and it may lie beyond both.
        log_scale: Logarithm of the scale, in the same unit.
    """

    mean: Float[Tensor, "batch channels height width"]
    log_scale: Float[Tensor, "batch channels height width"]


def discretised_logistic(
    pictures: Float[Tensor, "batch channels height width"],
    pixels: Pixels,
) -> Float[Tensor, "*draws batch"]:
    r"""Log-likelihood of 8-bit pictures under logistic distributions, in nats per picture.

    A level takes the probability of the interval of width 1/255 around it, 0 and 255 also all that
    lies beyond them. Let :math:`a` and :math:`b` be the interval's ends less the mean, over the
    scale, and :math:`\sigma` the logistic function; then

    .. math:: \log\bigl(\sigma(a) - \sigma(b)\bigr)
        = \log \sigma(a) + \log \sigma(-b) + \log\bigl(1 - e^{-(a - b)}\bigr),

    which is exact and never takes a logarithm of zero, so no case needs an approximation.

    Args:
        pictures: In [0, 1], whole multiples of 1/255.
        pixels: Mean and scale of each channel of each pixel; may have further axes in front.

    Raises:
        ValueError: the pictures are not of 256 levels.

    >>> white = torch.ones(1, 1, 1, 1)
    >>> discretised_logistic(white, Pixels(white + 1, white * -7))  # the mean is beyond white
    tensor([0.])
    """
    levels = _levels(pictures)
    half, scale = 0.5 / 255, pixels.log_scale.exp()
    distance = pictures - pixels.mean
    above = F.logsigmoid((distance + half) / scale)
    below = F.logsigmoid((half - distance) / scale)
    inside = torch.log(-torch.expm1(-2 * half / scale))
    lowest, highest = levels == 0, levels == 255
    value = above.masked_fill(highest, 0) + below.masked_fill(lowest, 0)
    value = value + inside.masked_fill(lowest | highest, 0)
    return reduce(value, "... channels height width -> ...", "sum")


def gaussian_log_density(
    pictures: Float[Tensor, "batch channels height width"], pixels: Pixels
) -> Float[Tensor, "*draws batch"]:
    r"""Log-density of real-valued pictures under normals of scale :math:`\sigma`, in nats.

    .. math:: \sum_d -\tfrac12 \log 2\pi - \log \sigma_d - \frac{(x_d - \mu_d)^2}{2 \sigma_d^2}

    It is a density and no probability: not comparable with :func:`discretised_logistic`.
    """
    error = (pictures - pixels.mean) / pixels.log_scale.exp()
    value = -(error.square() + LOG_TWO_PI) / 2 - pixels.log_scale
    return reduce(value, "... channels height width -> ...", "sum")


class PixelHistogram:
    r"""The baseline that knows every pixel by itself: counted levels at each place.

    .. math:: p(x) = \prod_d \frac{n_d(x_d) + \alpha}{n + 256\,\alpha}

    where :math:`n_d(v)` counts the training pictures with level :math:`v` in channel and place
    :math:`d` (Laplace's rule of succession for :math:`\alpha = 1`).

    Args:
        pictures: Training pictures in [0, 1], whole multiples of 1/255.
        smoothing: :math:`\alpha`, what is added to each count.

    Raises:
        ValueError: the pictures are not of 256 levels, or ``smoothing`` is not positive.

    >>> model = PixelHistogram(torch.ones(9, 1, 1, 1))
    >>> round(model.log_likelihood(torch.ones(1, 1, 1, 1)).exp().item(), 4) == round(10 / 265, 4)
    True
    """

    def __init__(
        self,
        pictures: Float[Tensor, "batch channels height width"],
        smoothing: float | int = 1.0,
    ) -> None:
        if not smoothing > 0:
            raise ValueError(f"smoothing must be above 0: got {smoothing}")
        levels = _levels(pictures).long().flatten(1).T
        counts = torch.zeros(len(levels), LEVELS, dtype=torch.float64, device=pictures.device)
        counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
        self.shape = pictures.shape[1:]
        self.log_share = (counts + smoothing).log() - math.log(len(pictures) + LEVELS * smoothing)

    def log_likelihood(
        self, pictures: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, " batch"]:
        """Nats of each picture.

        Raises:
            ValueError: the pictures are not of 256 levels, or of another shape than those counted.
        """
        if pictures.shape[1:] != self.shape:
            raise ValueError(
                f"pictures must be of shape (batch, {', '.join(map(str, self.shape))}): "
                f"got {tuple(pictures.shape)}"
            )
        levels = _levels(pictures).long().flatten(1).T
        return self.log_share.gather(1, levels).sum(0).to(pictures.dtype)


def _levels(pictures: Tensor) -> Tensor:
    """The level, 0 to 255, of each channel of each pixel."""
    scaled = pictures * 255
    levels = scaled.round()
    if pictures.numel():
        worst = (scaled - levels).abs().max().item()
        low, high = levels.aminmax()
        if not (worst < 1e-3 and low >= 0 and high <= 255):
            raise ValueError(
                "pictures must be whole multiples of 1/255 in [0, 1]: got values from "
                f"{pictures.min().item():g} to {pictures.max().item():g}, "
                f"up to {worst:.2g} levels from a whole one"
            )
    return levels

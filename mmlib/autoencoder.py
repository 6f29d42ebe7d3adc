r"""From a picture to a small map and back: the two halves of every autoencoder (自编码器).

Chapter 09's autoencoders differ in what stands between the halves: a vector of normal numbers or
a map of words from a codebook. The halves are convolutions without any norm: residual branches
that start small keep the signal's size, as in the autoencoder of DALL·E, and a picture's code then
depends on that picture alone.

References:
    Ramesh et al., *Zero-Shot Text-to-Image Generation*, ICML 2021, appendix A: a residual branch
    is scaled by one over the number of layers squared. Here by one over the square root of the
    number of blocks, a factor that is learned. Shi et al., *Real-Time Single Image and Video
    Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network*, CVPR 2016: the
    decoder doubles height and width by sorting channels into pixels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PictureDecoder", "PictureEncoder", "ResidualBlock"]


class ResidualBlock(nn.Module):
    r"""Two convolutions around which the map has a way past.

    .. math:: y = x + g\, W_2 * \operatorname{relu}(W_1 * \operatorname{relu}(x))

    Args:
        channels: Of the map.
        gain: :math:`g` at the start; it is learned.
    """

    def __init__(self, channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Carry the map through the block."""
        return x + self.gain * self.second(F.relu(self.first(F.relu(x))))


class PictureEncoder(nn.Module):
    """Pictures in [0, 1] to a map, half as high and wide at each stage.

    Args:
        channels: Of the picture.
        widths: Channels after each halving.
        blocks: Residual blocks after each halving.
        out: Channels of the map that comes out.

    >>> PictureEncoder(3, (16, 32), (1, 1), 5)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 5, 8, 8])
    """

    def __init__(
        self, channels: int, widths: tuple[int, ...], blocks: tuple[int, ...], out: int
    ) -> None:
        super().__init__()
        gain = 1 / math.sqrt(max(1, sum(blocks)))
        layers: list[nn.Module] = []
        for width, number in zip(widths, blocks, strict=True):
            # An even kernel keeps the halved map centred on the picture.
            layers.append(nn.Conv2d(channels, width, 4, stride=2, padding=1))
            layers += [ResidualBlock(width, gain) for _ in range(number)]
            channels = width
        if layers:
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, out, 1))

    def forward(
        self, pictures: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out map_height map_width"]:
        """Encode pictures whose sides are multiples of two to the number of stages."""
        return self.layers(2 * pictures - 1)


class PictureDecoder(nn.Module):
    """A map to pictures, twice as high and wide at each stage: the encoder's mirror image.

    After the last doubling the map has half the first width and one more residual block.

    Args:
        dim: Channels of the map that comes in.
        widths: As the encoder's: the decoder goes through them backwards.
        blocks: Likewise.
        out: Channels of what comes out, which is not squashed into any range.

    >>> PictureDecoder(5, (16, 32), (1, 1), 3)(torch.randn(2, 5, 8, 8)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, dim: int, widths: tuple[int, ...], blocks: tuple[int, ...], out: int
    ) -> None:
        super().__init__()
        gain = 1 / math.sqrt(max(1, sum(blocks)))
        layers: list[nn.Module] = []
        after = (max(1, widths[0] // 2), *widths[:-1]) if widths else ()
        for width, number, narrower in zip(
            reversed(widths), reversed(blocks), reversed(after), strict=True
        ):
            if not layers:
                layers.append(nn.Conv2d(dim, width, 1))
            layers += [ResidualBlock(width, gain) for _ in range(number)]
            layers += [nn.Conv2d(width, 4 * narrower, 1), nn.PixelShuffle(2)]
            dim = narrower
        if layers:
            layers += [ResidualBlock(dim, gain), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(dim, out, 3, padding=1)

    def forward(
        self, x: Float[Tensor, "batch dim map_height map_width"]
    ) -> Float[Tensor, "batch out height width"]:
        """Decode maps."""
        x = self.layers(x)
        # A level is a step of 1/255, and bf16 near 1 knows steps of 1/256 only.
        with torch.autocast(x.device.type, enabled=False):
            return self.last(x.to(self.last.weight.dtype))

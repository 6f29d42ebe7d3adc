"""Four convolutions: the regions of small pictures, in little time.

For pictures that are drawn and not photographed, of about 32 pixels, where a residual network of
three stages costs several times as much.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.encoders.encoded import Encoded
from mmlib.encoders.regions import check_images, encode_map

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module):
    r"""Two convolutions that halve the picture, two that do not: tokens of :math:`h/4 \cdot w/4`.

    A region sees 26 × 26 pixels around its own centre, which even kernels keep where the strides
    are; odd ones would shift it by half a step each time. Batch norms learn from the batch in
    training; pictures that ``keep`` leaves out count there too.

    Args:
        dim: Width of tokens and pooled vector; the first convolution has half as many channels.
        channels: Of the picture.

    Attributes:
        dim: As given.
        stride: Pixels from one token to the next.

    Raises:
        ValueError: ``dim`` is not a positive even number, or ``channels`` below 1.

    >>> import torch
    >>> encoded = SmallCNN(64)(torch.zeros(2, 3, 32, 32))
    >>> encoded.tokens.shape, encoded.pooled.shape
    (torch.Size([2, 64, 64]), torch.Size([2, 64]))
    """

    stride = 4

    def __init__(self, dim: int = 64, channels: int = 3) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even and at least 2: got {dim}")
        if channels < 1:
            raise ValueError(f"channels must be at least 1: got {channels}")
        self.dim, self.channels = dim, channels
        layers: list[nn.Module] = []
        for before, after, kernel in (
            (channels, dim // 2, 4),
            (dim // 2, dim, 4),
            (dim, dim, 3),
            (dim, dim, 3),
        ):
            # A bias would be taken away again by the norm.
            stride = 2 if kernel == 4 else 1
            layer = nn.Conv2d(before, after, kernel, stride, padding=1, bias=False)
            layers += [layer, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        keep: Bool[Tensor, " batch"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode pictures of any size from 4 pixels on.

        Args:
            images: Pictures.
            keep: Which pictures exist, all by default; the others give zeros.
            return_weights: A convolution has no attention weights: they stay None.

        Raises:
            TypeError: ``images`` is not floating point, or ``keep`` is not boolean.
            ValueError: a wrong shape.
        """
        check_images(images, keep, self.channels)
        return encode_map(self.layers(images), keep)

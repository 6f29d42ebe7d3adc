r"""A small residual network of our own.

References:
    He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016: figure 5 left
    for the block, table 1 for ResNet-18 and -34, section 4.2 for small pictures.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.encoders.encoded import Encoded
from mmlib.encoders.regions import check_images, encode_map

__all__ = ["BasicBlock", "ResNet", "ResNetConfig"]


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes and choices of a :class:`ResNet`; widths 64 to 512 with two blocks each is ResNet-18.

    Attributes:
        channels: Of the picture.
        widths: Channels of each stage; each but the first halves height and width.
        blocks: Blocks in each stage.
        stem: What stands before the stages: ``"small"``, one 3×3 convolution, for pictures of
            about 32 pixels, or ``"large"``, a 7×7 convolution and a pooling layer of stride 2
            each, for 224.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    channels: int = 3
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 1)
    stem: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1: got {self.channels}")
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError(
                "widths and blocks must have one entry for each stage: "
                f"got {self.widths} and {self.blocks}"
            )
        if min(*self.widths, *self.blocks) < 1:
            raise ValueError(
                f"widths and blocks must be at least 1: got {self.widths} and {self.blocks}"
            )
        if self.stem not in ("small", "large"):
            raise ValueError(f"stem must be 'small' or 'large': got {self.stem!r}")


class BasicBlock(nn.Module):
    r"""Two convolutions around which the picture has a way past.

    .. math::

        y = \operatorname{relu}\!\left(\operatorname{norm}(W_2 * \operatorname{relu}(
            \operatorname{norm}(W_1 * x))) + s(x)\right)

    where :math:`s` is the identity, or a 1×1 convolution and a norm where the shape changes.

    Args:
        channels: Of the input.
        width: Channels of the output.
        stride: Of the first convolution; 2 halves height and width, rounded up.
    """

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch new_channels new_height new_width"]:
        """Carry the feature map through the block."""
        return self.activation(self.convolutions(x) + self.shortcut(x))


class ResNet(nn.Module):
    r"""A residual network without a classifier: region tokens and their mean.

    A picture of :math:`h \times w` pixels gives :math:`\lceil h / s \rceil \cdot
    \lceil w / s \rceil` tokens, row by row, where :math:`s` is ``stride``. Batch norms learn from
    the batch in training; pictures that ``keep`` leaves out count there too.

    Attributes:
        config: Sizes and choices.
        dim: Width of tokens and pooled vector: the last of ``config.widths``.
        stride: Pixels from one token to the next.

    >>> import torch
    >>> encoded = ResNet(ResNetConfig())(torch.zeros(2, 3, 32, 32))
    >>> encoded.tokens.shape, encoded.pooled.shape
    (torch.Size([2, 64, 128]), torch.Size([2, 128]))
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.widths[-1]
        small, width = config.stem == "small", config.widths[0]
        self.stride = (1 if small else 4) * 2 ** (len(config.widths) - 1)
        kernel, stride = (3, 1) if small else (7, 2)
        stem = [
            nn.Conv2d(config.channels, width, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        if not small:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stem = nn.Sequential(*stem)
        stages, channels = [], width
        for stage, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            first = BasicBlock(channels, width, stride=2 if stage else 1)
            rest = [BasicBlock(width, width) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *rest))
            channels = width
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        images: Float[Tensor, "batch channels height width"],
        keep: Bool[Tensor, " batch"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode pictures of any size.

        Args:
            images: Preprocessed pictures.
            keep: Which pictures exist, all by default; the others give zeros.
            return_weights: A convolution has no attention weights: they stay None.

        Raises:
            TypeError: ``images`` is not floating point, or ``keep`` not boolean.
            ValueError: a wrong shape.
        """
        check_images(images, keep, self.config.channels)
        return encode_map(self.stages(self.stem(images)), keep)

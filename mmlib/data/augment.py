"""Pictures changed at random, so that a model sees each of a few pictures in many ways (数据增强).

Rotation, scaling, cropping and colour, each picture of a batch with draws of its own, all of them
at once: one resampling does what torchvision's transforms do one after another and one picture at
a time. Nothing is drawn from a global generator, as torchvision's transforms do.
"""

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from mmlib.data.scenes.draws import check_seed

__all__ = ["ImageAugment", "recolour", "warp"]

Pictures = (
    Float[Tensor, "*batch channels height width"] | UInt8[Tensor, "*batch channels height width"]
)
#: How much red, green and blue count for the brightness of a grey (ITU-R BT.601).
_GREY = (0.2989, 0.587, 0.114)
_MOST = {"rotation": 180.0, "scale": 3.0, "crop": 0.9} | dict.fromkeys(
    ("brightness", "contrast", "saturation", "fill"), 1.0
)


@dataclass(frozen=True)
class ImageAugment:
    """Random changes of pictures, of a given strength.

    A caption must stay true of the picture. So nothing is mirrored unless asked for: captions say
    "left" and "right", and letters and clock faces have a right way round. Hues never change, since
    captions name colours; with the strengths given here the eight colours of scenes stay nearest to
    their own names, twice as strong they no longer do. Where captions name **places** (those of
    scenes do: "in the top left"), rotation and cropping make some false: leave these at 0 there.

    Attributes:
        rotation: The most degrees, to either side.
        scale: Sizes change by a factor from 1 / (1 + scale) to 1 + scale, every octave alike.
        crop: The most of the width and the height that is cut away, anywhere around.
        brightness: Pixels are multiplied by 1 - brightness to 1 + brightness.
        contrast: Likewise the distance from the picture's mean grey.
        saturation: Likewise the distance from each pixel's own grey.
        flip: Whether half of the pictures are mirrored, left to right.
        fill: What comes into the picture from outside, in [0, 1]: white, as behind the emoji.

    Raises:
        TypeError: A value is not a number, or ``flip`` not True or False.
        ValueError: A value is out of range.

    >>> augment = ImageAugment(rotation=30)
    >>> pictures = torch.rand(2, 3, 16, 16)
    >>> torch.equal(augment(pictures, 5), augment(pictures, 5))
    True
    >>> torch.equal(augment.scaled(0)(pictures, 5), pictures)
    True
    """

    rotation: float | int = 15.0
    scale: float | int = 0.1
    crop: float | int = 0.1
    brightness: float | int = 0.1
    contrast: float | int = 0.1
    saturation: float | int = 0.1
    flip: bool = False
    fill: float | int = 1.0

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number: got {value!r}")
            if not 0 <= value <= most:
                raise ValueError(f"{name} must be between 0 and {most:g}: got {value}")
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip must be True or False: got {self.flip!r}")

    def scaled(self, strength: float | int) -> "ImageAugment":
        """The same changes, ``strength`` times as strong; 0 changes nothing.

        Raises:
            ValueError: ``strength`` is below 0, or makes a value too large.
        """
        if not strength >= 0:
            raise ValueError(f"strength must be at least 0: got {strength}")
        ranges = {f.name: getattr(self, f.name) * strength for f in fields(self) if f.name in _MOST}
        return replace(self, **ranges | {"fill": self.fill, "flip": self.flip and strength > 0})

    def __call__(self, images: Pictures, generator: torch.Generator | int) -> Pictures:
        """Change each picture.

        Args:
            images: ``(batch, channels, height, width)``, or one picture without the first axis;
                floating point in [0, 1], or uint8; one channel or three.
            generator: What is drawn from, or a seed. Nine numbers a picture are drawn whatever
                changes are asked for, so that one more leaves the others as they were.

        Returns:
            New pictures of the same shape and dtype.

        Raises:
            TypeError: An argument is not of its type.
            ValueError: The pictures have another shape or range.
        """
        pictures, back = _as_floats(images)
        if not isinstance(generator, torch.Generator):
            generator = torch.Generator().manual_seed(check_seed(generator))
        draws = torch.rand(len(pictures), 9, generator=generator, device=generator.device)
        draws = draws.to(pictures).T
        angle, size, side, x, y, mirror, *colours = draws
        if self.flip:
            pictures = torch.where(mirror[:, None, None, None] < 0.5, pictures.flip(-1), pictures)
        if self.rotation or self.scale or self.crop:
            height, width = pictures.shape[-2:]
            kept = 1 - self.crop * side
            # The crop's centre, so that even the outermost pixels are taken from inside.
            centre = torch.stack([x - 0.5, y - 0.5], dim=1) * (1 - kept[:, None])
            pictures = _warp(
                pictures,
                (2 * angle - 1) * self.rotation,
                ((2 * size - 1) * math.log1p(self.scale)).exp() / kept,
                centre * pictures.new_tensor([width - 1, height - 1]),
                self.fill,
            )
        ranges = (self.brightness, self.contrast, self.saturation)
        if any(ranges):
            factors = [1 + (2 * u - 1) * r for u, r in zip(colours, ranges, strict=True)]
            pictures = _recolour(pictures, *factors)
        return back(pictures)


def warp(
    images: Pictures,
    angle: Float[Tensor, " batch"],
    scale: Float[Tensor, " batch"],
    centre: Float[Tensor, "batch 2"],
    fill: float | int = 1.0,
) -> Pictures:
    r"""Rotate, scale and move each picture, by bilinear interpolation.

    With both measured in pixels from the middle, output pixel :math:`p` shows the input at

    .. math:: q = \frac1s \begin{pmatrix} \cos\alpha & \sin\alpha \\ -\sin\alpha & \cos\alpha
       \end{pmatrix} p + c.

    That is torchvision's ``affine`` with ``angle`` :math:`\alpha` (clockwise), ``scale`` :math:`s`
    and the translation that brings :math:`c` to the middle, but for the seam: where a pixel lies
    half outside, torchvision weighs the picture by that half twice, which draws a grey frame around
    a white picture on white. Here it is weighed once.

    Args:
        images: ``(batch, channels, height, width)``, floating point in [0, 1] or uint8.
        angle: Degrees, clockwise.
        scale: How many times as large the picture gets.
        centre: What comes to the middle: x and y, in pixels from the middle.
        fill: What comes in from outside, in [0, 1].

    Raises:
        TypeError: The pictures are not of a dtype above.
        ValueError: A shape or a value is out of range.
    """
    pictures, back = _as_floats(images)
    if not (len(angle) == len(scale) == len(centre) == len(pictures)):
        raise ValueError(
            f"angle, scale and centre must have one row a picture: got {len(angle)}, {len(scale)} "
            f"and {len(centre)} for {len(pictures)}"
        )
    if not bool((scale > 0).all()):
        raise ValueError(f"scale must be above 0: got {scale.min().item()}")
    return back(_warp(pictures, *(t.to(pictures) for t in (angle, scale, centre)), fill))


def recolour(
    images: Pictures,
    brightness: Float[Tensor, " batch"],
    contrast: Float[Tensor, " batch"],
    saturation: Float[Tensor, " batch"],
) -> Pictures:
    r"""Change brightness, then contrast, then saturation of each picture, by factors.

    .. math:: x \to \operatorname{clip}_{[0, 1]}\bigl(f x + (1 - f) \bar x\bigr)

    where :math:`\bar x` is 0 for the brightness, the picture's mean grey for the contrast and the
    pixel's own grey for the saturation: torchvision's ``adjust_brightness``, ``adjust_contrast``
    and ``adjust_saturation``. A factor of 1 changes nothing. Pictures of one channel have no
    saturation to change.

    Args:
        images: ``(batch, channels, height, width)``, floating point in [0, 1] or uint8.
        brightness: Factors, not below 0.
        contrast: Likewise.
        saturation: Likewise.

    Raises:
        TypeError: The pictures are not of a dtype above.
        ValueError: A shape or a value is out of range.
    """
    pictures, back = _as_floats(images)
    named = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, factor in named.items():
        if factor.shape != (len(pictures),):
            raise ValueError(
                f"{name} must be one factor a picture: got shape {tuple(factor.shape)} "
                f"for {len(pictures)} pictures"
            )
        if not bool((factor >= 0).all()):
            raise ValueError(f"{name} must not be below 0: got {factor.min().item()}")
    return back(_recolour(pictures, *(factor.to(pictures) for factor in named.values())))


def _as_floats(images: object):
    """Pictures as a batch of floats in [0, 1], and what turns the result back."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor: got {type(images).__name__}")
    whole = images.dtype == torch.uint8
    if not whole and not images.is_floating_point():
        raise TypeError(f"images must be a floating point or uint8 tensor: got {images.dtype}")
    if images.ndim not in (3, 4) or images.shape[-3] not in (1, 3):
        raise ValueError(
            "images must be of shape (batch, channels, height, width) or (channels, height, width) "
            f"with 1 or 3 channels: got {tuple(images.shape)}"
        )
    pictures = images.reshape(-1, *images.shape[-3:])
    # Half precision would shift pixels: coordinates need more bits than colours.
    pictures = pictures.to(torch.float64 if images.dtype == torch.float64 else torch.float32)
    pictures = pictures / 255 if whole else pictures
    if not whole and pictures.numel():
        low, high = pictures.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"images must lie in [0, 1]: got {low.item():g} to {high.item():g}")

    def back(result: Tensor) -> Tensor:
        result = (result * 255).round() if whole else result
        out = result.to(images.dtype).reshape(images.shape)
        return out.clone() if out.data_ptr() == images.data_ptr() else out

    return pictures, back


def _warp(
    pictures: Tensor, angle: Tensor, scale: Tensor, centre: Tensor, fill: float | int
) -> Tensor:
    height, width = pictures.shape[-2:]
    cos, sin = angle.deg2rad().cos() / scale, angle.deg2rad().sin() / scale
    turn = rearrange(torch.stack([cos, sin, -sin, cos], dim=1), "b (to xy) -> b to xy", xy=2)
    x = torch.arange(width).to(pictures) - (width - 1) / 2
    y = torch.arange(height).to(pictures) - (height - 1) / 2
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    grid = einsum(turn, points, "b to xy, h w xy -> b h w to") + centre[:, None, None, :]
    grid = grid / pictures.new_tensor([width / 2, height / 2])
    # Outside counts as 0, so the fill is made to be 0 meanwhile.
    return F.grid_sample(pictures - fill, grid, align_corners=False).add_(fill).clamp_(0, 1)


def _recolour(pictures: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    def mix(factor: Tensor, pictures: Tensor, other: Tensor) -> Tensor:
        return torch.lerp(other, pictures, factor[:, None, None, None]).clamp_(0, 1)

    def grey(pictures: Tensor) -> Tensor:
        if pictures.shape[1] == 1:
            return pictures
        red, green, blue = pictures.split(1, dim=1)
        return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])

    pictures = mix(brightness, pictures, pictures.new_zeros(()))
    pictures = mix(contrast, pictures, grey(pictures).mean(dim=(1, 2, 3), keepdim=True))
    return mix(saturation, pictures, grey(pictures))

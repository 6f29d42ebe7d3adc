r"""How each checkpoint wants its pictures: resized, cropped, normalised.

A checkpoint works on pictures prepared as those it was trained on. Every recipe is one row of
:data:`RECIPES`; :func:`preprocess` follows it:

.. math:: x_c = \frac{\operatorname{crop}(\operatorname{resize}(p))_c - \mu_c}{\sigma_c},
          \qquad p \in [0, 1]

Pictures that come as Pillow images go through Pillow's own resampling, as in torchvision's, timm's
and open_clip's transforms, to which the results are equal. Tensors go through torch's antialiased
resampling, which is the same filter without Pillow's rounding to 256 levels. The results differ by
about one level, or by up to five at hard edges where the bicubic filter overshoots, since Pillow
cuts that off after each of the two directions. (Torch's resampling without antialiasing is another
picture; it is what public code gets wrong most often.)

transformers crops down to the left and torchvision to the even pixel where the middle lies between
two: their results differ by a shift of one pixel for every fourth size. Here it is torchvision's,
with which OpenAI trained CLIP.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

__all__ = ["RECIPES", "Recipe", "denormalise", "preprocess"]


@dataclass(frozen=True)
class Recipe:
    """What is done to a picture before a model sees it.

    Attributes:
        resize: Pixels of the shorter side (or of both, see ``whole``), or None to leave the size.
        crop: Pixels of the square cut out of the middle, or None to cut nothing.
        interpolation: Of the resizing, always antialiased.
        mean: What is subtracted from red, green and blue in [0, 1].
        std: What the difference is divided by.
        whole: Resize both sides to ``resize``, which distorts but cuts nothing off.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    whole: bool = False

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1: got {size}")
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(
                f"crop must be at most resize: got crop={self.crop}, resize={self.resize}"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation must be 'bilinear' or 'bicubic': got {self.interpolation!r}"
            )
        if self.whole and self.resize is None:
            raise ValueError("whole needs a size in resize: got None")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise ValueError(
                "mean and std must have three entries each, those of std above 0: "
                f"got {self.mean} and {self.std}"
            )

    def at(self, size: int) -> "Recipe":
        """The same for pictures of another final size, with the same share cut off.

        Args:
            size: Height and width of the result in pixels.

        Raises:
            ValueError: the recipe leaves the size alone, or ``size`` is below 1.

        >>> RECIPES["efficientnet-lite0"].at(128).resize
        146
        """
        if size < 1:
            raise ValueError(f"size must be at least 1: got {size}")
        if self.resize is None:
            raise ValueError("this recipe does not resize")
        if self.crop is None:
            return replace(self, resize=size)
        return replace(self, resize=math.floor(size * self.resize / self.crop), crop=size)


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

RECIPES: dict[str, Recipe] = {
    "imagenet": Recipe(256, 224, **_IMAGENET),
    "resnet50": Recipe(232, 224, **_IMAGENET),
    "efficientnet-lite0": Recipe(256, 224, "bicubic", **_HALF),
    "clip": Recipe(
        224,
        224,
        "bicubic",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    "vit": Recipe(224, whole=True, **_HALF),
    "scenes": Recipe(),
}
"""Recipes by name.

``"imagenet"`` is torchvision's for its first ResNet weights and most of its other networks,
``"resnet50"`` that of ``IMAGENET1K_V2``; ``"clip"`` is OpenAI's at 224 pixels and ``"vit"`` that of
``google/vit-base-patch16-224``; ``"scenes"`` leaves pictures as they are.
"""


def preprocess(
    images: Float[Tensor, "batch 3 height width"] | Image.Image | Sequence[Image.Image],
    recipe: str | Recipe,
    *,
    background: tuple[int, int, int] | None = (255, 255, 255),
) -> Float[Tensor, "batch 3 new_height new_width"]:
    """Prepare pictures for a model.

    Args:
        images: One tensor of pictures in [0, 1]; or Pillow images of any sizes and modes of 8
            bits, which are turned upright first if their EXIF data say so.
        recipe: A name in :data:`RECIPES`, or a recipe.
        background: Colour (red, green, blue; 0 to 255) that shows through transparent pixels
            of Pillow images. None drops the opacity instead, as the reference libraries do, and
            shows whatever colour the transparent pixels happen to hold, often black.

    Returns:
        A new tensor: of the dtype and on the device of a tensor, float32 on the CPU otherwise.

    Raises:
        TypeError: the images are not of one of these kinds; uint8 tensors have to be divided by
            255 first.
        ValueError: no recipe has this name, a tensor has the wrong shape or values outside
            [0, 1], an image has more than 8 bits, the sizes differ and stay different, or a
            picture is so thin that resizing its shorter side would make it larger than Pillow
            opens (``PIL.Image.MAX_IMAGE_PIXELS``).

    >>> from PIL import Image
    >>> wide, high = Image.new("L", (300, 200)), Image.new("RGB", (64, 80))
    >>> preprocess([wide, high], "clip").shape
    torch.Size([2, 3, 224, 224])
    """
    recipe = _find(recipe)
    if isinstance(images, Tensor):
        x = _fit_tensor(_checked(images), recipe)
    else:
        images = [images] if isinstance(images, Image.Image) else list(images)
        if not images:
            raise ValueError("images must hold at least one picture: got none")
        for image in images:
            if not isinstance(image, Image.Image):
                raise TypeError(
                    "images must be one tensor, or Pillow images: got an item of type "
                    f"{type(image).__name__}"
                )
        fitted = [_fit_image(_to_rgb(image, background), recipe) for image in images]
        sizes = sorted({image.size for image in fitted})
        if len(sizes) > 1:
            raise ValueError(
                "images must come out at one size, but the recipe leaves "
                f"{len(sizes)} (width, height): {', '.join(map(str, sizes[:4]))}"
            )
        arrays = np.stack([np.asarray(image) for image in fitted])
        x = torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous().float() / 255
    mean, std = _statistics(recipe, x)
    return (x - mean) / std


def denormalise(
    images: Float[Tensor, "batch 3 height width"], recipe: str | Recipe
) -> Float[Tensor, "batch 3 height width"]:
    r"""Undo the normalisation, to look at what a model sees: :math:`\sigma x + \mu`, in [0, 1].

    Raises:
        TypeError: ``images`` is not floating point.
        ValueError: no recipe has this name, or a wrong shape.
    """
    recipe = _find(recipe)
    _check_shape(images)
    mean, std = _statistics(recipe, images)
    return (images * std + mean).clamp(0.0, 1.0)


def _find(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}: got {recipe!r}")
    return RECIPES[recipe]


def _check_shape(images: Tensor) -> None:
    if not images.is_floating_point():
        raise TypeError(
            "images must be floating point in [0, 1] (divide uint8 pictures by 255): "
            f"got {images.dtype}"
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            "images must have shape (batch, 3, height, width), not empty: "
            f"got {tuple(images.shape)}"
        )


def _checked(images: Tensor) -> Tensor:
    _check_shape(images)
    if images.device.type == "cpu":  # on an accelerator reading the values makes the host wait
        low, high = images.min().item(), images.max().item()
        if low < 0.0 or high > 1.0:
            raise ValueError(f"images must lie in [0, 1]: got {low:.4g} to {high:.4g}")
    return images


def _to_rgb(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        # Pillow would clip them at 255, which makes most pictures of 16 bits white.
        raise ValueError(
            f"images must have 8 bits a channel: got mode {image.mode!r}; scale it to 0…255 and "
            "convert it to 'L' first"
        )
    image = ImageOps.exif_transpose(image)
    transparent = {"A", "a"} & set(image.getbands()) or "transparency" in image.info
    if background is not None and transparent:
        page = Image.new("RGBA", image.size, (*background, 255))
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image.convert("RGB")


def _fit_image(image: Image.Image, recipe: Recipe) -> Image.Image:
    height, width = _new_size(image.height, image.width, recipe)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[recipe.interpolation.upper()])
    if recipe.crop is None:
        return image
    top, left = _corner(height, width, recipe.crop)
    return image.crop((left, top, left + recipe.crop, top + recipe.crop))


def _fit_tensor(images: Tensor, recipe: Recipe) -> Tensor:
    size = _new_size(*images.shape[2:], recipe)
    if size != tuple(images.shape[2:]):
        images = F.interpolate(images, size, mode=recipe.interpolation, antialias=True)
        # A bicubic filter overshoots at edges; Pillow cuts that off too.
        images = images.clamp(0.0, 1.0)
    if recipe.crop is None:
        return images
    top, left = _corner(*size, recipe.crop)
    return images[:, :, top : top + recipe.crop, left : left + recipe.crop]


def _new_size(height: int, width: int, recipe: Recipe) -> tuple[int, int]:
    """Height and width after resizing; the longer side is rounded down, as in torchvision."""
    if recipe.resize is None:
        return height, width
    if recipe.whole:
        return recipe.resize, recipe.resize
    short, long = sorted((height, width))
    long = int(recipe.resize * long / short)
    if long * recipe.resize > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(
            f"images must not be this long and thin: {height} × {width} pixels would be enlarged "
            f"to {long * recipe.resize:,} pixels"
        )
    return (recipe.resize, long) if height <= width else (long, recipe.resize)


def _corner(height: int, width: int, crop: int) -> tuple[int, int]:
    """Top and left of the crop; a half is rounded to the even pixel, as in torchvision."""
    if crop > min(height, width):
        raise ValueError(f"crop must fit the picture: got crop={crop}, {height} × {width} pixels")
    return round((height - crop) / 2), round((width - crop) / 2)


def _statistics(recipe: Recipe, x: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device) for v in (recipe.mean, recipe.std))
    return mean[:, None, None], std[:, None, None]

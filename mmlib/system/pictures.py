"""How the system looks at pictures and paints them: stages 1 and 2, locked.

Pictures go to the device of the towers, and what is found comes back to the CPU, where documents
are written.

The regions of chapter 10's picture tower are joined two by two, so that a picture of 32 pixels is
16 tokens; chapter 09's discrete autoencoder makes 64 codes of it, and paints what codes say.

For pictures that are more than coloured shapes a network that knows ImageNet may look, too: it
sees 128 pixels, its 16 regions lie where those of CLIP do, and both vectors are put one behind the
other.
"""

import copy

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlib.clip import CLIP
from mmlib.discrete_vae import DiscreteVAE
from mmlib.encoders.backbones import EfficientNetLite0
from mmlib.encoders.preprocessing import RECIPES, Recipe, preprocess

__all__ = ["Pictures"]

#: Pixels a side of what CLIP looks at and the autoencoder paints, and of what ImageNet's sees.
SIDE, LARGER = 32, 128


class Pictures(nn.Module):
    """Copies of both towers, in evaluation mode for good.

    Args:
        clip: Its picture tower gives regions in rows and columns, as
            :class:`~mmlib.encoders.small_cnn.SmallCNN` does.
        autoencoder: The tokenizer of pictures.
        join: How many rows, and columns, of regions become one.
        imagenet: Whether :class:`~mmlib.encoders.backbones.EfficientNetLite0` looks, too.

    Attributes:
        clip: A copy, so that the given one stays where and as it is.
        autoencoder: Likewise.
        imagenet: The network that knows ImageNet, or None.

    Raises:
        ValueError: ``join`` is below 1.
        mmlib.download.SourceUnavailable: the weights of ImageNet are not to be had.
    """

    def __init__(
        self, clip: CLIP, autoencoder: DiscreteVAE, join: int = 2, *, imagenet: bool = False
    ) -> None:
        super().__init__()
        if join < 1:
            raise ValueError(f"join must be at least 1: got {join}")
        self.clip, self.autoencoder = copy.deepcopy(clip), copy.deepcopy(autoencoder)
        self.join = join
        self.imagenet = EfficientNetLite0(frozen=True) if imagenet else None
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Pictures":
        """Stay in evaluation mode: batch norms of locked towers must not move."""
        return super().train(False)

    @property
    def feature_dim(self) -> int:
        """Width of a region's features."""
        more = 0 if self.imagenet is None else self.imagenet.dim
        return self.clip.image.dim * self.join**2 + more

    @property
    def recipe(self) -> Recipe:
        """What makes of any picture one to look at: it is resized, and nothing is cut off."""
        return Recipe(SIDE if self.imagenet is None else LARGER, whole=True)

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def look(
        self, images: Float[Tensor, "batch 3 height width"], chunk: int = 256
    ) -> Float[Tensor, "batch regions feature_dim"]:
        """Features of pictures' regions, row by row.

        Args:
            images: In [0, 1]. Where ImageNet's network looks, too, they may have any size.
            chunk: How many are encoded at a time.

        Raises:
            ValueError: the regions cannot be joined.
        """
        return torch.cat([self._seen(part.to(self.device)).cpu() for part in images.split(chunk)])

    def _seen(self, images: Tensor) -> Tensor:
        if self.imagenet is None:
            return self._joined(self.clip.image(images).tokens, images)
        smaller = preprocess(images, Recipe(SIDE, whole=True)).clamp(0, 1)
        mine = self._joined(self.clip.image(smaller).tokens, smaller)
        recipe = RECIPES["efficientnet-lite0"]
        larger = Recipe(LARGER, whole=True, mean=recipe.mean, std=recipe.std)
        other = self.imagenet(preprocess(images, larger)).tokens
        # Each has the same say, however large its numbers are.
        parts = [F.layer_norm(part, part.shape[-1:]) for part in (mine, other)]
        return torch.cat(parts, dim=-1)

    def _joined(self, tokens: Tensor, images: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        if side**2 != tokens.shape[1] or side % self.join:
            raise ValueError(
                f"images must give a square of regions whose side is a multiple of {self.join}: "
                f"got {tokens.shape[1]} regions of pictures of {tuple(images.shape[2:])}"
            )
        return rearrange(
            tokens,
            "batch (rows down columns along) dim -> batch (rows columns) (down along dim)",
            rows=side // self.join,
            down=self.join,
            along=self.join,
        )

    @torch.no_grad()
    def codes(
        self, images: Float[Tensor, "batch 3 height width"], chunk: int = 64
    ) -> Int[Tensor, "batch places"]:
        """Codes of pictures, row by row."""
        encode = self.autoencoder.encode
        parts = [encode(part.to(self.device)).flatten(1).cpu() for part in images.split(chunk)]
        return torch.cat(parts)

    @torch.no_grad()
    def paint(
        self, codes: Int[Tensor, "batch rows columns"], chunk: int = 64
    ) -> Float[Tensor, "batch 3 height width"]:
        """Pictures that codes say."""
        decode = self.autoencoder.decode
        return torch.cat([decode(part.to(self.device)).cpu() for part in codes.split(chunk)])

    @torch.no_grad()
    def find(
        self, images: Float[Tensor, "batch 3 height width"], captions: Int[Tensor, "texts length"]
    ) -> Float[Tensor, "texts batch"]:
        """Cosines of texts with pictures: search by text, and the choice among drawn pictures.

        Args:
            images: In [0, 1].
            captions: Ids of canonical captions, as :func:`mmlib.small_clips.scene_ids` gives them.
        """
        parts = [self.clip.encode_image(part.to(self.device)) for part in images.split(256)]
        return (self.clip.encode_text(captions.to(self.device)) @ torch.cat(parts).T).cpu()

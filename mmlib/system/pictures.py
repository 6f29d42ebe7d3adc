"""How the system looks at pictures and paints them: stages 1 and 2, locked.

Pictures go to the device of the towers, and what is found comes back to the CPU, where documents
are written.

The regions of chapter 10's picture tower are joined two by two, so that a picture of 32 pixels is
16 tokens; chapter 09's discrete autoencoder makes 64 codes of it, and paints what codes say.
"""

import copy

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlib.clip import CLIP
from mmlib.discrete_vae import DiscreteVAE

__all__ = ["Pictures"]


class Pictures(nn.Module):
    """Copies of both towers, in evaluation mode for good.

    Args:
        clip: Its picture tower gives regions in rows and columns, as
            :class:`~mmlib.encoders.small_cnn.SmallCNN` does.
        autoencoder: The tokenizer of pictures.
        join: How many rows, and columns, of regions become one.

    Attributes:
        clip: A copy, so that the given one stays where and as it is.
        autoencoder: Likewise.
    """

    def __init__(self, clip: CLIP, autoencoder: DiscreteVAE, join: int = 2) -> None:
        super().__init__()
        if join < 1:
            raise ValueError(f"join must be at least 1: got {join}")
        self.clip, self.autoencoder = copy.deepcopy(clip), copy.deepcopy(autoencoder)
        self.join = join
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Pictures":
        """Stay in evaluation mode: batch norms of locked towers must not move."""
        return super().train(False)

    @property
    def feature_dim(self) -> int:
        """Width of a region's features."""
        return self.clip.image.dim * self.join**2

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
            images: In [0, 1].
            chunk: How many are encoded at a time.

        Raises:
            ValueError: the regions cannot be joined.
        """
        parts = [self.clip.image(part.to(self.device)).tokens for part in images.split(chunk)]
        tokens = torch.cat(parts).cpu()
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

"""A small U-Net: what a picture is, from a noisy one and a vector: chapter 11.

Down to a quarter of the side, and up again with a shortcut, so that the coarse part decides what
stands where and the fine part draws its edges. The vector scales and shifts the channels of every
block (FiLM). At 16 × 16 and 8 × 8 places it costs as much as a Transformer over patches of 4 × 4,
and learns from fewer steps: that a shape looks the same everywhere need not be learned.

References:
    Ronneberger, Fischer and Brox, *U-Net*, MICCAI 2015. Perez et al., *FiLM: Visual Reasoning with
    a General Conditioning Layer*, AAAI 2018. Ho, Jain and Abbeel, *Denoising Diffusion
    Probabilistic Models*, NeurIPS 2020 (a U-Net with attention that denoises; here two pixels by
    two are one place from the start).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FilmBlock", "SpatialAttention", "UNet"]

GROUPS = 8


class FilmBlock(nn.Module):
    """Two convolutions beside a shortcut; a vector scales and shifts what is between them.

    It starts as the identity.

    Args:
        channels: A multiple of 8.
        vector: Length of the vector.
    """

    def __init__(self, channels: int, vector: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(GROUPS, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second_norm = nn.GroupNorm(GROUPS, channels, affine=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(vector, 2 * channels)
        for layer in (self.second, self.film):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], vector: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Add to the map what the vector makes of it."""
        scale, shift = self.film(vector)[:, :, None, None].chunk(2, dim=1)
        hidden = self.second_norm(self.first(F.silu(self.first_norm(x))))
        return x + self.second(F.silu(hidden * (1 + scale) + shift))


class SpatialAttention(nn.Module):
    """Self-attention of all places of a map, beside a shortcut.

    It starts as the identity.

    Args:
        channels: A multiple of 8 and of ``heads``.
        heads: Attention heads.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Add to each place what it finds at the others."""
        query, key, value = (
            self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).mT.unbind(1)
        )
        found = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(found.mT.flatten(1, 2).unflatten(2, x.shape[2:]))


class UNet(nn.Module):
    """From a picture and a vector to a picture of the same size.

    Args:
        size: Height and width, a multiple of 4.
        channels: Of the pictures.
        width: Channels at half the side, a multiple of 8; twice as many at a quarter.
        vector: Length of the vector.

    Raises:
        ValueError: a number out of its range.

    >>> UNet(size=8, width=8, vector=4)(torch.rand(2, 3, 8, 8), torch.rand(2, 4)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self, size: int = 32, channels: int = 3, width: int = 48, vector: int = 128
    ) -> None:
        super().__init__()
        if size < 4 or size % 4:
            raise ValueError(f"size must be a positive multiple of 4: got {size}")
        if width < GROUPS or width % GROUPS:
            raise ValueError(f"width must be a positive multiple of {GROUPS}: got {width}")
        if min(channels, vector) < 1:
            raise ValueError(f"channels and vector must be at least 1: got {channels} and {vector}")
        self.shape, self.vector = (channels, size, size), vector
        deep = 2 * width
        self.enter = nn.Conv2d(4 * channels, width, 3, padding=1)
        # Where an object may stand is not the same everywhere: convolutions alone do not know.
        self.positions = nn.Parameter(torch.zeros(1, width, size // 2, size // 2))
        self.deep_positions = nn.Parameter(torch.zeros(1, deep, size // 4, size // 4))
        self.fine = FilmBlock(width, vector)
        self.down = nn.Conv2d(width, deep, 2, stride=2)
        self.blocks = nn.ModuleList(FilmBlock(deep, vector) for _ in range(3))
        self.attention = nn.ModuleList(SpatialAttention(deep) for _ in range(2))
        self.up = nn.Conv2d(deep, 4 * width, 1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.last = nn.ModuleList(FilmBlock(width, vector) for _ in range(2))
        self.leave = nn.Conv2d(width, 4 * channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        vector: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch channels height width"]:
        """What the network makes of both.

        Raises:
            ValueError: pictures or vectors of another shape, or not one vector for each picture.
        """
        if x.shape[1:] != self.shape or vector.shape != (len(x), self.vector):
            raise ValueError(
                f"x must have shape (batch, {', '.join(map(str, self.shape))}) and vector "
                f"(batch, {self.vector}): got {tuple(x.shape)} and {tuple(vector.shape)}"
            )
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        fine = self.fine(self.enter(x) + self.positions, vector)
        x = self.down(fine) + self.deep_positions
        for number, block in enumerate(self.blocks):
            x = block(x, vector)
            if number < len(self.attention):
                x = self.attention[number](x)
        x = self.join(torch.cat([F.pixel_shuffle(self.up(x), 2), fine], dim=1))
        for block in self.last:
            x = block(x, vector)
        return F.pixel_shuffle(self.leave(x), 2)

r"""The discrete autoencoder: a picture as a small grid of words from a codebook: chapter 09.

An encoder turns a picture of 32×32 pixels into 8×8 vectors; each is replaced by one of 512 codes,
and a decoder paints the picture again. The grid of numbers is what chapter 11's Transformer reads
and writes. Each code is a latent variable of its own, with the uniform distribution as its prior:

.. math::

    \text{elbo} = \mathbb E_{q(k \mid x)} \log p(x \mid k)
        - \sum_{t=1}^{64} \mathrm{KL}\bigl(q(k_t \mid x) \,\|\, \tfrac1{512}\bigr)

**Two quantisers** share encoder, codebook and decoder. Both judge a code by its squared distance
to the encoder's vector. ``"gumbel"`` takes the distances for logits, :math:`\ell_k = -s \|v -
e_k\|^2` with a learned :math:`s`, and draws (Gumbel-softmax). ``"vq"`` takes the nearest.

**The reconstruction** is a normal log-density whose one variance is the best for the batch, its own
mean squared error: what is left is :math:`-\tfrac D2 \log \mathrm{MSE}` and a constant. Adding the
mean squared error of a number to the mean KL of a code instead, as is often written, comes to a
variance of 24: painting one and the same picture for all emoji is then less than ten nats worse
than painting each perfectly, while 64 codes may cost :math:`64 \ln 512 = 399`. So the encoder says
nothing: the codebook collapses.

References:
    van den Oord, Vinyals, Kavukcuoglu, *Neural Discrete Representation Learning*, NeurIPS 2017.
    Ramesh et al., *Zero-Shot Text-to-Image Generation*, ICML 2021: Gumbel-softmax with logits from
    a convolution, not from distances. Takida et al., *SQ-VAE: Variational Bayes on Discrete
    Representation with Self-annealed Stochastic Quantization*, ICML 2022: logits from distances.
    Rybkin, Daniilidis, Levine, *Simple and Effective VAE Training with Calibrated Decoders*, ICML
    2021: the best variance. Arthur and Vassilvitskii, *k-means++: The Advantages of Careful
    Seeding*, SODA 2007: where unused codes go.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmlib.autoencoder import PictureDecoder, PictureEncoder
from mmlib.likelihoods import Pixels, gaussian_log_density
from mmlib.quantise import (
    categorical_kl,
    gumbel_softmax,
    squared_distances,
    vector_quantise,
)

__all__ = ["DiscreteElbo", "DiscreteVAE", "DiscreteVAEConfig"]

COMMITMENT = 0.25  # as in the paper on VQ-VAE
DECAY = 0.97  # of the average use of each code: a code that rests falls to a tenth in 76 steps


class DiscreteElbo(NamedTuple):
    """The bound and its terms, in nats per picture, and what they were computed from.

    Attributes:
        reconstruction: Log-density of each picture under the best variance for the batch.
        kl: Divergence of its codes' distributions from the uniform one, summed over the grid; the
            nearest code is certain, so for ``"vq"`` it is the grid's size times log(codes).
        elbo: Their difference.
        loss: What is minimised: the mean over the batch of the negative elbo, with ``beta``; for
            ``"vq"`` the codebook and the commitment term as well.
        pictures: The reconstructions, not squashed into [0, 1].
        ids: The most probable code of each place.
    """

    reconstruction: Float[Tensor, " batch"]
    kl: Float[Tensor, " batch"]
    elbo: Float[Tensor, " batch"]
    loss: Float[Tensor, ""]
    pictures: Float[Tensor, "batch channels height width"]
    ids: Int[Tensor, "batch rows columns"]


@dataclass(frozen=True)
class DiscreteVAEConfig:
    """Sizes and choices of a :class:`DiscreteVAE`.

    Attributes:
        size: Height and width of the pictures: a multiple of two to the number of stages.
        channels: Of the pictures.
        widths: Channels of the encoder after each halving, at least one.
        blocks: Residual blocks after each halving.
        codes: Size of the codebook.
        code_dim: Length of each code.
        quantiser: ``"vq"`` or ``"gumbel"``.
        revive: A code that is used less than this share of what it would be, were all used alike,
            is moved to a vector of the batch, one that lies far from every code with a higher
            probability. At first no code is used, so the first batch places all of them. 0 leaves
            them be.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    size: int = 32
    channels: int = 3
    widths: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (1, 2)
    codes: int = 512
    code_dim: int = 32
    quantiser: Literal["gumbel", "vq"] = "vq"
    revive: float | int = 0.1

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.blocks):
            raise ValueError(
                "widths and blocks must have one entry for each stage, at least one: "
                f"got {self.widths} and {self.blocks}"
            )
        if min(self.channels, self.code_dim, *self.widths) < 1 or min(self.blocks) < 0:
            raise ValueError(
                "channels, code_dim and widths must be at least 1, blocks at least 0: got "
                f"{self.channels}, {self.code_dim}, {self.widths}, {self.blocks}"
            )
        if self.codes < 2:
            raise ValueError(f"codes must be at least 2: got {self.codes}")
        if self.size < 1 or self.size % 2 ** len(self.widths):
            raise ValueError(
                f"size must be a multiple of {2 ** len(self.widths)}, as there are "
                f"{len(self.widths)} stages: got {self.size}"
            )
        if self.quantiser not in ("gumbel", "vq"):
            raise ValueError(f"quantiser must be 'gumbel' or 'vq': got {self.quantiser!r}")
        if not 0 <= self.revive < 1:
            raise ValueError(f"revive must be from 0 to below 1: got {self.revive}")

    @property
    def side(self) -> int:
        """Rows, and columns, of the grid of codes."""
        return self.size // 2 ** len(self.widths)


class DiscreteVAE(nn.Module):
    """A picture as a grid of codes, and back.

    In training the vectors' mean and variance are those of the batch (batch norm without weights):
    so vectors and codes stay in one range, however the encoder moves. Outside training they are
    fixed, and a picture's codes depend on it alone.

    Attributes:
        config: Sizes and choices.

    >>> model = DiscreteVAE(DiscreteVAEConfig(widths=(8, 16), blocks=(0, 1), codes=16)).eval()
    >>> ids = model.encode(torch.rand(2, 3, 32, 32))
    >>> ids.shape, model.decode(ids).shape
    (torch.Size([2, 8, 8]), torch.Size([2, 3, 32, 32]))
    """

    usage: Tensor

    def __init__(self, config: DiscreteVAEConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.widths, config.blocks
        self.encoder = PictureEncoder(config.channels, *sizes, config.code_dim)
        self.norm = nn.BatchNorm1d(config.code_dim, affine=False)
        self.codebook = nn.Parameter(torch.randn(config.codes, config.code_dim))
        self.decoder = PictureDecoder(config.code_dim, *sizes, config.channels)
        if config.quantiser == "gumbel":
            self.log_sharpness = nn.Parameter(torch.zeros(()))
        self.register_buffer("usage", torch.zeros(config.codes))

    def vectors(
        self, pictures: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "tokens dim"]:
        """The encoder's vectors, row by row of each grid, one picture after the other.

        Raises:
            ValueError: the pictures are of another size or number of channels.
        """
        config = self.config
        if pictures.shape[1:] != (config.channels, config.size, config.size):
            raise ValueError(
                f"pictures must be of shape (batch, {config.channels}, {config.size}, "
                f"{config.size}): got {tuple(pictures.shape)}"
            )
        x = rearrange(self.encoder(pictures), "b c h w -> (b h w) c")
        # fp32 under autocast too, for the distances' sake.
        return self.norm(x.to(self.codebook.dtype))

    def logits(
        self, pictures: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens codes"]:
        r"""Logits of the codes at each place, :math:`-s \|v - e_k\|^2`; :math:`s = 1` for VQ."""
        return self._logits(self.vectors(pictures), len(pictures))

    def encode(
        self, pictures: Float[Tensor, "batch channels height width"]
    ) -> Int[Tensor, "batch rows columns"]:
        """The most probable code of each place.

        Args:
            pictures: In [0, 1].
        """
        return self._grid(self.logits(pictures).argmax(-1))

    def decode(
        self, ids: Int[Tensor, "batch rows columns"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Paint grids of codes.

        Args:
            ids: Numbers of codes.

        Returns:
            Pictures in [0, 1].

        Raises:
            ValueError: another grid, or a number that no code has.
        """
        side, codes = self.config.side, self.config.codes
        if ids.shape[1:] != (side, side):
            raise ValueError(
                f"ids must be of shape (batch, {side}, {side}): got {tuple(ids.shape)}"
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < codes:
            raise ValueError(
                f"ids must be from 0 to {codes - 1}: got {int(ids.min())} to {int(ids.max())}"
            )
        return self._paint(self.codebook[ids.flatten()], len(ids)).clamp(0, 1)

    def forward(
        self,
        pictures: Float[Tensor, "batch channels height width"],
        *,
        temperature: float | int = 1.0,
        hard: bool = False,
        beta: float | int = 1.0,
        variance: float | int | None = None,
        generator: torch.Generator | None = None,
    ) -> DiscreteElbo:
        """The bound for each picture. In training a code is drawn; else the most probable is taken.

        Args:
            pictures: In [0, 1].
            temperature: Of the Gumbel-softmax.
            hard: Whether the decoder gets one code or a mixture; see
                :func:`~mmlib.quantise.gumbel_softmax`.
            beta: Weight of the KL term.
            variance: Of the normal distribution around each pixel; by default the best for the
                batch.
            generator: What noise and revived codes are drawn from, by default torch's own.

        Raises:
            ValueError: a wrong shape, or a number out of its range.
        """
        if not beta >= 0:
            raise ValueError(f"beta must be at least 0: got {beta}")
        if variance is not None and not variance > 0:
            raise ValueError(f"variance must be above 0: got {variance}")
        count, extra = len(pictures), 0.0
        vectors = self.vectors(pictures)
        if self.training and self.config.revive:
            self._revive(vectors.detach(), generator)
        if self.config.quantiser == "vq":
            chosen = vector_quantise(vectors, self.codebook)
            codes, ids = chosen.vectors, rearrange(chosen.ids, "(b t) -> b t", b=count)
            extra = (chosen.codebook + COMMITMENT * chosen.commitment) * pictures[0].numel() / 2
            certain = self.config.side**2 * math.log(self.config.codes)
            kl = torch.full((count,), certain, device=pictures.device)
        else:
            logits = self._logits(vectors, count)
            ids = logits.argmax(-1)
            if self.training:
                share = gumbel_softmax(logits, temperature, hard=hard, generator=generator)
                codes = rearrange(share, "b t k -> (b t) k") @ self.codebook
            else:
                codes = self.codebook[ids.flatten()]
            kl = categorical_kl(logits).sum(1)
        if self.training:
            self._count(ids)
        painted = self._paint(codes, count)
        if variance is None:
            variance = (pictures - painted.detach()).square().mean().clamp(min=1e-12)
        log_scale = torch.as_tensor(variance, device=painted.device).log() / 2
        pixels = Pixels(painted, log_scale.to(painted).expand_as(painted))
        reconstruction = gaussian_log_density(pictures, pixels)
        loss = (beta * kl - reconstruction).mean() + extra
        return DiscreteElbo(reconstruction, kl, reconstruction - kl, loss, painted, self._grid(ids))

    def _logits(self, vectors: Tensor, count: int) -> Tensor:
        logits = -squared_distances(vectors, self.codebook)
        if self.config.quantiser == "gumbel":
            logits = logits * self.log_sharpness.exp()
        return rearrange(logits, "(b t) k -> b t k", b=count)

    def _paint(self, codes: Tensor, count: int) -> Tensor:
        side = self.config.side
        grid = rearrange(codes, "(b h w) c -> b c h w", b=count, h=side, w=side)
        return self.decoder(grid) / 2 + 0.5

    def _grid(self, ids: Tensor) -> Tensor:
        return rearrange(ids, "b (h w) -> b h w", h=self.config.side)

    @torch.no_grad()
    def _count(self, ids: Tensor) -> None:
        """Follow how often each code is used."""
        share = torch.bincount(ids.flatten(), minlength=self.config.codes) / ids.numel()
        self.usage.lerp_(share.to(self.usage), 1 - DECAY)

    @torch.no_grad()
    def _revive(self, vectors: Tensor, generator: torch.Generator | None) -> None:
        r"""Move codes that are hardly used to vectors of the batch.

        A vector is drawn with a probability proportional to its squared distance from the nearest
        code, as k-means++ draws its first centres. Drawn all alike, most would lie where most
        vectors lie, on white, and codes there abound.
        """
        uniform = 1 / self.config.codes
        (dead,) = (self.usage < self.config.revive * uniform).nonzero(as_tuple=True)
        if len(dead):
            dead = dead[: len(vectors)]  # no vector is taken twice
            far = squared_distances(vectors, self.codebook).amin(1).clamp(min=1e-12)
            far = far if generator is None else far.to(generator.device)
            rows = torch.multinomial(far, len(dead), generator=generator).to(vectors.device)
            self.codebook[dead] = vectors[rows]
            self.usage[dead] = uniform

r"""From a sentence's CLIP vector to a picture, in two steps: chapter 11.

.. math::

    \text{text} \xrightarrow{\text{CLIP}} T \xrightarrow{\text{prior}} I
    \xrightarrow{\text{decoder}} \text{picture}

The **prior** draws a CLIP vector of a picture that the sentence could belong to: a vector of a text
lies elsewhere than those of its pictures, and many pictures have one text. The **decoder** draws a
picture that has this vector. Both are flows (:mod:`mmlib.flow_matching`) and differ in what flows:
128 numbers, or all pixels. In training a condition is left out now and then, so that both can be
guided.

References:
    Ramesh et al., *Hierarchical Text-Conditional Image Generation with CLIP Latents* (DALL·E 2),
    2022: there both are diffusion models of billions of weights, and the decoder sees the text too.
    Li and He, *Back to Basics: Let Denoising Generative Models Denoise*,
    2025 (the network predicts the picture, not the velocity).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.flow_matching import flow_loss, integrate
from mmlib.sampling import guide
from mmlib.unet import UNet

__all__ = ["PictureFlow", "Prior", "UnclipConfig", "draw_flow", "time_features"]

#: The network predicts data; near the end its error is divided by no less than this.
LEAST_TIME_LEFT = 0.05


@dataclass(frozen=True)
class UnclipConfig:
    """Sizes of a :class:`Prior` and a :class:`PictureFlow`.

    Attributes:
        vector: Width of CLIP's vectors.
        prior_dim: Hidden width of the prior.
        prior_blocks: Its residual blocks.
        size: Height and width of the pictures, a multiple of 4.
        channels: Of the pictures.
        width: Channels of the decoder's U-Net at half the side, a multiple of 8.
        condition: Length of the vector that time and condition become in the decoder.

    Raises:
        ValueError: a number out of its range.
    """

    vector: int = 128
    prior_dim: int = 384
    prior_blocks: int = 3
    size: int = 32
    channels: int = 3
    width: int = 48
    condition: int = 128

    def __post_init__(self) -> None:
        for name in ("vector", "prior_dim", "prior_blocks", "size", "channels", "condition"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.size % 4 or self.width < 8 or self.width % 8:
            raise ValueError(
                "size must be a multiple of 4 and width of 8: "
                f"got size={self.size}, width={self.width}"
            )


def time_features(time: Float[Tensor, " batch"], dim: int) -> Float[Tensor, "batch dim"]:
    r"""Times from 0 to 1 as sines and cosines of :math:`\tfrac\pi2 t` to :math:`\tfrac\pi2 2^6 t`.

    Args:
        time: :math:`t`.
        dim: How many numbers, even.

    Raises:
        ValueError: ``dim`` is not even, or below 2.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and at least 2: got {dim}")
    octaves = torch.linspace(0, 6, dim // 2, device=time.device, dtype=time.dtype)
    angle = time[:, None] * (math.pi / 2 * 2**octaves)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class _Flow(nn.Module):
    """What both flows share: a condition that may be missing, a loss, and a velocity."""

    nothing: nn.Parameter

    def denoise(self, place: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        raise NotImplementedError

    def velocity(self, place: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        r"""From the data that the network expects to the velocity there.

        .. math:: v = \frac{\hat x_1 - x_t}{1 - t}
        """
        left = (1 - time).clamp(min=LEAST_TIME_LEFT).reshape(-1, *[1] * (place.ndim - 1))
        return (self.denoise(place, time, condition).to(place.dtype) - place) / left

    def conditions(self, vectors: Tensor, drop: Tensor | None = None) -> Tensor:
        """Vectors at unit size for each number, the dropped ones replaced by a learned one."""
        wide = self.nothing.shape[0]
        if vectors.ndim != 2 or vectors.shape[1] != wide or not len(vectors):
            raise ValueError(
                f"vectors must have shape (batch, {wide}), not empty: got {tuple(vectors.shape)}"
            )
        out = F.normalize(vectors, dim=1) * math.sqrt(wide)
        if drop is None:
            return out
        if drop.shape != vectors.shape[:1]:
            raise ValueError(f"drop must have shape ({len(vectors)},): got {tuple(drop.shape)}")
        return torch.where(drop[:, None], self.nothing, out)

    def flow_loss(
        self, data: Tensor, vectors: Tensor, drop: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        given = self.conditions(vectors, drop)
        return flow_loss(lambda place, time: self.velocity(place, time, given), data, generator)


class Prior(_Flow):
    """A flow of CLIP vectors of pictures, given that of a text.

    A residual network of linear layers: the vectors are unordered numbers.

    >>> prior = Prior(UnclipConfig(vector=8, prior_dim=16))
    >>> text = torch.randn(5, 8)
    >>> draw_flow(prior, text, (8,), steps=2).shape
    torch.Size([5, 8])
    """

    def __init__(self, config: UnclipConfig) -> None:
        super().__init__()
        wide, dim = config.vector, config.prior_dim
        self.config = config
        self.nothing = nn.Parameter(torch.zeros(wide))
        self.enter = nn.Linear(2 * wide + 32, dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
            )
            for _ in range(config.prior_blocks)
        )
        self.leave = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, wide))

    def denoise(
        self,
        place: Float[Tensor, "batch vector"],
        time: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch vector"],
    ) -> Float[Tensor, "batch vector"]:
        """The vector of a picture that is expected behind a noisy one."""
        x = self.enter(torch.cat([place, condition, time_features(time, 32)], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)

    def loss(
        self,
        pictures: Float[Tensor, "batch vector"],
        texts: Float[Tensor, "batch vector"],
        drop: Bool[Tensor, " batch"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """:func:`~mmlib.flow_matching.flow_loss` of pictures' vectors, at unit size each number.

        Args:
            pictures: CLIP's vectors of pictures, of any length above 0.
            texts: Those of their texts.
            drop: True where the text is left out.
            generator: What noise and times are drawn from.

        Raises:
            ValueError: shapes that do not fit.
        """
        return self.flow_loss(self.conditions(pictures), texts, drop, generator)


class PictureFlow(_Flow):
    """A flow of pictures, given a picture's CLIP vector: a U-Net.

    >>> flow = PictureFlow(UnclipConfig(vector=8, size=8, width=8))
    >>> draw_flow(flow, torch.randn(2, 8), (3, 8, 8), steps=2).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(self, config: UnclipConfig) -> None:
        super().__init__()
        self.config = config
        self.nothing = nn.Parameter(torch.zeros(config.vector))
        self.time = nn.Linear(32, config.condition)
        self.given = nn.Linear(config.vector, config.condition)
        self.mix = nn.Linear(config.condition, config.condition)
        self.network = UNet(config.size, config.channels, config.width, config.condition)

    def denoise(
        self,
        place: Float[Tensor, "batch channels height width"],
        time: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch vector"],
    ) -> Float[Tensor, "batch channels height width"]:
        """The picture, from -1 to 1, that is expected behind a noisy one."""
        vector = F.silu(self.time(time_features(time, 32)) + self.given(condition))
        return self.network(place, F.silu(self.mix(vector)))

    def loss(
        self,
        pictures: Float[Tensor, "batch channels height width"],
        vectors: Float[Tensor, "batch vector"],
        drop: Bool[Tensor, " batch"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """:func:`~mmlib.flow_matching.flow_loss` of pictures, brought from [0, 1] to [-1, 1].

        Args:
            pictures: In [0, 1].
            vectors: CLIP's vectors of these pictures.
            drop: True where the vector is left out.
            generator: What noise and times are drawn from.

        Raises:
            ValueError: shapes that do not fit.
        """
        config = self.config
        if pictures.shape[1:] != (config.channels, config.size, config.size):
            raise ValueError(
                f"pictures must have shape (batch, {config.channels}, {config.size}, "
                f"{config.size}): got {tuple(pictures.shape)}"
            )
        return self.flow_loss(2 * pictures - 1, vectors, drop, generator)


@torch.no_grad()
def draw_flow(
    flow: Prior | PictureFlow,
    vectors: Float[Tensor, "batch vector"],
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    guidance: float | int = 1.0,
    steps: int = 16,
    method: str = "heun",
) -> Float[Tensor, "batch ..."]:
    """Draw what a flow makes of noise: vectors of pictures, or pictures from -1 to 1.

    Args:
        flow: A prior or a decoder.
        vectors: Its condition: vectors of texts, or of pictures.
        shape: Of one item: ``(vector,)``, or ``(channels, height, width)``.
        generator: What noise is drawn from.
        guidance: Scale of :func:`~mmlib.sampling.guide`; any but 1 costs twice the time.
        steps: See :func:`~mmlib.flow_matching.integrate`.
        method: See :func:`~mmlib.flow_matching.integrate`.

    Raises:
        ValueError: shapes that do not fit, or a number out of its range.
    """
    given = flow.conditions(vectors)
    free = flow.nothing.expand_as(given)
    device = given.device if generator is None else generator.device
    noise = torch.randn(len(given), *shape, generator=generator, device=device).to(given)

    def velocity(place: Tensor, time: Tensor) -> Tensor:
        if guidance == 1:
            return flow.velocity(place, time, given)
        both = flow.velocity(place.repeat(2, *[1] * len(shape)), time.repeat(2), pair)
        return guide(*both.chunk(2), guidance)

    pair = torch.cat([given, free])
    return integrate(velocity, noise, steps, method)

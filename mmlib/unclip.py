r"""From a sentence's CLIP vector to a picture, in two steps: chapter 11.

.. math::

    \text{text} \xrightarrow{\text{CLIP}} T \xrightarrow{\text{prior}} I
    \xrightarrow{\text{decoder}} \text{picture}

The **prior** draws a CLIP vector of a picture that the sentence could belong to: a vector of a text
lies elsewhere than those of its pictures, and many pictures have one text. The **decoder** draws a
picture that has this vector. Both are flows (:mod:`mmlib.flow_matching`) and differ in what flows:
128 numbers, or the 8 × 8 vectors that chapter 09's tokenizer paints a picture from. Like the
paper's, the decoder may see the sentence too. In training each condition is left out now and then.

Both networks say the data :math:`\hat x_1` that they expect, not the velocity, which is
:math:`v = (\hat x_1 - x_t) / (1 - t)`. The prior learns it by squared error. What flows in the
decoder is at the end one of the codebook's vectors :math:`e_k` in each place, so it says how
probable each is, learns this by cross-entropy, and expects their mean:

.. math::

    \hat x_1 = \mathbb E[x_1 \mid x_t] = \sum_k p(k \mid x_t)\, e_k

References:
    Ramesh et al., *Hierarchical Text-Conditional Image Generation with CLIP Latents* (DALL·E 2),
    2022: there both are diffusion models of billions of weights, and the decoder's are of pixels.
    Rombach et al., *High-Resolution Image Synthesis with Latent Diffusion Models*, CVPR 2022 (what
    flows is a tokenizer's). Dieleman et al., *Continuous Diffusion for Categorical Data*, 2022
    (cross-entropy). Li and He, *Back to Basics: Let Denoising Generative Models Denoise*, 2025 (the
    network says the data, not the velocity).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmlib.block import TransformerConfig
from mmlib.dalle import CodeVectors, check_ids
from mmlib.flow_matching import integrate, walk
from mmlib.sampling import guide
from mmlib.transformer import Encoder

__all__ = ["CodeFlow", "Prior", "UnclipConfig", "draw_flow", "time_features"]

#: The network says the data; its error is divided by no less than this.
LEAST_TIME_LEFT = 0.05
#: Spread of the codes' vectors beside the noise's 1: at 1 nearly all is decided in the first third.
CODE_SCALE = 0.5
#: Tokens that each condition becomes in the decoder, as in the paper.
CONDITION_TOKENS = 4


@dataclass(frozen=True)
class UnclipConfig:
    """Sizes of a :class:`Prior` and a :class:`CodeFlow`.

    Attributes:
        vector: Width of CLIP's vectors.
        prior_dim: Hidden width of the prior.
        prior_blocks: Its residual blocks.
        side: Rows, and columns, of the grid of codes.
        dim: Width of the decoder's Transformer.
        heads: Its attention heads; must divide ``dim``.
        layers: Its blocks.

    Raises:
        ValueError: a number out of its range.
    """

    vector: int = 128
    prior_dim: int = 384
    prior_blocks: int = 3
    side: int = 8
    dim: int = 128
    heads: int = 4
    layers: int = 4

    def __post_init__(self) -> None:
        for name in ("vector", "prior_dim", "prior_blocks", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        self.transformer()

    def transformer(self) -> TransformerConfig:
        """The sizes of the decoder's blocks."""
        return TransformerConfig(self.dim, self.heads, self.layers)


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
    """What both flows share: conditions that may be missing, and a velocity."""

    nothing: nn.Parameter

    def denoise(self, place: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        raise NotImplementedError

    def velocity(self, place: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        r"""From the data that the network expects to the velocity there.

        .. math:: v = \frac{\hat x_1 - x_t}{1 - t}
        """
        left = (1 - time).clamp(min=LEAST_TIME_LEFT).reshape(-1, *[1] * (place.ndim - 1))
        return (self.denoise(place, time, conditions).to(place.dtype) - place) / left

    def conditions(self, vectors: Tensor, drop: Tensor | None = None) -> Tensor:
        """Vectors at unit size for each number, the dropped ones replaced by learned ones."""
        parts, wide = self.nothing.shape
        if vectors.ndim != 3 or vectors.shape[1:] != (parts, wide) or not len(vectors):
            raise ValueError(
                f"vectors must have shape (batch, {parts}, {wide}), not empty: "
                f"got {tuple(vectors.shape)}"
            )
        out = F.normalize(vectors, dim=2) * math.sqrt(wide)
        if drop is None:
            return out
        if drop.shape != vectors.shape[:2]:
            raise ValueError(
                f"drop must have shape {tuple(vectors.shape[:2])}: got {tuple(drop.shape)}"
            )
        return torch.where(drop[..., None], self.nothing, out)


class Prior(_Flow):
    """A flow of CLIP vectors of pictures, given that of a text.

    A residual network of linear layers, as the vectors' numbers have no order.

    >>> prior = Prior(UnclipConfig(vector=8, prior_dim=16))
    >>> text = torch.randn(5, 8)
    >>> draw_flow(prior, text[:, None], (8,), steps=2).shape
    torch.Size([5, 8])
    """

    def __init__(self, config: UnclipConfig) -> None:
        super().__init__()
        wide, dim = config.vector, config.prior_dim
        self.config = config
        self.nothing = nn.Parameter(torch.zeros(1, wide))
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
        conditions: Float[Tensor, "batch 1 vector"],
    ) -> Float[Tensor, "batch vector"]:
        """The vector of a picture that is expected behind a noisy one."""
        x = self.enter(torch.cat([place, conditions[:, 0], time_features(time, 32)], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)

    def loss(
        self,
        pictures: Float[Tensor, "batch vector"],
        texts: Float[Tensor, "batch 1 vector"],
        drop: Bool[Tensor, "batch 1"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        r"""Mean squared error of what is expected behind a noisy vector, at a random time.

        .. math:: \mathbb E\, \tfrac1D \bigl\| \hat x_1(x_t, t) - x_1 \bigr\|^2

        It is :func:`~mmlib.flow_matching.flow_loss` weighed by :math:`(1 - t)^2`; the same network
        is the best one for both. The numbers of the vectors are brought to unit size.

        Args:
            pictures: CLIP's vectors of pictures.
            texts: Those of their texts.
            drop: True where the text is left out.
            generator: What noise and times are drawn from.

        Raises:
            ValueError: shapes that do not fit.
        """
        given = self.conditions(texts, drop)
        data = self.conditions(pictures[:, None])[:, 0]
        place, time, _ = walk(data, generator)
        return (self.denoise(place, time, given).to(data.dtype) - data).square().mean()


class CodeFlow(_Flow):
    """A flow of codes' vectors, given CLIP's of a picture and of a text: a Transformer.

    It reads four tokens for each condition and one for each place.

    Args:
        config: Sizes.
        codebook: The codes' vectors in the tokenizer; saved with the model, not trained.

    >>> flow = CodeFlow(UnclipConfig(vector=8, side=2, dim=24), torch.randn(16, 5))
    >>> x = draw_flow(flow, torch.randn(3, 2, 8), (4, 5), steps=2)
    >>> x.shape, flow.nearest(x).shape
    (torch.Size([3, 4, 5]), torch.Size([3, 2, 2]))
    """

    def __init__(self, config: UnclipConfig, codebook: Float[Tensor, "codes code_dim"]) -> None:
        super().__init__()
        dim, wide = config.dim, CONDITION_TOKENS * config.dim
        self.config = config
        self.nothing = nn.Parameter(torch.zeros(2, config.vector))
        self.code_head = CodeVectors(codebook, dim)
        self.enter = nn.Linear(codebook.shape[1], dim)
        self.time = nn.Linear(32, dim)
        self.given = nn.ModuleList(
            nn.Sequential(nn.Linear(config.vector, wide), nn.GELU(), nn.Linear(wide, wide))
            for _ in range(2)
        )
        self.position = nn.Parameter(0.5 * torch.randn(2 * CONDITION_TOKENS + config.side**2, dim))
        self.encoder = Encoder(config.transformer())

    @property
    def table(self) -> Float[Tensor, "codes code_dim"]:
        """Where the codes lie: the codebook, its mean at 0 and its spread at 0.5."""
        return CODE_SCALE * self.code_head.codebook

    def logits(
        self,
        place: Float[Tensor, "batch places code_dim"],
        time: Float[Tensor, " batch"],
        conditions: Float[Tensor, "batch 2 vector"],
    ) -> Float[Tensor, "batch places codes"]:
        """Logits of the code behind each noisy vector."""
        given = [
            layer(part).unflatten(1, (CONDITION_TOKENS, -1))
            for layer, part in zip(self.given, conditions.unbind(1), strict=True)
        ]
        # At unit size for each number, whatever the time.
        spread = ((1 - time) ** 2 + (CODE_SCALE * time) ** 2).sqrt()[:, None, None]
        x = torch.cat([*given, self.enter(place / spread)], dim=1)
        x = x + self.position + self.time(time_features(time, 32))[:, None]
        x, _ = self.encoder(x)
        return x[:, -place.shape[1] :] @ self.code_head().T

    def denoise(
        self,
        place: Float[Tensor, "batch places code_dim"],
        time: Float[Tensor, " batch"],
        conditions: Float[Tensor, "batch 2 vector"],
    ) -> Float[Tensor, "batch places code_dim"]:
        """The mean of the codes' vectors that are expected behind noisy ones."""
        return self.logits(place, time, conditions).float().softmax(dim=-1).to(place) @ self.table

    def loss(
        self,
        codes: Int[Tensor, "batch places"],
        vectors: Float[Tensor, "batch 2 vector"],
        drop: Bool[Tensor, "batch 2"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        r"""Mean cross-entropy of the codes behind noisy vectors, at a random time, in nats.

        .. math:: \mathbb E\, \tfrac1m \sum_j -\log p(k_j \mid x_t)

        Args:
            codes: A picture's codes, row by row.
            vectors: CLIP's vectors of the pictures, and of their texts.
            drop: True where either is left out.
            generator: What noise and times are drawn from.

        Raises:
            TypeError: codes that are no whole numbers.
            ValueError: wrong shapes, or a code that does not exist.
        """
        check_ids("codes", codes, len(self.table))
        if codes.ndim != 2 or codes.shape[1] != self.config.side**2:
            raise ValueError(
                f"codes must have shape (batch, {self.config.side**2}): got {tuple(codes.shape)}"
            )
        given = self.conditions(vectors, drop)
        place, time, _ = walk(F.embedding(codes, self.table), generator)
        logits = self.logits(place, time, given).float()
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())

    def nearest(
        self, place: Float[Tensor, "batch places code_dim"]
    ) -> Int[Tensor, "batch rows columns"]:
        """The code that lies nearest to each vector, as a grid for the tokenizer to paint."""
        codes = torch.cdist(place, self.table.to(place)).argmin(dim=2)
        return codes.unflatten(1, (self.config.side, self.config.side))


@torch.no_grad()
def draw_flow(
    flow: Prior | CodeFlow,
    vectors: Float[Tensor, "batch parts vector"],
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    drop: Bool[Tensor, "batch parts"] | None = None,
    guidance: float | int = 1.0,
    steps: int = 16,
    method: str = "heun",
) -> Float[Tensor, "batch ..."]:
    """Draw what a flow makes of noise: vectors of pictures, or of codes.

    Args:
        flow: A prior or a decoder.
        vectors: Its conditions: vectors of texts, or of pictures and of texts.
        shape: Of one item: ``(vector,)``, or ``(places, code_dim)``.
        generator: What noise is drawn from.
        drop: True where a condition is not to be used.
        guidance: Scale of :func:`~mmlib.sampling.guide`; any but 1 costs twice the time.
        steps: With ``method``, see :func:`~mmlib.flow_matching.integrate`.
        method: See ``steps``.

    Raises:
        ValueError: shapes that do not fit, or a number out of its range.
    """
    given = flow.conditions(vectors, drop)
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

r"""A video encoder: tubes of pixels, or the patches of every frame, as tokens of a Transformer.

References:
    Arnab et al., *ViViT: A Video Vision Transformer*, ICCV 2021 (tubelets; models 1 and 2).
    Bertasius et al., *Is Space-Time Attention All You Need for Video Understanding?*, ICML 2021.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.block import LayerWeights, TransformerConfig
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.pooling import mean_tokens
from mmlib.encoders.vit import PatchEmbedding
from mmlib.transformer import Encoder

__all__ = ["TubeletEmbedding", "VideoEncoder", "VideoEncoderConfig"]


@dataclass(frozen=True)
class VideoEncoderConfig:
    """Sizes and choices of a :class:`VideoEncoder`.

    Attributes:
        frames: Most frames of a clip.
        image_size: Height and width of a frame in pixels.
        patch_size: Height and width of a token in pixels; must divide ``image_size``.
        tubelet: Frames of a token. 1 gives every frame the tokens of a picture, 2 or more cut
            tubes through the clip, in which a token sees motion.
        channels: Of a frame.
        dim: Width of the tokens.
        heads: Attention heads; must divide ``dim``.
        layers: Blocks; with ``temporal_layers``, those within a frame.
        temporal_layers: 0 lets every token attend to all of the clip (ViViT's model 1). More
            factorise it: ``layers`` blocks within each time step, the mean of its tokens, then
            this many blocks over time (model 2).
        temporal_positions: Whether a token knows when it is. Without, a clip is a set of frames.
        mlp_dim: Hidden width of the feed-forward layer, ``4 * dim`` by default.
        activation: Of the feed-forward layer.
        norm_eps: What every layer norm adds to the variance.
        dropout: Probability, as in :class:`~mmlib.block.TransformerConfig`.

    Raises:
        ValueError: a number or a choice out of its range.
    """

    frames: int = 8
    image_size: int = 32
    patch_size: int = 8
    tubelet: int = 2
    channels: int = 3
    dim: int = 128
    heads: int = 4
    layers: int = 4
    temporal_layers: int = 0
    temporal_positions: bool = True
    mlp_dim: int | None = None
    activation: Literal["gelu", "quick_gelu", "relu"] = "gelu"
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("frames", "image_size", "patch_size", "tubelet", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(
                "patch_size must divide image_size: "
                f"got image_size={self.image_size}, patch_size={self.patch_size}"
            )
        if self.temporal_layers < 0:
            raise ValueError(f"temporal_layers must be at least 0: got {self.temporal_layers}")
        self.transformer(self.layers)  # checks the rest

    @property
    def times(self) -> int:
        """Time steps of the longest clip: tubelets, the last perhaps not full."""
        return -(-self.frames // self.tubelet)

    @property
    def patches(self) -> int:
        """Tokens of one time step."""
        return (self.image_size // self.patch_size) ** 2

    def transformer(self, layers: int) -> TransformerConfig:
        """The part of the configuration that a stack of this many blocks needs."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.heads,
            layers=layers,
            mlp_dim=self.mlp_dim,
            activation=self.activation,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
        )


class TubeletEmbedding(nn.Module):
    r"""Cuts a clip into tubes through time and maps each to a vector.

    .. math:: x_i = W \operatorname{vec}(\text{tube}_i) + b

    Tubes are numbered in time first, then row by row. The parameters are those of a 3-d
    convolution with its width as its stride, which this is; it is computed as one matrix product.

    Args:
        tubelet: Frames of a tube.
        patch_size: Height and width of a tube in pixels.
        channels: Of a frame.
        dim: Width of the vectors.

    >>> TubeletEmbedding(2, 8, 3, 16)(torch.zeros(1, 8, 3, 32, 24)).shape
    torch.Size([1, 48, 16])
    """

    def __init__(self, tubelet: int, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        if min(tubelet, patch_size, channels, dim) < 1:
            raise ValueError(
                "tubelet, patch_size, channels and dim must be at least 1: "
                f"got {tubelet}, {patch_size}, {channels} and {dim}"
            )
        size = (tubelet, patch_size, patch_size)
        self.projection = nn.Conv3d(channels, dim, size, stride=size)
        nn.init.xavier_uniform_(self.projection.weight.view(dim, -1))
        nn.init.zeros_(self.projection.bias)

    def forward(
        self, video: Float[Tensor, "batch frames channels height width"]
    ) -> Float[Tensor, "batch tubes dim"]:
        """Embed the tubes.

        Raises:
            ValueError: a wrong shape, or one that is not made of whole tubes.
        """
        weight = self.projection.weight
        tubelet, patch_size, _ = weight.shape[2:]
        if video.ndim != 5 or video.shape[2] != weight.shape[1] or 0 in video.shape:
            raise ValueError(
                f"video must have shape (batch, frames, {weight.shape[1]}, height, width), not "
                f"empty: got {tuple(video.shape)}"
            )
        frames, _, height, width = video.shape[1:]
        if frames % tubelet or height % patch_size or width % patch_size:
            raise ValueError(
                f"video must be made of whole tubes of {tubelet} frames of {patch_size} × "
                f"{patch_size} pixels: got {frames} frames of {height} × {width}"
            )
        tubes = rearrange(
            video,
            "batch (times t) channels (rows p) (columns q) "
            "-> batch (times rows columns) (channels t p q)",
            t=tubelet,
            p=patch_size,
            q=patch_size,
        )
        return F.linear(tubes, weight.flatten(1), self.projection.bias)


class VideoEncoder(nn.Module):
    r"""Clips in, tokens of places at moments out.

    .. math:: z_{t,s} = x_{t,s} + P_t + Q_s

    with :math:`x_{t,s}` the embedding of tube :math:`s` of time step :math:`t` and learned
    positions in time :math:`P` and in space :math:`Q`. Then, with ``temporal_layers=0``, one
    encoder attends over all of them, and ``tokens`` are numbered in time first, then row by row.
    Otherwise

    .. math::

        h_t = \operatorname{mean}_s \operatorname{Encoder}_\text{space}(x_{t,\cdot} + Q), \qquad
        \text{tokens} = \operatorname{Encoder}_\text{time}(h + P)

    and there is one token for each time step. ``pooled`` is the mean of the tokens that exist.

    Differs from ViViT in the sum of two tables of positions instead of one for every place and
    moment, and in having no class token.

    Attributes:
        config: Sizes and choices.
        dim: Width of tokens and pooled vector.
    """

    def __init__(self, config: VideoEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = VideoEncoderConfig() if config is None else config
        self.dim = config.dim
        if config.tubelet == 1:
            self.embedding = PatchEmbedding(config.patch_size, config.channels, config.dim)
        else:
            self.embedding = TubeletEmbedding(
                config.tubelet, config.patch_size, config.channels, config.dim
            )
        self.space = nn.Parameter(torch.empty(config.patches, config.dim))
        self.time = (
            nn.Parameter(torch.empty(config.times, config.dim))
            if config.temporal_positions
            else None
        )
        for table in (self.space, self.time):
            if table is not None:
                nn.init.normal_(table, std=0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config.transformer(config.layers))
        self.temporal_encoder = (
            Encoder(config.transformer(config.temporal_layers)) if config.temporal_layers else None
        )

    def forward(
        self,
        video: Float[Tensor, "batch frames channels height width"],
        keep: Bool[Tensor, "batch frames"] | None = None,
        *,
        return_weights: bool = False,
    ) -> Encoded:
        """Encode clips.

        Args:
            video: Floating point. Where a tube is not full, zeros stand for the frames that it
                lacks.
            keep: Which frames exist, all by default. A tube exists if any of its frames does, so
                that no frame is lost at the end of a clip of odd length.
            return_weights: Return the attention weights of every layer too; in a factorised
                encoder first those in space, ``(batch * times, heads, patches, patches)``, then
                those in time.

        Raises:
            TypeError: ``video`` is not floating point, or ``keep`` not boolean.
            ValueError: a wrong shape, more than ``config.frames`` frames, or, on a CPU, values that
                are not finite.
        """
        self._check(video, keep)
        x, keep = self._embed(video, keep)
        exists = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        exists = exists if keep is None else keep
        if self.temporal_encoder is None:
            x = rearrange(self._at_times(x), "batch times patches dim -> batch (times patches) dim")
            keep = _for_each_patch(keep, self.config.patches)
            exists = _for_each_patch(exists, self.config.patches)
            x, weights = self.encoder(self.dropout(x), keep, return_weights=return_weights)
        else:
            x, weights = self._factorised(x, keep, return_weights)
        if keep is not None:
            x = x.masked_fill(~exists[:, :, None], 0.0)
        return Encoded(x, exists, mean_tokens(x, exists), weights)

    def _embed(self, video: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens with their places, ``(batch, times, patches, dim)``, and which times exist."""
        if keep is not None:
            video = video.masked_fill(~keep[:, :, None, None, None], 0.0)
        tubelet = self.config.tubelet
        if tubelet == 1:
            x = self.embedding(rearrange(video, "batch times ... -> (batch times) ..."))
            x = rearrange(
                x, "(batch times) patches dim -> batch times patches dim", batch=len(video)
            )
        else:
            missing = -video.shape[1] % tubelet
            if missing:
                video = F.pad(video, (0, 0) * 3 + (0, missing))
                keep = None if keep is None else F.pad(keep, (0, missing))
            x = self.embedding(video)
            x = rearrange(
                x,
                "batch (times patches) dim -> batch times patches dim",
                patches=self.config.patches,
            )
            if keep is not None:
                keep = rearrange(keep, "batch (times t) -> batch times t", t=tubelet).any(dim=2)
        return x + self.space, keep

    def _at_times(self, x: Tensor) -> Tensor:
        """Add the positions in time, along the second axis."""
        if self.time is None:
            return x
        table = self.time[: x.shape[1]]
        return x + (table[:, None] if x.ndim == 4 else table)

    def _factorised(
        self, x: Tensor, keep: Tensor | None, return_weights: bool
    ) -> tuple[Tensor, list[LayerWeights] | None]:
        """Blocks within each time step, then blocks over time."""
        batch = len(x)
        x = self.dropout(rearrange(x, "batch times patches dim -> (batch times) patches dim"))
        x, in_space = self.encoder(x, return_weights=return_weights)
        x = rearrange(x.mean(dim=1), "(batch times) dim -> batch times dim", batch=batch)
        x, in_time = self.temporal_encoder(self._at_times(x), keep, return_weights=return_weights)
        return x, in_space + in_time if return_weights else None

    def _check(self, video: Tensor, keep: Tensor | None) -> None:
        config = self.config
        if not video.is_floating_point():
            raise TypeError(
                f"video must be floating point (uint8 frames: divide by 255): got {video.dtype}"
            )
        size = (config.channels, config.image_size, config.image_size)
        if video.ndim != 5 or tuple(video.shape[2:]) != size or 0 in video.shape:
            raise ValueError(
                f"video must have shape (batch, frames, {', '.join(map(str, size))}), not empty: "
                f"got {tuple(video.shape)}"
            )
        if video.shape[1] > config.frames:
            raise ValueError(
                f"video must have at most {config.frames} frames: got {video.shape[1]}"
            )
        if keep is not None:
            if keep.dtype != torch.bool:
                raise TypeError(f"keep must be boolean (True = the frame exists): got {keep.dtype}")
            if keep.shape != video.shape[:2]:
                raise ValueError(
                    f"keep must be (batch, frames) as video, {tuple(video.shape[:2])}: "
                    f"got {tuple(keep.shape)}"
                )
        # On an accelerator reading the values would make the host wait.
        if video.device.type == "cpu":
            kept = video if keep is None else video[keep]
            if not torch.isfinite(kept).all():
                raise ValueError("video must be finite: got NaN or infinity")


def _for_each_patch(keep: Tensor | None, patches: int) -> Tensor | None:
    if keep is None:
        return None
    return repeat(keep, "batch times -> batch (times patches)", patches=patches)

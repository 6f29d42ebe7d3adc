r"""Pictures, clips and sounds as tokens that one Transformer can read: chapter 12.

References:
    Arnab et al., *ViViT: A Video Vision Transformer*, ICCV 2021 (tubes). Radford et al., *Robust
    Speech Recognition via Large-Scale Weak Supervision*, 2022 (strided convolutions before a
    Transformer). Liu et al., *Swin Transformer*, ICCV 2021 (merging of neighbouring patches).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.encoders.mel import LogMelConfig
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.encoders.spectrogram import LogMel

__all__ = ["SoundEmbedding", "TubeEmbedding"]


class TubeEmbedding(nn.Module):
    r"""Pictures and clips to tokens: a small convolutional network over tubes of a few frames.

    Frames that follow each other are one picture of several times as many channels, in which motion
    is a difference of channels. A single picture is repeated: a clip in which nothing moves.
    The network's map of :math:`h/4 \times w/4` is merged two by two to
    :math:`h/8 \cdot w/8` tokens a tube,

    .. math::

        x_s = \operatorname{norm}(W\,[m_{2i,2j};\, m_{2i,2j+1};\, m_{2i+1,2j};\, m_{2i+1,2j+1}] + b)

    and normalised, to be as loud as the positions and words beside which they will stand.

    Args:
        dim: Width of the tokens.
        width: Channels of the convolutional network, even.
        frames: Of a tube.
        channels: Of a frame.

    Attributes:
        frames: As given.

    Raises:
        ValueError: a number below 1, or an odd ``width``.

    >>> TubeEmbedding(16, 8, frames=4)(torch.zeros(2, 8, 3, 32, 32)).shape  # tubes, places
    torch.Size([2, 2, 16, 16])
    """

    def __init__(self, dim: int, width: int = 64, frames: int = 4, channels: int = 3) -> None:
        super().__init__()
        if min(dim, frames) < 1:
            raise ValueError(f"dim and frames must be at least 1: got {dim} and {frames}")
        self.frames, self.channels = frames, channels
        self.cnn = SmallCNN(width, channels=frames * channels)
        self.projection = nn.Linear(4 * width, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, video: Float[Tensor, "batch frames channels height width"]
    ) -> Float[Tensor, "batch tubes places dim"]:
        """Embed clips; a clip of one frame is a picture.

        Args:
            video: Frames. The last is repeated until the last tube is full, as if nothing moved
                after it.

        Raises:
            ValueError: a wrong shape, or pictures whose sides are not multiples of 8.
        """
        if video.ndim != 5 or video.shape[2] != self.channels or 0 in video.shape:
            raise ValueError(
                f"video must have shape (batch, frames, {self.channels}, height, width), not "
                f"empty: got {tuple(video.shape)}"
            )
        batch, frames, _, height, width = video.shape
        missing = -frames % self.frames
        if height % 8 or width % 8:
            raise ValueError(f"height and width must be multiples of 8: got {height} × {width}")
        if missing:
            video = torch.cat([video, video[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        tubes = rearrange(video, "b (tubes t) c h w -> (b tubes) (t c) h w", t=self.frames)
        tokens = self.cnn(tubes).tokens
        merged = rearrange(
            tokens,
            "(batch tubes) (rows r columns c) dim -> batch tubes (rows columns) (r c dim)",
            batch=batch,
            rows=height // 8,
            r=2,
            c=2,
        )
        return self.norm(self.projection(merged))


class SoundEmbedding(nn.Module):
    r"""Waveforms to tokens: log-mel frames, then three convolutions that each halve their number.

    .. math::

        x_0 = \operatorname{logmel}(a), \qquad x_i = \phi(\operatorname{conv}_i(x_{i-1})), \qquad
        x = \operatorname{norm}(x_3)

    as in :class:`~mmlib.encoders.audio.AudioEncoder`, but without its Transformer, and with a token
    every eight frames: words take longer. What does not exist is zero before each convolution, so
    that padding changes nothing.

    Args:
        dim: Width of the tokens.
        log_mel: How frames are made.

    Attributes:
        log_mel: From waveforms to frames.
        frames: Frames of a token, 8.

    >>> tokens, keep = SoundEmbedding(16)(torch.zeros(1, 16_000))
    >>> tokens.shape, keep.shape
    (torch.Size([1, 13, 16]), torch.Size([1, 13]))
    """

    frames = 8

    def __init__(self, dim: int, log_mel: LogMelConfig | None = None) -> None:
        super().__init__()
        self.log_mel = LogMel(log_mel)
        widths = (self.log_mel.config.mels, dim, dim)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, dim, 3, stride=2, padding=1) for width in widths
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        audio: Float[Tensor, "batch samples"],
        keep: Bool[Tensor, "batch samples"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Bool[Tensor, "batch tokens"]]:
        """Embed waveforms; raises what :class:`~mmlib.encoders.spectrogram.LogMel` raises."""
        return self.embed_frames(*self.log_mel(audio, keep))

    def embed_frames(
        self, features: Float[Tensor, "batch frames mels"], keep: Bool[Tensor, "batch frames"]
    ) -> tuple[Float[Tensor, "batch tokens dim"], Bool[Tensor, "batch tokens"]]:
        """Embed log-mel frames, which may have been changed, by ``spec_augment`` for example.

        Raises:
            ValueError: ``features`` do not have the bands of ``log_mel``, or ``keep`` not their
                shape.
        """
        mels = self.log_mel.config.mels
        if features.ndim != 3 or features.shape[2] != mels or keep.shape != features.shape[:2]:
            raise ValueError(
                f"features must have shape (batch, frames, {mels}) and keep (batch, frames): "
                f"got {tuple(features.shape)} and {tuple(keep.shape)}"
            )
        x = features.to(self.convolutions[0].weight.dtype).transpose(1, 2)
        for convolution in self.convolutions:
            x = F.gelu(convolution(x.masked_fill(~keep[:, None], 0.0)))
            keep = keep[:, ::2]
        return self.norm(x.transpose(1, 2)), keep

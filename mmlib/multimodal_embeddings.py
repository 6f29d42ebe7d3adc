r"""Pictures, clips and sounds as tokens that one Transformer can read: chapter 12.

Each modality has a small convolutional stem of its own, which finds what is near in place or in
time. It is the stems that make a small model learn fast: a Transformer can find an edge, a motion
or a vowel by itself, but needs many more examples to.

References:
    Simonyan and Zisserman, *Two-Stream Convolutional Networks for Action Recognition in Videos*,
    NeurIPS 2014 (looks and motion apart). Radford et al., *Robust Speech Recognition via
    Large-Scale Weak Supervision*, 2022 (strided convolutions before a Transformer). Liu et al.,
    *Swin Transformer*, ICCV 2021 (merging of neighbouring patches).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlib.encoders.mel import LogMelConfig
from mmlib.encoders.spectrogram import LogMel

__all__ = ["SoundEmbedding", "VisualEmbedding"]


def _convolutions(channels: int, width: int) -> nn.Sequential:
    """Pictures to maps of a quarter of their height and width.

    As :class:`~mmlib.encoders.small_cnn.SmallCNN`, but with group norms: a batch of pictures and
    one of clips have other statistics, and one model sees both.
    """
    layers: list[nn.Module] = []
    for before, after, kernel in (
        (channels, width // 2, 4),
        (width // 2, width, 4),
        (width, width, 3),
        (width, width, 3),
    ):
        stride = 2 if kernel == 4 else 1
        layer = nn.Conv2d(before, after, kernel, stride, padding=1, bias=False)
        layers += [layer, nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers)


def _pool(maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
    """What there is anywhere, and how much of it."""
    return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], dim=1)


class VisualEmbedding(nn.Module):
    r"""Pictures to tokens by place, clips to tokens by time.

    With :math:`m` the map of a small convolutional network, a picture gives a token for each
    :math:`2 \times 2` cells of it, and one of the whole, :math:`x_{t,1}` below,

    .. math::

        x_{ij} = \operatorname{norm}(W\,[m_{2i,2j};\, m_{2i,2j+1};\, m_{2i+1,2j};\, m_{2i+1,2j+1}])

    and a clip two tokens for every second frame :math:`t`. One is of its looks, by the same
    network; the other of its motion: another network sees five frames around it as channels of one
    picture without colour, in which a motion is a difference of channels:

    .. math::

        x_{t,1} = \operatorname{norm}(U \operatorname{pool}(m(f_t))) + s_1, \qquad
        x_{t,2} = \operatorname{norm}(V \operatorname{pool}(n(g_{t-2}, \dots, g_{t+2}))) + s_2,
        \qquad
        \operatorname{pool}(m) = [\max_{ij} m_{ij};\; \operatorname{mean}_{ij} m_{ij}]

    with :math:`g` the brightest channel of a frame. Looks do not depend on motion, nor motion on
    looks, so that a shape in a motion that it never had is two things that are known.

    Args:
        dim: Width of the tokens.
        width: Channels of the network for looks, a multiple of 8.
        motion_width: Channels of the network for motion, a multiple of 8.
        channels: Of a picture.

    Attributes:
        stride: Frames from one pair of tokens of a clip to the next.
        window: Frames that are seen together, odd. Beyond the ends nothing moves.

    Raises:
        ValueError: a number below 1, or a width that is no multiple of 8.

    >>> visual = VisualEmbedding(16, 8, 8)
    >>> visual.pictures(torch.zeros(2, 3, 32, 32)).shape  # places, and the whole
    torch.Size([2, 17, 16])
    >>> visual.clips(torch.zeros(2, 8, 3, 32, 32)).shape  # times, streams
    torch.Size([2, 4, 2, 16])
    """

    stride, window = 2, 5

    def __init__(
        self, dim: int, width: int = 64, motion_width: int = 24, channels: int = 3
    ) -> None:
        super().__init__()
        if min(dim, channels) < 1:
            raise ValueError(f"dim and channels must be at least 1: got {dim} and {channels}")
        for name, value in (("width", width), ("motion_width", motion_width)):
            if value < 8 or value % 8:
                raise ValueError(f"{name} must be a multiple of 8: got {value}")
        self.channels = channels
        self.looks = _convolutions(channels, width)
        self.motion = _convolutions(self.window, motion_width)
        self.places = nn.Linear(4 * width, dim)
        self.frame, self.move = nn.Linear(2 * width, dim), nn.Linear(2 * motion_width, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.streams = nn.Parameter(0.5 * torch.randn(2, dim))

    def pictures(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Embed pictures: the places, row by row, then the whole, as a frame of a clip.

        Raises:
            ValueError: a wrong shape, or sides that are not multiples of 8.
        """
        self._check("images", images, 4)
        maps = self.looks(images)
        merged = rearrange(maps, "b c (i r) (j s) -> b (i j) (r s c)", r=2, s=2)
        whole = self.norms[1](self.frame(_pool(maps))) + self.streams[0]
        return torch.cat([self.norms[0](self.places(merged)), whole[:, None]], dim=1)

    def seen(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """What the network for looks finds anywhere in pictures, and how much of it.

        Raises:
            ValueError: a wrong shape, or sides that are not multiples of 8.
        """
        self._check("images", images, 4)
        return _pool(self.looks(images))

    def clips(
        self, video: Float[Tensor, "batch frames channels height width"]
    ) -> Float[Tensor, "batch times 2 dim"]:
        """Embed clips.

        Raises:
            ValueError: a wrong shape, or sides that are not multiples of 8.
        """
        self._check("video", video, 5)
        looks = self.frame(self.seen(video[:, :: self.stride].flatten(0, 1)))
        grey, ends = video.amax(2), self.window // 2
        grey = torch.cat([grey[:, :1]] * ends + [grey] + [grey[:, -1:]] * ends, dim=1)
        around = grey.unfold(1, self.window, self.stride)
        windows = rearrange(around, "b t h w window -> (b t) window h w")
        motion = self.move(_pool(self.motion(windows)))
        both = torch.stack([self.norms[1](looks), self.norms[2](motion)], dim=1) + self.streams
        return both.unflatten(0, (len(video), -1))

    def _check(self, name: str, x: Tensor, axes: int) -> None:
        if x.ndim != axes or x.shape[-3] != self.channels or 0 in x.shape:
            raise ValueError(
                f"{name} must have {axes} axes, the third from the end {self.channels} channels, "
                f"and not be empty: got {tuple(x.shape)}"
            )
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise ValueError(
                f"height and width must be multiples of 8: got {x.shape[-2]} × {x.shape[-1]}"
            )


class SoundEmbedding(nn.Module):
    r"""Waveforms to tokens: log-mel frames, then convolutions that leave one in eight of them.

    From each band its mean over the sound is taken away, and with it much of what tells voices and
    microphones apart. Three convolutions each halve the number of frames; before the last of them
    two more, around each of which the sound can pass, hear 0.2 seconds each:

    .. math::

        x_0 = 2\,(\operatorname{logmel}(a) - \overline{\operatorname{logmel}(a)}), \qquad
        x_i = \operatorname{norm}(\phi(\operatorname{conv}_i(x_{i-1})))
        \;\text{ or }\; \operatorname{norm}(x_{i-1} + \phi(\operatorname{conv}_i(x_{i-1})))

    What does not exist is zero before each convolution, so that padding changes nothing.

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
        strides = (2, 2, 1, 1, 2)
        widths = (self.log_mel.config.mels, *(dim for _ in strides[1:]))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, dim, 5, stride, padding=2)
            for width, stride in zip(widths, strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in strides)

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
        """Embed log-mel frames.

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
        real = keep[..., None].to(features.dtype)
        mean = (features * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        x = (2 * (features - mean)).to(self.convolutions[0].weight.dtype)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            found = F.gelu(convolution(x.masked_fill(~keep[..., None], 0.0).transpose(1, 2)))
            found = found.transpose(1, 2)
            if convolution.stride == (1,):
                found = x + found
            else:
                keep = keep[:, ::2]
            x = norm(found)
        return x, keep

"""The mel scale, its bands, and the configuration of a log-mel spectrogram.

References:
    Stevens, Volkmann, Newman, *A Scale for the Measurement of the Psychological Magnitude Pitch*,
    JASA 1937 (mel). Slaney, *Auditory Toolbox*, 1998. Young et al., *The HTK Book*, 2002. Radford
    et al., *Robust Speech Recognition via Large-Scale Weak Supervision*, 2022 (Whisper).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LogMelConfig", "hertz_to_mel", "mel_filters", "mel_to_hertz"]

_CHOICES = {
    "scale": ("slaney", "htk"),
    "norm": ("slaney", None),
    "padding": ("zeros", "reflect", "none"),
    "log": ("whisper", "log10", "decibel"),
}


@dataclass(frozen=True)
class LogMelConfig:
    """How a log-mel spectrogram is made. The default is Whisper's, but for ``padding``.

    Attributes:
        sample_rate: Samples a second. It cannot be read off a waveform: sound of another rate is
            taken for one that is faster or slower, and no error can say so.
        window: Samples in a window, which is also the length of the Fourier transform (25 ms).
        hop: Samples from one window to the next (10 ms).
        mels: Bands. Fewer suffice to tell words apart, but not to hear the sound again: speech
            that goes through the bands and back by Griffin–Lim keeps a spectral convergence of
            about 0.14 with 80 bands, 0.19 with 64 and 0.33 with 40.
        low: Lowest frequency in hertz.
        high: Highest frequency in hertz, half of ``sample_rate`` by default.
        scale: ``"slaney"`` is linear up to 1000 Hz, ``"htk"`` logarithmic throughout.
        norm: ``"slaney"`` gives every band the same area, None the same height.
        power: Exponent of the magnitude: 2 for power, 1 for magnitude.
        floor: The logarithm is that of at least this.
        padding: Where the windows stand. ``"zeros"`` centres window ``t`` on sample ``t * hop``,
            with silence before and after; ``"reflect"`` does so with the sound mirrored at its
            ends, as Whisper does; ``"none"`` starts it there and takes whole windows only.
        log: ``"log10"``; ``"decibel"``, ten times that; or ``"whisper"``, which raises log10 to at
            least 8 below the loudest of the sound and takes ``(x + 4) / 4``, about -1 to 1.

    Raises:
        ValueError: a number or a choice out of its range, or a band without a frequency.
    """

    sample_rate: int = 16_000
    window: int = 400
    hop: int = 160
    mels: int = 80
    low: float = 0.0
    high: float | None = None
    scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney"] | None = "slaney"
    power: float = 2.0
    floor: float = 1e-10
    padding: Literal["zeros", "reflect", "none"] = "zeros"
    log: Literal["whisper", "log10", "decibel"] = "whisper"

    def __post_init__(self) -> None:
        for name in ("sample_rate", "hop", "mels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        if self.window < max(2, self.hop):
            raise ValueError(
                "window must be at least 2 and at least hop, or sound between the windows is "
                f"lost: got window={self.window}, hop={self.hop}"
            )
        if not 0.0 <= self.low < self.highest <= self.sample_rate / 2:
            raise ValueError(
                f"low and high must be 0 <= low < high <= {self.sample_rate / 2:g} Hz: "
                f"got low={self.low}, high={self.highest}"
            )
        for name in ("power", "floor"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be above 0: got {getattr(self, name)}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}: got {getattr(self, name)!r}")
        empty = (mel_filters(self).amax(dim=1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"mels={self.mels} is too many for window={self.window}: "
                f"band {empty[0]} holds no frequency of the transform"
            )

    @property
    def highest(self) -> float:
        """The highest frequency in hertz."""
        return self.sample_rate / 2 if self.high is None else self.high

    def frames(self, samples: int) -> int:
        """How many frames a sound of this many samples has.

        >>> LogMelConfig().frames(16_000)
        100
        """
        if self.padding == "none":
            return max(0, 1 + (samples - self.window) // self.hop)
        return -(-samples // self.hop)


def hertz_to_mel(
    hertz: Float[Tensor, "*any"], scale: Literal["slaney", "htk"] = "slaney"
) -> Float[Tensor, "*any"]:
    r"""Pitch as it is heard, of a frequency.

    .. math::

        m_\text{htk} = 2595 \log_{10}\!\left(1 + \frac{f}{700}\right), \qquad
        m_\text{slaney} = \begin{cases}
            3f / 200 & f < 1000 \\
            15 + 27 \ln(f / 1000) / \ln 6.4 & f \ge 1000
        \end{cases}

    >>> hertz_to_mel(torch.tensor([0.0, 1000.0, 6400.0]))
    tensor([ 0., 15., 42.])
    """
    if scale == "htk":
        return 2595.0 * torch.log10(1.0 + hertz / 700.0)
    # The clamp only keeps the unused branch away from log 0.
    upper = 15.0 + 27.0 * torch.log(hertz.clamp(min=1000.0) / 1000.0) / math.log(6.4)
    return torch.where(hertz < 1000.0, 3.0 * hertz / 200.0, upper)


def mel_to_hertz(
    mel: Float[Tensor, "*any"], scale: Literal["slaney", "htk"] = "slaney"
) -> Float[Tensor, "*any"]:
    """The frequency of a pitch: the inverse of :func:`hertz_to_mel`.

    >>> mel_to_hertz(torch.tensor([0.0, 15.0, 42.0]))
    tensor([   0., 1000., 6400.])
    """
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    upper = 1000.0 * torch.exp(math.log(6.4) * (mel - 15.0) / 27.0)
    return torch.where(mel < 15.0, 200.0 * mel / 3.0, upper)


def mel_filters(config: LogMelConfig) -> Float[Tensor, "mels bins"]:
    r"""The bands, in float64: what each frequency of the transform adds to each.

    With :math:`c_0, \dots, c_{M+1}` evenly spaced in mel from the lowest to the highest frequency,
    band :math:`m` is a triangle over :math:`[c_{m-1}, c_{m+1}]` with its top at :math:`c_m`:

    .. math::

        H_m(f) = g_m \max\!\left(0,\; \min\!\left(
            \frac{f - c_{m-1}}{c_m - c_{m-1}},\; \frac{c_{m+1} - f}{c_{m+1} - c_m}
        \right)\right)

    where :math:`g_m = 2 / (c_{m+1} - c_{m-1})` with ``norm="slaney"`` and 1 without. Equal to
    ``librosa.filters.mel``.
    """
    bins = config.window // 2 + 1
    frequencies = torch.arange(bins, dtype=torch.float64) * config.sample_rate / config.window
    ends = torch.tensor([config.low, config.highest], dtype=torch.float64)
    low, high = hertz_to_mel(ends, config.scale).tolist()
    corners = mel_to_hertz(
        torch.linspace(low, high, config.mels + 2, dtype=torch.float64), config.scale
    )
    left, top, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (frequencies - left) / (top - left), (right - frequencies) / (right - top)
    filters = torch.minimum(rising, falling).clamp(min=0.0)
    return filters * (2.0 / (right - left)) if config.norm == "slaney" else filters

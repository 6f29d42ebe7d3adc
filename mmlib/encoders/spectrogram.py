r"""Log-mel spectrograms: how a sound becomes a sequence of vectors, and back to magnitudes.

A sound is cut into overlapping windows, each window's spectrum is taken, the frequencies are summed
in bands that are as wide as the ear's, and the logarithm is taken, as loudness is heard. Everything
is written out and equal to librosa's and Whisper's definitions; the way back to a waveform is
:func:`mmlib.encoders.griffin_lim.griffin_lim`.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from mmlib.encoders.mel import LogMelConfig, mel_filters

__all__ = ["LogMel", "LogMelConfig", "short_time_spectrum"]

# Full scale is 1. Louder than this is no sound that was made louder, but samples of another scale.
_LOUDEST = 16.0


def short_time_spectrum(
    audio: Float[Tensor, "batch samples"],
    config: LogMelConfig,
    keep: Bool[Tensor, "batch samples"] | None = None,
) -> Complex[Tensor, "batch frames bins"]:
    r"""The spectrum of each window, :math:`X_t(k) = \sum_n w_n x_{th+n-o}\, e^{-2\pi i k n / N}`.

    :math:`w` is the periodic Hann window, :math:`h` the hop and :math:`o` half of the window, or 0
    without padding. Equal to ``librosa.stft`` for the frames whose centre lies inside the sound.

    Args:
        audio: Waveforms, in [-1, 1].
        config: Window, hop and padding.
        keep: Which samples exist; the real ones come first. The others count as silence.

    Raises:
        TypeError: ``audio`` holds integers, or ``keep`` is not boolean.
        ValueError: a wrong rank; an empty sound; one that is too short for the windows; on a CPU
            also values that are not finite or far outside [-1, 1], and gaps in ``keep``.
    """
    _check_audio(audio, keep, config)
    return _spectrum(audio, config, keep)


def _spectrum(audio: Tensor, config: LogMelConfig, keep: Tensor | None) -> Tensor:
    if keep is not None:
        audio = audio.masked_fill(~keep, 0.0)
    window = torch.hann_window(config.window, dtype=torch.float64).to(audio)
    padded = _pad(audio, config, keep)
    return torch.fft.rfft(padded.unfold(-1, config.window, config.hop) * window)


def _pad(audio: Tensor, config: LogMelConfig, keep: Tensor | None) -> Tensor:
    """Put the sound where the windows want it."""
    if config.padding == "none":
        return audio
    samples, before = audio.shape[1], config.window // 2
    total = (config.frames(samples) - 1) * config.hop + config.window
    if config.padding == "zeros":
        # After a shorter sound of the batch stand zeros too: padding needs no more care.
        return F.pad(audio, (before, total - before - samples))
    if keep is None:
        return F.pad(audio, (before, before), mode="reflect")[:, :total]
    # Each sound is mirrored at its own end, not at the end of the batch.
    last = keep.sum(dim=1)[:, None] - 1
    at = torch.arange(-before, total - before, device=audio.device)
    mirrored = torch.where(at.abs() > last, 2 * last - at.abs(), at.abs())
    inside = (mirrored >= 0) & (mirrored <= last)
    return audio.gather(1, mirrored.clamp(0, samples - 1)).masked_fill(~inside, 0.0)


class LogMel(nn.Module):
    r"""Log-mel spectrogram of a batch of waveforms.

    .. math::

        S_t = \log_{10} \max(\varepsilon,\; H\, |X_t|^p)

    with :math:`X_t` of :func:`short_time_spectrum` and :math:`H` of :func:`mel_filters`. A frame
    depends on nothing beyond its sound's end: padding a batch changes no frame.

    It always computes in float32, or in float64 after ``.double()``, under autocast too and in a
    model of half precision: power spans ten decades, of which bfloat16 keeps three digits.
    """

    def __init__(self, config: LogMelConfig | None = None) -> None:
        super().__init__()
        self.config = LogMelConfig() if config is None else config
        filters = mel_filters(self.config).to(torch.float32)
        self.register_buffer("filters", filters, persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "LogMel":
        # model.to(torch.bfloat16) would round the bands, and .double() would not make them exact.
        super()._apply(fn, recurse)
        dtype = torch.float64 if self.filters.dtype == torch.float64 else torch.float32
        if not self.filters.is_meta:
            self.filters = mel_filters(self.config).to(dtype).to(self.filters.device)
        return self

    def forward(
        self,
        audio: Float[Tensor, "batch samples"],
        keep: Bool[Tensor, "batch samples"] | None = None,
    ) -> tuple[Float[Tensor, "batch frames mels"], Bool[Tensor, "batch frames"]]:
        """Frames, and which of them exist.

        With centred windows a frame exists where its centre does, and a sound of ``n`` samples has
        ``ceil(n / hop)`` frames; without, where its whole window does. The others are zeros.

        Args:
            audio: Mono waveforms in [-1, 1] at ``config.sample_rate``.
            keep: Which samples exist; the real ones come first. A sound that has none gives zeros.

        Raises:
            TypeError: as :func:`short_time_spectrum`.
            ValueError: as :func:`short_time_spectrum`.

        >>> features, keep = LogMel()(torch.zeros(1, 1600))
        >>> features.shape, keep.shape  # 100 ms
        (torch.Size([1, 10, 80]), torch.Size([1, 10]))
        """
        config = self.config
        _check_audio(audio, keep, config)
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = _spectrum(audio.to(self.filters.dtype), config, keep)
            if config.power == 2.0:
                power = spectrum.real.square() + spectrum.imag.square()
            else:
                power = spectrum.abs().pow(config.power)
            features = (power @ self.filters.T).clamp(min=config.floor).log10()
        if keep is None:
            frame_keep = features.new_ones(features.shape[:2], dtype=torch.bool)
        else:
            start = config.window - 1 if config.padding == "none" else 0
            frame_keep = keep[:, start :: config.hop]
        if config.log == "decibel":
            features = 10.0 * features
        elif config.log == "whisper":
            inside = features
            if keep is not None:
                inside = features.masked_fill(~frame_keep[:, :, None], -math.inf)
            loudest = inside.amax(dim=(1, 2), keepdim=True)
            features = (torch.maximum(features, loudest - 8.0) + 4.0) / 4.0
        if keep is not None:
            features = features.masked_fill(~frame_keep[:, :, None], 0.0)
        return features, frame_keep

    def to_mel(
        self, features: Float[Tensor, "batch frames mels"]
    ) -> Float[Tensor, "batch frames mels"]:
        """What was in the bands before the logarithm; what the floor took is lost."""
        self._check_features(features)
        features = features.to(self.filters.dtype)
        if self.config.log == "whisper":
            features = 4.0 * features - 4.0
        return 10.0 ** (features / 10.0 if self.config.log == "decibel" else features)

    def to_magnitude(
        self, features: Float[Tensor, "batch frames mels"], iterations: int = 100
    ) -> Float[Tensor, "batch frames bins"]:
        r"""Magnitudes of all frequencies whose bands come nearest: non-negative least squares.

        .. math::

            \hat{x} = \arg\min_{x \ge 0} \lVert Hx - m \rVert^2, \qquad
            x \leftarrow x \odot \frac{H^\top m}{H^\top H x}

        The multiplicative updates of Lee and Seung (NIPS 2000) keep :math:`x` non-negative and
        never raise the residual. There are fewer bands than frequencies, so many answers fit; the
        start, each frequency's average over its bands, makes it a smooth one.

        ``librosa.feature.inverse.mel_to_stft`` solves the same problem from the clipped
        pseudo-inverse with L-BFGS, which by its absolute tolerance often stops where it started.

        Raises:
            ValueError: a wrong shape, or ``iterations`` below 0.
        """
        if iterations < 0:
            raise ValueError(f"iterations must be at least 0: got {iterations}")
        mel, filters = self.to_mel(features), self.filters
        # Twice the smallest normal number: where nothing is, 0 / tiny is 0 and not NaN.
        tiny = 2.0 * torch.finfo(filters.dtype).tiny
        with torch.autocast(filters.device.type, enabled=False):
            x = (mel / filters.sum(dim=1)) @ (filters / (filters.sum(dim=0) + tiny))
            wanted, gram = mel @ filters, filters.T @ filters
            for _ in range(iterations):
                x = x * (wanted / (x @ gram + tiny))
        return x ** (1.0 / self.config.power)

    def _check_features(self, features: Tensor) -> None:
        if features.ndim != 3 or features.shape[-1] != self.config.mels or 0 in features.shape:
            raise ValueError(
                f"features must have shape (batch, frames, {self.config.mels}), not empty: "
                f"got {tuple(features.shape)}"
            )


def _check_audio(audio: Tensor, keep: Tensor | None, config: LogMelConfig) -> None:
    """Raise what :func:`short_time_spectrum` says it raises."""
    if not audio.is_floating_point():
        raise TypeError(
            f"audio must be floating-point, in [-1, 1]: got {audio.dtype}; "
            "divide 16-bit samples by 32768"
        )
    if audio.ndim != 2 or 0 in audio.shape:
        raise ValueError(
            f"audio must have shape (batch, samples), not empty: got {tuple(audio.shape)}"
        )
    least = {"zeros": 1, "reflect": config.window // 2 + 1, "none": config.window}[config.padding]
    if audio.shape[1] < least:
        raise ValueError(
            f"audio must have at least {least} samples with padding={config.padding!r}: "
            f"got {audio.shape[1]}"
        )
    if keep is not None:
        if keep.dtype != torch.bool:
            raise TypeError(f"keep must be boolean (True = exists): got {keep.dtype}")
        if keep.shape != audio.shape:
            raise ValueError(
                f"keep must have the shape of audio, {tuple(audio.shape)}: got {tuple(keep.shape)}"
            )
    if audio.device.type != "cpu":
        return  # reading the values would make the host wait for the accelerator
    if keep is not None:
        if (keep[:, 1:] & ~keep[:, :-1]).any():
            raise ValueError("keep must have the real samples first, without gaps")
        lengths = keep.sum(dim=1)
        if config.padding == "reflect" and bool(((lengths > 0) & (lengths < least)).any()):
            raise ValueError(
                f"each sound must have at least {least} samples to be mirrored: "
                f"got {int(lengths[lengths > 0].min())}"
            )
        audio = audio.masked_fill(~keep, 0.0)
    peak = float(audio.detach().abs().amax())
    if not peak <= _LOUDEST:
        raise ValueError(
            f"audio must be finite and lie in about [-1, 1]: got a peak of {peak:g}; "
            "divide 16-bit samples by 32768"
        )

r"""From the magnitudes of a spectrogram back to a waveform.

A spectrogram that has lost its phases is still nearly enough, since windows overlap: neighbouring
windows must agree about the samples that they share.

References:
    Griffin and Lim, *Signal Estimation from Modified Short-Time Fourier Transform*, IEEE TASSP
    1984. Perraudin, Balazs, Søndergaard, *A Fast Griffin–Lim Algorithm*, WASPAA 2013.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.encoders.mel import LogMelConfig
from mmlib.encoders.spectrogram import short_time_spectrum

__all__ = ["griffin_lim", "spectral_convergence"]


@torch.no_grad()
def griffin_lim(
    magnitude: Float[Tensor, "batch frames bins"],
    config: LogMelConfig,
    *,
    iterations: int = 32,
    momentum: float = 0.99,
    seed: int | None = None,
    length: int | None = None,
) -> Float[Tensor, "batch samples"]:
    r"""A waveform whose short-time magnitudes are nearly the given ones.

    With :math:`P(C) = \operatorname{stft}(\operatorname{istft}(C))`, the nearest spectrogram that
    belongs to a sound,

    .. math::

        T_i = P(C_{i-1}), \qquad
        C_i = S \odot \frac{T_i - \beta T_{i-1}}{|T_i - \beta T_{i-1}|}, \qquad
        \beta = \frac{\alpha}{1 + \alpha}

    Without momentum, :math:`\alpha = 0`, the error never grows; with it, it falls faster. Equal to
    ``librosa.griffinlim``. All sounds are taken to be as long as the batch: give sounds of other
    lengths apart.

    Args:
        magnitude: Non-negative, of every frequency of every frame.
        config: The window and the hop that ``magnitude`` was made with; ``padding`` is zeros.
        iterations: Rounds; 0 inverts with the first phases.
        momentum: :math:`\alpha`, at least 0.
        seed: Draws the first phases; None starts with all phases 0, as ``librosa`` does with
            ``init=None``.
        length: Samples of the result, ``frames * hop`` by default.

    Raises:
        TypeError: ``magnitude`` is not floating-point.
        ValueError: a wrong shape, a negative or infinite magnitude, windows that overlap by less
            than half, another padding, or a number out of its range.
    """
    _check(magnitude, config, iterations, momentum, length)
    length = magnitude.shape[1] * config.hop if length is None else length
    if magnitude.dtype not in (torch.float32, torch.float64):
        magnitude = magnitude.float()  # there is no Fourier transform of bfloat16
    magnitude = magnitude.transpose(1, 2)  # PyTorch has the frequencies before the frames
    phases = torch.zeros_like(magnitude)
    if seed is not None:
        # Drawn on the CPU in float64: the same on every device.
        draw = torch.Generator("cpu").manual_seed(seed)
        turns = torch.rand(phases.shape, generator=draw, device="cpu", dtype=torch.float64)
        phases = (2.0 * math.pi * turns).to(phases)
    window = torch.hann_window(config.window, dtype=torch.float64).to(magnitude)
    spectrum = torch.polar(magnitude, phases)
    tiny = torch.finfo(magnitude.dtype).tiny
    turn = momentum / (1.0 + momentum)
    before = None
    for _ in range(iterations):
        sound = torch.istft(spectrum, config.window, config.hop, window=window, length=length)
        heard = torch.stft(
            sound,
            config.window,
            config.hop,
            window=window,
            pad_mode="constant",
            return_complex=True,
        )
        heard = heard[..., : magnitude.shape[-1]]  # one more is centred on the end
        direction = heard if before is None else heard - turn * before
        spectrum = magnitude * direction / (direction.abs() + tiny)
        before = heard
    return torch.istft(spectrum, config.window, config.hop, window=window, length=length)


def spectral_convergence(
    audio: Float[Tensor, "batch samples"],
    magnitude: Float[Tensor, "batch frames bins"],
    config: LogMelConfig,
) -> Float[Tensor, " batch"]:
    r"""How far a sound's magnitudes are from the wanted ones, as a share of them.

    .. math::

        \frac{\lVert\, |\operatorname{stft}(x)| - S \,\rVert_F}{\lVert S \rVert_F}

    Raises:
        ValueError: the sound does not have as many frames as ``magnitude``.
    """
    heard = short_time_spectrum(audio, config).abs()
    if heard.shape != magnitude.shape:
        raise ValueError(
            f"audio must have the frames of magnitude, {tuple(magnitude.shape)}: "
            f"got {tuple(heard.shape)}"
        )
    error = torch.linalg.vector_norm(heard - magnitude, dim=(1, 2))
    return error / torch.linalg.vector_norm(magnitude, dim=(1, 2))


def _check(
    magnitude: Tensor, config: LogMelConfig, iterations: int, momentum: float, length: int | None
) -> None:
    bins = config.window // 2 + 1
    if not magnitude.is_floating_point():
        raise TypeError(f"magnitude must be floating-point: got {magnitude.dtype}")
    if magnitude.ndim != 3 or magnitude.shape[-1] != bins or 0 in magnitude.shape:
        raise ValueError(
            f"magnitude must have shape (batch, frames, {bins}), not empty: "
            f"got {tuple(magnitude.shape)}"
        )
    if magnitude.device.type == "cpu" and not bool(
        ((magnitude >= 0.0) & (magnitude < math.inf)).all()
    ):
        raise ValueError("magnitude must be finite and not negative")
    if config.padding != "zeros":
        raise ValueError(f"config.padding must be 'zeros': got {config.padding!r}")
    if 2 * config.hop > config.window:
        raise ValueError(
            f"windows must overlap by half at least: got window={config.window}, hop={config.hop}"
        )
    if iterations < 0 or momentum < 0.0:
        raise ValueError(
            "iterations and momentum must be at least 0: "
            f"got iterations={iterations}, momentum={momentum}"
        )
    frames = magnitude.shape[1]
    if length is not None and not (frames - 1) * config.hop < length <= frames * config.hop:
        raise ValueError(
            f"length must be what {frames} frames cover, {(frames - 1) * config.hop + 1} to "
            f"{frames * config.hop} samples: got {length}"
        )

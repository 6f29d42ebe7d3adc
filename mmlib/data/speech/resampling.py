"""Change of the sampling rate."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_EDGE = 0.04  # seconds of silence put around, so that the two ends do not leak into each other
_FLAT = 0.92  # of the lower Nyquist frequency: what lies below is kept as it is


def resample(
    waveform: Float[Tensor, " samples"], source: int, target: int
) -> Float[Tensor, " resampled"]:
    """Change the sampling rate of a waveform, keeping what both rates can carry.

    The waveform's Fourier series is cut off at the lower of the two Nyquist frequencies, smoothly
    from 92 % of it on (half a period of a cosine), and evaluated at the new times. Sample ``n`` of
    the result is at the time ``n / target``.

    Args:
        waveform: samples at the rate ``source``.
        source: samples a second, a whole number above 0.
        target: samples a second wanted.

    Returns:
        ``ceil(samples * target / source)`` samples, of the same type.

    Raises:
        ValueError: if a rate is not a whole number above 0, or the waveform is empty.

    >>> resample(torch.zeros(22050), 22050, 16000).shape
    torch.Size([16000])
    """
    for name, rate in (("source", source), ("target", target)):
        if isinstance(rate, bool) or not isinstance(rate, int) or rate < 1:
            raise ValueError(f"{name} must be a whole number above 0: got {rate!r}")
    if waveform.ndim != 1 or not len(waveform):
        raise ValueError(f"waveform must have shape (samples,): got {tuple(waveform.shape)}")
    if source == target:
        return waveform.clone()
    common = math.gcd(source, target)
    up, down = target // common, source // common
    # Lengths of whole blocks, so that the time covered is the same at both rates; a number of
    # blocks that the fast Fourier transform likes.
    edge = down * math.ceil(_EDGE * source / down)
    blocks = 2 ** math.ceil(math.log2((len(waveform) + 2 * edge) / down))
    padded = waveform.new_zeros(blocks * down, dtype=torch.float64)
    padded[edge : edge + len(waveform)] = waveform
    spectrum = torch.fft.rfft(padded)
    keep = min(blocks * up, blocks * down) // 2 + 1
    share = torch.arange(keep, dtype=torch.float64, device=waveform.device) / (keep - 1)
    taper = 0.5 + 0.5 * torch.cos(math.pi * ((share - _FLAT) / (1 - _FLAT)).clamp(0, 1))
    out = torch.fft.irfft(spectrum[:keep] * taper, n=blocks * up) * (up / down)
    start = edge // down * up
    return out[start : start + -(-len(waveform) * up // down)].to(waveform.dtype)

"""Change of the sampling rate."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

_FLAT = 0.92  # of the lower Nyquist frequency: what lies below is kept as it is
_DECIBELS = 100.0  # by how much what lies above the limit is weakened: more than 16 bits can hold
_LARGEST = 1000


def resample(
    waveform: Float[Tensor, " samples"], source: int, target: int
) -> Float[Tensor, " resampled"]:
    r"""Change the sampling rate of a waveform, keeping what both rates can carry.

    .. math:: y_n = \sum_k x_k\, h(n / f_\text{target} - k / f_\text{source})

    where :math:`h` is a sinc under a Kaiser window: it passes what lies below 92 % of the lower of
    the two Nyquist frequencies and takes 100 dB off what lies above that frequency. The window's
    length and shape are those of Kaiser (1974). Sample ``n`` of the result is at the time
    ``n / target``; the silence before the first sample and after the last counts as zeros.

    Args:
        waveform: samples at the rate ``source``.
        source: samples a second, a whole number above 0.
        target: samples a second wanted.

    Returns:
        ``ceil(samples * target / source)`` samples, of the same type.

    Raises:
        ValueError: if a rate is not a whole number above 0, the ratio of the rates is not one of
            whole numbers up to 1,000, or the waveform is empty.

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
    if max(up, down) > _LARGEST:
        raise ValueError(
            f"source and target must be in a ratio of whole numbers up to {_LARGEST}: "
            f"got {source} and {target}, that is {down} to {up}"
        )
    # Every `down` samples in make `up` samples out, always with the same weights.
    weight, reach = _weights(up, down)
    blocks = -(-len(waveform) // down)
    padded = waveform.new_zeros((blocks + 1) * down + 2 * reach, dtype=torch.float64)
    padded[reach : reach + len(waveform)] = waveform
    frames = padded.unfold(0, down + 2 * reach, down)[:blocks]
    out = (frames @ weight.to(waveform.device)).flatten()
    return out[: -(-len(waveform) * up // down)].to(waveform.dtype)


@lru_cache(maxsize=8)
def _weights(up: int, down: int) -> tuple[Tensor, int]:
    """The share of each of ``reach + down + reach`` input samples in each of ``up`` outputs."""
    limit = min(1.0, up / down)  # the lower Nyquist frequency, in units of the source's
    width = (1 - _FLAT) * limit
    reach = math.ceil((_DECIBELS - 7.95) / (2.285 * math.pi * width) / 2)
    beta = 0.1102 * (_DECIBELS - 8.7)
    at = torch.arange(-reach, down + reach, dtype=torch.float64)[:, None]
    distance = torch.arange(up, dtype=torch.float64) * down / up - at  # in input samples
    edge = limit - width / 2
    share = (1 - (distance / reach).square()).clamp(min=0).sqrt()
    window = torch.special.i0(beta * share) / torch.special.i0(
        torch.tensor(beta, dtype=torch.float64)
    )
    window = torch.where(distance.abs() <= reach, window, 0.0)
    return edge * torch.sinc(edge * distance) * window, reach

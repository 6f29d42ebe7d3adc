"""What a room and a crowd do to speech: noise at a stated level, and reverberation.

Nothing here needs espeak-ng but the babble.
"""

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.scenes.draws import check_seed
from mmlib.data.speech.utterance import SAMPLE_RATE

NOISES = ("white", "pink", "babble")
_TALKERS = 8


def add_noise(
    waveform: Float[Tensor, "*batch samples"], snr_db: float, seed: int, kind: str = "white"
) -> Float[Tensor, "*batch samples"]:
    r"""Add noise at a signal-to-noise ratio (信噪比).

    .. math:: \text{SNR} = 10 \log_{10} \frac{\sum_t s_t^2}{\sum_t n_t^2}

    over the whole of each waveform, pauses included. If the sum goes beyond [-1, 1], speech and
    noise are turned down together, which leaves the ratio as it is.

    Args:
        waveform: speech, one or more.
        snr_db: decibels; 20 is a quiet room, 0 as much noise as speech.
        seed: which noise; each waveform of a batch has its own.
        kind: ``"white"`` (equal power at all frequencies), ``"pink"`` (equal power in each octave)
            or ``"babble"`` (eight people talking at once: training voices saying captions in
            English; needs ``espeakng-loader``).

    Returns:
        Speech with noise, of the same shape and type.

    Raises:
        ValueError: if the kind is another, the ratio is not finite, or a waveform is silent.
    """
    if kind not in NOISES:
        raise ValueError(f"kind must be one of {', '.join(NOISES)}: got {kind!r}")
    if not math.isfinite(snr_db):
        raise ValueError(f"snr_db must be finite: got {snr_db}")
    if not waveform.numel() or not bool(waveform.ne(0).any(-1).all()):
        raise ValueError("waveform must hold sound: got silence")
    speech = waveform.double()
    noise = _noise(tuple(waveform.shape), check_seed(seed), kind).to(speech.device)
    power, own = (x.square().sum(-1, keepdim=True) for x in (speech, noise))
    mixed = speech + noise * (power / own * 10 ** (-snr_db / 10)).sqrt()
    peak = mixed.abs().amax(-1, keepdim=True)
    return (mixed / peak.clamp(min=1)).to(waveform.dtype)


def _noise(shape: tuple[int, ...], seed: int, kind: str) -> Float[Tensor, "*batch samples"]:
    generator = torch.Generator().manual_seed(seed)
    if kind == "babble":
        crowd = _crowd()
        rows = math.prod(shape[:-1])
        starts = torch.randint(len(crowd), (rows, 1), generator=generator)
        return crowd[(starts + torch.arange(shape[-1])) % len(crowd)].view(shape)
    length = shape[-1]
    if kind == "pink":
        length = 2 ** math.ceil(math.log2(length))  # fast to transform
    white = torch.randn((*shape[:-1], length), generator=generator, dtype=torch.float64)
    if kind == "white":
        return white
    # Power that falls as 1 / frequency; the constant part, which cannot be heard, is left out.
    spectrum = torch.fft.rfft(white)
    frequency = torch.arange(spectrum.shape[-1], dtype=torch.float64)
    falling = torch.where(frequency > 0, frequency.clamp(min=1).rsqrt(), 0.0)
    return torch.fft.irfft(spectrum * falling, n=length)[..., : shape[-1]]


@cache
def _crowd() -> Float[Tensor, " samples"]:
    """A few seconds of babble that can be repeated without a gap."""
    from mmlib.data.speech.sets import load

    talkers = load("captions", "train", "en", size=5 * _TALKERS, seed=0xBAB, cache=False)
    lines = [
        torch.cat([talkers[5 * one + turn].waveform for turn in range(5)])
        for one in range(_TALKERS)
    ]
    shortest = min(map(len, lines))
    return sum(line[:shortest].double() / line.square().mean().sqrt() for line in lines)


def impulse_response(
    rt60: float, seed: int, *, direct_db: float = 3.0, sample_rate: int = SAMPLE_RATE
) -> Float[Tensor, " samples"]:
    r"""What a room answers to a click: the click itself, then noise that dies away.

    .. math:: h_t = \delta_t + g\, n_t\, 10^{-3 t / T_{60}}, \qquad n_t \sim \mathcal{N}(0, 1)

    (Polack 1988's model of a diffuse field), so that the energy still to come falls by 60 dB in
    each :math:`T_{60}`. There are no single early echoes, and all frequencies die away alike.

    Args:
        rt60: reverberation time :math:`T_{60}` (混响时间) in seconds; a living room has 0.4, a
            church 3.
        seed: which room.
        direct_db: energy of the click over that of the rest, in decibels: less is farther away.
        sample_rate: samples a second.

    Returns:
        The response, ``1.2 * rt60`` seconds of it, the first sample 1.

    Raises:
        ValueError: if the time is not above 0 or a number is not finite.
    """
    if not (math.isfinite(rt60) and rt60 > 0):
        raise ValueError(f"rt60 must be above 0 seconds: got {rt60}")
    if not math.isfinite(direct_db):
        raise ValueError(f"direct_db must be finite: got {direct_db}")
    length = max(2, round(1.2 * rt60 * sample_rate))
    generator = torch.Generator().manual_seed(check_seed(seed))
    tail = torch.randn(length, generator=generator, dtype=torch.float64)
    tail *= 10 ** (-3 * torch.arange(length, dtype=torch.float64) / (rt60 * sample_rate))
    tail[0] = 0
    tail *= (10 ** (-direct_db / 10) / tail.square().sum()).sqrt()
    tail[0] = 1
    return tail


def reverberate(
    waveform: Float[Tensor, "*batch samples"],
    rt60: float,
    seed: int,
    *,
    direct_db: float = 3.0,
    sample_rate: int = SAMPLE_RATE,
) -> Float[Tensor, "*batch samples"]:
    """Let speech be heard in a room (混响): convolve it with an :func:`impulse_response`.

    Times do not shift. What the room still answers after the waveform's end is cut off: put zeros
    behind the waveform first to keep it. The energy stays that of the waveform, unless a sample
    would go beyond [-1, 1]; then all is turned down.

    Args:
        waveform: speech, one or more, all in the same room.
        rt60: reverberation time in seconds.
        seed: which room.
        direct_db: energy of the direct sound over that of the rest, in decibels.
        sample_rate: samples a second.

    Returns:
        Reverberant speech, of the same shape and type.

    Raises:
        ValueError: if the time is not above 0 or a number is not finite.
    """
    response = impulse_response(rt60, seed, direct_db=direct_db, sample_rate=sample_rate)
    speech = waveform.double()
    length = speech.shape[-1]
    size = 2 ** math.ceil(math.log2(length + len(response)))  # fast, and nothing wraps round
    spectrum = torch.fft.rfft(speech, n=size) * torch.fft.rfft(response.to(speech.device), n=size)
    heard = torch.fft.irfft(spectrum, n=size)[..., :length]
    before, after = (x.square().sum(-1, keepdim=True) for x in (speech, heard))
    heard = heard * torch.where(after > 0, before / after.clamp(min=1e-30), 0.0).sqrt()
    return (heard / heard.abs().amax(-1, keepdim=True).clamp(min=1)).to(waveform.dtype)

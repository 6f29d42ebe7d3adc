"""A player for sounds in notebooks and on the book's pages."""

import base64
import html
import io
import wave

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["play", "wav_bytes"]


def play(waveform: Float[Tensor, " samples"], label: str, sample_rate: int = 16_000) -> None:
    """Display a player for a sound; the sound itself is stored in the notebook.

    A second at 16,000 samples takes 43 kB there: keep what is stored short.

    Args:
        waveform: One channel, -1 to 1; what lies outside is cut off, as a loudspeaker would.
        label: What is heard, in words, shown above the player and read by screen readers.
        sample_rate: Samples a second.

    Raises:
        ValueError: the waveform is empty, not one channel or not finite, the label is empty, or
            the rate is below 1.
        TypeError: the waveform does not hold floating-point numbers.
    """
    from IPython.display import HTML, display

    sound = base64.b64encode(wav_bytes(waveform, sample_rate)).decode()
    if not label.strip():
        raise ValueError("label must say what is heard: got an empty string")
    text = html.escape(label)
    player = f'<audio controls aria-label="{text}" src="data:audio/wav;base64,{sound}"></audio>'
    display(HTML(f"<figure><figcaption>{text}</figcaption>{player}</figure>"))


def wav_bytes(waveform: Float[Tensor, " samples"], sample_rate: int = 16_000) -> bytes:
    """A sound as a WAV file with 16 bits a sample; the arguments are those of :func:`play`."""
    if not waveform.is_floating_point():
        raise TypeError(f"waveform must hold numbers from -1 to 1: got {waveform.dtype}")
    if waveform.ndim != 1 or not len(waveform) or not waveform.isfinite().all():
        raise ValueError(
            "waveform must be one channel (samples,) of finite numbers, not empty: "
            f"got shape {tuple(waveform.shape)}"
        )
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1: got {sample_rate}")
    samples = (waveform.detach().cpu().clamp(-1, 1) * (2**15 - 1)).round().to(torch.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(samples.numpy().astype("<i2").tobytes())
    return file.getvalue()

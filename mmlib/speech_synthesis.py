r"""Speaking: log-mel frames of words, and a waveform of them: chapter 12.

Each token of a text is stretched to the time that it takes (:mod:`mmlib.durations`) and becomes
log-mel frames, which become a waveform by Griffin–Lim. That sets a ceiling: it loses a little of
frames that are perfect, too.

References:
    Ren et al., *FastSpeech: Fast, Robust and Controllable Text to Speech*, NeurIPS 2019. Wang et
    al., *Tacotron*, Interspeech 2017 (Griffin–Lim as a vocoder).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlib.data.batch import Batch
from mmlib.encoders.griffin_lim import griffin_lim
from mmlib.encoders.spectrogram import LogMel
from mmlib.multimodal import Memory, MultimodalTransformer

__all__ = ["frame_loss", "say", "vocode"]


def frame_loss(
    spoken: Float[Tensor, "batch frames mels"],
    wanted: Float[Tensor, "batch wanted_frames mels"],
    keep: Bool[Tensor, "batch wanted_frames"],
) -> tuple[Float[Tensor, ""], int]:
    """Sum of absolute errors over the frames that exist, and the count of numbers summed.

    Args:
        spoken: What the model said; it may be a few frames longer than what is wanted.
        wanted: Log-mel frames.
        keep: Which of them exist.

    Raises:
        ValueError: the model said less than is wanted.
    """
    if spoken.shape[1] < wanted.shape[1] or spoken.shape[2] != wanted.shape[2]:
        raise ValueError(
            f"spoken must hold the frames of wanted, {tuple(wanted.shape)}: "
            f"got {tuple(spoken.shape)}"
        )
    error = (spoken[:, : wanted.shape[1]].float() - wanted).abs() * keep[..., None]
    return error.sum(), int(keep.sum()) * wanted.shape[2]


@torch.no_grad()
def vocode(
    frames: Float[Tensor, "frames mels"], log_mel: LogMel, *, iterations: int = 32
) -> Float[Tensor, " samples"]:
    """One log-mel spectrogram as a waveform: bands to frequencies, then Griffin–Lim.

    Args:
        frames: Log-mel frames of one sound.
        log_mel: What made, or would have made, them.
        iterations: Rounds of :func:`~mmlib.encoders.griffin_lim.griffin_lim`.
    """
    magnitude = log_mel.to_magnitude(frames[None].float())
    sound = griffin_lim(magnitude, log_mel.config, iterations=iterations)[0]
    # The loudest of a Whisper spectrogram is forgotten; a factor is neither heard nor seen by it.
    return sound / sound.abs().amax().clamp(min=1e-6) * 0.5


@torch.no_grad()
def say(
    model: MultimodalTransformer,
    ids: Int[Tensor, "batch length"],
    keep: Bool[Tensor, "batch length"],
    voices: Int[Tensor, " batch"],
) -> tuple[Float[Tensor, "batch frames mels"], Bool[Tensor, "batch frames"], Memory]:
    """Speak texts with the durations that the model itself predicts.

    Args:
        model: In ``eval()`` mode.
        ids: Texts with begin and end tokens.
        keep: Which ids exist.
        voices: Number of a voice each.

    Returns:
        Log-mel frames, which exist, and what the model had read.
    """
    memory = model.encode(Batch(text=ids, text_keep=keep))
    steps = torch.expm1(model.log_durations(memory)).round().clamp(min=0, max=40).long() * keep
    # Something must be said, however short.
    steps[:, 0] = torch.where(steps.sum(1) > 0, steps[:, 0], 1)
    frames, frames_keep = model.speak(memory, steps, voices)
    return frames, frames_keep, memory

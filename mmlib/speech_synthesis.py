r"""Speaking: how long each word takes, log-mel frames, and a waveform of them: chapter 12.

The times of the words that are learned from are known
(:class:`mmlib.data.speech.Utterance`), so nothing has to be aligned: each token of the text is
given the frames from its own start to the next one's, as in FastSpeech, whose durations come from
an aligner. Frames become a waveform by Griffin–Lim, which sets a ceiling: it loses a little of
frames that are perfect, too.

References:
    Ren et al., *FastSpeech: Fast, Robust and Controllable Text to Speech*, NeurIPS 2019. Wang et
    al., *Tacotron*, Interspeech 2017 (Griffin–Lim as a vocoder).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmlib.data.batch import Batch
from mmlib.data.speech import Span
from mmlib.encoders.griffin_lim import griffin_lim
from mmlib.encoders.spectrogram import LogMel
from mmlib.multimodal import Memory, MultimodalTransformer

__all__ = ["frame_loss", "say", "vocode", "word_starts", "word_steps"]


def word_starts(text: str, spans: Sequence[Span]) -> list[float]:
    """When each written word begins, in seconds.

    A span may hold two words ("in the"): its time is divided by their letters.

    Args:
        text: What was said: words between spaces.
        spans: What was measured, in order.

    Raises:
        ValueError: the spans do not spell the text.

    >>> word_starts("in the sky", [Span("in the", 0.0, 0.5), Span("sky", 0.5, 1.0)])
    [0.0, 0.2, 0.5]
    """
    said = [(word, span) for span in spans for word in span.text.split()]
    if [_plain(word) for word in text.split()] != [_plain(word) for word, _ in said]:
        raise ValueError(f"spans must spell {text!r}: got {[span.text for span in spans]}")
    starts = []
    for span in spans:
        words = span.text.split()
        letters = sum(map(len, words))
        before = 0
        for word in words:
            starts.append(span.start + (span.end - span.start) * before / letters)
            before += len(word)
    return starts


def _plain(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())


def word_steps(
    text: str, spans: Sequence[Span], frames: int, step: int, hop: float = 0.01
) -> list[int]:
    r"""How many steps of the decoder each token takes to say.

    The tokens are the begin token, the words and the end token: the begin token has the silence
    before the first word, each word what lies between its start and the next one's, and the end
    token nothing, since the last word lasts until the sound ends.

    Args:
        text: What was said.
        spans: The times of its words.
        frames: Log-mel frames of the whole.
        step: Frames that one step speaks.
        hop: Seconds from one frame to the next.

    Returns:
        Steps of each token; their sum is :math:`\lceil \text{frames} / \text{step} \rceil`.

    Raises:
        ValueError: as :func:`word_starts`, or a number below 1.

    >>> word_steps("a star", [Span("a", 0.02, 0.1), Span("star", 0.1, 0.5)], 60, 4)
    [0, 2, 13, 0]
    """
    if min(frames, step) < 1 or not hop > 0.0:
        raise ValueError(f"frames, step and hop must be above 0: got {frames}, {step} and {hop}")
    total = -(-frames // step)
    edges = [round(start / (hop * step)) for start in word_starts(text, spans)]
    edges = [0, *(min(edge, total) for edge in edges), total]
    return [after - before for before, after in zip(edges, edges[1:], strict=False)] + [0]


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

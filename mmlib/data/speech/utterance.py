"""One sentence, spoken: its waveform, and when each word and each sound of it begins and ends."""

import re
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.speech import espeak
from mmlib.data.speech.resampling import resample
from mmlib.data.speech.speakers import ACCENTS, LANGUAGES, VOICES

SAMPLE_RATE = 16_000
RATES = (80, 450)


class Span(NamedTuple):
    """A word or a sound and its time in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, eq=False, repr=False)
class Utterance:
    """A spoken text.

    Attributes:
        waveform: ``(samples,)``, float32 in [-1, 1], on the grid of 16-bit numbers.
        text: what was said.
        voice: the voice's name.
        language: ``"en"`` or ``"zh"``.
        words: the words in order, with their times. A word starts with its first sound: the
            silence before a plosive is not part of it. English: what stands between spaces, but a
            preposition and the article after it may be one word ("in the", "of a"), since
            espeak-ng looks them up together. Mandarin: characters, but "一个", "左边" and the
            like are one.
        phonemes: the sounds in order, in the International Phonetic Alphabet (a symbol of more
            than eight bytes lacks its last character). Tones are not marked.
        rate: words a minute.
        pitch: 0 to 99; 50 is the voice's own.
        pitch_range: 0 (monotone) to 99; 50 is the voice's own.
        sample_rate: samples a second.
    """

    waveform: Float[Tensor, " samples"]
    text: str
    voice: str
    language: str
    words: tuple[Span, ...]
    phonemes: tuple[Span, ...]
    rate: int
    pitch: int
    pitch_range: int = 50
    sample_rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.waveform) / self.sample_rate

    def __repr__(self) -> str:
        return f"Utterance({self.text!r}, {self.voice}, {self.language}, {self.seconds:.2f} s)"


def synthesise(
    text: str,
    voice: str,
    language: str = "en",
    *,
    rate: int = 165,
    pitch: int = 50,
    pitch_range: int = 50,
    accent: str | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> Utterance:
    """Say a text with a synthetic voice.

    The same call gives the same samples, whatever was said before, in any process and thread, with
    one version of espeak-ng on one kind of machine.

    Args:
        text: what to say. Nothing in it is markup. A question mark makes the voice rise.
        voice: one of :data:`VOICES`.
        language: ``"en"`` or ``"zh"`` (Mandarin).
        rate: words a minute, 80 to 450. (For Mandarin the scale is espeak-ng's as well.)
        pitch: height of the voice, 0 to 99: 50 is the voice's own, 0 about two thirds of its
            frequency, 99 about five thirds.
        pitch_range: how lively the melody is, 0 to 99: at 0 it is flat, 50 is the voice's own.
        accent: one of :data:`ACCENTS` for English; None is the voice's own.
        sample_rate: samples a second of the result.

    Returns:
        The utterance.

    Raises:
        ImportError: if ``espeakng-loader`` is missing (``pip install "mmlib[speech]"``), or holds
            no library for this machine.
        ValueError: if an argument is not one of the above, or the text has a control character or
            nothing in it that can be said.

    >>> said = synthesise("a red star", "m1")
    >>> [word.text for word in said.words], said.waveform.dtype
    (['a', 'red', 'star'], torch.float32)
    """
    check_speech(text, voice, language, rate, pitch, pitch_range, accent)
    name = VOICES[voice].espeak_name(language)
    if accent is not None and language == "en":
        name = f"{ACCENTS[accent]}+{voice}"
    samples, own_rate, events = espeak.speak(text, name, rate, pitch, pitch_range)
    words, phonemes = _spans(text, events, own_rate, len(samples))
    if not words:
        raise ValueError(f"text must hold something that can be said: got {text!r}")
    waveform = resample(torch.from_numpy(samples) / 2**15, own_rate, sample_rate)
    # To the nearest 16-bit number, so that what comes out of a cache is the same.
    waveform = (waveform * 2**15).round().clamp(-(2**15), 2**15 - 1) / 2**15
    return Utterance(
        waveform, text, voice, language, words, phonemes, rate, pitch, pitch_range, sample_rate
    )


def check_speech(text, voice, language, rate, pitch, pitch_range, accent=None) -> None:
    """Raise ``ValueError`` or ``TypeError`` unless all of it can be said."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a string: got {type(text).__name__}")
    # Some control characters are commands to espeak-ng; a lone surrogate cannot be encoded.
    bad = [c for c in text if unicodedata.category(c) in ("Cc", "Cs")]
    if bad:
        raise ValueError(f"text must not contain control characters: got {bad[0]!r} in {text!r}")
    if not text.strip():
        raise ValueError(f"text must hold something that can be said: got {text!r}")
    if voice not in VOICES:
        raise ValueError(f"voice must be one of {', '.join(VOICES)}: got {voice!r}")
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}: got {language!r}")
    if accent is not None and accent not in ACCENTS:
        raise ValueError(f"accent must be one of {', '.join(ACCENTS)}, or None: got {accent!r}")
    limits = {"rate": (rate, *RATES), "pitch": (pitch, 0, 99), "pitch_range": (pitch_range, 0, 99)}
    for what, (value, low, high) in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{what} must be a whole number from {low} to {high}: got {value!r}")


def _spans(text: str, events: list, rate: int, samples: int) -> tuple[tuple, tuple]:
    """The words and the sounds that the events tell of."""
    ends = [event.sample for event in events[1:]] + [samples]
    begins: list[int] = []
    heard: list[list[Span]] = []
    sounds = []
    for event, end in zip(events, ends, strict=False):
        if event.kind == "word" and (not begins or _begins_word(text, event.position)):
            if event.position not in begins[-1:]:
                begins.append(event.position)
                heard.append([])
        elif event.kind == "sound" and end > event.sample:  # some sounds are swallowed
            sounds.append(Span(event.symbol, event.sample / rate, end / rate))
            if heard:
                heard[-1].append(sounds[-1])
    words = []
    for place, (begin, inside) in enumerate(zip(begins, heard, strict=True)):
        stop = begins[place + 1] if place + 1 < len(begins) else len(text)
        if inside:
            written = re.sub(r"^\W+|\W+$", "", text[begin:stop]) or text[begin:stop].strip()
            words.append(Span(written, inside[0].start, inside[-1].end))
    return tuple(words), tuple(sounds)


def _begins_word(text: str, position: int) -> bool:
    """Whether a word is written at this place.

    espeak-ng also announces words inside a number, or on the space behind a picture that it has
    a name of two words for. What is said there belongs to the word before.
    """
    if position >= len(text) or text[position].isspace():
        return False
    around = text[max(position - 1, 0) : position + 1]
    # Chinese is written without spaces; its characters and punctuation are wide.
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in around)
    return position == 0 or around[0].isspace() or wide

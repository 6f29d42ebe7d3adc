"""Synthetic speech in English and Mandarin (合成语音), with the time of every word.

The speech is made by espeak-ng, which the package ``espeakng-loader`` brings
(``pip install "mmlib[speech]"``)::

    from mmlib.data import speech

    said = speech.synthesise("a small red star", "f3")
    said.waveform, said.words  # 16,000 samples a second; Span(text, start, end) in seconds
    train = speech.load("digits", "train", "zh", size=1000)
    noisy = speech.add_noise(train[0].waveform, snr_db=10, seed=0)

It is formant synthesis: rules and resonators, no recordings. It sounds like a machine, but every
word is there, in as many voices, rates and pitches as one likes, in about a hundredth of a second.

**Licence.** espeak-ng is free software under the GPL, version 3 or later. mmlib holds no part of
it: this package alone loads it, through ctypes, when something is first said, and works on whatever
copy the reader has installed. What espeak-ng says is not covered by its licence.
"""

from mmlib.data.speech.effects import NOISES, add_noise, impulse_response, reverberate
from mmlib.data.speech.resampling import resample
from mmlib.data.speech.sets import DIGITS, KINDS, WORDS, SpeechSet, load, number_split, speak
from mmlib.data.speech.speakers import ACCENTS, LANGUAGES, SPLITS, VOICES, Voice, voices
from mmlib.data.speech.utterance import SAMPLE_RATE, Span, Utterance, synthesise

__all__ = [
    "ACCENTS",
    "DIGITS",
    "KINDS",
    "LANGUAGES",
    "NOISES",
    "SAMPLE_RATE",
    "SPLITS",
    "VOICES",
    "WORDS",
    "Span",
    "SpeechSet",
    "Utterance",
    "Voice",
    "add_noise",
    "impulse_response",
    "load",
    "number_split",
    "resample",
    "reverberate",
    "speak",
    "synthesise",
    "voices",
]

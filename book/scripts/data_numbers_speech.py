"""The numbers on speech of ``book/data.md``: ``numbers()`` measures every one of them.

The tests of ``mmlib.data.speech`` use the same two measures: how unlike two voices sound, and how
many digits of the test voices are understood by a listener who knows the training voices only.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import librosa
import numpy as np

from mmlib.data import speech
from mmlib.data.speech import espeak

NEAR = 3.0  # decibels; below it two voices sound alike
SENTENCE = "a small red star, and a large blue ring, five four nine zero"
MEASURED = 16  # utterances of a kind and language whose mean length is reported


def timbre(name: str) -> np.ndarray:
    """The mean log spectrum of one of espeak-ng's variants, level removed, in decibels."""
    samples, rate, _ = espeak.speak(SENTENCE, f"en-us+{name}", 165, 50, 50)
    power = librosa.feature.melspectrogram(
        y=samples / np.float32(2**15), sr=rate, n_fft=1024, hop_length=256, n_mels=40, fmax=8000
    )
    total = power.sum(0)
    level = 10 * np.log10(power[:, total > 1e-3 * total.max()] + 1e-8).mean(1)
    return level - level.mean()


def timbres(names: Iterable[str]) -> dict[str, np.ndarray]:
    """The mean log spectra of some variants."""
    return {name: timbre(name) for name in names}


def unlike(one: np.ndarray, two: np.ndarray) -> float:
    """How far two spectra are apart: root mean square difference in decibels."""
    return float(np.sqrt(((one - two) ** 2).mean()))


def nearest_training(spectra: dict[str, np.ndarray]) -> dict[str, float]:
    """For each test voice, how far the most similar training voice is."""
    return {
        voice.name: min(
            unlike(spectra[voice.name], spectra[other.name]) for other in speech.voices("train")
        )
        for voice in speech.voices("test")
    }


def _features(waveform) -> np.ndarray:
    """Cepstra without the level, of zero mean and unit variance."""
    cepstra = librosa.feature.mfcc(
        y=waveform.numpy(), sr=speech.SAMPLE_RATE, n_mfcc=13, n_fft=512, hop_length=320, n_mels=40
    )[1:]
    return (cepstra - cepstra.mean(1, keepdims=True)) / (cepstra.std(1, keepdims=True) + 1e-3)


@cache
def digits_understood(language: str, known: int = 60, asked: int = 40) -> float:
    """Share of digits of test voices that the nearest training digit, by DTW, names rightly."""
    train = speech.load("digits", "train", language, size=known, seed=1)
    templates = [(_features(one.waveform), one.text) for one in train]
    right = 0
    for one in speech.load("digits", "test", language, size=asked, seed=2):
        heard = _features(one.waveform)
        costs = [
            librosa.sequence.dtw(heard, other)[0][-1, -1] / (heard.shape[1] + other.shape[1])
            for other, _ in templates
        ]
        right += templates[int(np.argmin(costs))][1] == one.text
    return right / asked


@cache
def numbers() -> dict[str, str]:
    """Every number on speech, as it is printed."""
    values: dict[str, float | str] = {
        "speech.variants": len(list((espeak._data_folder() / "voices" / "!v").iterdir())),
        "speech.voices": len(speech.VOICES),
        "speech.train": len(speech.voices("train")),
        "speech.test": len(speech.voices("test")),
        "speech.male": sum(voice.sex == "male" for voice in speech.voices()),
        "speech.female": sum(voice.sex == "female" for voice in speech.voices()),
        "speech.accents": len(speech.ACCENTS),
        "speech.words": len(speech.WORDS["en"]),
        "speech.near": NEAR,
        "speech.nearest": min(nearest_training(timbres(speech.VOICES)).values()),
    }
    for language in speech.LANGUAGES:
        values[f"speech.understood_{language}"] = 100 * digits_understood(language)
        for kind in speech.KINDS:
            data = speech.load(kind, "test", language, size=MEASURED)
            values[f"speech.{kind}_{language}"] = f"{data.seconds / len(data):.1f}"
            megabytes = 1000 * data.samples.nbytes / len(data) / 1e6
            values[f"speech.{kind}_{language}_mb"] = f"{megabytes:.0f}"
    return {key: _print(value) for key, value in values.items()}


def _print(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"

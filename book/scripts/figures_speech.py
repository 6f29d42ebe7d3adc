"""Draw the figures on speech of the page on the data, and write its clips.

    python book/scripts/figures_speech.py

The clips are MP3, mono, which every browser plays. Whose voices they are and what they say is in
`CLIPS`; the page's players name the same files.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import matplotlib.pyplot as plt
import numpy as np
import soundfile
from matplotlib.axes import Axes

from mmlib.data import scenes, speech
from mmlib.plotting import COLOURS, INK, INK_SOFT, SEQUENTIAL, to_svg, use_style

ASSETS = Path(__file__).resolve().parents[1] / "assets"
AUDIO = ASSETS / "static" / "audio"
SCENE = scenes.Scene(
    (
        scenes.Object("star", "red", "small", 0.25, 0.5),
        scenes.Object("ring", "blue", "large", 0.75, 0.5),
    )
)
VOICES = ("Henrique", "f3", "adam", "m8", "steph")
SAID = {language: scenes.caption(SCENE, language) for language in speech.LANGUAGES}
TONES = {"妈": "mā", "麻": "má", "马": "mǎ", "骂": "mà"}


def caption(language: str) -> speech.Utterance:
    """The example caption in one of the languages."""
    return speech.synthesise(SAID[language], "f1", language, rate=150)


def clips() -> dict[str, np.ndarray]:
    """The samples of every clip, by name."""
    half = np.zeros(speech.SAMPLE_RATE // 2, np.float32)

    def joined(*said: speech.Utterance) -> np.ndarray:
        parts = [part for one in said for part in (one.waveform.numpy(), half)]
        return np.concatenate(parts[:-1])

    english = caption("en").waveform
    noisy = speech.add_noise(english, snr_db=5, seed=0, kind="babble")
    return {
        "data_speech_en": joined(caption("en")),
        "data_speech_zh": joined(caption("zh")),
        "data_speech_voices": joined(*(speech.synthesise("a red star", name) for name in VOICES)),
        "data_speech_tones": joined(*(speech.synthesise(c, "f3", "zh") for c in TONES)),
        "data_speech_noise": noisy.numpy(),
        "data_speech_room": speech.reverberate(english, rt60=0.8, seed=0, direct_db=0).numpy(),
    }


def spectrogram(axis: Axes, said: speech.Utterance, top: float = 4500) -> None:
    """Log power against time and frequency."""
    power = np.abs(librosa.stft(said.waveform.numpy(), n_fft=512, hop_length=192)) ** 2
    decibels = 10 * np.log10(power + 1e-10)
    rows = round(top / (said.sample_rate / 512))
    axis.imshow(
        decibels[:rows],
        origin="lower",
        aspect="auto",
        extent=(0, said.seconds, 0, top / 1000),
        cmap=SEQUENTIAL.resampled(12),  # few colours, small files
        vmin=decibels.max() - 60,
        vmax=decibels.max(),
        interpolation="none",
    )
    axis.set(xlim=(0, said.seconds), ylim=(0, top / 1000))
    axis.grid(False)


def words() -> str:
    """Spectrograms of the example caption in both languages, with its words."""
    figure, axes = plt.subplots(2, 1, figsize=(6.4, 4.4))
    for axis, language in zip(axes, speech.LANGUAGES, strict=True):
        said = caption(language)
        spectrogram(axis, said)
        starts = [word.start for word in said.words]
        # Where a word ends only if the next one leaves a gap.
        ends = [
            word.end for word in said.words if not any(0 <= s - word.end < 0.05 for s in starts)
        ]
        for time in (*starts, *ends):
            axis.axvline(time, color=COLOURS["orange"], linewidth=0.9)
        for word in said.words:
            middle = (word.start + word.end) / 2
            narrow = word.end - word.start < 0.12
            axis.text(middle, 4.65, word.text, size=8 if narrow else 9, ha="center", color=INK)
        axis.set(ylabel="kHz")
    axes[1].set(xlabel="seconds")
    alt = f"""Two spectrograms, the upper of "{SAID["en"]}", the lower of "{SAID["zh"]}", in one
    voice. Orange lines mark where each word, or each Chinese character, starts; they lie where the
    pattern of dark bands changes."""
    return to_svg(figure, alt)


def same_sentence() -> str:
    """Spectrograms of one phrase by several voices."""
    figure, axes = plt.subplots(len(VOICES), 1, figsize=(6.4, 1.15 * len(VOICES)), sharex=True)
    longest = 0.0
    for axis, name in zip(axes, VOICES, strict=True):
        said = speech.synthesise("a red star", name)
        spectrogram(axis, said)
        longest = max(longest, said.seconds)
        axis.set_yticks([0, 2, 4])
        label = f"{name}, {speech.VOICES[name].split}"
        axis.text(1.015, 0.5, label, transform=axis.transAxes, va="center", size=9)
    for axis in axes:
        axis.set(xlim=(0, longest))
    axes[len(VOICES) // 2].set(ylabel="kHz")
    axes[-1].set(xlabel="seconds")
    alt = f"""Five spectrograms of "a red star" by the voices {", ".join(VOICES)}. The same bands of
    formants rise and fall in all five, at other heights; the fine horizontal lines of the
    harmonics lie close together in the low voices and far apart in the high ones."""
    return to_svg(figure, alt)


def tones() -> str:
    """The pitch of one syllable in the four tones of Mandarin."""
    figure, axis = plt.subplots(figsize=(6.4, 2.6))
    for (character, pinyin), colour in zip(TONES.items(), COLOURS.values(), strict=False):
        wave = speech.synthesise(character, "f3", "zh").waveform.numpy()
        track = librosa.yin(wave, fmin=100, fmax=350, sr=16_000, frame_length=1024, hop_length=80)
        level = librosa.feature.rms(y=wave, frame_length=1024, hop_length=80)[0]
        loud = np.flatnonzero(level > 0.2 * level.max())
        time = loud * 80 / 16_000
        axis.plot(time, track[loud], color=colour, linewidth=2)
        axis.text(
            time[-1] + 0.004, track[loud][-1], f"{character} {pinyin}", color=colour, va="center"
        )
    axis.set(xlabel="seconds", ylabel="pitch in Hz", xlim=(0, None))
    axis.tick_params(colors=INK_SOFT)
    alt = """The pitch of the syllable ma over time in Mandarin's four tones: the first stays high,
    the second rises, the third dips and comes up again, the fourth falls."""
    return to_svg(figure, alt)


FIGURES = {
    "data_speech_words.svg": words,
    "data_speech_voices.svg": same_sentence,
    "data_speech_tones.svg": tones,
}


def main() -> None:
    """Draw every figure and write every clip into the book's assets."""
    use_style()
    AUDIO.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        (ASSETS / name).write_text(draw(), encoding="utf-8")
        print(f"{name}: {(ASSETS / name).stat().st_size:,} bytes")
    for name, samples in clips().items():
        path = AUDIO / f"{name}.mp3"
        soundfile.write(
            path, samples, speech.SAMPLE_RATE, format="MP3", bitrate_mode="CONSTANT",
            compression_level=0.85,
        )  # fmt: skip
        print(f"{path.name}: {path.stat().st_size:,} bytes, {len(samples) / 16_000:.1f} s")


if __name__ == "__main__":
    main()

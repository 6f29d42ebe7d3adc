"""How fast speech is made, and how fast it comes out of the cache."""

import shutil

import librosa
import torch

from mmlib.data import speech
from mmlib.data.speech import espeak

AREA = "Speech"

COUNT = 40


def test_synthesis(side_by_side):
    text = "a small red star in the top left, and a large blue ring"
    samples, rate, _ = espeak.speak(text, "en-us+m1", 165, 50, 50)
    wave = samples / 2**15
    tensor = torch.from_numpy(wave)
    table = side_by_side(
        f"one caption of {len(samples) / rate:.1f} s",
        {
            "synthesise": lambda: speech.synthesise(text, "m1"),
            "espeak-ng alone": lambda: espeak.speak(text, "en-us+m1", 165, 50, 50),
            "load, unload": espeak.version,
            "resample": lambda: speech.resample(tensor, rate, 16_000),
            "librosa (soxr_hq)": lambda: librosa.resample(wave, orig_sr=rate, target_sr=16_000),
        },
        rounds=10,
    )
    table.goal("clips made in a second", 1 / table.seconds("synthesise"), at_least=20)
    table.at_most("load, unload", "synthesise", 0.1)


def test_sets(side_by_side, monkeypatch, tmp_path):
    monkeypatch.setenv("MMLIB_CACHE", str(tmp_path))

    def spoken(kind):
        shutil.rmtree(tmp_path / "speech", ignore_errors=True)
        return speech.load(kind, size=COUNT)

    for kind in ("digits", "captions"):
        table = side_by_side(
            f"{COUNT} {kind}",
            {
                "spoken and stored": lambda kind=kind: spoken(kind),
                "from the cache": lambda kind=kind: speech.load(kind, size=COUNT),
            },
            rounds=3,
        )
        table.per_second(COUNT, "clips")
        table.at_most("from the cache", "spoken and stored", 0.2)


def test_noise_and_rooms(side_by_side):
    wave = speech.synthesise("a large blue ring", "m1").waveform.repeat(8, 1)
    side_by_side(
        f"8 clips of {wave.shape[1] / 16_000:.1f} s",
        {
            "white noise": lambda: speech.add_noise(wave, 10.0, seed=0),
            "pink noise": lambda: speech.add_noise(wave, 10.0, seed=0, kind="pink"),
            "babble": lambda: speech.add_noise(wave, 10.0, seed=0, kind="babble"),
            "reverberation 0.5 s": lambda: speech.reverberate(wave, 0.5, seed=0),
        },
        rounds=5,
    )

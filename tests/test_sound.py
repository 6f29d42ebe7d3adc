"""Sounds in notebooks: what is stored is what was given."""

import base64
import io
import re
import wave

import IPython.display
import numpy as np
import pytest
import torch

from mmlib import sound


def read(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples, file.getframerate()


def test_a_wav_file_holds_the_samples():
    waveform = torch.tensor([0.0, 0.5, -0.25, 1.0, -1.0, 3.0, -3.0])
    samples, rate = read(sound.wav_bytes(waveform, 8_000))
    assert rate == 8_000
    assert samples.tolist() == [0, 16384, -8192, 32767, -32767, 32767, -32767]
    assert waveform.tolist() == [0.0, 0.5, -0.25, 1.0, -1.0, 3.0, -3.0]


def test_the_player_has_a_name_and_the_sound(monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    sound.play(torch.linspace(-1, 1, 9), 'a "click" & more')
    text = shown[0].data
    assert 'aria-label="a &quot;click&quot; &amp; more"' in text
    encoded = re.search(r"data:audio/wav;base64,([^\"]+)", text)[1]
    samples, rate = read(base64.b64decode(encoded))
    assert rate == 16_000
    assert len(samples) == 9


GOOD = torch.zeros(4)
BAD = {
    "integers": (GOOD.long(), 16_000, TypeError, "numbers from -1 to 1: got torch.int64"),
    "two channels": (torch.zeros(2, 4), 16_000, ValueError, "got shape (2, 4)"),
    "empty": (GOOD[:0], 16_000, ValueError, "not empty: got shape (0,)"),
    "not finite": (GOOD / 0, 16_000, ValueError, "finite numbers"),
    "rate": (GOOD, 0, ValueError, "sample_rate must be at least 1: got 0"),
}


@pytest.mark.parametrize("waveform, rate, error, message", BAD.values(), ids=BAD)
def test_bad_sounds_are_named(unchecked, waveform, rate, error, message):
    with pytest.raises(error) as caught:
        unchecked(sound.wav_bytes)(waveform, rate)
    assert message in str(caught.value)


def test_a_sound_needs_a_name():
    with pytest.raises(ValueError, match="label must say what is heard"):
        sound.play(GOOD, " ")

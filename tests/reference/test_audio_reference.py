"""Spectrograms are equal to librosa's and Whisper's, the audio encoder to Whisper's encoder.

The sounds are speech of espeak, a chirp and noise.
"""

import functools

import librosa
import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperModel

from mmlib.data.speech import synthesise
from mmlib.encoders.audio import AudioEncoder
from mmlib.encoders.griffin_lim import griffin_lim, spectral_convergence
from mmlib.encoders.mel import LogMelConfig, hertz_to_mel, mel_filters, mel_to_hertz
from mmlib.encoders.spectrogram import LogMel, short_time_spectrum

RATE = 16_000


@functools.cache
def speech(text="the small red circle is to the left of the large blue square", language="en"):
    return synthesise(text, "m1", language).waveform.double().numpy()


def chirp(samples=12_345):
    time = np.arange(samples) / RATE
    return 0.5 * np.sin(2 * np.pi * (100 * time + 4000 * time**2))


def noise(samples=8000):
    return 0.1 * np.random.default_rng(0).standard_normal(samples)


SOUNDS = {
    "English": speech,
    "Chinese": lambda: speech("红色的小圆形在蓝色的大正方形的左边", "zh"),
    "chirp": chirp,
    "noise": noise,
}
CONFIGS = {
    "Whisper's": LogMelConfig(),
    "HTK, equal heights": LogMelConfig(mels=40, scale="htk", norm=None, low=20.0, high=7600.0),
    "magnitude": LogMelConfig(mels=64, power=1.0),
    "long windows": LogMelConfig(window=1024, hop=256, mels=128),
    "odd window": LogMelConfig(window=401, hop=133, mels=40),
    "whole windows": LogMelConfig(padding="none"),
    "mirrored": LogMelConfig(padding="reflect", norm=None),
}


def as_librosa(config):
    how = dict(n_fft=config.window, hop_length=config.hop, center=config.padding != "none")
    return how | dict(pad_mode="reflect" if config.padding == "reflect" else "constant")


def bands(config):
    return dict(
        sr=config.sample_rate,
        n_mels=config.mels,
        fmin=config.low,
        fmax=config.high,
        htk=config.scale == "htk",
        norm=config.norm,
        dtype=np.float64,
    )


@pytest.mark.parametrize("htk", [False, True])
def test_mel_scale_equals_librosas(htk):
    hertz = np.linspace(0, 8000, 999)
    mel = hertz_to_mel(torch.from_numpy(hertz), "htk" if htk else "slaney")
    np.testing.assert_allclose(mel, librosa.hz_to_mel(hertz, htk=htk), rtol=1e-12, atol=1e-12)
    back = mel_to_hertz(mel, "htk" if htk else "slaney")
    np.testing.assert_allclose(back, librosa.mel_to_hz(mel.numpy(), htk=htk), rtol=1e-12)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bands_equal_librosas(config):
    expected = librosa.filters.mel(n_fft=config.window, **bands(config))
    np.testing.assert_allclose(mel_filters(config), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_spectrum_equals_librosas(config, sound):
    ours = short_time_spectrum(torch.from_numpy(sound())[None], config)[0].numpy().T
    theirs = librosa.stft(sound(), **as_librosa(config))
    # librosa has one frame more where the end of the sound falls on a centre.
    assert theirs.shape[1] - ours.shape[1] == (
        config.padding != "none" and len(sound()) % config.hop == 0
    )
    np.testing.assert_allclose(ours, theirs[:, : ours.shape[1]], rtol=0, atol=1e-10)


@pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_log_mel_equals_librosas(config, sound):
    mel = librosa.feature.melspectrogram(
        y=sound(), power=config.power, **as_librosa(config), **bands(config)
    )
    expected = librosa.power_to_db(mel, amin=config.floor, top_db=None).T
    config = LogMelConfig(**{**vars(config), "log": "decibel"})
    audio = torch.from_numpy(sound())[None]
    features, keep = LogMel(config).double()(audio)
    assert keep.all()
    expected = expected[: features.shape[1]]
    np.testing.assert_allclose(features[0], expected, rtol=0, atol=1e-8)
    # Single precision has an error of 1e-7 of the loudest: 0.01 dB down to 80 dB below it.
    single = LogMel(config)(audio.float())[0][0].numpy()
    heard = expected > expected.max() - 40 * config.power
    np.testing.assert_allclose(single[heard], expected[heard], rtol=0, atol=0.01)


@pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS)
@pytest.mark.parametrize("mels", [80, 128])
def test_equals_whispers_features(mels, sound):
    """Of the whole 30 seconds that Whisper pads every sound to, in its float32."""
    extractor = WhisperFeatureExtractor(feature_size=mels)
    expected = extractor(sound(), sampling_rate=RATE, return_tensors="pt").input_features
    padded = torch.zeros(1, 30 * RATE)
    padded[0, : len(sound())] = torch.from_numpy(sound())
    features, _ = LogMel(LogMelConfig(padding="reflect", mels=mels))(padded)
    torch.testing.assert_close(features, expected.transpose(1, 2), rtol=0, atol=1e-4)


# ---------------------------------------------------------------- Griffin–Lim


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("sound", [speech, chirp], ids=["speech", "chirp"])
def test_griffin_lim_equals_librosas(sound, momentum):
    config, length = LogMelConfig(), len(sound())
    magnitude = np.abs(librosa.stft(sound(), n_fft=400, hop_length=160))
    for iterations in (0, 1, 10):
        expected = librosa.griffinlim(
            magnitude,
            n_iter=iterations,
            momentum=momentum,
            init=None,
            n_fft=400,
            hop_length=160,
            length=length,
            dtype=np.float64,
        )
        ours = griffin_lim(
            torch.from_numpy(magnitude.T.copy())[None],
            config,
            iterations=iterations,
            momentum=momentum,
            length=length,
        )
        np.testing.assert_allclose(ours[0], expected, rtol=0, atol=1e-7)


def test_griffin_lim_starts_from_random_phases_as_librosa_does():
    class Same(np.random.RandomState):
        def random(self, size):
            draw = torch.Generator().manual_seed(3)
            return torch.rand(size, generator=draw, dtype=torch.float64).numpy()

    magnitude = np.abs(librosa.stft(chirp(), n_fft=400, hop_length=160))
    expected = librosa.griffinlim(
        magnitude,
        n_iter=5,
        random_state=Same(),
        n_fft=400,
        hop_length=160,
        length=len(chirp()),
        dtype=np.float64,
    )
    given = torch.from_numpy(magnitude.T.copy())[None]
    ours = griffin_lim(given, LogMelConfig(), iterations=5, seed=3, length=len(chirp()))
    np.testing.assert_allclose(ours[0], expected, rtol=0, atol=1e-8)


def test_speech_comes_back():
    """Bars are a tenth above what was measured: 0.075 from magnitudes, 0.144 through 80 bands."""
    audio = torch.from_numpy(speech())[None]
    config = LogMelConfig()
    magnitude = short_time_spectrum(audio, config).abs()
    back = griffin_lim(magnitude, config, length=audio.shape[1])
    assert spectral_convergence(back, magnitude, config).item() < 0.083

    log_mel = LogMel(config).double()
    heard = log_mel.to_magnitude(log_mel(audio)[0])
    assert (heard - magnitude).norm() / magnitude.norm() < 0.14
    back = griffin_lim(heard, config, length=audio.shape[1])
    assert spectral_convergence(back, magnitude, config).item() < 0.16


@pytest.mark.parametrize("mels", [40, 64, 80])
def test_bands_are_inverted_at_least_as_well_as_by_librosa(mels):
    config = LogMelConfig(mels=mels, log="log10")
    log_mel = LogMel(config).double()
    features, _ = log_mel(torch.from_numpy(speech())[None])
    ours = log_mel.to_magnitude(features)[0].numpy()
    mel, filters = log_mel.to_mel(features)[0].numpy(), log_mel.filters.numpy()
    theirs = librosa.feature.inverse.mel_to_stft(
        mel.T, sr=RATE, n_fft=400, power=2.0, htk=False, norm="slaney"
    ).T
    true = np.abs(librosa.stft(speech(), n_fft=400, hop_length=160)).T
    for error in (
        lambda x: np.linalg.norm(x**2 @ filters.T - mel),
        lambda x: np.linalg.norm(x - true),
    ):
        assert error(ours) <= error(theirs)


# ---------------------------------------------------------------- Whisper's encoder


def whisper(**options):
    """A small Whisper with random weights; biases and norms too, which start at zero and one."""
    sizes = dict(
        vocab_size=11, d_model=24, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=40,
        decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=40, num_mel_bins=20,
        max_source_positions=50, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperModel(WhisperConfig(**sizes | options)).eval()
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("dtype, close", [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_equals_whispers_encoder(dtype, close):
    model = whisper().to(dtype)
    ours = AudioEncoder.from_transformers(model).to(dtype)
    features = torch.randn(2, 100, 20, dtype=dtype)
    expected = model.encoder(features.transpose(1, 2), output_attentions=True)
    encoded = ours.encode(features, return_weights=True)
    torch.testing.assert_close(encoded.tokens, expected.last_hidden_state, rtol=0, atol=close)
    for layer, theirs in zip(encoded.weights, expected.attentions, strict=True):
        torch.testing.assert_close(layer.self_attention, theirs, rtol=0, atol=close)
    probe = torch.randn(expected.last_hidden_state.shape, dtype=dtype)
    encoded.tokens.backward(probe)
    expected.last_hidden_state.backward(probe)
    for mine, other in ((ours.conv1, model.encoder.conv1), (ours.conv2, model.encoder.conv2)):
        torch.testing.assert_close(mine.weight.grad, other.weight.grad, rtol=1e-3, atol=10 * close)


def test_whisper_from_waveform_to_tokens():
    """One second instead of thirty; both front ends and both encoders."""
    model = whisper(num_mel_bins=80)
    ours = AudioEncoder.from_transformers(model)
    sound = speech()[:RATE]
    extractor = WhisperFeatureExtractor(chunk_length=1)
    features = extractor(sound, sampling_rate=RATE, return_tensors="pt").input_features
    with torch.no_grad():
        expected = model.encoder(features).last_hidden_state
        encoded = ours(torch.from_numpy(sound).float()[None])
    torch.testing.assert_close(encoded.tokens, expected, rtol=0, atol=1e-4)


def test_tiny_whispers_size():
    """The sizes of whisper-tiny, and the positions of its whole 30 seconds."""
    config = WhisperConfig()
    model = WhisperEncoder(config).eval()
    ours = AudioEncoder.from_transformers(model)
    assert ours.dim == 384 and len(ours.encoder.blocks) == config.encoder_layers
    features = torch.randn(1, 3000, 80)
    with torch.no_grad():
        expected = model(features.transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(ours.encode(features).tokens, expected, rtol=0, atol=1e-4)


def test_copied_weights_are_copies():
    model = whisper()
    ours = AudioEncoder.from_transformers(model)
    with torch.no_grad():
        ours.conv1.weight.zero_()
    assert model.encoder.conv1.weight.abs().sum() > 0


def test_another_whisper_is_refused():
    with pytest.raises(ValueError, match="activation must be 'gelu': got 'relu'"):
        AudioEncoder.from_transformers(whisper(activation_function="relu"))
    model = whisper()
    with torch.no_grad():
        model.encoder.embed_positions.weight.add_(0.1)
    with pytest.raises(ValueError, match="positions must be Whisper's sinusoids"):
        AudioEncoder.from_transformers(model)

"""Log-mel spectrograms and Griffin–Lim: closed forms, padding, precision, bad input."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.encoders.griffin_lim import griffin_lim, spectral_convergence
from mmlib.encoders.mel import LogMelConfig, hertz_to_mel, mel_filters, mel_to_hertz
from mmlib.encoders.spectrogram import LogMel, short_time_spectrum
from mmlib.masks import padding_keep

RATE = 16_000
PADDINGS = ("zeros", "reflect", "none")


def noise(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def tone(hertz, samples=RATE, loudness=0.5):
    return loudness * torch.sin(2 * math.pi * hertz * torch.arange(samples).double() / RATE)[None]


def voice(samples=RATE // 2, pitch=120.0):
    """A buzz with moving formants, so that frames differ: half a second by default."""
    time = torch.arange(samples).double() / RATE
    sound = torch.zeros_like(time)
    for n in range(1, 50):
        formant = 700 + 600 * torch.sin(2 * math.pi * 3 * time)
        loudness = torch.exp(-(((n * pitch - formant) / 400) ** 2)) + 0.1 / n
        sound += loudness * torch.sin(2 * math.pi * n * pitch * time + n * n)
    return (0.3 * sound / sound.abs().max())[None]


# ---------------------------------------------------------------- the scale and the bands


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_mel_and_hertz_are_inverse_and_rise(scale):
    hertz = torch.linspace(0, 8000, 1001, dtype=torch.float64)
    mel = hertz_to_mel(hertz, scale)
    assert (mel.diff() > 0).all()
    torch.testing.assert_close(mel_to_hertz(mel, scale), hertz, rtol=1e-12, atol=1e-9)


def test_known_pitches():
    """1000 Hz is 1000 mel by HTK's definition (to 0.02) and 15 by Slaney's, 6400 Hz is 42."""
    at = torch.tensor([1000.0, 6400.0], dtype=torch.float64)
    assert hertz_to_mel(at, "htk")[0].item() == pytest.approx(1000, abs=0.02)
    assert hertz_to_mel(at).tolist() == pytest.approx([15, 42], abs=1e-12)


def test_bands_of_the_same_area_and_of_the_same_height():
    config = LogMelConfig(mels=20, window=4096, hop=160)
    step = RATE / 4096
    areas = mel_filters(config).sum(dim=1) * step
    torch.testing.assert_close(areas, torch.ones_like(areas), rtol=0.01, atol=0)
    tops = mel_filters(LogMelConfig(mels=20, window=4096, hop=160, norm=None)).amax(dim=1)
    assert (tops <= 1).all() and (tops > 0.95).all()


def test_inside_the_range_neighbouring_bands_share_each_frequency():
    filters = mel_filters(LogMelConfig(mels=30, norm=None))
    centres = mel_to_hertz(torch.linspace(*hertz_to_mel(torch.tensor([0.0, 8000.0])).tolist(), 32))
    at = torch.arange(201) * 40.0
    inside = (at >= centres[1]) & (at <= centres[-2])
    shares = filters.sum(dim=0)[inside]
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=1e-4)


def test_a_tone_lights_up_its_own_band():
    config = LogMelConfig(mels=40, log="decibel")
    centres = mel_to_hertz(torch.linspace(*hertz_to_mel(torch.tensor([0.0, 8000.0])).tolist(), 42))
    for hertz in (300.0, 1000.0, 4000.0):
        features, _ = LogMel(config).double()(tone(hertz))
        loudest = features[0, 10].argmax() + 1
        assert centres[loudest - 1] < hertz < centres[loudest + 1]


def test_the_power_of_a_tone_in_closed_form():
    """A windowed sine of amplitude a on a bin has the magnitude a/2 · Σw = a/2 · 200 there."""
    config = LogMelConfig(padding="none")
    magnitude = short_time_spectrum(tone(1000.0, loudness=0.5), config).abs()
    assert magnitude[0, :, 25] == pytest.approx(0.25 * 200, rel=1e-10)


def test_ten_times_as_loud_is_twenty_decibels_and_two_decades_more():
    for log, step in (("log10", 2.0), ("decibel", 20.0), ("whisper", 0.5)):
        log_mel = LogMel(LogMelConfig(log=log)).double()
        quiet, loud = (log_mel(x * noise(1, 4000))[0] for x in (1.0, 10.0))
        torch.testing.assert_close(loud - quiet, torch.full_like(loud, step), rtol=0, atol=1e-9)


def test_silence_is_the_floor():
    features, keep = LogMel(LogMelConfig(log="decibel", floor=1e-10))(torch.zeros(1, 800))
    assert keep.all()
    assert (features == -100).all()
    assert (LogMel()(torch.zeros(1, 800))[0] == -1.5).all()  # (log10 1e-10 + 4) / 4


def test_whisper_reaches_no_lower_than_eight_decades_below_the_loudest():
    sound = torch.cat([noise(1, 4000), 1e-6 * noise(1, 4000)], dim=1)
    features, _ = LogMel().double()(sound)
    assert features.max() - features.min() == pytest.approx(2.0)


# ---------------------------------------------------------------- frames and padding


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 400, 16_000, 16_001])
def test_a_frame_for_every_centre_inside_the_sound(samples):
    features, keep = LogMel()(torch.zeros(1, samples))
    assert keep.shape == features.shape[:2] == (1, len(range(0, samples, 160)))
    assert LogMelConfig().frames(samples) == keep.shape[1]


@pytest.mark.parametrize("samples", [400, 559, 560, 4000])
def test_without_padding_only_whole_windows(samples):
    config = LogMelConfig(padding="none")
    features, _ = LogMel(config)(torch.zeros(1, samples))
    assert features.shape[1] == len(range(0, samples - 399, 160)) == config.frames(samples)
    assert config.frames(399) == 0


@settings(max_examples=25)
@given(
    st.sampled_from(PADDINGS),
    st.lists(st.integers(400, 2000), min_size=2, max_size=4),
    st.integers(0, 500),
    st.sampled_from(["whisper", "decibel"]),
)
def test_padding_changes_no_frame(padding, lengths, more, log):
    log_mel = LogMel(LogMelConfig(padding=padding, log=log)).double()
    lengths = torch.tensor(lengths)
    keep = padding_keep(lengths, int(lengths.max()) + more)
    batch = noise(*keep.shape, seed=1)
    batch[~keep] = math.nan  # whatever stands there
    features, frames = log_mel(batch, keep)
    for row, length in enumerate(lengths):
        alone, there = log_mel(batch[row : row + 1, :length])
        assert there.all() and frames[row].sum() == there.shape[1]
        count = there.shape[1]
        assert frames[row, :count].all()
        torch.testing.assert_close(features[row, :count], alone[0], rtol=1e-12, atol=1e-12)
        assert (features[row, count:] == 0).all()


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_row_without_sound_gives_zeros_and_disturbs_nobody(padding):
    log_mel = LogMel(LogMelConfig(padding=padding))
    keep = padding_keep(torch.tensor([900, 0]))
    audio = noise(2, 900, dtype=torch.float32)
    features, frames = log_mel(audio, keep)
    assert not frames[1].any() and (features[1] == 0).all()
    torch.testing.assert_close(features[:1], log_mel(audio[:1])[0])


def test_inputs_are_not_changed():
    audio, keep = noise(2, 900), padding_keep(torch.tensor([900, 500]))
    before, kept = audio.clone(), keep.clone()
    LogMel()(audio, keep)
    assert torch.equal(audio, before) and torch.equal(keep, kept)


# ---------------------------------------------------------------- precision


def test_float32_stays_near_float64():
    audio = voice()
    exact, _ = LogMel(LogMelConfig(log="decibel")).double()(audio)
    single, _ = LogMel(LogMelConfig(log="decibel"))(audio.float())
    assert single.dtype == torch.float32
    heard = exact > exact.max() - 80  # an error of 1e-7 of the loudest drowns what is quieter
    torch.testing.assert_close(single.double()[heard], exact[heard], rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision_keeps_its_bands(kind):
    log_mel = LogMel()
    wanted = log_mel(noise(1, 900, dtype=torch.float32))[0]
    log_mel.to(kind)
    assert log_mel.filters.dtype == torch.float32
    assert torch.equal(log_mel(noise(1, 900, dtype=torch.float32))[0], wanted)
    rounded, _ = log_mel(noise(1, 900, dtype=kind))
    assert rounded.dtype == torch.float32


def test_doubling_makes_the_bands_exact():
    assert torch.equal(LogMel().double().filters, mel_filters(LogMelConfig()))


def test_autocast_changes_nothing():
    log_mel, audio = LogMel(), noise(1, 900, dtype=torch.float32)
    wanted = log_mel(audio)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_mel(audio)[0], wanted)


def test_gradients_reach_the_waveform():
    config = LogMelConfig(window=16, hop=8, mels=3, log="log10")
    log_mel = LogMel(config).double()
    audio = noise(2, 40).requires_grad_()
    keep = padding_keep(torch.tensor([40, 20]))
    assert torch.autograd.gradcheck(lambda x: log_mel(x, keep)[0], audio)
    magnitude = LogMel(LogMelConfig(window=16, hop=8, mels=3, power=1.0)).double()
    silent = torch.zeros(1, 40, dtype=torch.float64, requires_grad=True)
    magnitude(silent)[0].sum().backward()
    assert silent.grad.isfinite().all()


def test_nothing_is_saved():
    assert LogMel().state_dict() == {}


# ---------------------------------------------------------------- the way back


@pytest.mark.parametrize("log", ["whisper", "log10", "decibel"])
def test_to_mel_undoes_the_logarithm(log):
    config = LogMelConfig(log=log)
    log_mel = LogMel(config).double()
    power = short_time_spectrum(noise(1, 2000), config).abs().square()
    expected = power @ mel_filters(config).T
    torch.testing.assert_close(log_mel.to_mel(log_mel(noise(1, 2000))[0]), expected)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_magnitudes_fit_their_bands(power):
    config = LogMelConfig(log="log10", power=power)
    log_mel = LogMel(config).double()
    features, _ = log_mel(voice())
    mel = log_mel.to_mel(features)
    errors = []
    for iterations in (0, 10, 100):
        magnitude = log_mel.to_magnitude(features, iterations)
        assert (magnitude >= 0).all() and magnitude.isfinite().all()
        back = magnitude.pow(power) @ log_mel.filters.T
        errors.append(((back - mel).norm() / mel.norm()).item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.005


def test_magnitudes_of_silence_are_small_and_finite():
    for log_mel in (LogMel(), LogMel().double()):
        features, _ = log_mel(torch.zeros(1, 800))
        magnitude = log_mel.to_magnitude(features)
        assert magnitude.isfinite().all()
        assert magnitude.max() < 0.01
        assert log_mel.to_magnitude(torch.full_like(features, -1e3)).eq(0).all()  # mel underflows


def test_griffin_lim_without_momentum_never_grows_worse():
    config = LogMelConfig()
    wanted = short_time_spectrum(voice(), config).abs()
    errors = [
        spectral_convergence(
            griffin_lim(wanted, config, iterations=n, momentum=0.0), wanted, config
        ).item()
        for n in range(0, 40, 2)
    ]
    assert all(after <= before + 1e-12 for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.5 * errors[0]


def test_momentum_is_faster():
    config = LogMelConfig()
    wanted = short_time_spectrum(voice(), config).abs()
    plain, fast = (
        spectral_convergence(griffin_lim(wanted, config, momentum=m), wanted, config).item()
        for m in (0.0, 0.99)
    )
    assert fast < 0.8 * plain


def test_the_seed_decides():
    config = LogMelConfig()
    wanted = short_time_spectrum(voice(2000), config).abs()
    first, again, other = (griffin_lim(wanted, config, seed=s, iterations=2) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    state = torch.random.get_rng_state()
    griffin_lim(wanted, config, seed=3, iterations=1)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("length", [None, 1999, 1921])
def test_griffin_lim_gives_the_length(length):
    config = LogMelConfig()
    wanted = short_time_spectrum(voice(2000), config).abs()
    sound = griffin_lim(wanted, config, iterations=1, length=length)
    assert sound.shape == (1, 13 * 160 if length is None else length)
    assert config.frames(sound.shape[1]) == wanted.shape[1]


def test_griffin_lim_takes_rows_apart_and_half_precision():
    config = LogMelConfig()
    wanted = short_time_spectrum(torch.cat([voice(2000), noise(1, 2000)]), config).abs()
    both = griffin_lim(wanted, config, iterations=4)
    torch.testing.assert_close(both[1:], griffin_lim(wanted[1:], config, iterations=4))
    assert griffin_lim(wanted.bfloat16(), config, iterations=1).dtype == torch.float32


def test_a_sound_is_its_own_spectrum():
    config = LogMelConfig()
    wanted = short_time_spectrum(voice(2000), config).abs()
    assert spectral_convergence(voice(2000), wanted, config).item() == 0
    assert spectral_convergence(torch.zeros(1, 2000), wanted, config).item() == 1


# ---------------------------------------------------------------- bad input

BAD_CONFIGS = {
    "rate": (dict(sample_rate=0), "sample_rate must be at least 1: got 0"),
    "gaps": (dict(hop=401), "window=400, hop=401"),
    "above half": (dict(high=9000.0), "<= 8000 Hz: got low=0.0, high=9000"),
    "low above high": (dict(low=500.0, high=400.0), "low=500.0, high=400.0"),
    "nan": (dict(low=math.nan), "got low=nan"),
    "power": (dict(power=0.0), "power must be above 0"),
    "floor": (dict(floor=0.0), "floor must be above 0"),
    "empty band": (dict(mels=200), r"mels=200 is too many for window=400: band \d+ holds no"),
}


@pytest.mark.parametrize("options, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configuration_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        LogMelConfig(**options)


@pytest.mark.parametrize("name", ["scale", "norm", "padding", "log"])
def test_unknown_choice_is_named(name):
    config = LogMelConfig()
    object.__setattr__(config, name, "bark")  # past the shape checks of the tests' import hook
    with pytest.raises(ValueError, match=f"{name} must be one of .* got 'bark'"):
        inspect.unwrap(LogMelConfig.__post_init__)(config)


HALF = torch.arange(900) < 450
BAD_AUDIO = {
    "integers": (torch.zeros(1, 900, dtype=torch.int16), None, TypeError, "divide 16-bit"),
    "rank": (torch.zeros(900), None, ValueError, r"\(batch, samples\), not empty: got \(900,\)"),
    "stereo": (torch.zeros(1, 2, 900), None, ValueError, r"got \(1, 2, 900\)"),
    "no sound": (torch.zeros(1, 0), None, ValueError, r"not empty: got \(1, 0\)"),
    "no batch": (torch.zeros(0, 900), None, ValueError, "not empty"),
    "nan": (torch.full((1, 900), math.nan), None, ValueError, "finite .* got a peak of nan"),
    "infinite": (torch.full((1, 900), math.inf), None, ValueError, "got a peak of inf"),
    "16-bit floats": (torch.full((1, 900), 2e4), None, ValueError, "got a peak of 20000"),
    "keep's type": (torch.zeros(1, 900), torch.ones(1, 900), TypeError, "keep must be boolean"),
    "keep's shape": (torch.zeros(1, 900), HALF[None, :5], ValueError, r"\(1, 900\): got \(1, 5\)"),
    "gap": (torch.zeros(1, 900), ~HALF[None], ValueError, "real samples first"),
}


@pytest.mark.parametrize("audio, keep, error, message", BAD_AUDIO.values(), ids=BAD_AUDIO)
def test_bad_audio_is_named(audio, keep, error, message, unchecked):
    with pytest.raises(error, match=message):
        unchecked(LogMel.forward)(LogMel(), audio, keep)
    with pytest.raises(error, match=message):
        unchecked(short_time_spectrum)(audio, LogMelConfig(), keep)


def test_too_short_a_sound_is_named(unchecked):
    forward = unchecked(LogMel.forward)
    with pytest.raises(ValueError, match="at least 400 samples with padding='none': got 399"):
        forward(LogMel(LogMelConfig(padding="none")), torch.zeros(1, 399))
    mirror = LogMel(LogMelConfig(padding="reflect"))
    with pytest.raises(ValueError, match="at least 201 samples with padding='reflect': got 200"):
        forward(mirror, torch.zeros(1, 200))
    with pytest.raises(ValueError, match="at least 201 samples to be mirrored: got 150"):
        forward(mirror, torch.zeros(1, 900), padding_keep(torch.tensor([150]), 900))


def test_bad_features_are_named():
    with pytest.raises(ValueError, match=r"\(batch, frames, 80\), not empty: got \(1, 5, 40\)"):
        inspect.unwrap(LogMel.to_mel)(LogMel(), torch.zeros(1, 5, 40))
    with pytest.raises(ValueError, match="iterations must be at least 0: got -1"):
        LogMel().to_magnitude(torch.zeros(1, 5, 80), -1)


MAGNITUDE = torch.ones(1, 5, 201)
BAD_MAGNITUDES = {
    "integers": (MAGNITUDE.int(), {}, TypeError, "magnitude must be floating-point"),
    "bins": (torch.ones(1, 5, 80), {}, ValueError, r"\(batch, frames, 201\).*got \(1, 5, 80\)"),
    "no frames": (torch.ones(1, 0, 201), {}, ValueError, "not empty"),
    "negative": (-MAGNITUDE, {}, ValueError, "finite and not negative"),
    "nan": (math.nan * MAGNITUDE, {}, ValueError, "finite and not negative"),
    "iterations": (MAGNITUDE, dict(iterations=-1), ValueError, "iterations=-1"),
    "momentum": (MAGNITUDE, dict(momentum=-0.1), ValueError, "momentum=-0.1"),
    "long": (MAGNITUDE, dict(length=801), ValueError, "641 to 800 samples: got 801"),
    "short": (MAGNITUDE, dict(length=640), ValueError, "641 to 800 samples: got 640"),
}


@pytest.mark.parametrize(
    "magnitude, options, error, message", BAD_MAGNITUDES.values(), ids=BAD_MAGNITUDES
)
def test_bad_magnitude_is_named(magnitude, options, error, message, unchecked):
    with pytest.raises(error, match=message):
        unchecked(griffin_lim)(magnitude, LogMelConfig(), **options)


def test_bad_windows_for_griffin_lim_are_named(unchecked):
    with pytest.raises(ValueError, match="overlap by half at least: got window=400, hop=201"):
        griffin_lim(MAGNITUDE, LogMelConfig(hop=201))
    with pytest.raises(ValueError, match="padding must be 'zeros': got 'none'"):
        griffin_lim(MAGNITUDE, LogMelConfig(padding="none"))
    with pytest.raises(ValueError, match=r"frames of magnitude, \(1, 5, 201\): got \(1, 4, 201\)"):
        unchecked(spectral_convergence)(torch.zeros(1, 640), MAGNITUDE, LogMelConfig())

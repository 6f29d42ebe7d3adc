"""The sound encoder: padding, precision, masks for training, what it can learn, bad input."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmlib.encoders.audio import AudioEncoder, AudioEncoderConfig, spec_augment
from mmlib.encoders.mel import LogMelConfig
from mmlib.masks import padding_keep

RATE = 16_000


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make(log_mel=LogMelConfig(mels=20), **options):  # noqa: B008 - frozen
    torch.manual_seed(0)
    sizes = dict(dim=16, heads=2, layers=2, max_length=64) | options
    model = AudioEncoder(AudioEncoderConfig(log_mel=log_mel, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases and norms that do nothing would hide their use
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("strides, step", [((2, 2), 4), ((1, 2), 2), ((1, 1), 1), ((3, 2), 6)])
@pytest.mark.parametrize("samples", [1, 160, 161, 4000, 16_000])
def test_a_token_for_every_few_frames(strides, step, samples):
    encoded = make(strides=strides, max_length=128)(draw(2, samples))
    tokens = len(range(0, len(range(0, samples, 160)), step))
    assert encoded.tokens.shape == (2, tokens, 16)
    assert encoded.keep.shape == (2, tokens) and encoded.keep.all()
    assert encoded.pooled.shape == (2, 16)
    assert encoded.weights is None


@settings(max_examples=25)
@given(
    st.lists(st.integers(400, 6000), min_size=2, max_size=3),
    st.integers(0, 3000),
    st.sampled_from([(2, 2), (1, 2), (3, 3)]),
    st.sampled_from(["zeros", "reflect", "none"]),
)
def test_padding_changes_nothing(lengths, more, strides, padding):
    model = make(LogMelConfig(mels=20, padding=padding), strides=strides).double()
    keep = padding_keep(torch.tensor(lengths), max(lengths) + more)
    batch = draw(*keep.shape, dtype=torch.float64)
    batch[~keep] = math.nan  # whatever stands there
    together = model(batch, keep, return_weights=True)
    for row, length in enumerate(lengths):
        alone = model(batch[row : row + 1, :length], return_weights=True)
        count = alone.tokens.shape[1]
        assert alone.keep.all() and together.keep[row].sum() == count
        torch.testing.assert_close(together.tokens[row, :count], alone.tokens[0])
        torch.testing.assert_close(together.pooled[row], alone.pooled[0])
        assert (together.tokens[row, count:] == 0).all()
        for ours, theirs in zip(together.weights, alone.weights, strict=True):
            shared = ours.self_attention[row, :, :count]
            torch.testing.assert_close(shared[..., :count], theirs.self_attention[0])
            assert (shared[..., count:] == 0).all()


def test_the_mask_is_needed():
    """Without it, the same batch gives other tokens: the test above can fail."""
    model, audio = make(), draw(1, 4000)
    padded = torch.cat([audio, torch.zeros(1, 4000)], dim=1)
    alone, unmasked = model(audio).tokens, model(padded).tokens[:, :7]
    assert not torch.allclose(alone[:, :7], unmasked, atol=1e-3)


def test_a_row_without_sound_gives_zeros():
    model, audio = make(), draw(3, 2000)
    encoded = model(audio, padding_keep(torch.tensor([2000, 0, 700])))
    assert not encoded.keep[1].any()
    assert (encoded.tokens[1] == 0).all() and (encoded.pooled[1] == 0).all()
    encoded.pooled.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(encoded.pooled[:1], model(audio[:1]).pooled)


def test_pooled_is_the_mean_of_what_exists():
    encoded = make()(draw(2, 2000), padding_keep(torch.tensor([2000, 700])))
    for row in range(2):
        expected = encoded.tokens[row][encoded.keep[row]].mean(dim=0)
        torch.testing.assert_close(encoded.pooled[row], expected)


def test_frames_may_come_ready_made():
    model, audio, keep = make(), draw(2, 2000), padding_keep(torch.tensor([2000, 700]))
    features, frames = model.log_mel(audio, keep)
    for ours, theirs in zip(
        model(audio, keep)[:3], model.encode(features, frames)[:3], strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_weights_of_every_layer():
    encoded = make(layers=3)(draw(2, 2000), return_weights=True)
    assert len(encoded.weights) == 3
    for layer in encoded.weights:
        assert layer.self_attention.shape == (2, 2, 4, 4)
        torch.testing.assert_close(layer.self_attention.sum(-1), torch.ones(2, 2, 4))
    torch.testing.assert_close(encoded.tokens, make(layers=3)(draw(2, 2000)).tokens)


def test_order_matters():
    model, audio = make(), draw(1, 4000)
    assert not torch.allclose(model(audio).pooled, model(audio.flip(1)).pooled, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(kind):
    exact = make()(draw(2, 4000))
    narrow = make().to(kind)(draw(2, 4000))
    assert narrow.tokens.dtype == narrow.pooled.dtype == kind
    error = (narrow.tokens.float() - exact.tokens).abs().max()
    assert error < 40 * torch.finfo(kind).eps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = make()(draw(2, 4000))
    assert (mixed.tokens.float() - exact.tokens).abs().max() < 40 * torch.finfo(torch.bfloat16).eps


def test_dropout_only_in_training():
    model, audio = make(dropout=0.5), draw(1, 2000)
    torch.testing.assert_close(model(audio).tokens, model(audio).tokens)
    assert not torch.allclose(model.train()(audio).tokens, model(audio).tokens)


def test_inputs_are_not_changed():
    audio, keep = draw(2, 2000), padding_keep(torch.tensor([2000, 700]))
    before, kept = audio.clone(), keep.clone()
    make()(audio, keep)
    assert torch.equal(audio, before) and torch.equal(keep, kept)


def test_weights_are_saved_and_loaded():
    model, audio = make(), draw(1, 2000)
    other = AudioEncoder(model.config).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(audio).tokens, model(audio).tokens)
    assert not any("positions" in name or "filters" in name for name in model.state_dict())


# ---------------------------------------------------------------- masks for training


def masked(features, keep=None, seed=0, **options):
    return spec_augment(features, keep, generator=torch.Generator().manual_seed(seed), **options)


def test_masks_are_drawn_from_the_generator():
    features = draw(2, 100, 20)
    before, state = features.clone(), torch.random.get_rng_state()
    assert torch.equal(masked(features), masked(features))
    assert not torch.equal(masked(features), masked(features, seed=1))
    assert torch.equal(features, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 8), st.integers(0, 2))
def test_one_mask_is_one_stretch_of_the_mean(seed, time_width, band_width, count):
    features = draw(3, 60, 20, seed=1)
    keep = padding_keep(torch.tensor([60, 25, 0]))
    out = masked(
        features, keep, seed, time_masks=count, time_width=time_width, time_share=0.5,
        band_masks=count, band_width=band_width,
    )  # fmt: skip
    hidden = out != features
    assert not hidden[~keep].any()
    for row, length in enumerate([60, 25, 0]):
        inside, level = hidden[row, :length], features[row, :length].mean()
        torch.testing.assert_close(
            out[row, :length][inside], level.expand(int(inside.sum())), rtol=0, atol=1e-6
        )
        if length:
            in_time, in_pitch = inside.all(dim=1), inside.all(dim=0)
            assert torch.equal(inside, in_time[:, None] | in_pitch)
            assert in_time.sum() <= count * min(time_width, length // 2)
            assert in_pitch.sum() <= count * band_width
            if count == 1:
                for line in (in_time, in_pitch):  # one stretch, without a gap
                    assert (line.int().diff() == 1).sum() + line[0] <= 1


def test_masks_reach_everywhere_and_every_width():
    features = draw(4000, 10, 6)
    out = masked(features, time_masks=1, time_width=4, time_share=1.0, band_masks=0)
    hidden = (out != features).all(dim=2)
    assert hidden.any(dim=0).all()
    widths = hidden.sum(dim=1).bincount(minlength=5) / 4000
    torch.testing.assert_close(widths, torch.full((5,), 0.2), rtol=0, atol=0.03)


# ---------------------------------------------------------------- learning


def chirps(count, seed):
    """Half a second from one pitch to another: the same pitches in either order."""
    generator = torch.Generator().manual_seed(seed)
    low = 300 + 700 * torch.rand(count, 1, generator=generator)
    high = low * (1.5 + torch.rand(count, 1, generator=generator))
    rises = torch.rand(count, generator=generator) < 0.5
    first, last = torch.where(rises[:, None], low, high), torch.where(rises[:, None], high, low)
    time = torch.arange(RATE // 2) / RATE
    phase = 2 * math.pi * (first * time + (last - first) * time**2)
    sound = 0.3 * torch.sin(phase + 6 * torch.rand(count, 1, generator=generator))
    return sound + 0.01 * torch.randn(sound.shape, generator=generator), rises.long()


def test_it_learns_what_rises_and_what_falls():
    torch.manual_seed(0)
    config = AudioEncoderConfig(log_mel=LogMelConfig(mels=40), dim=32, heads=2, layers=1)
    model = nn.Sequential(AudioEncoder(config), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    audio, labels = chirps(256, seed=1)
    features, _ = model[0].log_mel(audio)
    for step in range(60):
        rows = torch.arange(32 * step, 32 * step + 32) % 256
        logits = model[1](model[0].encode(features[rows]).pooled)
        nn.functional.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    audio, labels = chirps(200, seed=2)
    with torch.no_grad():
        right = model[1](model.eval()[0](audio).pooled).argmax(dim=1) == labels
    assert right.float().mean() >= 0.95


# ---------------------------------------------------------------- bad input

BAD_CONFIGS = {
    "strides": (dict(strides=(4, 1)), r"numbers from 1 to 3: got \(4, 1\)"),
    "odd": (dict(dim=5, heads=1), "dim must be even and at least 4: got 5"),
    "narrow": (dict(dim=2, heads=1), "dim must be even and at least 4: got 2"),
    "heads": (dict(dim=16, heads=3), "heads must divide dim: got dim=16, heads=3"),
    "layers": (dict(layers=0), "layers must be at least 1: got 0"),
    "length": (dict(max_length=0), "max_length must be at least 1: got 0"),
    "dropout": (dict(dropout=1.0), "dropout must lie in"),
}


@pytest.mark.parametrize("options, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configuration_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        AudioEncoderConfig(**options)


def test_bad_audio_is_named(unchecked):
    forward, model = unchecked(AudioEncoder.forward), make()
    log_mel = model.log_mel
    object.__setattr__(log_mel, "forward", lambda *a: unchecked(type(log_mel).forward)(log_mel, *a))
    with pytest.raises(TypeError, match="audio must be floating-point"):
        forward(model, torch.zeros(1, 900, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"audio must have shape \(batch, samples\)"):
        forward(model, torch.zeros(900))
    with pytest.raises(ValueError, match="a peak of nan"):
        forward(model, torch.full((1, 900), math.nan))
    with pytest.raises(ValueError, match=r"at most 64 tokens: 257 frames make 65; raise max_len"):
        forward(model, torch.zeros(1, 256 * 160 + 1))
    assert forward(model, torch.zeros(1, 256 * 160)).tokens.shape[1] == 64


BAD_FEATURES = {
    "rank": (torch.zeros(5, 20), None, ValueError, r"\(batch, frames, 20\).*got \(5, 20\)"),
    "bands": (torch.zeros(1, 5, 80), None, ValueError, r"got \(1, 5, 80\)"),
    "empty": (torch.zeros(1, 0, 20), None, ValueError, "not empty"),
    "type": (torch.zeros(1, 5, 20), torch.ones(1, 5), TypeError, "keep must be boolean"),
    "keep": (torch.zeros(1, 5, 20), torch.ones(1, 4).bool(), ValueError, r"\(1, 5\): got \(1, 4\)"),
}


@pytest.mark.parametrize("features, keep, error, message", BAD_FEATURES.values(), ids=BAD_FEATURES)
def test_bad_features_are_named(features, keep, error, message, unchecked):
    with pytest.raises(error, match=message):
        unchecked(AudioEncoder.encode)(make(), features, keep)
    if "got (1, 5, 80)" not in message.replace("\\", ""):  # masks fit any number of bands
        with pytest.raises(error, match=message.replace("frames, 20", "frames, mels")):
            inspect.unwrap(spec_augment)(features, keep, generator=torch.Generator())


@pytest.mark.parametrize("options", [dict(time_masks=-1), dict(band_width=-1), dict(time_share=2)])
def test_bad_masks_are_named(options):
    with pytest.raises(ValueError, match="at least 0 and time_share in"):
        inspect.unwrap(spec_augment)(torch.zeros(1, 5, 20), generator=torch.Generator(), **options)


def test_another_model_is_refused():
    with pytest.raises(TypeError, match="must hold a WhisperEncoder: got Linear"):
        AudioEncoder.from_transformers(nn.Linear(2, 2))

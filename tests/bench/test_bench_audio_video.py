"""Sound and video encoders beside librosa's and transformers'."""

import librosa
import pytest
import torch
from transformers import VivitConfig, VivitModel, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmlib.encoders.audio import AudioEncoder
from mmlib.encoders.griffin_lim import griffin_lim
from mmlib.encoders.mel import LogMelConfig
from mmlib.encoders.spectrogram import LogMel, short_time_spectrum
from mmlib.encoders.video import VideoEncoder, VideoEncoderConfig

AREA = "Sound and video encoders"

RATE = 16_000


def in_bfloat16(function):
    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return function()

    return run


@pytest.mark.parametrize("batch, seconds", [(1, 30), (16, 5)])
def test_log_mel(side_by_side, batch, seconds):
    audio = 0.1 * torch.randn(batch, seconds * RATE)
    arrays = list(audio.numpy())
    extractor = WhisperFeatureExtractor(chunk_length=seconds)
    log_mel = LogMel(LogMelConfig(padding="reflect"))
    contestants = {
        "mmlib": lambda: log_mel(audio)[0],
        "transformers": lambda: extractor(
            arrays, sampling_rate=RATE, return_tensors="pt"
        ).input_features.transpose(1, 2),
        "librosa": lambda: librosa.power_to_db(
            librosa.feature.melspectrogram(
                y=audio.numpy(), sr=RATE, n_fft=400, hop_length=160, n_mels=80
            )
        ),
    }
    torch.testing.assert_close(
        contestants["mmlib"](), contestants["transformers"](), rtol=0, atol=1e-3
    )
    table = side_by_side(
        f"log-mel beside WhisperFeatureExtractor, {batch} × {seconds} s of sound", contestants
    )
    table.per_second(batch * seconds, "s of sound")
    table.as_fast("mmlib", "transformers")
    table.as_fast("mmlib", "librosa")


def test_griffin_lim(side_by_side):
    config = LogMelConfig()
    magnitude = short_time_spectrum(0.1 * torch.randn(1, 10 * RATE - 1), config).abs()
    array = magnitude[0].T.contiguous().numpy()
    how = dict(n_iter=8, momentum=0.99, init=None, n_fft=400, hop_length=160)
    contestants = {
        "mmlib": lambda: griffin_lim(magnitude, config, iterations=8, length=10 * RATE - 1),
        "librosa": lambda: torch.from_numpy(librosa.griffinlim(array, length=10 * RATE - 1, **how))[
            None
        ],
    }
    table = side_by_side("Griffin–Lim, 8 rounds on 10 s of sound", contestants, rounds=10)
    table.as_fast("mmlib", "librosa")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_audio_encoder(side_by_side, precision):
    theirs = WhisperEncoder(WhisperConfig(encoder_layers=2, max_source_positions=500)).eval()
    ours = AudioEncoder.from_transformers(theirs)
    features = torch.randn(2, 1000, 80)
    turned = features.transpose(1, 2).contiguous()
    outputs = {
        "mmlib": lambda: ours.encode(features).tokens,
        "transformers": lambda: theirs(turned).last_hidden_state,
    }
    with torch.no_grad():
        torch.testing.assert_close(*(f() for f in outputs.values()), rtol=0, atol=1e-3)
    contestants = {
        name: torch.no_grad()(in_bfloat16(f) if precision == "bf16" else f)
        for name, f in outputs.items()
    }
    title = f"AudioEncoder, sizes of whisper-tiny, 2 layers, 2 × 10 s, {precision}"
    table = side_by_side(title, contestants, rounds=10)
    table.per_second(20, "s of sound")
    table.as_fast("mmlib", "transformers")
    table.light("mmlib", "transformers")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_video_encoder(side_by_side, precision, backward):
    config = VideoEncoderConfig(frames=8, image_size=64, patch_size=8, dim=192, heads=3, layers=2)
    ours = VideoEncoder(config).eval()
    theirs = VivitModel(
        VivitConfig(
            image_size=64, num_frames=8, tubelet_size=[2, 8, 8], hidden_size=192,
            num_hidden_layers=2, num_attention_heads=3, intermediate_size=768, hidden_act="gelu",
        ),
        add_pooling_layer=False,
    ).eval()  # fmt: skip
    video = torch.rand(2, 8, 3, 64, 64)
    outputs = {  # 256 tokens, 257 with their class token
        "mmlib": lambda: ours(video).tokens,
        "transformers": lambda: theirs(video).last_hidden_state,
    }
    if precision == "bf16":
        outputs = {name: in_bfloat16(f) for name, f in outputs.items()}

    def step(output):
        ours.zero_grad()
        theirs.zero_grad()
        output().float().square().mean().backward()

    contestants = {
        name: (lambda f=f: step(f)) if backward else torch.no_grad()(f)
        for name, f in outputs.items()
    }
    what = "forward + backward" if backward else "forward"
    title = f"VideoEncoder beside ViViT, 2 × 8 frames of 64², 2 layers, {precision}, {what}"
    table = side_by_side(title, contestants, rounds=10)
    table.per_second(16, "frames")
    table.as_fast("mmlib", "transformers")
    table.light("mmlib", "transformers")

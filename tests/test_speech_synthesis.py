"""Speaking: starts and durations of words, the loss on frames, the vocoder, a model that says."""

import inspect

import pytest
import torch

from mmlib.data.speech import Span, synthesise
from mmlib.durations import word_starts, word_steps
from mmlib.encoders.mel import LogMelConfig
from mmlib.encoders.spectrogram import LogMel
from mmlib.multimodal import MultimodalConfig, MultimodalTransformer
from mmlib.speech_synthesis import frame_loss, say, vocode

TEXT = "a small red star in the top left"


@pytest.mark.parametrize("text", [TEXT, "is there a blue ring?", "the ring moves up, then stops"])
def test_starts_are_those_of_the_synthesiser(text):
    said = synthesise(text, "m1")
    starts = word_starts(text, said.words)
    assert len(starts) == len(text.split())
    assert starts == sorted(starts)
    for span in said.words:
        assert span.start in starts


def test_a_span_of_two_words_is_divided_by_letters():
    spans = [Span("to the", 1.0, 2.0), Span("left", 2.0, 2.5)]
    assert word_starts("to the left", spans) == pytest.approx([1.0, 1.4, 2.0])


@pytest.mark.parametrize("step", [1, 3, 4])
def test_steps_cover_the_sound(step):
    said = synthesise(TEXT, "f1")
    frames = LogMelConfig().frames(len(said.waveform))
    steps = word_steps(TEXT, said.words, frames, step)
    assert len(steps) == len(TEXT.split()) + 2
    assert min(steps) >= 0
    assert sum(steps) == -(-frames // step)
    # Each word's first step is within half a step of where it starts.
    first = torch.tensor(steps).cumsum(0)[:-2]
    starts = torch.tensor(word_starts(TEXT, said.words)) / 0.01 / step
    assert (first - starts).abs().max() <= 0.5 + 1e-6


def test_frame_loss_is_the_mean_over_what_exists():
    spoken, wanted = torch.rand(2, 8, 5), torch.rand(2, 6, 5)
    keep = torch.arange(6) < torch.tensor([[6], [2]])
    total, count = frame_loss(spoken, wanted, keep)
    by_hand = [
        abs(float(spoken[i, t, m] - wanted[i, t, m]))
        for i, size in enumerate((6, 2))
        for t in range(size)
        for m in range(5)
    ]
    assert count == len(by_hand) == 40
    assert float(total) == pytest.approx(sum(by_hand), rel=1e-5)


def test_the_vocoder_nearly_undoes_the_spectrogram():
    said, log_mel = synthesise("a red star", "m1"), LogMel()
    features, _ = log_mel(said.waveform[None])
    sound = vocode(features[0], log_mel)
    assert float(sound.abs().max()) == pytest.approx(0.5, abs=1e-3)
    again, _ = log_mel(sound[None])
    error = (again - features).abs().mean()
    other, _ = log_mel(synthesise("a red star", "f1").waveform[None])
    length = min(other.shape[1], features.shape[1])
    assert error < 0.1
    assert error < 0.5 * (other[:, :length] - features[:, :length]).abs().mean()


def test_a_model_speaks_for_as_long_as_it_thinks():
    config = MultimodalConfig(
        12, dim=16, heads=2, layers=1, decoder_layers=1, log_mel=LogMelConfig(mels=20)
    )
    model = MultimodalTransformer(config).eval()
    with torch.no_grad():
        model.duration_head.weight.zero_()
        model.duration_head.bias.fill_(float(torch.tensor(3.0).log1p()))
    ids, keep = torch.tensor([[1, 5, 6, 2], [1, 5, 2, 0]]), torch.ones(2, 4).bool()
    keep[1, 3] = False
    frames, exists, memory = say(model, ids, keep, torch.zeros(2).long())
    assert exists.sum(1).tolist() == [4 * 3 * 4, 3 * 3 * 4]  # tokens, steps, frames a step
    assert frames.shape == (2, 48, 20)
    assert memory.tokens.shape == (2, 4, 16)
    with torch.no_grad():
        model.duration_head.bias.fill_(-5.0)  # no time at all
    assert say(model, ids, keep, torch.zeros(2).long())[1].any(1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: word_starts("a star", [Span("a", 0, 1)]), "spans must spell"),
        (lambda: word_starts("a star", [Span("a ring", 0, 1)]), "spans must spell"),
        (lambda: word_steps("a", [Span("a", 0, 1)], 0, 4), "must be above 0"),
        (lambda: word_steps("a", [Span("a", 0, 1)], 4, 0), "must be above 0"),
        (lambda: word_steps("a", [Span("a", 0, 1)], 4, 1, 0.0), "must be above 0"),
        (
            lambda: inspect.unwrap(frame_loss)(
                torch.zeros(1, 3, 5), torch.zeros(1, 4, 5), torch.ones(1, 4).bool()
            ),
            "spoken must hold",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Lessons of chapter 12's tasks: words all known, targets, sounds, losses by hand, writing."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from mmlib.ctc import ctc_collapse, ctc_loss
from mmlib.data import scenes, speech
from mmlib.data.batch import Batch
from mmlib.data.clip_questions import clip_questions
from mmlib.data.long_clips import sample_long, summary
from mmlib.multimodal import MultimodalTransformer
from mmlib.multimodal_lessons import Lessons, change_speed, sayings, spoken_texts
from mmlib.multimodal_tasks import fit_of, hear, lesson_loss, write
from mmlib.multimodal_words import ASKED, WRITTEN, config, plain, task_id, vocabulary

INPUTS = {
    "caption": {"images"},
    "clip": {"video"},
    "transcribe": {"audio"},
    "ask": {"images", "text"},
    "listen": {"images", "audio"},
    "both": {"images", "text", "audio"},
    "ask clip": {"video", "text"},
    "events": {"video"},
    "summary": {"video"},
    "speak": {"text"},
}


@pytest.fixture(scope="module")
def lessons():
    spoken = speech.speak(spoken_texts(30, 1, "train"), "train", seed=1)
    own = sayings(spoken_texts(6, 2, "train"), ("f3", "m3"))
    return Lessons("train", spoken, own)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"dim": 16, "heads": 2, "layers": 1, "decoder_layers": 1}
    return MultimodalTransformer(config(voices=2, cnn_width=8, motion_width=8, **sizes)).eval()


def test_no_word_of_any_task_is_unknown():
    texts = list(scenes.ANSWERS) + spoken_texts(40, 3, "all")
    for number, scene in enumerate(scenes.sample(150, 5)):
        texts += [scenes.caption(scene)]
        texts += [q.text for q in scenes.questions(scene, number, ASKED)]
    for number, clip in enumerate(scenes.sample_clips(150, 5)):
        texts += [scenes.clip_caption(clip)]
        texts += [t for q in clip_questions(clip, number) for t in (q.text, q.answer)]
    texts += [summary(clip) for clip in sample_long(50, 5)]
    ids, _ = vocabulary().encode(texts)
    assert not (ids == vocabulary().unknown_id).any()


def test_tasks_have_tokens_of_their_own_above_the_words():
    ids = [task_id(task) for task in WRITTEN]
    assert ids == list(range(vocabulary().vocab_size, config().vocab))


@pytest.mark.parametrize("task", INPUTS)
def test_a_lesson_holds_what_its_task_reads(lessons, task):
    lesson = lessons(task, 3, 4)
    assert set(lesson.inputs.modalities) == INPUTS[task]
    assert len(lesson.inputs) == 4
    again = lessons(task, 3, 4)
    for name in INPUTS[task]:
        assert torch.equal(getattr(lesson.inputs, name), getattr(again.inputs, name))
    other = lessons(task, 4, 4)
    assert any(
        getattr(lesson.inputs, n).shape != getattr(other.inputs, n).shape
        or not torch.equal(getattr(lesson.inputs, n), getattr(other.inputs, n))
        for n in INPUTS[task]
    )
    if task != "speak":
        ids, keep = lesson.inputs.targets, lesson.inputs.targets_keep
        ends = ids.gather(1, keep.sum(1, keepdim=True) - 1)
        assert (ends == vocabulary().end_id).all()
        assert ((ids == vocabulary().end_id) & keep).sum(1).tolist() == [1] * 4


def test_a_spoken_question_is_the_typed_one(lessons):
    """What is heard is a sentence of the set that spells the typed question."""
    inputs = lessons("both", 2, 6).inputs
    for row in range(6):
        sound = inputs.audio[row][inputs.audio_keep[row]]
        said = [
            lessons.spoken.texts[i]
            for i in range(len(lessons.spoken))
            if len(lessons.spoken[i].waveform) == len(sound)
            and torch.equal(lessons.spoken[i].waveform, sound)
        ]
        typed = vocabulary().decode(inputs.text[row : row + 1])[0]
        assert plain(said[0]) == plain(typed)


def test_test_lessons_hold_what_training_has_not():
    held = scenes.held_out_moves()
    clips = scenes.sample_clips(20, 2003, split="test", objects=(1, 1))
    assert all(
        any((o.shape, m.heading) in held for o, m in zip(c.scene.objects, c.motions, strict=True))
        for c in clips
    )
    found = Lessons("test")("clip", 3, 20).inputs
    wanted = vocabulary().encode([scenes.clip_caption(c) for c in clips]).ids[:, 1:]
    assert torch.equal(found.targets, wanted)


def test_what_is_spoken_loses_its_marks():
    assert plain("the ring moves up, then stops") == "the ring moves up then stops"
    for text in spoken_texts(9, 0, "train"):
        assert "?" not in plain(text)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_speed_shifts_time_and_pitch(factor):
    time = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * math.pi * 400 * time)[None]
    keep = (torch.arange(16_000) < 8_000)[None]
    faster, exists = change_speed(tone, keep, factor)
    assert faster.shape == (1, round(16_000 / factor))
    assert int(exists.sum()) == round(8_000 / factor)
    spectrum = torch.fft.rfft(faster[0]).abs()
    hertz = float(spectrum.argmax()) * 16_000 / faster.shape[1]
    assert hertz == pytest.approx(400 * factor, abs=2)


def test_the_loss_of_writing_is_cross_entropy(lessons, model):
    lesson = lessons("ask", 1, 3)
    ids, keep = lesson.inputs.targets, lesson.inputs.targets_keep
    begun = torch.cat([torch.full((3, 1), task_id("answer")), ids], dim=1)
    logits = model(lesson.inputs, begun[:, :-1])
    by_hand = [
        F.cross_entropy(logits[i, t], ids[i, t])
        for i in range(3)
        for t in range(ids.shape[1])
        if keep[i, t]
    ]
    found = lesson_loss(model, lesson)
    torch.testing.assert_close(found, torch.stack(by_hand).mean())


def test_the_loss_of_transcribing_has_ctc_beside_it(lessons, model):
    lesson = lessons("transcribe", 1, 3)
    ids, keep = lesson.inputs.targets, lesson.inputs.targets_keep
    memory = model.encode(lesson.inputs)
    begun = torch.cat([torch.full((3, 1), task_id("transcribe")), ids[:, :-1]], dim=1)
    logits, _ = model.write(memory, begun)
    words = F.cross_entropy(logits[keep], ids[keep])
    heard, exists = model.ctc_logits(memory)
    said = keep & (ids != vocabulary().end_id)
    total = ctc_loss(heard.log_softmax(2), exists, ids, said).sum()
    named = heard[exists], lesson.aligned[exists]
    expected = words + 0.5 * total / said.sum() + 0.5 * F.cross_entropy(*named)
    untold = lesson._replace(aligned=None)
    torch.testing.assert_close(
        lesson_loss(model, untold), words + 0.5 * total / said.sum(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(lesson_loss(model, lesson), expected, rtol=1e-4, atol=1e-4)


def test_how_well_a_text_fits_is_its_log_probability(model, lessons):
    inputs = lessons("clip", 1, 2).inputs
    texts = ["the small red star stays still", "the large blue ring moves up, then stops"]
    found = fit_of(model, "clip", inputs, texts)
    assert found.shape == (2, 2)
    for item in range(2):
        for column, text in enumerate(texts):
            ids = vocabulary().encode([text]).ids[0, 1:]
            begun = torch.cat([torch.tensor([task_id("clip")]), ids[:-1]])[None]
            logits = model(Batch(video=inputs.video[item : item + 1]), begun)[0]
            expected = -F.cross_entropy(logits, ids, reduction="sum")
            torch.testing.assert_close(found[item, column], expected, rtol=1e-4, atol=1e-4)


def test_the_word_that_is_said_is_known_at_each_time(lessons):
    """At other speeds, too; and it reads as what is to be written."""
    words = vocabulary().backend.id_to_token
    slow = Lessons("train", lessons.spoken, speeds=(0.79, 0.81))
    for taught in (lessons, slow):
        lesson = taught("transcribe", 2, 6)
        sizes = lesson.inputs.audio_keep.sum(1)
        assert lesson.aligned.shape == (6, -(-lesson.inputs.audio.shape[1] // 1280))
        for row in range(6):
            said = [words(i) for i in ctc_collapse(lesson.aligned[row].tolist())]
            wanted = vocabulary().decode(lesson.inputs.targets[row : row + 1])[0].split()
            # A word of less than 80 ms may fall between two tokens.
            assert set(said) <= set(wanted)
            assert len(said) >= len(wanted) - 2
            spoken = (lesson.aligned[row] > 0).nonzero()
            assert (int(spoken[-1]) + 1) * 1280 <= int(sizes[row]) + 1280
    ratio = (
        slow("transcribe", 2, 6).aligned.gt(0).sum()
        / lessons("transcribe", 2, 6).aligned.gt(0).sum()
    )
    assert 1.15 < ratio < 1.35


def test_what_the_stems_say_is_compared_with_the_words_of_the_text(lessons, model):
    lesson = lessons("caption", 1, 3)
    ids, keep = lesson.inputs.targets, lesson.inputs.targets_keep
    begun = torch.cat([torch.full((3, 1), task_id("caption")), ids], dim=1)
    memory = model.encode(lesson.inputs)
    logits, _ = model.write(memory, begun[:, :-1])
    by_hand = [
        F.cross_entropy(logits[i, t], ids[i, t])
        for i in range(3)
        for t in range(ids.shape[1])
        if keep[i, t]
    ]
    told = model.bag_logits(memory).log_softmax(1)
    divergences = []
    for row in range(3):
        bag = {i for i in ids[row][keep[row]].tolist() if i != vocabulary().end_id}
        divergences.append(-sum(told[row, i] + math.log(len(bag)) for i in bag) / len(bag))
    expected = torch.stack(by_hand).mean() + 4.0 * torch.stack(divergences).mean()
    torch.testing.assert_close(lesson_loss(model, lesson), expected, rtol=1e-4, atol=1e-4)


def test_durations_and_voices_of_a_saying(lessons):
    lesson = lessons.saying([0, 1, 2])
    assert lesson.voices.tolist() == [lessons.voices.index(v) for v in lessons.sayings.voices[:3]]
    sizes = lesson.frames_keep.sum(1)
    assert torch.equal(lesson.steps.sum(1), (sizes + 3) // 4)
    assert (lesson.steps > 0).sum(1).ge(lesson.inputs.text_keep.sum(1) - 3).all()
    assert lesson.steps.masked_fill(lesson.inputs.text_keep, 0).sum() == 0


def test_the_loss_of_speaking_falls_when_frames_are_right(lessons, model):
    lesson = lessons.saying([0, 1])
    before = lesson_loss(model, lesson)
    with torch.no_grad():
        frames, keep = model.speak(model.encode(lesson.inputs), lesson.steps, lesson.voices)
    size = lesson.frames.shape[1]
    right = lesson._replace(frames=frames[:, :size])
    wrong = (model.log_durations(model.encode(lesson.inputs)) - lesson.steps.float().log1p()).abs()
    rest = 0.2 * wrong[lesson.inputs.text_keep].mean()
    torch.testing.assert_close(lesson_loss(model, right), rest)
    assert before > rest


@pytest.mark.parametrize("task", WRITTEN)
def test_something_is_written(lessons, model, task):
    name = "ask" if task == "answer" else task
    found = write(model, task, lessons(name, 0, 2).inputs, 5)
    assert len(found) == 2
    assert all(len(text.split()) <= 5 for text in found)


def test_hearing_reads_the_best_path(lessons, model):
    inputs = lessons("transcribe", 0, 2).inputs
    assert len(hear(model, inputs)) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: task_id("speak"), "task must be one of"),
        (lambda: inspect.unwrap(fit_of)(None, "clip", None, []), "texts must not be empty"),
        (lambda: Lessons()("sing", 0), "task must be one of"),
        (lambda: Lessons()("listen", 0), "spoken must be given"),
        (lambda: Lessons()("transcribe", 0), "spoken must be given"),
        (lambda: Lessons()("speak", 0), "sayings must be given"),
        (lambda: Lessons().asked(0, 2, spoken=True), "spoken must hold questions"),
        (lambda: sayings([], ("f3",)), "must not be empty"),
        (lambda: sayings(["a star"], ()), "must not be empty"),
        (
            lambda: inspect.unwrap(change_speed)(torch.zeros(1, 5), torch.ones(1, 5).bool(), 0.0),
            "factor must be above 0",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_lesson_of_speaking_needs_its_frames(lessons, model):
    with pytest.raises(ValueError, match="must have steps, voices and frames"):
        lesson_loss(model, lessons.saying([0])._replace(steps=None))

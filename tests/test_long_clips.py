"""Longer clips and questions about clips: what is drawn, said, asked, and how events are marked."""

import pytest
import torch

from mmlib.data import scenes
from mmlib.data.clip_questions import CLIP_KINDS, clip_questions, heading_words
from mmlib.data.long_clips import (
    FRAMES,
    KEY_FRAMES,
    SHORTEST,
    Event,
    LongClip,
    event_text,
    match_events,
    parse_events,
    render_long,
    sample_long,
    summary,
)
from mmlib.data.scenes import Clip, Motion, Object, Scene

STAR = Object("star", "red", "small", 0.5, 0.5)
RING = Object("ring", "blue", "large", 0.2, 0.7)


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_clips_are_what_they_say(split):
    held = scenes.held_out_moves()
    for clip in sample_long(60, 4, split=split):
        assert clip.events[-1].end == FRAMES
        assert 3 <= len(clip.events) <= 5
        assert min(event.frames for event in clip.events) >= SHORTEST
        for one, other in zip(clip.events, clip.events[1:], strict=False):
            assert one.end == other.start
            assert one.what != other.what
        moves = {(clip.item.shape, event.what) for event in clip.events}
        if split != "all":
            assert bool(moves & held) == (split == "test")


def test_a_clip_does_not_depend_on_how_many_are_drawn():
    assert sample_long(2, 7) == sample_long(5, 7)[:2]
    assert sample_long(2, 7) != sample_long(2, 8)


def test_the_object_is_where_its_events_carry_it():
    clip = LongClip(STAR, (Event("left", 0, 3), Event("still", 3, 6), Event("down", 6, 9)))
    places = [(item.x, item.y) for item in clip.places()]
    step = 10 / 256
    assert len(places) == 9
    assert places[3] == (0.5 - 3 * step, 0.5) == places[6]
    assert places[8] == pytest.approx((0.5 - 3 * step, 0.5 + 2 * step))
    video = render_long([clip])
    assert video.shape == (1, 9, 3, 32, 32)
    assert torch.equal(video[0, 3], video[0, 6])
    still = scenes.render([Scene((STAR,))], 32)
    assert torch.equal(video[0, :1], still)


def test_events_are_read_as_they_are_written():
    for clip in sample_long(40, 1):
        assert parse_events(event_text(clip)) == list(clip.events)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("moves left", []),
        ("moves left 5", []),
        ("0 moves left 5", [Event("left", 0, 5)]),
        ("0 moves left 0", []),
        ("3 stays still 9 moves up 4", [Event("still", 3, 9)]),
        ("0 flies left 4 moves down and to the left 9", [Event("down left", 4, 9)]),
    ],
)
def test_nonsense_is_left_out(text, expected):
    assert parse_events(text) == expected


def test_a_summary_names_what_lasts():
    events = (Event("left", 0, 6), Event("up", 6, 9), Event("left", 9, 15), Event("down", 15, 24))
    item = Object("star", "red", "small", 0.75, 0.5)
    text = summary(LongClip(item, events))
    assert text == "the small red star moves left, then moves down"
    short = tuple(Event(w, 5 * i, 5 * i + 5) for i, w in enumerate(["left", "right", "left"]))
    assert KEY_FRAMES > 5
    assert "hardly" in summary(LongClip(item, short))


@pytest.mark.parametrize(
    ("found", "hits", "errors"),
    [
        ([], 0, []),
        ([Event("left", 0, 8), Event("up", 8, 12)], 2, [0, 0, 0, 0]),
        ([Event("left", 2, 9)], 1, [2, 1]),
        ([Event("up", 0, 8)], 0, []),  # right time, wrong event
        ([Event("left", 5, 8)], 0, []),  # 3 of 8 frames
        ([Event("left", 4, 8)], 1, [4, 0]),  # just half
        ([Event("left", 0, 8), Event("left", 1, 8)], 1, [0, 0]),  # said twice, found once
    ],
)
def test_events_are_matched_by_hand(found, hits, errors):
    true = [Event("left", 0, 8), Event("up", 8, 12)]
    assert match_events(true, found) == (hits, errors)


def test_an_event_is_found_once_even_if_it_happens_twice():
    true = [Event("left", 0, 4), Event("up", 4, 8), Event("left", 8, 12)]
    assert match_events(true, [Event("left", 0, 4)])[0] == 1


# ---- questions about clips


def clip(*motions):
    items = RING, Object("star", "red", "small", 0.7, 0.7)
    return Clip(Scene(items[: len(motions)]), motions)


def test_questions_and_answers_by_hand():
    asked = clip_questions(clip(Motion(), Motion("up left", "slow", stops=True)), 0)
    found = {q.kind: (q.text, q.answer) for q in asked}
    star = "the small red star"
    assert found["heading"] == (f"which way does {star} move?", "up and to the left")
    assert found["speed"] == (f"how does {star} move?", "slowly")
    assert found["stop"] == (f"does {star} stop?", "yes")
    assert found["which"] == ("what moves up and to the left?", star)
    assert found["moves"] in (
        (f"does {star} move?", "yes"),
        ("does the large blue ring move?", "no"),
    )


def test_questions_that_have_no_answer_are_not_asked():
    kinds = [q.kind for q in clip_questions(clip(Motion()), 0)]
    assert kinds == ["moves"]
    both = clip(Motion("up", "slow"), Motion("up", "fast", stops=True))
    assert "which" not in [q.kind for q in clip_questions(both, 0)]


def test_answers_follow_from_the_clip():
    for number, one in enumerate(scenes.sample_clips(100, 3)):
        looks = {
            f"the {item.size} {item.colour} {item.shape}": motion
            for item, motion in zip(one.scene.objects, one.motions, strict=True)
        }
        for q in clip_questions(one, number):
            if q.kind == "which":
                assert q.text == f"what moves {heading_words(looks[q.answer].heading)}?"
                continue
            motion = next(looks[name] for name in looks if name in q.text)
            wanted = {
                "heading": lambda m: heading_words(m.heading),
                "speed": lambda m: {"slow": "slowly", "fast": "quickly"}[m.speed],
                "stop": lambda m: "yes" if m.stops else "no",
                "moves": lambda m: "yes" if m.heading else "no",
            }[q.kind]
            assert q.answer == wanted(motion)


def test_questions_repeat_with_the_seed():
    one = scenes.sample_clips(1, 5, objects=(2, 2))[0]
    assert clip_questions(one, 1) == clip_questions(one, 1)
    assert len({tuple(clip_questions(one, seed)) for seed in range(20)}) > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Event("left", 3, 3), "0 <= start < end"),
        (lambda: Event("left", -1, 3), "0 <= start < end"),
        (lambda: Event("away", 0, 3), "what must be one of"),
        (lambda: LongClip(STAR, ()), "must follow each other"),
        (lambda: LongClip(STAR, (Event("left", 1, 3),)), "must follow each other"),
        (lambda: LongClip(STAR, (Event("left", 0, 24),)), "inside the picture"),
        (lambda: sample_long(-1, 0), "count must be at least 0"),
        (lambda: sample_long(1, 0, split="dev"), "split must be one of"),
        (lambda: sample_long(1, -1), "seed must be between"),
        (lambda: render_long([]), "at least one"),
        (lambda: match_events([], [], 0.0), r"overlap must lie in \(0, 1\]"),
        (lambda: heading_words("away"), "heading must be one of"),
        (lambda: clip_questions(clip(Motion()), 0, ["why"]), "kinds must be one of"),
        (lambda: clip_questions(clip(Motion()), -1), "seed must be between"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_all_kinds_are_asked():
    kinds = {q.kind for one in scenes.sample_clips(20, 0) for q in clip_questions(one, 0)}
    assert kinds == set(CLIP_KINDS)

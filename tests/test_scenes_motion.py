"""Moving clips: where things are at each moment, against scenes drawn one by one."""

import hashlib
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.data import scenes

SEEDS = st.integers(0, 2**63 - 1)
STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def item(shape="star", colour="red", size="small", x=0.75, y=0.5):
    return scenes.Object(shape, colour, size, x, y)


def at_time(clip, time):
    """The scene at a moment, from the words of its motions."""
    objects = []
    for thing, motion in zip(clip.scene.objects, clip.motions, strict=True):
        x, y = thing.x, thing.y
        if motion.heading:
            words = motion.heading.split()
            # sqrt(1/2) rounded to the grid of the scenes.
            share = 1 if len(words) == 1 else 181 / 256
            way = {"slow": 48, "fast": 112}[motion.speed] / 256
            way *= min(time, 0.5) if motion.stops else time
            x += sum(STEPS[word][0] for word in words) * share * way
            y += sum(STEPS[word][1] for word in words) * share * way
        objects.append(scenes.Object(thing.shape, thing.colour, thing.size, x, y))
    return scenes.Scene(tuple(objects), clip.scene.background)


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 9))
def test_every_frame_is_the_scene_of_its_moment(seed, frames):
    clips = scenes.sample_clips(3, seed, objects=(1, 3), background="navy")
    drawn = scenes.render_clip(clips, frames=frames, dtype=torch.float64)
    assert drawn.shape == (3, frames, 3, 32, 32)
    for clip, pictures in zip(clips, drawn, strict=True):
        # Building each scene also checks that all stay inside and apart.
        moments = [at_time(clip, frame / (frames - 1)) for frame in range(frames)]
        expected = scenes.render(moments, dtype=torch.float64)
        torch.testing.assert_close(pictures, expected, atol=1e-9, rtol=0)


def test_things_go_where_the_caption_says():
    """The centre of the bright pixels moves along the heading, at the speed, until the stop."""
    for heading, (x, y) in scenes.HEADINGS.items():
        assert math.isclose(math.hypot(x, y), 1, rel_tol=1e-3)
        for speed, way in scenes.SPEEDS.items():
            for stops in (False, True):
                thing = item("circle", "white", x=0.5 - x / 4, y=0.5 - y / 4)
                clip = scenes.Clip(scenes.Scene((thing,)), (scenes.Motion(heading, speed, stops),))
                frames = scenes.render_clip(clip, frames=5, size=64)[0, :, 0]
                light = frames - frames.min()
                place = (torch.arange(64) + 0.5) / 64
                mass = light.sum((1, 2))
                centre = torch.stack(
                    [(light.sum(1) * place).sum(1) / mass, (light.sum(2) * place).sum(1) / mass], 1
                )
                time = torch.tensor([0, 0.25, 0.5, 0.5, 0.5] if stops else [0, 0.25, 0.5, 0.75, 1])
                expected = torch.tensor([thing.x, thing.y]) + time[:, None] * torch.tensor(
                    [x * way, y * way]
                )
                torch.testing.assert_close(centre, expected, atol=2e-3, rtol=0)
                if stops:
                    assert torch.equal(frames[2], frames[4])


def test_captions():
    red, blue = item(x=0.75, y=0.75), item("ring", "blue", "large", 0.25, 0.25)
    clip = scenes.Clip(
        scenes.Scene((red, blue)), (scenes.Motion(), scenes.Motion("up left", "fast", stops=True))
    )
    assert scenes.clip_caption(clip) == (
        "the large blue ring stays still, and the small red star moves up and to the left "
        "quickly, then stops"
    )
    assert scenes.clip_caption(clip, "zh") == (
        "蓝色的大圆环静止不动，红色的小星形快速地向左上方移动，然后停下"
    )


def test_captions_tell_all_motions_apart():
    thing = item(x=0.5, y=0.5)
    motions = [scenes.Motion()] + [
        scenes.Motion(heading, speed, stops)
        for heading in scenes.HEADINGS
        for speed in scenes.SPEEDS
        for stops in (False, True)
        if not (speed == "fast" and not stops)  # does not fit from the middle
    ]
    for language in ("en", "zh"):
        texts = [
            scenes.clip_caption(scenes.Clip(scenes.Scene((thing,)), (motion,)), language)
            for motion in motions
        ]
        assert len(set(texts)) == len(motions) == 25
        for text in texts:
            assert scenes.detokenize(scenes.tokenize(text, language), language) == text


def test_the_same_seed_gives_the_same_clips_everywhere():
    clips = scenes.sample_clips(50, seed=0, objects=(1, 3))
    assert (
        hashlib.sha256(repr(clips).encode()).hexdigest()
        == "a688df721f0be7fd4e2472b65091bf0c2c8a177b4450ecb9ea65d171d9a5b2ba"
    )
    assert scenes.sample_clips(20, seed=0, objects=(1, 3)) == clips[:20]


def test_motions_are_spread():
    motions = [motion for clip in scenes.sample_clips(400, seed=1) for motion in clip.motions]
    moving = [motion for motion in motions if motion.heading]
    assert 0.1 < 1 - len(moving) / len(motions) < 0.35
    for heading in scenes.HEADINGS:
        assert sum(motion.heading == heading for motion in moving) > len(moving) / 16
    assert 0.35 < sum(motion.speed == "fast" for motion in moving) / len(moving) < 0.6
    assert 0.4 < sum(motion.stops for motion in moving) / len(moving) < 0.6


def moves(clip):
    pairs = zip(clip.scene.objects, clip.motions, strict=True)
    return {(thing.shape, motion.heading) for thing, motion in pairs}


@settings(max_examples=10)
@given(SEEDS)
def test_splits_hold_out_headings_of_shapes(seed):
    held = scenes.held_out_moves()
    assert {shape for shape, _ in held} == set(scenes.SHAPES)
    assert {heading for _, heading in held} == set(scenes.HEADINGS)
    assert not any(moves(clip) & held for clip in scenes.sample_clips(15, seed, split="train"))
    assert all(moves(clip) & held for clip in scenes.sample_clips(15, seed, split="test"))


def test_noise_differs_by_frame_and_not_by_batch():
    clips = scenes.sample_clips(3, seed=2, noise=0.1, background="grey")
    together = scenes.render_clip(clips, frames=3)
    assert torch.equal(together[1:2], scenes.render_clip(clips[1], frames=3))
    still = scenes.Clip(scenes.Scene((item(),), noise=0.1), (scenes.Motion(),))
    frames = scenes.render_clip(still, frames=3)[0]
    assert not torch.allclose(frames[0], frames[1])
    assert torch.equal(frames[0], scenes.render(still.scene)[0])


def test_no_clips():
    assert scenes.sample_clips(0, seed=0) == []
    assert scenes.render_clip([], frames=4).shape == (0, 4, 3, 32, 32)


STILL = scenes.Clip(scenes.Scene((item(),)), (scenes.Motion(),))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: scenes.Motion("north", "slow"), "heading must be one of .* got 'north'"),
        (lambda: scenes.Motion("left", "warp"), "speed must be one of slow, fast: got 'warp'"),
        (lambda: scenes.Motion("left"), "speed must be one of slow, fast: got None"),
        (lambda: scenes.Motion(stops=True), "heading must be one of"),
        (lambda: scenes.Clip(scenes.Scene((item(),)), ()), "motions must be one for each object"),
        (
            lambda: scenes.Clip(scenes.Scene((item(),)), (scenes.Motion("right", "fast"),)),
            "motions must keep the objects inside",
        ),
        (
            lambda: scenes.Clip(
                scenes.Scene((item(x=0.75), item("ring", x=0.4))),
                (scenes.Motion(), scenes.Motion("left", "fast")),
            ),
            "motions must keep the objects inside the picture and 0.03125 apart",
        ),
        (
            lambda: scenes.Clip(scenes.Scene((item(x=0.75), item(x=0.25))), (scenes.Motion(),) * 2),
            "no two objects that look alike",
        ),
        (lambda: scenes.sample_clips(-1, 0), "count must be at least 0: got -1"),
        (lambda: scenes.sample_clips(1, -1), "seed must be between"),
        (lambda: scenes.sample_clips(1, 0, split="dev"), "split must be one of"),
        (lambda: scenes.sample_clips(1, 0, objects=(0, 2)), "objects must be 1 <= low"),
        (lambda: scenes.sample_clips(1, 0, objects=(2, 4)), "objects must be 1 <= low"),
        (lambda: scenes.clip_caption(STILL, "fr"), "language must be one of en, zh: got 'fr'"),
        (lambda: scenes.render_clip(STILL, frames=1), "frames must be an integer of at least 2"),
        (lambda: scenes.render_clip(STILL, size=4), "size must be an integer of at least 8"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types():
    render = inspect.unwrap(scenes.render_clip)
    with pytest.raises(TypeError, match="dtype must be a floating-point type"):
        render(STILL, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"frames must be an integer of at least 2: got 2\.5"):
        render(STILL, frames=2.5)
    with pytest.raises(TypeError, match="clips must be a Clip or a sequence of them: got 3"):
        render([3])

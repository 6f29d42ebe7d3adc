"""Pictures for the tokenizer, what objects weigh, and the eye of a second network."""

import pytest
import torch

from mmlib import tokenizer_training as module
from mmlib.data import emoji, scenes
from mmlib.data.scenes import Object, Scene
from mmlib.judge import Judge, JudgeConfig
from mmlib.tokenizer_training import (
    Pictures,
    TrainingBatch,
    held_back,
    object_loss,
    object_weights,
)


@pytest.fixture(autouse=True)
def fewer_sizes(monkeypatch):
    """Pictures of each size are scaled once, which takes most of the time."""
    monkeypatch.setattr(module, "SIZES", (30, 32, 32, 34))


DRAWN = scenes.sample(3, seed=1, background="any")


def reader():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Judge(JudgeConfig((8, 16))).eval().requires_grad_(False)


def batch_of(drawn=DRAWN, plain=2):
    """Plain grey pictures, then scenes."""
    pictures = torch.cat([torch.full((plain, 3, 32, 32), 0.5), scenes.render(drawn)])
    return TrainingBatch(pictures, list(drawn))


# ---- pictures


def test_a_batch_holds_what_was_asked_for():
    pictures, drawn = Pictures((3, 2, 4), recolour=0.5).batch(7)
    assert pictures.shape == (9, 3, 32, 32) and len(drawn) == 4
    levels = pictures * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    torch.testing.assert_close(pictures[5:], scenes.render(drawn), atol=0.5 / 255, rtol=0)
    assert drawn == scenes.sample(4, seed=7, split="train", background="any")


def test_batches_depend_on_their_number_alone():
    source = Pictures((2, 0, 2), recolour=1)
    first = source.batch(3).pictures
    source.batch(4)
    assert torch.equal(first, Pictures((2, 0, 2), recolour=1).batch(3).pictures)
    assert not torch.equal(first, source.batch(4).pictures)


def test_scenes_hold_as_many_objects_as_asked_for():
    drawn = Pictures((0, 0, 20), objects=(3, 4)).batch(0).drawn
    assert {len(scene.objects) for scene in drawn} == {3, 4}


def test_a_picture_is_cut_or_set_on_white_and_mirrored():
    source = Pictures((1, 0, 0))
    only = {size: torch.zeros(1, 3, size, size, dtype=torch.uint8) for size in source.sources[0]}
    for images in only.values():
        images[..., 0] = 100  # the left edge, which mirroring moves to the right
    kinds = {
        (tuple(picture.shape), int((picture == 255).any()), bool((picture[0, 16] == 100).any()))
        for k in range(60)
        for picture in [source.draw(only, torch.Generator().manual_seed(k))]
    }
    assert {shape for shape, *_ in kinds} == {(3, 32, 32)}
    assert {white for _, white, _ in kinds} == {0, 1}
    right = [
        bool((source.draw(only, torch.Generator().manual_seed(k))[0, 16, 16:] == 100).any())
        for k in range(60)
    ]
    assert 10 < sum(right) < 50


def test_recolouring_exchanges_whole_channels():
    source = Pictures((1, 0, 0), recolour=1)
    only = {size: torch.zeros(1, 3, size, size, dtype=torch.uint8) for size in source.sources[0]}
    for images in only.values():
        images[:] = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None]
    middle = {
        tuple(source.draw(only, torch.Generator().manual_seed(k))[:, 16, 16].tolist())
        for k in range(80)
    }
    assert len(middle) == 6 and all(sorted(pixel) == [10, 20, 30] for pixel in middle)


def test_an_eighth_is_held_back():
    names = tuple(f"concept {k}" for k in range(4000))
    held = held_back(names)
    assert 0.1 < held.float().mean() < 0.15
    assert torch.equal(held_back(names[::-1]), held.flip(0))
    items = emoji.load("train", size=32)
    kept = Pictures((1, 0, 0), validation=True).sources[0][32]
    assert torch.equal(kept, items.images[~held_back(items.concepts)])


# ---- objects


def test_every_object_has_the_same_weight():
    small, large = (
        Object("star", "red", "small", 0.25, 0.25),
        Object("ring", "blue", "large", 0.7, 0.7),
    )
    weights = object_weights([Scene((small, large))], 300)[0, 0]
    assert weights[:15, :15].sum().item() == pytest.approx(300)
    assert weights[15:, 15:].sum().item() == pytest.approx(300)
    assert weights.max() == weights[8, 8] > weights[22, 22] > weights[0, 0] == 0
    assert not object_weights([Scene((small, large))], 0).any()


def test_weights_cover_the_object_and_a_pixel_around_it():
    for scene in DRAWN:
        empty = scenes.render(Scene((scene.objects[0],), scene.background))
        drawn = (empty - empty[..., :1, :1]).abs().amax(1)[0] > 1e-3
        weights = object_weights([Scene((scene.objects[0],))], 1)[0, 0]
        assert (weights > 0)[drawn].all()
        side = 2 * scene.objects[0].radius * 32 + 2
        assert int((weights > 0).sum()) <= (side + 1) ** 2


def test_object_loss_written_out():
    batch, eye = batch_of(), reader()
    painted = batch.pictures + 0.1 * torch.randn(
        batch.pictures.shape, generator=torch.Generator().manual_seed(1)
    )
    error = (batch.pictures - painted).double().square()
    by_hand = 0.0
    for number, scene in enumerate(DRAWN):
        weights = object_weights([scene], 50)[0].double()
        by_hand += (weights * error[2 + number]).sum()
    by_hand = by_hand / (2 * error.mean() * error.numel())
    weighed = object_loss(batch, painted, total=50)
    torch.testing.assert_close(weighed.double(), by_hand, rtol=1e-4, atol=0)
    seen = eye.loss(painted[2:], DRAWN)
    both = object_loss(batch, painted, total=50, reader=eye, strength=0.3)
    torch.testing.assert_close(both, weighed + 0.3 * seen)
    assert object_loss(batch, painted).item() == 0


def test_gradients_reach_the_scenes_and_not_the_reader():
    batch, eye = batch_of(), reader()
    painted = (batch.pictures + 0.1).requires_grad_()
    (weighed,) = torch.autograd.grad(object_loss(batch, painted, total=50), painted)
    # The variance is a constant: the gradient is that of the weighed sum alone.
    expected = object_weights(DRAWN, 50) * 0.1 / (0.01 * painted.numel())
    torch.testing.assert_close(weighed[2:], expected.expand(-1, 3, -1, -1), rtol=1e-3, atol=1e-9)
    assert not weighed[:2].any()
    object_loss(batch, painted, reader=eye).backward()
    assert painted.grad[2:].any() and not painted.grad[:2].any()
    assert all(p.grad is None for p in eye.parameters())


# ---- bad input


def call(function, *arguments, **named):
    return lambda unchecked: unchecked(function)(*arguments, **named)


BAD = {
    "two numbers": (lambda _: Pictures((1, 2)), "mix must be three numbers from 0"),
    "nothing": (lambda _: Pictures((0, 0, 0)), r"not all 0: got \(0, 0, 0\)"),
    "share": (lambda _: Pictures((1, 0, 0), recolour=2), "recolour must be from 0 to 1: got 2"),
    "total": (call(object_weights, DRAWN, -1), "total must be at least 0: got -1"),
    "shape": (call(object_loss, batch_of(), torch.zeros(1, 3, 32, 32)), "of the batch's shape"),
    "no scene": (
        call(object_loss, TrainingBatch(torch.zeros(2, 3, 32, 32), []), torch.zeros(2, 3, 32, 32)),
        "with 0 scenes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, unchecked):
    attempt, message = BAD[name]
    # Under the shape checks jaxtyping says some of it first.
    with pytest.raises((ValueError, TypeError), match=message if name != "two numbers" else "."):
        attempt(unchecked)

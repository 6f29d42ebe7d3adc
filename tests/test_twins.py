"""Twins of scenes: what is exchanged, which exist, and how they are marked."""

import itertools
from collections import Counter

import pytest
import torch

from mmlib.data import scenes
from mmlib.data.scenes import DEFAULT_HOLDOUT, Object, Scene
from mmlib.data.twins import EXCHANGES, exchange, twin_scores, twins

SQUARE = Object("square", "red", "small", 0.25, 0.5)
CIRCLE = Object("circle", "blue", "large", 0.75, 0.5)


def values(scene):
    return {
        (o.shape): (o.colour, o.size, o.x, o.y) for o in sorted(scene.objects, key=lambda o: o.x)
    }


@pytest.mark.parametrize(
    "what, square, circle",
    [
        ("colour", ("blue", "small", 0.25, 0.5), ("red", "large", 0.75, 0.5)),
        ("shape", ("blue", "large", 0.75, 0.5), ("red", "small", 0.25, 0.5)),
        ("size", ("red", "large", 0.25, 0.5), ("blue", "small", 0.75, 0.5)),
        ("place", ("red", "small", 0.75, 0.5), ("blue", "large", 0.25, 0.5)),
    ],
)
def test_what_is_exchanged(what, square, circle):
    scene = Scene((SQUARE, CIRCLE), "navy", 0.1, 5)
    twin = exchange(scene, what)
    assert values(twin) == {"square": square, "circle": circle}
    assert (twin.background, twin.noise, twin.noise_seed) == ("navy", 0.1, 5)
    assert scene == Scene((SQUARE, CIRCLE), "navy", 0.1, 5)
    assert exchange(twin, what) == scene


def test_others_stay_where_they_are():
    scene = Scene((SQUARE, Object("star", "green", "small", 0.875, 0.125), CIRCLE))
    twin = exchange(scene, "colour")
    assert [o.colour for o in twin.objects] == ["blue", "red", "green"]


@pytest.mark.parametrize(
    "scene, what",
    [
        (Scene((SQUARE,)), "colour"),
        (Scene((SQUARE, Object("circle", "red", "large", 0.75, 0.5))), "colour"),
        (Scene((SQUARE, Object("square", "red", "small", 0.75, 0.5))), "place"),
        # In the corner there is room for something small only.
        (Scene((Object("star", "red", "small", 0.125, 0.125), CIRCLE)), "place"),
        (Scene((Object("star", "red", "small", 0.125, 0.125), CIRCLE)), "size"),
    ],
)
def test_where_there_is_no_twin(scene, what):
    assert exchange(scene, what) is None


@pytest.mark.parametrize("what", EXCHANGES)
def test_twins_have_the_same_words_in_another_order(what):
    first, second = twins(50, 0, what)
    assert len(first) == len(second) == 50
    for a, b in zip(first, second, strict=True):
        mine, other = scenes.caption(a), scenes.caption(b)
        assert mine != other
        relations = {"to", "the", "left", "of", "above", "below", "and"}
        words = [Counter(w for w in c.split() if w not in relations) for c in (mine, other)]
        assert words[0] == words[1]
    assert twins(20, 0, what)[0] == twins(20, 0, what)[0]
    assert twins(20, 0, what)[0] != twins(20, 1, what)[0]


def test_splits():
    first, second = twins(60, 3, split="train")
    assert {DEFAULT_HOLDOUT.split(s) for s in (*first, *second)} == {"train"}
    first, second = twins(60, 3, split="test")
    assert {DEFAULT_HOLDOUT.split(s) for s in first} == {"test"}
    assert {DEFAULT_HOLDOUT.split(s) for s in second} == {"train", "test"}


def test_scores_by_hand():
    """Every outcome of one pair: all orders of four different scores."""
    for order in itertools.permutations([0.0, 1.0, 2.0, 3.0]):
        (a, b), (c, d) = score = torch.tensor(order).reshape(2, 2).tolist()
        # Two pictures as axes; a caption's vector holds its scores with both.
        images = torch.eye(2)[:1], torch.eye(2)[1:]
        texts = torch.tensor([[a, c]]), torch.tensor([[b, d]])
        found = twin_scores(images, texts)
        caption = [a > b, d > c]
        picture = [a > c, d > b]
        assert found["caption"] == sum(caption) / 2, score
        assert found["picture"] == sum(picture) / 2, score
        assert found["all"] == float(all(caption + picture)), score


def test_chance_and_ties():
    generator = torch.Generator().manual_seed(0)
    # Scores that are independent: the caption holds one for each picture.
    eye = torch.eye(2)
    images = [eye[i].expand(20_000, 2) for i in range(2)]
    texts = [torch.randn(20_000, 2, generator=generator) for _ in range(2)]
    found = twin_scores(images, texts)
    assert found["caption"] == pytest.approx(1 / 2, abs=0.01)
    assert found["picture"] == pytest.approx(1 / 2, abs=0.01)
    assert found["all"] == pytest.approx(1 / 6, abs=0.01)
    same = [torch.ones(4, 2)] * 2
    assert twin_scores(same, same) == {"caption": 0.0, "picture": 0.0, "all": 0.0}


@pytest.mark.parametrize(
    "function, arguments, options, message",
    [
        (exchange, (Scene((SQUARE, CIRCLE)), "background"), {}, "what must be one of colour"),
        (twins, (0, 0), {}, "count must be at least 1: got 0"),
        (twins, (5, 0), {"split": "dev"}, "split must be one of .*: got 'dev'"),
        (twins, (5, 0, "colours"), {}, "what must be one of"),
        (twins, (5, 0), {"objects": 1}, "only 0 scenes have a twin, of 5 wanted"),
        (twin_scores, ([torch.ones(2, 3)], [torch.ones(2, 3)] * 2), {}, "two tensors of one shape"),
        (twin_scores, ([torch.ones(2, 3)] * 2, [torch.ones(2, 4)] * 2), {}, "two tensors"),
        (twin_scores, ([torch.ones(3)] * 2, [torch.ones(3)] * 2), {}, "two tensors"),
    ],
)
def test_bad_inputs(unchecked, function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(function)(*arguments, **options)

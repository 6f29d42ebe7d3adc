"""Marks: each demand of a caption, right and wrong by one."""

import dataclasses
from itertools import permutations

import pytest
import torch

from mmlib.data import scenes
from mmlib.data.scenes import MARGIN, Object, Scene
from mmlib.marks import TOLERANCE, Demands, Marks, demands, mark, mark_objects

STAR = Object("star", "red", "small", 0.25, 0.5)
RING = Object("ring", "blue", "large", 0.75, 0.5)
HEART = Object("heart", "green", "small", 0.5, 0.125)
CAPTION = "a small red star to the left of a large blue ring, and a small green heart at the top"


def wrong(found, wanted, **options):
    """The names of the marks that are bad, of one picture."""
    marks = mark([found], [wanted], **options)
    return [name for name, good in marks._asdict().items() if not good.item()]


# ---- what a caption asks for


def test_demands_of_a_caption():
    assert demands(CAPTION) == Demands(
        (
            {"size": "small", "colour": "red", "shape": "star"},
            {"size": "large", "colour": "blue", "shape": "ring"},
            {"size": "small", "colour": "green", "shape": "heart"},
        ),
        ((2, "top"),),
        (("left", 0, 1),),
    )


def test_demands_of_a_thing_beside_another():
    asked = demands("a ring with a star to its left")
    assert asked.relations == (("left", 1, 0),)
    assert asked.things == ({"shape": "ring"}, {"shape": "star"})
    assert demands("有一个圆环，它的左边是一个星形", "zh").relations


def test_a_caption_and_its_translation_ask_for_the_same():
    for number, scene in enumerate(scenes.sample(40, seed=3)):
        for options in ({}, {"mode": "free", "seed": number}):
            english = demands(scenes.caption(scene, "en", **options))
            chinese = demands(scenes.caption(scene, "zh", **options), "zh")
            # The two languages may name the things in another order.
            assert {frozenset(t.items()) for t in english.things} == {
                frozenset(t.items()) for t in chinese.things
            }
            assert len(english.relations) == len(chinese.relations)


# ---- marks


def test_a_scene_is_right_by_its_own_captions():
    drawn = scenes.sample(200, seed=1)
    found = [list(scene.objects) for scene in drawn]
    assert mark(found, drawn).right.all()
    for language in ("en", "zh"):
        told = [scenes.caption(scene, language) for scene in drawn]
        assert mark(found, told, language=language).right.all()
        free = [scenes.caption(scene, language, "free", seed=k) for k, scene in enumerate(drawn)]
        assert mark(found, free, language=language, exact=False).right.all()


def test_a_caption_of_another_scene_is_right_where_it_is_true():
    """Against the grammar's own judgement, away from the borders that the tolerance moves."""
    drawn = [
        scene
        for scene in scenes.sample(400, seed=2, objects=1)
        if all(
            abs(value - third / 3) > TOLERANCE
            for value in (scene.objects[0].x, scene.objects[0].y)
            for third in (1, 2)
        )
    ]
    seen = [list(scene.objects) for scene in drawn]
    for text in ("there is a star", "there is a large ring", "a red object at the top"):
        expected = [scenes.is_true(text, scene) for scene in drawn]
        assert mark(seen, [text] * len(drawn)).right.tolist() == expected
        assert 0 < sum(expected) < len(drawn)


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        ({"colour": "orange"}, ["colour"]),
        ({"shape": "cross"}, ["shape"]),
        ({"size": "large"}, ["size"]),
        ({"y": 0.5 + MARGIN + 2 * TOLERANCE}, ["place"]),
        ({"colour": "orange", "shape": "cross"}, ["colour", "shape"]),
    ],
)
def test_one_thing_wrong(change, bad):
    star = dataclasses.replace(STAR, **change)
    assert wrong([star, RING, HEART], CAPTION) == bad
    assert wrong([STAR, RING, HEART], CAPTION) == []


def test_objects_too_few_and_too_many():
    assert wrong([STAR, RING, HEART, dataclasses.replace(HEART, y=0.875)], CAPTION) == ["count"]
    # The heart is missing, and with it its words and its place.
    assert wrong([STAR, RING], CAPTION) == ["count", "colour", "shape", "size", "place"]
    assert wrong([], "there is a star") == ["count", "shape"]
    assert wrong([STAR] * 9, "a small red star on the left") == list(Marks._fields)


def test_order_does_not_matter():
    for order in permutations([STAR, RING, HEART]):
        assert wrong(list(order), CAPTION) == []


def test_exchanged_colours_are_wrong():
    star, ring = dataclasses.replace(STAR, colour="blue"), dataclasses.replace(RING, colour="red")
    assert wrong([star, ring, HEART], CAPTION) == ["colour"]


def test_a_place_holds_within_half_a_pixel():
    assert TOLERANCE == 0.5 / 32
    edge = 1 / 3
    for text, x, y in (("a star at the top", 0.5, edge), ("a star in the centre", edge, 0.5)):
        side = 1 if text.endswith("top") else -1
        inside, outside = (
            {"x": x, "y": y} | {("y" if side == 1 else "x"): edge + side * step * TOLERANCE}
            for step in (0.9, 1.1)
        )
        assert wrong([dataclasses.replace(STAR, **inside)], text) == []
        assert wrong([dataclasses.replace(STAR, **outside)], text) == ["place"]


def test_a_direction_holds_within_half_a_pixel():
    text = "a star to the left of a ring"
    for short, bad in ((0.9, []), (1.1, ["place"])):
        near = dataclasses.replace(RING, x=STAR.x + MARGIN - short * TOLERANCE)
        assert wrong([STAR, near], text) == bad
        lower = dataclasses.replace(RING, y=STAR.y + MARGIN + short * TOLERANCE)
        assert wrong([STAR, lower], text) == bad
        assert wrong([STAR, lower], text, exact=False) == []  # it is above as well
    assert wrong([STAR, dataclasses.replace(RING, x=0.2)], text) == ["place"]


def test_every_direction():
    middle, words = Object("ring", "blue", "small", 0.5, 0.5), ("star", "red", "small")
    directions = {
        scenes.direction(Object(*words, 0.5 + 0.3 * x, 0.5 + 0.3 * y), middle): (x, y)
        for x in (-1, 0, 1)
        for y in (-1, 0, 1)
        if x or y
    }
    assert set(directions) == set(scenes.DIRECTIONS)
    for x, y in directions.values():
        star = Object(*words, 0.5 + 0.3 * x, 0.5 + 0.3 * y)
        told = scenes.caption(Scene((star, middle)), mode="canonical")
        good = [
            other
            for other in directions.values()
            if not wrong([Object(*words, 0.5 + 0.3 * other[0], 0.5 + 0.3 * other[1]), middle], told)
        ]
        assert good == [(x, y)]


def test_marks_of_no_picture():
    marks = mark([], [])
    assert marks.right.shape == (0,) and marks.colour.dtype == torch.bool


# ---- marks of objects


def test_objects_are_matched_by_place():
    scene = Scene((STAR, RING, HEART))
    moved = dataclasses.replace(STAR, x=STAR.x + 2 / 32, colour="white")
    gone = dataclasses.replace(HEART, y=HEART.y + 4 / 32)
    marks = mark_objects([[RING, gone, moved]], [scene])
    # Reading order: star, heart, ring.
    assert marks.found.tolist() == [True, False, True]
    assert marks.colour.tolist() == [False, False, True]
    assert marks.shape.tolist() == marks.size.tolist() == [True, False, True]
    assert not torch.stack(list(mark_objects([[]], [scene]))).any()


# ---- bad input


def test_bad_input():
    with pytest.raises(ValueError, match="wanted must be one for each picture: got 1 for 0"):
        mark([], ["a star"])
    with pytest.raises(ValueError, match="drawn must be one for each picture: got 0 for 1"):
        mark_objects([[]], [])
    with pytest.raises(ValueError, match="unknown words"):
        mark([[STAR]], ["a purple banana"])
    with pytest.raises(ValueError, match="language must be one of en, zh"):
        mark([[STAR]], ["there is a star"], language="de")

"""The pointing game on scenes: questions, right boxes and baselines."""

import pytest
import torch

from mmlib.data import scenes
from mmlib.pointing import (
    VOCABULARY,
    caption_words,
    descriptions,
    questions,
    word_kinds,
)
from mmlib.region_words import points_inside

SAMPLE = scenes.sample(30, seed=6, objects=(1, 4))


def test_captions_as_numbers_and_back():
    ids, keep = caption_words(SAMPLE)
    for scene, row, kept in zip(SAMPLE, ids, keep, strict=True):
        words = [VOCABULARY[i] for i in row[kept]]
        assert words == scenes.tokenize(scenes.caption(scene), "en")


def test_descriptions_are_the_objects_in_order():
    found = descriptions(SAMPLE)
    assert found.shape == (30, 4, 3)
    for scene, rows in zip(SAMPLE, found.tolist(), strict=True):
        said = [tuple(VOCABULARY[i] for i in row) for row in rows if row[0] >= 0]
        assert said == [(o.size, o.colour, o.shape) for o in scene.objects]
        assert all(row == [-1] * 3 for row in rows[len(said) :])


def test_each_word_has_its_kind():
    kinds = dict(zip(VOCABULARY, word_kinds().tolist(), strict=True))
    for number, words in enumerate((scenes.SIZES, scenes.COLOURS, scenes.SHAPES)):
        assert all(kinds.pop(word) == number for word in words)
    assert set(kinds.values()) == {-1}


def by_hand(some):
    """Every question again, one object at a time."""
    rows = {"size": [], "colour": [], "shape": [], "description": []}
    for number, scene in enumerate(some):
        boxes = scenes.boxes(scene).tolist()
        for k, item in enumerate(scene.objects):
            for kind in ("size", "colour", "shape"):
                right = [
                    box
                    for other, box in zip(scene.objects, boxes, strict=True)
                    if getattr(other, kind) == getattr(item, kind)
                ]
                rows[kind].append((number, [getattr(item, kind)], right))
            said = [item.size, item.colour, item.shape]
            rows["description"].append((number, said, [boxes[k]]))
    return rows


def test_questions_are_those_asked_by_hand():
    expected = by_hand(SAMPLE)
    found = questions(SAMPLE)
    assert list(found) == list(expected)
    for kind, asked in found.items():
        rows = []
        for picture, words, said, boxes, things in zip(*asked, strict=True):
            assert things == len(SAMPLE[picture].objects)
            real = boxes[boxes.any(1)].tolist()
            rows.append((picture.item(), [VOCABULARY[i] for i in words[said]], real))
        assert rows == expected[kind]


def test_some_questions_have_several_right_answers():
    several = {kind: q.boxes.any(-1).sum(1).max().item() for kind, q in questions(SAMPLE).items()}
    assert several["size"] > 1 and several["colour"] > 1 and several["shape"] > 1
    assert several["description"] == 1


def test_baselines_are_shares_of_area_and_of_middles():
    middle = scenes.Scene((scenes.Object("star", "red", "large", 0.5, 0.5),))
    corner = scenes.Scene((scenes.Object("star", "red", "large", 0.2, 0.2),))
    asked = questions([middle, corner])["shape"]
    box = scenes.boxes(middle)[0]
    area = ((box[2] - box[0]) * (box[3] - box[1])).item()
    assert asked.random == pytest.approx(area)
    assert asked.middle == 0.5
    assert asked.any_thing == 1.0
    grid = torch.eye(64 * 64).view(-1, 64, 64)  # every place of a fine grid
    hits = [points_inside(cell.expand(2, -1, -1), asked.boxes) for cell in grid]
    assert torch.stack(hits).double().mean().item() == pytest.approx(area, abs=0.01)


def test_the_chance_of_a_random_thing():
    three = ("star", 0.2), ("ring", 0.5), ("ring", 0.8)
    scene = scenes.Scene(tuple(scenes.Object(s, "red", "small", x, 0.5) for s, x in three))
    asked = questions([scene])
    assert asked["colour"].any_thing == asked["size"].any_thing == 1.0
    assert asked["shape"].any_thing == pytest.approx((1 + 2 + 2) / 9)
    assert asked["description"].any_thing == pytest.approx(1 / 3)


@pytest.mark.parametrize("function", [caption_words, descriptions, questions])
def test_no_scene_is_refused(unchecked, function):
    with pytest.raises(ValueError, match="scenes must not be empty"):
        unchecked(function)([])

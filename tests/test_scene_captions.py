"""Batches of scenes with captions, and the marks of what a caption says."""

import pytest
import torch

from mmlib.data import scenes
from mmlib.data.scene_captions import attribute_scores, caption_batch, named_things
from mmlib.data.translation import BEGIN, END, PAD, Vocabulary

VOCABULARY = Vocabulary(scenes.vocabulary("en", "canonical"))
SCENES = scenes.sample(40, seed=3, objects=(1, 3))
CAPTIONS = [scenes.tokenize(scenes.caption(scene), "en") for scene in SCENES]


@pytest.mark.parametrize("mode", ["canonical", "free"])
def test_a_batch_holds_the_captions_of_its_pictures(mode):
    words = Vocabulary(scenes.vocabulary("en", mode))
    batch = caption_batch(SCENES, words, mode=mode, seed=7)
    assert torch.equal(batch.images, scenes.render(SCENES, 32))
    assert torch.equal(batch.keep, batch.tokens != PAD)
    for i, (scene, row, keep) in enumerate(zip(SCENES, batch.tokens, batch.keep, strict=True)):
        ids = row[keep].tolist()
        assert ids[0] == BEGIN and ids[-1] == END and END not in ids[:-1]
        assert not keep[len(ids) :].any()
        text = scenes.detokenize(words.decode(ids[1:-1]), "en")
        seed = None if mode == "canonical" else 7 + i
        assert text == scenes.caption(scene, "en", mode, seed)


def test_things_are_found_where_they_stand():
    for scene, words in zip(SCENES, CAPTIONS, strict=True):
        things = named_things(words)
        assert len(things) == len(scene.objects)
        for thing, item in zip(things, scene.objects, strict=True):
            assert thing[1:] == (item.size, item.colour, item.shape)
            assert words[thing.at : thing.at + 3] == list(thing[1:])


def test_no_grammar_is_needed():
    words = "small red star star red small blue ring"
    assert [thing.shape for thing in named_things(words.split())] == ["star", "ring"]
    assert named_things([]) == [] and named_things(["small", "red"]) == []


def test_true_captions_get_full_marks():
    assert set(attribute_scores(CAPTIONS, SCENES).values()) == {1.0}


RING = scenes.Object("ring", "blue", "large", 0.75, 0.5)
STAR = scenes.Object("star", "red", "small", 0.25, 0.5)
TWO = scenes.Scene((STAR, RING))
MARKS = {
    "a small red star to the left of a large blue ring": (1.0, 1.0, 1.0, 1.0),
    "a small red star to the right of a large blue ring": (1.0, 1.0, 1.0, 0.0),
    "a small red star to the left of a large blue star": (5 / 6, 0.5, 0.0, 0.0),
    "a large blue ring to the left of a small red star": (0.0, 0.0, 0.0, 0.0),
    "a small red star on the left": (0.5, 0.5, 0.0, 0.0),
    "a small red star above a large blue ring , and a small red star on the left": (
        1.0,
        1.0,
        0.0,
        0.0,
    ),
    "": (0.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("text, marks", MARKS.items())
def test_marks_by_hand(text, marks):
    got = attribute_scores([text.split()], [TWO])
    assert tuple(got.values()) == pytest.approx(marks)
    assert list(got) == ["attributes", "objects", "scenes", "exact"]


def test_marks_are_means():
    got = attribute_scores([["small", "red", "star"], []], [TWO, TWO])
    assert got["attributes"] == pytest.approx(3 / 12) and got["objects"] == 0.25


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="items must not be empty"):
        caption_batch([], VOCABULARY)
    with pytest.raises(ValueError, match="words must be in the vocabulary"):
        caption_batch(SCENES, Vocabulary(["a"]))
    for captions, items in ((CAPTIONS, SCENES[1:]), ([], [])):
        with pytest.raises(ValueError, match="must be as many"):
            attribute_scores(captions, items)

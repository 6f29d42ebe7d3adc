"""Batches of scenes with captions, and the marks of what a caption says."""

import pytest
import torch

from mmlib.data import scenes
from mmlib.data.scene_captions import (
    CaptionBatch,
    attribute_scores,
    caption_batch,
    named_things,
    without_colour,
)
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


FREE_WORDS = Vocabulary(scenes.vocabulary("en", "free"))
COLOURS = torch.tensor(FREE_WORDS.encode(scenes.COLOURS))
SOME = torch.arange(len(SCENES)) % 3 == 0


@pytest.fixture(scope="module", params=["canonical", "free"])
def pair(request):
    batch = caption_batch(SCENES, FREE_WORDS, mode=request.param)
    return batch, without_colour(batch, FREE_WORDS, SOME, seed=1)


def test_the_pictures_asked_for_are_grey_and_the_others_as_they_were(pair):
    batch, grey = pair
    assert torch.equal(grey.images[~SOME], batch.images[~SOME])
    assert torch.equal(grey.images[SOME], grey.images[SOME][:, :1].expand(-1, 3, -1, -1))
    assert grey.images.min() >= 0 and grey.images.max() <= 1
    assert not torch.equal(batch.images[SOME], grey.images[SOME])


def test_each_grey_is_a_mean_of_the_three_channels(pair):
    """The weights are found again from the pictures; they are not negative and sum to 1."""
    batch, grey = pair
    found = []
    for row in SOME.nonzero().flatten().tolist():
        channels = batch.images[row].flatten(1).T.double()
        if torch.linalg.matrix_rank(channels, rtol=1e-3) < 3:  # one colour on its ground
            continue
        solved = torch.linalg.lstsq(channels, grey.images[row, 0].flatten().double()[:, None])
        weights = solved.solution[:, 0]
        torch.testing.assert_close(channels @ weights, grey.images[row, 0].flatten().double())
        assert (weights > -1e-4).all() and abs(weights.sum().item() - 1) < 1e-4
        found.append(weights)
    assert len(found) > 4
    assert torch.stack(found).std(0).min() > 0.1  # another grey for each picture


def test_greys_weights_are_uniform_on_the_simplex():
    """Of a Dirichlet(1, 1, 1) each weight has the mean 1/3 and the variance 1/18."""
    primary = torch.zeros(4000, 3, 1, 1)
    primary[:, 0] = 1.0  # the grey is the weight of red
    tokens = torch.ones(4000, 2, dtype=torch.long)
    batch = CaptionBatch(primary, tokens, tokens > 0)
    every = torch.ones(4000, dtype=torch.bool)
    weight = without_colour(batch, FREE_WORDS, every, seed=3).images[:, 0].flatten()
    assert abs(weight.mean().item() - 1 / 3) < 0.02
    assert abs(weight.var().item() - 1 / 18) < 0.005


def test_only_what_colour_tells_is_left_out(pair):
    batch, grey = pair
    colour = torch.isin(batch.tokens, COLOURS) & SOME[:, None]
    an = (batch.tokens == FREE_WORDS.encode(["an"])[0]) & SOME[:, None]
    assert colour.any()
    assert torch.equal(grey.keep, batch.keep & ~colour & ~an)
    assert torch.equal(grey.tokens[~colour], batch.tokens[~colour])


def test_an_tells_of_orange_and_is_left_out():
    said = [BEGIN, *FREE_WORDS.encode(["there", "is", "an", "orange", "ring"]), END]
    tokens = torch.tensor([said, said])
    batch = CaptionBatch(torch.rand(2, 3, 8, 8), tokens, tokens != PAD)
    keep = without_colour(batch, FREE_WORDS, torch.tensor([True, False]), seed=0).keep
    assert keep.tolist() == [[True, True, True, False, False, True, True], [True] * 7]


def test_the_colours_read_say_nothing_of_the_true_ones():
    many = scenes.sample(2000, seed=8, objects=1)
    batch = caption_batch(many, VOCABULARY)
    words = torch.tensor(VOCABULARY.encode(scenes.COLOURS))
    every = torch.ones(2000, dtype=torch.bool)
    grey = without_colour(batch, VOCABULARY, every, seed=2)
    place = torch.isin(batch.tokens, words)
    assert torch.isin(grey.tokens[place], words).all()
    table = torch.zeros(len(VOCABULARY), len(VOCABULARY))
    index = batch.tokens[place], grey.tokens[place]
    table.index_put_(index, torch.ones(2000), accumulate=True)
    table = table[words][:, words]
    assert (table > 10).all() and (table < 65).all()  # about 31 of each pair


def test_grey_is_the_seeds_and_changes_no_input():
    batch = caption_batch(SCENES, FREE_WORDS)
    before = [part.clone() for part in batch]
    state = torch.get_rng_state()
    runs = [without_colour(batch, FREE_WORDS, SOME, seed=seed) for seed in (0, 0, 1)]
    assert all(map(torch.equal, batch, before))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, runs[0], runs[1]))
    assert not torch.equal(runs[0].images, runs[2].images)
    assert not torch.equal(runs[0].tokens, runs[2].tokens)


def test_bad_rows_are_named(unchecked):
    batch = caption_batch(SCENES, VOCABULARY)
    with pytest.raises(TypeError, match="rows must be boolean"):
        unchecked(without_colour)(batch, VOCABULARY, SOME.float(), seed=0)
    with pytest.raises(ValueError, match=r"rows must have shape \(40,\): got \(39,\)"):
        unchecked(without_colour)(batch, VOCABULARY, SOME[1:], seed=0)
    with pytest.raises(ValueError, match="words must be in the vocabulary"):
        without_colour(batch, Vocabulary(["red"]), SOME, seed=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="items must not be empty"):
        caption_batch([], VOCABULARY)
    with pytest.raises(ValueError, match="words must be in the vocabulary"):
        caption_batch(SCENES, Vocabulary(["a"]))
    for captions, items in ((CAPTIONS, SCENES[1:]), ([], [])):
        with pytest.raises(ValueError, match="must be as many"):
            attribute_scores(captions, items)

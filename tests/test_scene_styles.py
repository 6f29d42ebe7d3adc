"""Outlines and words in pictures of scenes: what changes, and what must not."""

import pytest
import torch

from mmlib.data import scenes
from mmlib.data.scene_styles import outlines, write

DRAWN = scenes.sample(6, seed=3, objects=(1, 3))


def test_outlines_of_a_square_are_its_edge():
    picture = torch.zeros(1, 3, 12, 12)
    picture[:, 0, 2:10, 3:11] = 0.7
    expected = picture.clone()
    expected[:, :, 4:8, 5:9] = 0
    assert torch.equal(outlines(picture), expected)


@pytest.mark.parametrize("background", ["black", "brown"])
def test_outlines_leave_the_background_and_only_take_away(background):
    drawn = scenes.sample(6, seed=3, objects=(1, 3), background=background)
    pictures = scenes.render(drawn, 32)
    found, ground = outlines(pictures), pictures[:, :, :1, :1]
    taken = (found != pictures).any(1, keepdim=True)
    assert taken.any()
    assert torch.equal(found.where(taken, ground.expand_as(found)), ground.expand_as(found)), (
        "what is taken away becomes background"
    )
    visible = (pictures - ground).abs().amax(1, keepdim=True) > 0.1
    assert not (taken & ~visible).any()
    assert (visible & ~taken).flatten(1).any(1).all()  # and something is left


def test_a_wider_outline_leaves_more():
    pictures = scenes.render(DRAWN, 32)
    one, two = (outlines(pictures, width) for width in (1, 2))
    assert (two != pictures).sum() < (one != pictures).sum()


def test_writing_brightens_some_pixels_of_every_picture():
    pictures = scenes.render(DRAWN, 32)
    written = write(pictures, ["heart", "ring", "star", "circle", "square", "cross"], 0)
    assert ((written - pictures) >= 0).all()
    assert written.max() <= 1
    changed = (written != pictures).any(1)
    assert (changed.flatten(1).sum(1) > 20).all()
    assert (changed.any(2).sum(1) <= 8).all()  # one line of letters of eight pixels


def test_words_differ_and_are_the_same_from_the_same_seed():
    blank = torch.zeros(2, 3, 32, 32)
    one, other = write(blank, ["star", "star"], 1), write(blank, ["star", "ring"], 1)
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    assert torch.equal(one, write(blank, ["star", "star"], torch.Generator().manual_seed(1)))


def test_heights_are_drawn_and_the_word_is_in_the_middle():
    written = write(torch.zeros(60, 3, 32, 32), ["ring"] * 60, 0)
    rows = {int(p.any(1).int().argmax()) for p in (written > 0.5).any(1)}
    assert len(rows) > 12
    columns = (written > 0.5).any(1).any(1).any(0).nonzero()[:, 0].tolist()
    assert abs(columns[0] - (31 - columns[-1])) <= 1


def test_letters_are_not_cut_off():
    """The top of a letter is as far from the strip's top in a high picture as in a low one."""
    high = write(torch.zeros(1, 3, 64, 64), ["star"], 0)
    ink = high[0, 0].any(1).sum()
    for seed in range(20):
        low = write(torch.zeros(1, 3, 8, 64), ["star"], seed)
        assert low[0, 0].any(1).sum() == ink


def test_inputs_are_left_alone():
    pictures = scenes.render(DRAWN, 32)
    before = pictures.clone()
    outlines(pictures)
    write(pictures, ["ring"] * 6, 0)
    assert torch.equal(pictures, before)


BLANK = torch.zeros(1, 3, 32, 32)
BAD = [
    (outlines, (BLANK[0],), "images must have shape"),
    (outlines, (BLANK, 0), "width must be at least 1: got 0"),
    (write, (BLANK[0], ["ring"], 0), "with a word for each"),
    (write, (BLANK, ["ring", "star"], 0), "and 2 words"),
    (write, (BLANK, [""], 0), "must have letters"),
    (write, (BLANK[:, :, :3], ["ring"], 0), "fit into 3 pixels: got 'ring'"),
]


@pytest.mark.parametrize("function, given, message", BAD)
def test_bad_inputs(unchecked, function, given, message):
    with pytest.raises(ValueError, match=message):
        unchecked(function)(*given)

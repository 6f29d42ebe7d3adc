"""Dual learning: the losses against loops, what reaches which weights, and the pictures."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.data import scenes
from mmlib.dual_learning import (
    KINDS,
    Describer,
    Painter,
    dual_loss,
    exact,
    one_thing,
    paired_loss,
    soft_words,
)


def models():
    return Describer(width=4), Painter(width=4)


def one_hot(words):
    rows = torch.zeros(len(words), sum(KINDS))
    for row, (size, colour, shape) in zip(rows, words.tolist(), strict=True):
        row[size] = row[2 + colour] = row[10 + shape] = 1.0
    return rows


def said(logits, words):
    """Cross-entropy, one word at a time."""
    total = 0.0
    for row, (size, colour, shape) in zip(logits, words.tolist(), strict=True):
        for part, at in ((row[:2], size), (row[2:10], colour), (row[10:], shape)):
            total = total - part.log_softmax(0)[at]
    return total / len(words)


PICTURES, WORDS = one_thing(5, seed=1)
OTHERS = one_thing(7, seed=2)[1]


def test_pictures_show_what_the_words_say():
    again, words = one_thing(5, seed=1)
    assert torch.equal(again, PICTURES) and torch.equal(words, WORDS)
    for picture, (size, colour, _) in zip(*one_thing(20, seed=3), strict=True):
        lit = (picture - picture[:, :1, :1]).abs().sum(0) > 0.05
        rows = lit.any(1).nonzero().flatten()
        middle = (rows[0] + rows[-1]) / 2
        assert abs(middle - 11.5) <= 1.6  # in the middle, but a heart's or triangle's own box
        radius = scenes.RADIUS[scenes.SIZES[size]] * 48
        assert rows[-1] - rows[0] + 1 <= 2 * radius + 2
        code = scenes.COLOUR_HEX[scenes.COLOURS[colour]]
        target = torch.tensor([int(code[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        assert (picture - target[:, None, None]).abs().sum(0).min() < 0.02


def test_anywhere_moves_the_thing():
    pictures, _ = one_thing(200, seed=4, anywhere=True)
    lit = (pictures - pictures[0, :, :1, :1]).abs().sum(1) > 0.05
    assert lit.any(0).float().mean() > 0.9


def test_things_are_as_large_in_both_worlds():
    # Most of a thing's pixels are full, whichever pixel its centre falls on.
    sums = []
    for anywhere in (False, True):
        pictures, _ = one_thing(60, seed=4, anywhere=anywhere)
        sums.append((pictures - pictures[0, :, :1, :1]).abs().sum((1, 2, 3)))
    torch.testing.assert_close(*sums, rtol=0.06, atol=0)


def test_soft_words_are_three_distributions():
    logits = torch.randn(3, sum(KINDS))
    shares = soft_words(logits)
    for part, own in zip(shares.split(KINDS, 1), logits.split(KINDS, 1), strict=True):
        torch.testing.assert_close(part, own.exp() / own.exp().sum(1, keepdim=True))


def test_paired_loss_is_the_formula():
    describer, painter = models()
    painted = painter(one_hot(WORDS)) - PICTURES
    expected = said(describer(PICTURES), WORDS) + painted.square().sum() / 5 / 10
    torch.testing.assert_close(paired_loss(describer, painter, PICTURES, WORDS), expected)


def test_dual_loss_is_the_formula():
    describer, painter = models()
    back = painter(soft_words(describer(PICTURES))) - PICTURES
    expected = back.square().sum() / 5 / 10 + said(describer(painter(one_hot(OTHERS))), OTHERS)
    torch.testing.assert_close(dual_loss(describer, painter, PICTURES, OTHERS), expected)


def test_both_models_learn_from_what_has_no_pair():
    describer, painter = models()
    dual_loss(describer, painter, PICTURES, OTHERS).backward()
    for model in (describer, painter):
        assert all(p.grad.abs().max() > 0 for p in model.parameters())


class Renamed(nn.Module):
    """A describer and a painter that agree on wrong words."""

    def __init__(self, table, shift):
        super().__init__()
        self.table, self.shift = table, shift

    def forward(self, x):
        if x.ndim == 4:  # which of the known pictures is it? say the next one's words
            at = (x[:, None] - self.table).square().flatten(2).sum(2).argmin(1)
            return 50.0 * one_hot(torch.stack([(at + self.shift) % 2, at * 0, at * 0], 1))
        return self.table[(x[:, :2].argmax(1) - self.shift) % 2]


def test_a_renaming_costs_nothing_without_pairs():
    table = torch.stack([torch.zeros(3, 24, 24), torch.ones(3, 24, 24)])
    words = torch.tensor([[0, 0, 0], [1, 0, 0]])
    for shift, paired_is_small in ((0, True), (1, False)):
        model = Renamed(table, shift)
        assert dual_loss(model, model, table, words) < 1e-6
        assert (paired_loss(model, model, table, words) < 1e-6) == paired_is_small


def test_exact_counts_whole_descriptions():
    logits = one_hot(WORDS)
    assert exact(logits, WORDS) == 1.0
    wrong = WORDS.clone()
    wrong[0, 2] = (wrong[0, 2] + 1) % 8
    wrong[1] = (wrong[1] + 1) % 2
    assert math.isclose(exact(logits, wrong), 0.6)


def test_bad_input(unchecked):
    describer, painter = models()
    with pytest.raises(ValueError, match="count must be at least 1: got 0"):
        unchecked(one_thing)(0, 1)
    with pytest.raises(ValueError, match="logits must have 18 columns: got 5"):
        unchecked(soft_words)(torch.rand(2, 5))
    with pytest.raises(ValueError, match="words must have shape"):
        unchecked(exact)(torch.rand(2, 18), WORDS)
    with pytest.raises(ValueError, match="as many: got 5 and 7"):
        unchecked(paired_loss)(describer, painter, PICTURES, OTHERS)
    with pytest.raises(ValueError, match="words must have shape"):
        unchecked(dual_loss)(describer, painter, PICTURES, OTHERS[:, :2])
    with pytest.raises(ValueError, match="pictures must have the shape"):
        unchecked(paired_loss)(describer, lambda w: F.relu(w), PICTURES, WORDS)
    for kind in (Describer, Painter):
        with pytest.raises(ValueError, match="width must be at least 2: got 1"):
            kind(1)

"""ROUGE, rejection curves and rankings: hand-made cases, and what they refuse."""

import math

import pytest
import torch

from mmlib.metrics.ranking import macro_f1, ndcg
from mmlib.metrics.rouge import longest_common, rouge_l, rouge_n
from mmlib.metrics.selective import accuracy_at, auroc, rejection_curve


def test_a_word_said_often_is_common_no_more_often_than_in_the_reference():
    assert rouge_n(["the"] * 4, ["the", "cat"], 1).precision == 0.25
    assert rouge_n([], ["the"], 1) == rouge_l([], ["the"]) == (0.0, 0.0, 0.0)


def test_rouge_l_needs_the_order_and_not_the_neighbourhood():
    assert longest_common(list("abcde"), list("axcxe")) == 3
    assert rouge_l(list("ab"), list("ba")).f == 0.5
    assert rouge_n(list("ab"), list("ba"), 1).f == 1.0


def test_the_rejection_curve_by_hand():
    correct = torch.tensor([True, False, True, True, False])
    curve = rejection_curve(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), correct)
    torch.testing.assert_close(curve.coverage, torch.arange(1, 6).double() / 5)
    torch.testing.assert_close(
        curve.accuracy, torch.tensor([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5], dtype=torch.float64)
    )
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)
    assert accuracy_at(curve, 0.4) == 0.5 and accuracy_at(curve, 0.41) == pytest.approx(2 / 3)


def test_equal_confidence_is_one_point_whatever_the_order():
    correct = torch.tensor([True, False, False, True])
    for order in ([0, 1, 2, 3], [1, 0, 3, 2]):
        curve = rejection_curve(torch.full((4,), 0.5), correct[order])
        assert curve.coverage.tolist() == [1.0] and curve.accuracy.tolist() == [0.5]


def test_a_confidence_that_knows_has_the_smallest_area():
    draw = torch.Generator().manual_seed(0)
    correct = torch.rand(500, generator=draw) < 0.7
    noise = torch.rand(500, generator=draw)
    best = rejection_curve(correct + 0.5 * noise, correct).area
    chance = rejection_curve(noise, correct).area
    worst = rejection_curve(noise - 2.0 * correct, correct).area
    assert best < 0.1 < chance < 0.4 < worst
    assert auroc(correct + 0.5 * noise, correct) == 1.0


def test_ndcg_of_one_hit():
    assert ndcg(torch.tensor([2]), 10) == pytest.approx(1 / math.log2(3))
    assert ndcg(torch.tensor([11]), 10) == 0.0
    assert ndcg(torch.tensor([10]), 10) > 0


def test_macro_f1_weighs_classes_alike():
    labels = torch.tensor([0] * 98 + [1] * 2)
    assert macro_f1(torch.zeros_like(labels), labels, 2) < 0.5
    assert macro_f1(labels, labels, 2) == 1.0


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f: f(rouge_n)("a b", ["a"]), TypeError, "list of words"),
        (lambda f: f(rouge_l)(["a"], "a b"), TypeError, "list of words"),
        (lambda f: rouge_n(["a"], ["a"], 0), ValueError, "n"),
        (lambda f: f(rejection_curve)(torch.ones(2), torch.ones(2)), TypeError, "boolean"),
        (lambda f: f(rejection_curve)(torch.ones(2), torch.ones(3) > 0), ValueError, "shape"),
        (lambda f: f(rejection_curve)(torch.ones(0), torch.ones(0) > 0), ValueError, "empty"),
        (lambda f: rejection_curve(torch.full((2,), torch.nan), torch.ones(2) > 0),
         ValueError, "NaN"),
        (lambda f: accuracy_at(rejection_curve(torch.ones(2), torch.ones(2) > 0), 0.0),
         ValueError, "coverage"),
        (lambda f: auroc(torch.ones(2), torch.ones(2) > 0), ValueError, "both kinds"),
        (lambda f: f(ndcg)(torch.ones(2), 3), TypeError, "whole"),
        (lambda f: ndcg(torch.tensor([0]), 3), ValueError, "from 1"),
        (lambda f: ndcg(torch.tensor([1]), 0), ValueError, "k"),
        (lambda f: f(macro_f1)(torch.ones(2), torch.ones(2), 2), TypeError, "whole"),
        (lambda f: f(macro_f1)(torch.tensor([1]), torch.tensor([0, 1]), 2), ValueError, "shape"),
        (lambda f: macro_f1(torch.tensor([2]), torch.tensor([0]), 2), ValueError, "from 0 to 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(unchecked, call, error, match):
    with pytest.raises(error, match=match):
        call(unchecked)

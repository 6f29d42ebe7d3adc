"""The official accuracy of VQA: hand-worked cases, and the loop of vqaEval.py."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlib.data.answers import normalise_together, soft_scores
from mmlib.metrics.vqa_accuracy import vqa_accuracy, vqa_scores


def official(answer, people):
    """The loop of vqaEval.py, over the choices of nine of ten."""
    answer, people = normalise_together(answer, people)
    scores = []
    for i in range(len(people)):
        others = people[:i] + people[i + 1 :]
        matching = [given for given in others if given == answer]
        scores.append(min(1, float(len(matching)) / 3))
    return float(sum(scores)) / len(scores)


@pytest.mark.parametrize("n, worth", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_of_ten_people(n, worth):
    # n = 2: with one of the two left out 1 agrees (1/3, twice), else 2 (2/3, eight times).
    assert vqa_accuracy("yes", ["yes"] * n + ["no"] * (10 - n)) == pytest.approx(worth)


@pytest.mark.parametrize(
    "answer, people, worth",
    [
        ("2", ["two"] * 5 + ["three"] * 5, 1),  # number words are digits
        ("A red bus!", ["red bus"] * 3 + ["bus"] * 7, 0.9),  # articles and marks go
        ("Yes", ["yes"] * 10, 0),  # all say the same: nothing is normalised
        ("Yes", ["yes"] * 9 + ["no"], 1),
        ("dont know", ["don't know"] * 1 + ["no"] * 9, 0.3),
        ("none", ["0"] * 2 + ["zero"] * 2 + ["1"] * 6, 1),
    ],
)
def test_by_hand(answer, people, worth):
    assert vqa_accuracy(answer, people) == pytest.approx(worth)


@given(st.sampled_from("abc"), st.lists(st.sampled_from(["b", "c", "d"]), min_size=2, max_size=12))
def test_equal_to_the_official_loop(answer, people):
    assert vqa_accuracy(answer, people) == pytest.approx(official(answer, people))


def test_equal_to_the_targets_of_training():
    people = ["red"] * 3 + ["blue"] * 2 + ["Pink."] + ["dark red"] * 4
    for answer, score in soft_scores(people, leave_one_out=True).items():
        assert vqa_accuracy(answer, people) == pytest.approx(score)


def test_the_mean_and_each_type():
    people = {1: ["yes"] * 10, 2: ["2"] * 2 + ["3"] * 8, 3: ["no"] * 10}
    scores = vqa_scores(
        {3: "yes", 1: "yes", 2: "2"}, people, {1: "yes/no", 2: "number", 3: "yes/no"}
    )
    assert scores.overall == pytest.approx((1 + 0.6 + 0) / 3)
    assert scores.by_type == pytest.approx({"yes/no": 0.5, "number": 0.6})
    assert scores.questions == 3 and vqa_scores({1: "yes"}, {1: ["yes"] * 10}).by_type == {}


BAD = [
    (vqa_accuracy, ("yes", "yes"), TypeError, "one string"),
    (vqa_accuracy, ("yes", ["yes"]), ValueError, "two"),
    (vqa_accuracy, (3, ["yes", "no"]), TypeError, "answer"),
    (vqa_scores, ({}, {}), ValueError, "at least one"),
    (vqa_scores, ({}, {1: ["a", "b"]}), ValueError, "1 missing"),
    (vqa_scores, ({1: "a", 2: "b"}, {1: ["a", "b"]}), ValueError, "1 unknown"),
    (vqa_scores, ({1: "a"}, {1: ["a", "b"]}, {}), ValueError, "types"),
]


@pytest.mark.parametrize("function, given_, error, words", BAD)
def test_bad_input(function, given_, error, words):
    with pytest.raises(error, match=words):
        inspect.unwrap(function)(*given_)

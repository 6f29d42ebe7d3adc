"""Answers: the official spelling case by case, soft scores and the vocabulary."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlib.data import answers
from mmlib.data.answers import AnswerVocabulary, normalise, normalise_together, soft_scores

GOLDEN = json.loads(
    (Path(__file__).parent / "reference" / "vqa_answers.json").read_text(encoding="utf-8")
)


def test_equal_to_the_official_evaluation():
    assert len(GOLDEN["pairs"]) == 420
    assert sum(given != expected for given, expected in GOLDEN["pairs"]) > 380
    wrong = {
        given: (normalise(given), expected)
        for given, expected in GOLDEN["pairs"]
        if normalise(given) != expected
    }
    assert not wrong


@pytest.mark.parametrize(
    "given, expected",
    [
        # numbers, articles, case, space
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("one hundred", "1 hundred"),
        ("eleven", "eleven"),
        ("The A an", ""),
        (" a\tred \n bed ", "red bed"),
        # contractions
        ("dont walk", "don't walk"),
        ("Im here", "im here"),  # the table has "Im", but the text is "im" by then
        ("somebody'd", "somebodyd"),
        ("hes", "he's"),
        ("it's", "it's"),
        # full stops
        ("yes.", "yes"),
        ("1.5", "1.5"),
        ("3.", "3"),
        ("v.5", "v.5"),
        ("u.s.a.", "usa"),
        ("." * 34 + "x", "..x"),
        # marks: between words a space, beside a space nothing, after 1,000 nothing anywhere
        ("red-and-blue", "red and blue"),
        ("red -blue-green", "red bluegreen"),
        ("red/blue", "red blue"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("1, 000", "1 000"),
        ("wow!", "wow"),
        ("50%", "50%"),
        ("5:30", "5:30"),
    ],
)
def test_rules_one_by_one(given, expected):
    assert normalise(given) == expected


@given(st.text(max_size=30))
def test_any_text_is_normalised_to_lower_case_words_without_articles(text):
    found = normalise(text)
    assert found == " ".join(found.split())
    assert not {"a", "an", "the", "none", "two"} & set(found.split())
    assert not set(found) & set(';/[]"{}()=+\\_-><@`,?!')


def test_nothing_is_normalised_where_all_agree():
    assert normalise_together("The Cat!", ["cat"] * 9 + ["Cat."]) == ("cat", ["cat"] * 10)
    assert normalise_together(" A\n", ["A"] * 10) == ("A", ["A"] * 10)
    # Spaces at the ends are taken off before they are compared.
    assert normalise_together("Yes.", ["yes ", "yes\n", "yes"]) == ("Yes.", ["yes"] * 3)


def test_soft_scores_by_hand():
    people = ["red"] * 5 + ["Red."] + ["dark red"] * 2 + ["the wine"] + ["maroon"]
    scores = soft_scores(people)
    assert scores == {"red": 1.0, "dark red": 2 / 3, "wine": 1 / 3, "maroon": 1 / 3}
    assert next(iter(scores)) == "red"


@pytest.mark.parametrize("n", range(1, 11))
def test_leave_one_out_is_the_mean_over_all_choices_of_nine(n):
    people = ["yes"] * n + [f"other {k}" for k in range(10 - n)]
    nine = [min(sum(p == "yes" for p in chosen) / 3, 1) for chosen in combinations(people, 9)]
    found = soft_scores(people, leave_one_out=True)["yes"]
    assert found == pytest.approx(sum(nine) / len(nine), abs=1e-12)
    # The numbers that are usually written down.
    assert found == pytest.approx([0.3, 0.6, 0.9, *[1.0] * 7][n - 1], abs=1e-12)


def test_vocabulary_is_ordered_by_frequency_then_alphabet():
    given = ["no", "No.", "yes", "YES", "two", "2", "2.", "blue", "the", ""]
    vocabulary = AnswerVocabulary.build(given)
    assert vocabulary.answers == ("2", "no", "yes", "blue")
    assert AnswerVocabulary.build(given, most=2).answers == ("2", "no")
    assert AnswerVocabulary.build(given, at_least=2).answers == ("2", "no", "yes")
    assert [vocabulary.number(a) for a in ("Two!", "yes", "red")] == [0, 2, None]


def test_targets_are_the_scores_at_the_answers_places():
    vocabulary = AnswerVocabulary(["yes", "no", "maybe"])
    people = ["Yes"] * 7 + ["no"] * 2 + ["unheard of"]
    expected = torch.tensor([1, 2 / 3, 0])
    assert torch.equal(vocabulary.targets(people), expected)
    exact = vocabulary.targets(people, leave_one_out=True)
    torch.testing.assert_close(exact, torch.tensor([1.0, 0.6, 0.0]))
    assert not vocabulary.targets(["green"] * 10).any()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: AnswerVocabulary([]), ValueError, "answers must not be empty"),
        (lambda: AnswerVocabulary(["a", "b", "a"]), ValueError, "got 'a' more than once"),
        (lambda: AnswerVocabulary.build(["x"], most=0), ValueError, "most must be at least 1"),
        (lambda: AnswerVocabulary.build(["x"], at_least=0), ValueError, "at_least must be at"),
        (lambda: AnswerVocabulary.build(["x"], at_least=2), ValueError, "none comes 2 times"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_an_answer_that_is_no_string_is_named(unchecked):
    with pytest.raises(TypeError, match="answer must be a string: got 3"):
        unchecked(answers._one_line)(3)

"""Word error rates against jiwer."""

import inspect
import random

import jiwer
import pytest

from mmlib.metrics.word_errors import word_error_rate, word_errors

WORDS = ["a", "b", "c", "d", "e"]


def sentences(count, seed, least=0):
    dice = random.Random(seed)
    return [dice.choices(WORDS, k=dice.randint(least, 9)) for _ in range(count)]


def test_rate_of_many_equals_jiwer():
    said, heard = sentences(60, 1, least=1), sentences(60, 2)
    expected = jiwer.wer([" ".join(x) for x in said], [" ".join(x) for x in heard])
    assert word_error_rate(said, heard) == pytest.approx(expected, abs=1e-12)
    mean = sum(word_errors(*p).rate for p in zip(said, heard, strict=True)) / 60
    assert abs(mean - expected) > 0.01  # the mean of rates is something else


def test_errors_of_each_add_up_as_jiwers():
    for said, heard in zip(sentences(60, 3, least=1), sentences(60, 4), strict=True):
        mine = word_errors(said, heard)
        theirs = jiwer.process_words(" ".join(said), " ".join(heard))
        assert sum(mine[:3]) == theirs.substitutions + theirs.deletions + theirs.insertions
        assert mine.deletions - mine.insertions == len(said) - len(heard)
        assert mine.words == len(said)


@pytest.mark.parametrize(
    ("said", "heard", "expected"),
    [
        ("a b c", "a b c", (0, 0, 0)),
        ("a b c", "a x c", (1, 0, 0)),
        ("a b c", "a c", (0, 1, 0)),
        ("a b", "a x b", (0, 0, 1)),
        ("a", "", (0, 1, 0)),
        ("a b", "b c", (0, 1, 1)),
    ],
)
def test_errors_by_hand(said, heard, expected):
    found = word_errors(said.split(), heard.split())
    assert sum(found[:3]) == sum(expected)
    if said != "a b":
        assert found[:3] == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f([], ["a"]), ValueError, "said must have a word"),
        (lambda f: f("a b", ["a"]), TypeError, "said must be a list of words"),
        (lambda f: f(["a"], "a"), TypeError, "heard must be a list of words"),
    ],
)
def test_bad_sentences(call, error, message):
    with pytest.raises(error, match=message):
        call(inspect.unwrap(word_errors))


@pytest.mark.parametrize(("said", "heard"), [([], []), ([["a"]], [])])
def test_bad_sets(said, heard):
    with pytest.raises(ValueError, match="as many sentences, at least one"):
        inspect.unwrap(word_error_rate)(said, heard)

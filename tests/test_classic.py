"""Classic preprocessing: Porter's stems equal nltk's, stop words, segmentation, and the cost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmlib.data import emoji, scenes
from mmlib.encoders import pretrained
from mmlib.encoders.classic import STOP_WORDS, merged, preprocess, segment, stem


@pytest.fixture(scope="module")
def porter():
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer(PorterStemmer.ORIGINAL_ALGORITHM)


def test_stems_equal_nltk_on_a_real_vocabulary(porter):
    lines = pretrained.files("minilm")["vocabulary"].read_text(encoding="utf-8").splitlines()
    words = [line for line in lines if re.fullmatch("[a-z]{3,}", line)]
    assert len(words) > 20_000
    assert {word: stem(word) for word in words} == {word: porter.stem(word) for word in words}
    # The endings of the pieces are suffixes, among them rare ones.
    endings = [line[2:] for line in lines if re.fullmatch("##[a-z]+", line)]
    for beginning in ("tr", "pluc", "oral"):
        for ending in endings[::3]:
            word = beginning + ending
            assert stem(word) == porter.stem(word), word


@given(st.text("abeilnostuyz", min_size=3, max_size=14))
def test_stems_equal_nltk_on_any_letters(porter, word):
    assert stem(word) == porter.stem(word)


def test_stems_of_the_paper():
    """Examples of Porter 1980, every step."""
    examples = """
        caresses caress, ponies poni, ties ti, cats cat, feed feed, agreed agre, plastered plaster,
        bled bled, motoring motor, sing sing, conflated conflat, troubled troubl, sized size,
        hopping hop, tanned tan, falling fall, hissing hiss, fizzed fizz, failing fail, filing file,
        happy happi, sky sky, relational relat, conditional condit, rational ration, valenci valenc,
        digitizer digit, vietnamization vietnam, operator oper, feudalism feudal,
        decisiveness decis, hopefulness hope, formaliti formal, triplicate triplic, formative form,
        electrical electr, hopeful hope, goodness good, revival reviv, allowance allow,
        airliner airlin, gyroscopic gyroscop, adjustable adjust, irritant irrit, replacement replac,
        adoption adopt, communism commun, effective effect, bowdlerize bowdler, probate probat,
        rate rate, cease ceas, controll control, roll roll, is is, as as
    """
    for pair in examples.split(","):
        word, expected = pair.split()
        assert stem(word) == expected


def test_upper_case_is_refused():
    with pytest.raises(ValueError, match="word must be in lower case: got 'Star'"):
        stem("Star")


def test_stop_words_are_those_of_snowball():
    assert len(STOP_WORDS) == 174
    assert {"above", "below", "not", "no", "up", "down", "on", "off", "isn't"} <= STOP_WORDS
    assert not {"left", "right", "us", "red"} & STOP_WORDS


def test_preprocess():
    text = "The Dogs' owner ISN’T running; 3 cats, naïve."
    assert preprocess(text, (), stemmed=False) == [
        "the", "dogs", "owner", "isn't", "running", "3", "cats", "naïve",
    ]  # fmt: skip
    assert preprocess(text) == ["dog", "owner", "run", "3", "cat", "naïv"]
    assert preprocess("") == preprocess("to be or not to be") == []


def test_segmentation_finds_the_words_of_the_grammar():
    words = scenes.vocabulary("zh")
    for scene in scenes.sample(300, seed=0):
        caption = scenes.caption(scene, "zh")
        assert segment(caption, words) == scenes.tokenize(caption, "zh")


def test_segmentation_keeps_every_character():
    assert segment("红 色x\n圆", ["红色"]) == ["红", "色", "x", "圆"]
    assert segment("a+b", ["a+"]) == ["a+", "b"]  # not a pattern
    assert segment("", ["红色"]) == []
    with pytest.raises(ValueError, match="words must not hold the empty word"):
        segment("红", ["", "红"])


def test_merged_counts():
    assert merged(["a", "b", "b", "ccc"], len) == (3, 2, 2)
    assert merged([], len) == (0, 0, 0)


def test_directions_are_lost():
    """Of the eight directions that captions tell, three are left."""
    texts = [f"a red star {words} a blue ring" for words in (
        "above", "below", "to the left of", "to the right of", "above and to the left of",
        "above and to the right of", "below and to the left of", "below and to the right of",
    )]  # fmt: skip
    assert merged(texts, lambda text: tuple(preprocess(text, (), False))) == (8, 8, 0)
    assert merged(texts, lambda text: tuple(preprocess(text))) == (8, 3, 8)


def test_names_of_emoji_that_can_no_longer_be_told_apart():
    names = emoji.load().names
    found = merged(names, lambda name: tuple(preprocess(name)))
    assert found == (1641, 1614, 49)
    for one, other in (
        ("thumbs up", "thumbs down"),
        ("mobile phone", "no mobile phones"),
        ("hourglass done", "hourglass not done"),
    ):
        assert {one, other} <= set(names)
        assert preprocess(one) == preprocess(other)

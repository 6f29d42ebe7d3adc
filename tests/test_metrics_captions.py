"""BLEU and CIDEr by hand, at their ends, and on bad input (other libraries: tests/reference)."""

import math

import pytest

from mmlib.metrics.bleu import SMOOTHING, bleu, sentence_bleu
from mmlib.metrics.cider import cider
from mmlib.metrics.ngrams import ngrams


def words(*captions):
    return [caption.split() for caption in captions]


def test_ngrams_by_hand():
    assert ngrams(["a", "b", "a", "b"], 3) == {
        ("a",): 2,
        ("b",): 2,
        ("a", "b"): 2,
        ("b", "a"): 1,
        ("a", "b", "a"): 1,
        ("b", "a", "b"): 1,
    }
    assert ngrams([], 4) == ngrams(["a"], 0) == {}


def test_bleu_of_the_papers_example():
    # Papineni et al., section 2.1: "the" seven times, of which two count.
    references = [words("the cat is on the mat", "there is a cat on the mat")]
    found = bleu(words("the the the the the the the"), references, order=2)
    assert found.precisions == (2 / 7, 0.0)
    assert found.score == 0.0
    found = bleu(words("the the the the the the the"), references, order=1)
    assert found == (2 / 7, (2 / 7,), 1.0, 7, 7)


def test_bleu_by_hand():
    found = bleu(words("a red star here", "a dot"), [words("a red star is here"), words("a dot")])
    # 6 of 6 words, 3 of 4 pairs, 1 of 2 triples, 0 of 1 quadruple; 6 words against 7.
    assert found.precisions == (1.0, 0.75, 0.5, 0.0)
    assert (found.candidate_length, found.reference_length) == (6, 7)
    assert found.brevity_penalty == pytest.approx(math.exp(1 - 7 / 6))
    assert found.score == 0.0
    floor = bleu(
        words("a red star here", "a dot"),
        [words("a red star is here"), words("a dot")],
        smoothing="floor",
    )
    expected = math.exp(1 - 7 / 6) * (1 * 0.75 * 0.5 * 0.1) ** 0.25
    assert floor.score == pytest.approx(expected)


def test_a_corpus_is_not_the_mean_of_its_sentences():
    candidates = words("a red star on the left", "a dot")
    references = [words("a red star on the left"), words("one big dot")]
    whole = bleu(candidates, references, order=1).score
    parts = [
        sentence_bleu(c, r, order=1).score for c, r in zip(candidates, references, strict=True)
    ]
    assert whole == pytest.approx(7 / 8 * math.exp(1 - 9 / 8))
    assert parts == pytest.approx([1.0, 0.5 * math.exp(1 - 3 / 2)])


def test_the_reference_nearest_in_length_counts_and_of_two_the_shorter():
    def length(*captions):
        return bleu(words("a b c d"), [words(*captions)], order=1).reference_length

    assert length("a b c d e f g", "a b c d e") == 5
    assert length("a b c d e", "a b c") == length("a b c", "a b c d e") == 3
    assert length("a b c d e f", "") == 6
    assert length("") == 0


def test_captions_shorter_than_the_order_score_only_with_the_effective_order():
    same = words("red star"), [words("red star")]
    assert bleu(*same).score == 0.0
    assert bleu(*same, smoothing="exp").score == 0.0
    assert bleu(*same, effective_order=True).score == 1.0
    assert bleu(*same, effective_order=True, smoothing="floor").score == 1.0


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_nothing_in_common_is_0_with_any_smoothing(smoothing):
    found = bleu(words("x y z", ""), [words("a b c"), words("a")], smoothing=smoothing)
    assert found.score == 0.0
    assert found.precisions == (0.0,) * 4


def test_nothing_said_is_0():
    assert bleu([[]], [words("a b")]) == (0.0, (0.0,) * 4, 0.0, 0, 2)


def test_cider_by_hand():
    # "x" and "y" stand in one item's references of two, "a" in both: log 2, log 2, 0.
    candidates, references = words("a x x", "y"), [words("a x", "x"), words("a y")]
    found = cider(candidates, references, order=1, sigma=3.0)
    # Item 0: both references and the candidate point the way of x. Clipped: 1 x of 2.
    one_word_less = math.exp(-1 / (2 * 9))  # 3 words against 2 and 1
    two_less = math.exp(-4 / (2 * 9))
    first = 10 * (one_word_less * 0.5 + two_less * 0.5) / 2
    second = 10 * one_word_less * 1.0  # 1 word against 2; "a" weighs nothing
    assert found.scores == pytest.approx((first, second))
    assert found.score == pytest.approx((first + second) / 2)


def test_cider_at_its_ends():
    captions = words("a b c d", "e f g h", "i j k l")
    alone = [[caption] for caption in captions]
    assert cider(captions, alone).scores == pytest.approx((10.0, 10.0, 10.0))
    assert cider(captions[::-1], alone).scores == pytest.approx((0.0, 10.0, 0.0))
    assert cider([[], [], []], alone).score == 0.0
    assert cider(captions[:1], alone[:1]).score == 0.0  # one item: nothing is rare
    assert cider(words("a b", "c d"), [words("a b"), words("c d")]).score == pytest.approx(5.0)


def test_cider_clips_repetition():
    references = [words("a b c d"), words("e f g h")]
    plain = cider(words("a b c d", "e f g h"), references).scores[0]
    assert cider(words("a a a a a a b c d", "e f g h"), references).scores[0] < plain / 2


def test_inputs_are_unchanged_and_may_be_tuples():
    candidates, references = words("a b", "c"), [words("a b", "b"), words("c")]
    before = repr((candidates, references))
    lists = bleu(candidates, references), cider(candidates, references)
    assert repr((candidates, references)) == before
    frozen = tuple(map(tuple, candidates)), tuple(tuple(map(tuple, r)) for r in references)
    assert (bleu(*frozen), cider(*frozen)) == lists


C, R = words("a b"), [words("a b")]
BAD = {
    "string": (["a b"], R, {}, TypeError, "a caption must be a list of words: got 'a b', item 0"),
    "string reference": (C, [["a b"]], {}, TypeError, "must be a list of words: got 'a b'"),
    "references of strings": (C, ["a b"], {}, ValueError, "item 0 has none"),
    "ids": ([[1, 2]], R, {}, TypeError, "a caption must be a list of words: got [1, 2]"),
    "no items": ([], [], {}, ValueError, "got 0 candidates and references for 0 items"),
    "numbers": (C, R * 2, {}, ValueError, "got 1 candidates and references for 2 items"),
    "no reference": (C * 2, [R[0], []], {}, ValueError, "item 1 has none"),
    "order 0": (C, R, {"order": 0}, ValueError, "order must be at least 1: got 0"),
    "order 2.0": (C, R, {"order": 2.0}, TypeError, "order must be a whole number: got 2.0"),
}
BAD_BLEU = {
    "smoothing": ({"smoothing": "exponential"}, "smoothing must be one of none, floor, add-k, exp"),
    "no value": ({"smoothing_value": 1.0}, "smoothing_value must be None for 'none': got 1.0"),
    "exp": ({"smoothing": "exp", "smoothing_value": 2.0}, "must be None for 'exp'"),
    "floor 0": ({"smoothing": "floor", "smoothing_value": 0.0}, "must be above 0: got 0.0"),
    "k": ({"smoothing": "add-k", "smoothing_value": math.inf}, "must be above 0: got inf"),
}


@pytest.mark.parametrize("metric", [bleu, cider])
@pytest.mark.parametrize("case", BAD)
def test_bad_captions(metric, case, unchecked):
    candidates, references, options, error, message = BAD[case]
    with pytest.raises(error) as caught:
        unchecked(metric)(candidates, references, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("case", BAD_BLEU)
def test_bad_smoothing(case):
    options, message = BAD_BLEU[case]
    with pytest.raises(ValueError) as caught:
        bleu(C, R, **options)
    assert message in str(caught.value)
    with pytest.raises(ValueError):
        sentence_bleu(C[0], R[0], **options)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_bad_sigma(sigma):
    with pytest.raises(ValueError, match="sigma must be above 0"):
        cider(C, R, sigma=sigma)

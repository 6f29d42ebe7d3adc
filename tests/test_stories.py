"""Stories: all they say is true, they hang together, and their pairs leak nothing by form."""

import re
from collections import Counter

import pytest

from mmlib.data import scenes
from mmlib.data.scenes import RADIUS, is_true
from mmlib.data.stories import sample_stories, sentence_pairs, statements

STORIES = sample_stories(400, seed=0)


def indefinite(sentence: str) -> str:
    """What the grammar of the captions, which has no *the*, can judge."""
    return re.sub(r"\bthe (\w+ \w+) ", lambda m: f"a {m[1]} ", f"{sentence.removesuffix(' .')} ")


def as_caption(sentence: str) -> str:
    words = indefinite(sentence).strip()
    # "in the top left": not an object, and put back.
    words = re.sub(r"\b(in|at|on|to) a ", r"\1 the ", words)
    return re.sub(r"\ba (?=[aeiou])", "an ", words)


def test_every_sentence_but_the_last_is_true():
    for story in STORIES[:200]:
        for sentence in story.sentences[:-1]:
            assert is_true(as_caption(sentence), story.scene), sentence


def test_a_false_sentence_would_be_found():
    wrong = [
        is_true(as_caption(story.sentences[1]), other.scene)
        for story, other in zip(STORIES[:100], STORIES[1:101], strict=True)
    ]
    assert sum(wrong) <= 5


def test_the_last_sentence_compares_sizes_rightly():
    seen = Counter()
    for story in STORIES:
        by_name = {f"{item.colour} {item.shape}": RADIUS[item.size] for item in story.objects}
        found = re.fullmatch(
            r"the (\w+ \w+) (is smaller than|is larger than|has the same size as) the (\w+ \w+) \.",
            story.sentences[-1],
        )
        one, other = by_name[found[1]], by_name[found[3]]
        assert found[1] != found[3]
        word = {True: "is larger than", False: "is smaller than"}[one > other]
        assert found[2] == ("has the same size as" if one == other else word)
        seen[found[2]] += 1
    assert min(seen.values()) > 50  # each of the three happens


def test_each_sentence_leads_from_the_last_object_to_a_new_one():
    for story in STORIES:
        for old, new, sentence in zip(
            story.objects[:-1], story.objects[1:], story.sentences[1:-1], strict=True
        ):
            assert f"the {old.colour} {old.shape}" in sentence
            assert f"a {new.size} {new.colour} {new.shape}" in sentence


def test_objects_are_those_of_the_scene_and_can_be_told_apart():
    for story in STORIES:
        assert set(story.objects) == set(story.scene.objects)
        looks = {(item.colour, item.shape) for item in story.objects}
        assert len(looks) == len(story.objects) == len(story.sentences) - 1
    assert {len(story.objects) for story in STORIES} == {2, 3, 4}


def test_a_story_depends_on_seed_and_number_alone():
    assert sample_stories(30, seed=0) == STORIES[:30]
    assert sample_stories(30, seed=1) != STORIES[:30]


def test_splits_hold_out_combinations():
    held = scenes.DEFAULT_HOLDOUT
    for split, wanted in (("train", "train"), ("test", "test")):
        stories = sample_stories(60, seed=2, split=split)
        assert {held.split(story.scene) for story in stories} == {wanted}


def test_objects_can_be_chosen():
    assert {len(s.objects) for s in sample_stories(20, seed=0, objects=3)} == {3}
    assert {len(s.objects) for s in sample_stories(40, seed=0, objects=(2, 3))} == {2, 3}


def test_text_joins_the_sentences():
    story = STORIES[0]
    assert story.text.split(" . ")[0] + " ." == story.sentences[0]


def test_pairs_are_what_they_say():
    texts = [story.sentences for story in STORIES]
    pairs = sentence_pairs(texts, seed=0)
    true = 0
    for first, second, is_next, story in zip(*pairs, texts, strict=True):
        cut = len(first.split(" . "))
        assert first == " ".join(story[:cut])
        if is_next:
            assert second == story[cut]
            true += 1
        elif second in story:
            pytest.fail("a false second sentence is from the same story")
    assert 160 <= true <= 240  # 5 sigma around half of 400 is 150 to 250


def test_the_form_of_the_second_sentence_tells_nothing():
    pairs = sentence_pairs([story.sentences for story in sample_stories(3000, seed=3)], seed=1)
    compares = [bool(re.search("size as|larger|smaller", second)) for second in pairs.second]
    shares = [
        sum(c for c, n in zip(compares, pairs.is_next, strict=True) if n is kind)
        / pairs.is_next.count(kind)
        for kind in (True, False)
    ]
    assert abs(shares[0] - shares[1]) < 0.06
    # Nor does the length of the first part.
    for kind, share in zip((True, False), shares, strict=True):
        same = [
            compare == (len(first.split(" . ")) >= 2)
            for first, compare, n in zip(pairs.first, compares, pairs.is_next, strict=True)
            if n is kind
        ]
        assert 0.5 < sum(same) / len(same) < 0.9, (kind, share)


def test_a_pair_says_whether_the_object_was_there():
    """The reader's rule, *was the thing with "the" told of before?*, is nearly always right."""
    pairs = sentence_pairs([story.sentences for story in sample_stories(1000, seed=4)], seed=1)
    right = 0
    for first, second, is_next in zip(*pairs, strict=True):
        named = re.findall(rf"the ((?:{'|'.join(scenes.COLOURS)}) \w+)", second)
        right += all(f"{pair} " in first for pair in named) == is_next
    assert right / 1000 > 0.97


def test_statements_are_true_or_of_another_object():
    made = statements(STORIES, seed=0)
    assert len(made.stories) > 300
    assert 0.4 < sum(made.is_true) / len(made.is_true) < 0.6
    for story, statement, true in zip(*made, strict=True):
        shape, colour = re.fullmatch(r"the (\w+) is (\w+) \.", statement).groups()
        told = re.findall(rf"a \w+ (\w+) {shape}", story)
        assert len(told) == 1
        assert (told[0] == colour) is true
        assert re.search(rf"a \w+ {colour} \w+", story)  # the colour occurs, true or not


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: sample_stories(-1, 0), ValueError, "count must be at least 0: got -1"),
        (lambda: sample_stories(2, -1), ValueError, "seed must be between"),
        (lambda: sample_stories(2, 0.5), TypeError, "seed must be an integer"),
        (lambda: sample_stories(2, 0, objects=1), ValueError, "objects must be at least 2"),
        (lambda: sample_stories(2, 0, objects=(1, 3)), ValueError, "objects must be at least 2"),
        (lambda: sample_stories(2, 0, objects=(2, 9)), ValueError, "objects must be 1 <= low"),
        (lambda: sample_stories(2, 0, split="dev"), ValueError, "split must be one of"),
        (lambda: sentence_pairs([["a .", "b ."]], 0), ValueError, "at least two, of at least two"),
        (lambda: sentence_pairs([["a ."], ["b .", "c ."]], 0), ValueError, "the shortest of 1"),
        (lambda: sentence_pairs([["a .", "b ."]] * 2, -3), ValueError, "seed must be between"),
        (lambda: statements(STORIES[:2], "0"), TypeError, "seed must be an integer"),
    ],
)
def test_bad_input_is_named(call, error, words, monkeypatch, unchecked):
    for name in ("sample_stories", "sentence_pairs", "statements"):
        monkeypatch.setitem(globals(), name, unchecked(globals()[name]))
    with pytest.raises(error, match=re.escape(words)):
        call()

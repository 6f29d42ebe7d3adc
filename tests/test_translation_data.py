"""The translation task: pairs mean the same, splits are clean, batches lose nothing."""

import pytest

from mmlib.data import scenes
from mmlib.data.translation import (
    BEGIN,
    END,
    PAD,
    Vocabulary,
    caption_pairs,
    collate,
    length_batches,
)

ENGLISH = Vocabulary(scenes.vocabulary("en", "canonical"))
CHINESE = Vocabulary(scenes.vocabulary("zh", "canonical"))


def words_of(batch):
    rows = zip(batch.source.tolist(), batch.target.tolist(), strict=True)
    return [
        (ENGLISH.decode([i for i in s if i != PAD]), CHINESE.decode([i for i in t if i > END]))
        for s, t in rows
    ]


def test_pairs_are_translations_and_deterministic():
    pairs = caption_pairs(50, seed=3)
    assert pairs == caption_pairs(50, seed=3) != caption_pairs(50, seed=4)
    for english, chinese in pairs:
        text = scenes.detokenize(english, "en")
        assert scenes.translate(text) == scenes.detokenize(chinese, "zh")


def test_test_captions_hold_a_combination_that_training_captions_lack():
    def combinations(pairs):
        return [{(w[i + 2], w[i + 3]) for i, a in enumerate(w) if a == "a"} for w, _ in pairs]

    train = set().union(*combinations(caption_pairs(3000, seed=1, split="train")))
    held_out = set(scenes.DEFAULT_HOLDOUT.pairs)
    assert len(train) == 64 - len(held_out) and not train & held_out
    assert all(c & held_out for c in combinations(caption_pairs(300, seed=1, split="test")))


def test_batches_hold_every_pair_once_and_hardly_any_padding():
    pairs = caption_pairs(1000, seed=0)
    batches = length_batches(pairs, ENGLISH, CHINESE, batch_size=32, seed=0)
    assert sorted(words_of(batch)[i] for batch in batches for i in range(len(batch.source))) == (
        sorted(pairs)
    )
    again = length_batches(pairs, ENGLISH, CHINESE, batch_size=32, seed=0)
    assert all((a.source == b.source).all() for a, b in zip(batches, again, strict=True))

    def padding(batches):
        sizes = [b.target.numel() for b in batches]
        return sum(int((b.target == PAD).sum()) for b in batches) / sum(sizes)

    plain = [collate(pairs[i : i + 32], ENGLISH, CHINESE) for i in range(0, 1000, 32)]
    assert padding(batches) < 0.1 < padding(plain)


def test_a_target_runs_from_begin_to_end():
    batch = collate(caption_pairs(20, seed=0), ENGLISH, CHINESE)
    assert (batch.target[:, 0] == BEGIN).all()
    assert ((batch.target == END).sum(1) == 1).all()
    assert words_of(batch) == caption_pairs(20, seed=0)


def test_bad_input_is_named():
    pairs = caption_pairs(2, seed=0)
    with pytest.raises(ValueError, match="words must all be different"):
        Vocabulary(["a", "b", "a"])
    with pytest.raises(ValueError, match="got 'pink'"):
        ENGLISH.encode(["a", "pink"])
    with pytest.raises(ValueError, match="pairs must not be empty"):
        collate([], ENGLISH, CHINESE)
    with pytest.raises(ValueError, match="batch_size must be at least 1: got 0"):
        length_batches(pairs, ENGLISH, CHINESE, batch_size=0, seed=0)
    with pytest.raises(ValueError, match="pairs must not be empty"):
        length_batches([], ENGLISH, CHINESE, batch_size=4, seed=0)

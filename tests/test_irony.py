"""The irony task: real ratings, an exact XOR, ceilings that can be computed."""

import csv
import hashlib
import io
import math

import pytest
import torch

from mmlib.data import emoji, irony
from mmlib.data.emoji_ratings import SOURCE, Rating, folds, polar_emoji, ratings
from mmlib.download import fetch


@pytest.fixture(scope="module")
def polar():
    return polar_emoji(progress=False)


# Ratings


def test_the_table_is_the_published_one():
    path = fetch(SOURCE, progress=False)["ratings"]
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    rated = ratings(progress=False)
    assert len(rows) == len(rated) == 969
    for row in rows:
        rating = rated[f"{ord(row['Emoji']):x}"]  # by the character, not by the column we use
        assert rating == tuple(int(row[k]) for k in ("Negative", "Neutral", "Positive"))
    # Table 2 of the paper: the most frequent emoji and their scores.
    for character, score in (("😂", 0.221), ("😍", 0.678), ("😭", -0.093), ("😊", 0.644)):
        assert abs(rated[f"{ord(character):x}"].score - score) < 0.001


def test_score_is_the_mean_of_the_laplace_estimate():
    rating = Rating(3, 4, 9)
    shares = [(n + 1) / (rating.count + 3) for n in rating]
    assert rating.score == pytest.approx(shares[2] - shares[0])
    assert rating.count == 16


def test_polar_emoji_are_those_of_the_table(polar):
    rated, every = ratings(progress=False), emoji.load()
    expected = []
    for code, group in zip(every.codes, every.groups, strict=True):
        points = [p for p in code.lower().split("-") if p != "fe0f"]
        rating = rated.get(points[0]) if len(points) == 1 else None
        face = group == "Smileys & Emotion"
        if rating and face and rating.count >= 20 and abs(rating.score) >= 0.05:
            expected.append((code, rating.score, rating.count))
    assert list(polar.emoji.codes) == [code for code, _, _ in expected]
    torch.testing.assert_close(polar.scores, torch.tensor([score for _, score, _ in expected]))
    assert polar.counts.tolist() == [count for _, _, count in expected]
    assert polar.scores.abs().min() >= 0.05 and polar.counts.min() >= 20
    assert torch.equal(polar.positive, polar.scores > 0)
    named = dict(zip(polar.emoji.names, polar.positive.tolist(), strict=True))
    assert named["red heart"] and not named["angry face"] and not named["loudly crying face"]


def test_margin_and_least_take_away(polar):
    fewer = polar_emoji(margin=0.2, least=100, progress=False)
    assert set(fewer.emoji.codes) < set(polar.emoji.codes)
    assert len(polar_emoji(group=None, progress=False)) > 3 * len(polar)


@pytest.mark.parametrize("count", [2, 5, 30])
def test_folds_are_even_and_the_same_everywhere(polar, count):
    parts = folds(polar, count)
    for positive in (True, False):
        sizes = torch.bincount(parts[polar.positive == positive], minlength=count)
        assert sizes.max() - sizes.min() <= 1 and sizes.min() >= 1
    order = sorted(
        (i for i in range(len(polar)) if polar.positive[i]),
        key=lambda i: hashlib.sha256(polar.emoji.codes[i].encode()).hexdigest(),
    )
    assert parts[order].tolist() == [turn % count for turn in range(len(order))]


# Messages


def test_templates_are_split_and_words_are_not(polar):
    said = {
        split: irony.messages(3000, polar.positive, templates=split, seed=1)
        for split in irony.TEMPLATES
    }
    assert not set(said["seen"].texts) & set(said["unseen"].texts)
    words = set(irony.vocabulary())
    for messages in said.values():
        assert {word for text in messages.texts for word in text.split()} <= words
        assert not any(f" a {vowel}" in text for text in messages.texts for vowel in "aeu")
    spoken = {word for text in said["seen"].texts for word in text.split()}
    assert spoken == words


def test_praise_can_be_read_off_the_adjective(polar):
    said = irony.messages(2000, polar.positive, templates="unseen", seed=2)
    for text, praises in zip(said.texts, said.praises.tolist(), strict=True):
        found = {mood for mood, words in irony._WORDS.items() if set(words) & set(text.split())}
        assert found == {praises}


def test_ironic_is_the_exclusive_or(polar):
    said = irony.messages(5000, polar.positive, seed=3)
    assert torch.equal(said.ironic, said.praises ^ said.feels)
    assert torch.equal(polar.positive[said.emoji], said.feels)
    assert irony.ceiling(said.ironic, said.praises, said.feels) == 1.0
    # A view of k values and n items is above a half by chance: about sqrt(k / (2 pi n)).
    for view, most in ((said.praises, 0.53), (said.feels, 0.53), (said.emoji, 0.58)):
        assert irony.ceiling(said.ironic, view) < most
    cells = torch.bincount(2 * said.praises.long() + said.feels.long()) / len(said)
    torch.testing.assert_close(cells, torch.full((4,), 0.25), atol=0.02, rtol=0)
    shown = torch.bincount(said.emoji, minlength=len(polar)).double()
    assert (shown > 0).all()


def test_messages_are_their_seeds_and_only_of_the_emoji_allowed(polar):
    among = (folds(polar) == 2).nonzero()[:, 0]
    one, two, other = (irony.messages(200, polar.positive, among=among, seed=s) for s in (7, 7, 8))
    assert one.texts == two.texts and torch.equal(one.emoji, two.emoji)
    assert torch.equal(one.pitch, two.pitch) and one.texts != other.texts
    assert set(one.emoji.tolist()) == set(among.tolist())
    assert repr(one) == f"Messages(200, {int(one.ironic.sum())} of them ironic)"


def test_messages_draw_from_no_global_state(polar):
    state = torch.random.get_rng_state()
    irony.messages(5, polar.positive)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_best_listener_hears_what_the_formula_says(polar):
    said = irony.messages(8000, polar.positive, seed=4)
    heard = (irony.hears(said.pitch, said.rate) == said.feels).double().mean().item()
    assert abs(heard - irony.voice_ceiling()) < 0.012
    distance = math.sqrt((30 / 20) ** 2 + (50 / 33) ** 2)
    normal = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(distance / 2)).item()
    assert irony.voice_ceiling() == pytest.approx(normal, abs=1e-6)
    # No other line does better, as far as a search can tell.
    for slope in torch.linspace(-3, 3, 61):
        line = (said.rate - 165) / 33 + slope * (said.pitch - 50) / 20 > 0
        assert (line == said.feels).double().mean().item() < heard + 0.006


def test_the_voice_is_the_same_sentence_slower_and_lower(polar):
    said = irony.messages(3, polar.positive, seed=5)
    sounds = said.waveforms()
    assert len(sounds) == 3 and all(sound.dtype == torch.float32 for sound in sounds)
    slow, fast = (
        irony.Messages(said.texts[:1], *(part[:1] for part in (said.praises, said.emoji,
                       said.feels, said.pitch)), torch.tensor([rate])).waveforms()[0]
        for rate in (100, 250)
    )  # fmt: skip
    assert len(slow) > 1.5 * len(fast)


def test_ceiling_by_hand():
    assert irony.ceiling([1, 1, 0]) == pytest.approx(2 / 3)
    assert irony.ceiling("abab", [1, 2, 1, 2]) == 1.0
    assert irony.ceiling([0, 0, 1, 1], [5, 5, 5, 6]) == pytest.approx(3 / 4)


POSITIVE = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: polar_emoji(margin=1.0), "margin must lie"),
        (lambda: polar_emoji(margin=-0.1), "margin must lie"),
        (lambda: polar_emoji(least=0), "least must be at least 1"),
        (lambda: polar_emoji(group="Faces"), "group must be one of"),
        (lambda: polar_emoji(least=10**6, progress=False), "no emoji"),
        (lambda: folds(polar_emoji(progress=False), 1), "count must be a whole number from 2"),
        (lambda: folds(polar_emoji(progress=False), 31), "to 30"),
        (lambda: irony.sentence("old", generator=torch.Generator()), "templates must be one of"),
        (lambda: irony.messages(0, POSITIVE), "count must be at least 1"),
        (lambda: irony.messages(2, POSITIVE, templates="old"), "templates must be one of"),
        (lambda: irony.messages(2, POSITIVE, among=[0, 2]), "both polarities"),
        (lambda: irony.ceiling([]), "at least one item"),
        (lambda: irony.ceiling([1, 2], [1]), "as long as"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()

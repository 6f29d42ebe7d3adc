"""Two towers: scores, losses, hard negatives, what is trained and what stands still, bad input."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmlib import matching
from mmlib.class_words import ClassWords
from mmlib.contrastive import clip_loss
from mmlib.data.batch import Batch
from mmlib.encoders.bert import Bert, BertConfig
from mmlib.encoders.image import EfficientNetLite0
from mmlib.matching import Heads, MatchingConfig, MatchingModel, matching_loss
from mmlib.towers import stages, towers, tune, tuned_parts
from mmlib.training import TrainConfig, fit, load_weights, save_weights


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def small_bert():
    torch.manual_seed(1)
    return Bert(BertConfig(50, dim=16, heads=2, layers=3, max_length=12, pool="mean"))


@pytest.fixture
def model():
    torch.manual_seed(0)
    image = EfficientNetLite0(pretrained=False)
    return MatchingModel(image, small_bert(), MatchingConfig(dim=8, dropout=0.2))


def pairs(count=4):
    torch.manual_seed(2)
    keep = torch.arange(6) < torch.tensor([6, 3, 4, 2])[:count, None]
    return Batch(
        images=torch.rand(count, 3, 32, 32),
        text=torch.randint(1, 50, (count, 6)) * keep,
        text_keep=keep,
    )


# ---- scores


def test_bilinear_score_is_its_formula():
    heads = Heads(7, 5, MatchingConfig(dim=3, score="bilinear")).double()
    image, text = draw(4, 7, seed=1), draw(6, 5, seed=2)
    seen = (image - image.mean(1, keepdim=True)) / (
        image.var(1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    found = heads.score(*heads(image, text))
    for i in range(4):
        for j in range(6):
            expected = seen[i] @ heads.weight @ text[j] / text[j].norm()
            assert found[i, j].item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.linalg.matrix_rank(heads.weight) == 3


def test_cosine_score_is_its_formula():
    heads = Heads(7, 5, MatchingConfig(dim=3)).double()
    image, text = draw(4, 7, seed=1), draw(6, 5, seed=2)
    u, v = heads.image(image), heads.text(F.normalize(text, dim=1))
    expected = 20 * F.cosine_similarity(u[:, None], v[None], dim=2)
    torch.testing.assert_close(heads.score(*heads(image, text)), expected, rtol=1e-6, atol=1e-6)
    for vectors in heads(image, text):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)).double())


def test_size_of_the_features_moves_no_score():
    for score in ("cosine", "bilinear"):
        heads = Heads(7, 5, MatchingConfig(dim=3, score=score)).double()
        image, text = draw(4, 7, seed=1), draw(6, 5, seed=2)
        torch.testing.assert_close(heads.texts(1000 * text), heads.texts(text))
        torch.testing.assert_close(
            heads.images(1000 * image), heads.images(image), rtol=1e-3, atol=1e-3
        )


def test_a_map_from_the_texts_own_space_starts_as_the_identity():
    heads = Heads(7, 5, MatchingConfig(dim=5)).double()
    text = draw(6, 5, seed=2)
    bias = heads.text.bias
    torch.testing.assert_close(
        heads.texts(text), F.normalize(F.normalize(text, dim=1) + bias, dim=1)
    )
    other = Heads(7, 6, MatchingConfig(dim=5))
    assert not torch.equal(other.text.weight[:, :5], torch.eye(5))


def test_words_of_a_classifier_are_added():
    classifier = nn.Linear(7, 4).double()
    words = ClassWords(classifier, draw(4, 5, seed=3))
    heads = Heads(7, 5, MatchingConfig(dim=5, score="bilinear"), words).double()
    image = draw(4, 7, seed=1)
    own = heads.image(image)
    named = heads.words(image) @ heads.word_map.weight.T
    torch.testing.assert_close(heads.images(image), own + math.sqrt(5) / 5 * named)
    assert {n for n, _ in heads.named_parameters()} == {
        "image.2.weight", "text.weight", "word_map.weight",
    }  # fmt: skip


# ---- the loss


@given(st.integers(1, 8), st.integers(0, 50))
def test_loss_on_cosines_is_clips(batch, seed):
    image, text = (F.normalize(draw(batch, 5, seed=seed + k), dim=1) for k in range(2))
    groups = torch.randint(0, 3, (batch,), generator=torch.Generator().manual_seed(seed))
    for given_groups in (None, groups):
        found = matching_loss(9 * image @ text.T, given_groups)
        expected = clip_loss(image, text, 9.0, groups=given_groups)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_loss_against_one_number_at_a_time():
    scores, groups = draw(4, 4, seed=1), [0, 1, 0, 2]
    total = 0.0
    for matrix in (scores, scores.T):
        for i in range(4):
            own = [j for j in range(4) if groups[j] == groups[i]]
            normaliser = sum(math.exp(matrix[i, j]) for j in range(4))
            total -= sum(math.log(math.exp(matrix[i, j]) / normaliser) for j in own) / len(own)
    found = matching_loss(scores, torch.tensor(groups))
    assert found.item() == pytest.approx(total / 8, abs=1e-12)


def test_gradient_of_the_loss_against_finite_differences():
    scores = draw(4, 4, seed=1).requires_grad_()
    groups = torch.tensor([0, 1, 0, 2])
    assert torch.autograd.gradcheck(lambda s: matching_loss(s, groups), scores)


# ---- hard negatives


@given(st.integers(1, 6), st.integers(3, 7), st.integers(1, 2), st.integers(0, 99))
def test_hard_negatives_against_brute_force(queries, items, count, seed):
    scores = draw(queries, items, seed=seed)
    relevant = torch.zeros(queries, items, dtype=torch.bool)
    relevant[torch.arange(queries), torch.arange(queries) % items] = True
    found = matching.hard_negatives(scores, relevant, count)
    for i in range(queries):
        wrong = [j for j in range(items) if not relevant[i, j]]
        assert found[i].tolist() == sorted(wrong, key=lambda j: -scores[i, j])[:count]


def test_a_batch_brings_the_hard_negatives_of_its_seeds():
    negatives = torch.tensor([[(i + 1) % 20, (i + 7) % 20] for i in range(20)])
    for seed in range(5):
        batch = matching.hard_batch(negatives, 9, torch.Generator().manual_seed(seed))
        assert len(set(batch.tolist())) == len(batch) == 9
        first = torch.randperm(20, generator=torch.Generator().manual_seed(seed))[0].item()
        assert batch[:3].tolist() == [first, (first + 1) % 20, (first + 7) % 20]
        again = matching.hard_batch(negatives, 9, torch.Generator().manual_seed(seed))
        assert torch.equal(batch, again)
    everything = matching.hard_batch(negatives, 20, torch.Generator().manual_seed(0))
    assert sorted(everything.tolist()) == list(range(20))


# ---- what is trained


def test_tuning_frees_exactly_the_last_stages():
    bert, cnn = small_bert(), EfficientNetLite0(pretrained=False)
    names = [n for n, _ in bert.named_parameters()]
    assert tune(bert, 1) == [n for n in names if n.startswith("encoder.blocks.2.")]
    assert tune(bert, None) == names and len(stages(bert)) == 4
    assert tune(bert, 0) == []
    names = [n for n, _ in cnn.named_parameters()]
    last = ("backbone.conv_head.", "backbone.bn2.")
    assert tune(cnn, 1) == [n for n in names if n.startswith(last)]
    assert tune(cnn, 2) == [n for n in names if n.startswith((*last, "backbone.blocks.6."))]
    assert tune(cnn, 9) == tune(cnn, None) == names


def test_stages_hold_every_parameter_once():
    for encoder in (small_bert(), EfficientNetLite0(pretrained=False)):
        held = [id(p) for part in stages(encoder) for m in part for p in m.parameters()]
        assert len(held) == len(set(held)) == len(list(encoder.parameters()))


@pytest.mark.parametrize("last", [0, 2])
def test_what_stands_still_does_not_move(model, last):
    trained = {f"image.{n}" for n in tune(model.image, last)}
    tune(model.text, 0)
    trained |= {f"heads.{n}" for n, _ in model.heads.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    fit(
        model,
        lambda m, batch: matching_loss(m.heads.score(*m(batch))),
        [pairs()],
        TrainConfig(2, learning_rate=1e-2, progress=False),
    )
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    # Among them no running mean or variance of a batch norm.
    assert moved == trained
    assert last == 0 or "image.backbone.blocks.6.0.bn2.weight" in moved


def test_frozen_towers_get_no_gradient_and_no_noise(model):
    tune(model.image, 0)
    tune(model.text, 1)
    model.train()
    batch = pairs()
    loss = matching_loss(model.heads.score(*model(batch)))
    loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, p in model.named_parameters() if p.requires_grad}
    blocks = model.text.encoder.blocks
    assert [b.training for b in blocks] == [False, False, True]
    assert not model.text.embeddings.dropout.training
    assert blocks[2].training and model.heads.training
    model.eval()
    assert not any(m.training for m in model.modules())


def test_saved_parts_fill_another_model(model, tmp_path):
    tune(model.image, 2)
    assert list(tuned_parts(model.image)) == ["7", "8"]
    parts = nn.ModuleDict({"heads": model.heads, "image": tuned_parts(model.image)})
    with torch.no_grad():
        for p in parts.parameters():
            p.add_(0.1)
    save_weights(parts, tmp_path / "parts.safetensors")
    other = MatchingModel(model.image, small_bert(), MatchingConfig(dim=8))
    other.image = copy.deepcopy(model.image)
    with torch.no_grad():
        for p in other.image.parameters():
            if p.requires_grad:
                p.zero_()
    filled = nn.ModuleDict({"heads": other.heads, "image": tuned_parts(other.image)})
    load_weights(filled, tmp_path / "parts.safetensors")
    model.eval(), other.eval()
    torch.testing.assert_close(other(pairs()), model(pairs()))


# ---- the model


def test_padding_and_missing_items_change_nothing(model):
    model.eval()
    batch = pairs()
    full = model(batch)
    alone = model(batch.select([1]))
    torch.testing.assert_close(alone.text, full.text[1:2])
    torch.testing.assert_close(alone.image, full.image[1:2])
    other = batch.without("images", [2]).without("text", [3])
    found = model(other)
    assert not found.image[2].any() and not found.text[3].any()
    torch.testing.assert_close(found.image[[0, 1, 3]], full.image[[0, 1, 3]])
    torch.testing.assert_close(found.text[:3], full.text[:3])


def test_training_finds_pairs(model):
    tune(model.image, 0)
    tune(model.text, 0)
    batch = pairs()
    history = fit(
        model,
        lambda m, b: matching_loss(m.heads.score(*m(b))),
        [batch],
        TrainConfig(60, learning_rate=1e-2, progress=False),
    )
    assert history.losses[-1] < 0.2 < history.losses[0]


def test_towers_by_name():
    image, text, tokenizer, recipe = towers()
    assert (image.dim, text.dim, recipe.crop) == (1280, 384, 224)
    assert not any(p.requires_grad for t in (image, text) for p in t.parameters())
    # In training mode a batch norm would change with the first picture it sees.
    assert not any(m.training for t in (image, text) for m in t.modules())
    assert tokenizer.encode(["a dog"]).ids.shape == (1, 4)


# ---- words of a classifier


def test_class_words_are_their_formula():
    classifier, names = nn.Linear(6, 4).double(), draw(4, 3, seed=1)
    features, seen = draw(5, 6, seed=2), draw(20, 6, seed=3)
    words = ClassWords(classifier, names, temperature=2.0)
    for prior in (torch.zeros(4).double(), classifier(seen).mean(0).detach()):
        for i, x in enumerate(features):
            z = (classifier(x) - prior).tolist()
            shares = [math.exp(z[c] / 2) for c in range(4)]
            mean = sum(s * (names[c] - names.mean(0)) for c, s in enumerate(shares)) / sum(shares)
            torch.testing.assert_close(words(features)[i], mean / mean.norm())
        words.adapt(seen)
    torch.testing.assert_close(words.logits(seen).mean(0), torch.zeros(4).double())
    assert list(words.state_dict()) == ["prior"] and not list(words.parameters())


def test_class_words_do_not_follow_the_classifier():
    classifier = nn.Linear(6, 4)
    words, x = ClassWords(classifier, torch.rand(4, 3)), torch.rand(2, 6)
    before = words(x)
    with torch.no_grad():
        classifier.weight.zero_()
    assert torch.equal(words(x), before)


# ---- bad input

SQUARE, WIDE = torch.zeros(3, 3), torch.zeros(2, 3)
RIGHT = torch.eye(3, dtype=torch.bool)
BAD = {
    "dim": (lambda: MatchingConfig(dim=0), ValueError, "dim must be at least 1"),
    "score": (lambda: MatchingConfig(score="dot"), ValueError, "score must be"),
    "dropout": (lambda: MatchingConfig(dropout=1.0), ValueError, "dropout must be"),
    "not square": (lambda: matching_loss(WIDE), ValueError, "scores must have shape"),
    "empty": (lambda: matching_loss(torch.zeros(0, 0)), ValueError, "scores must have shape"),
    "groups": (lambda: matching_loss(SQUARE, torch.tensor([1])), ValueError, "groups must hold 3"),
    "float groups": (lambda: matching_loss(SQUARE, torch.rand(3)), ValueError, "whole numbers"),
    "relevant": (lambda: matching.hard_negatives(SQUARE, SQUARE, 1), TypeError, "boolean"),
    "shapes": (lambda: matching.hard_negatives(WIDE, RIGHT, 1), ValueError, "one shape"),
    "count": (lambda: matching.hard_negatives(SQUARE, RIGHT, 3), ValueError, "count must be"),
    "no count": (lambda: matching.hard_negatives(SQUARE, RIGHT, 0), ValueError, "count must be"),
    "batch": (
        lambda: matching.hard_batch(torch.zeros(3, 1).long(), 4, torch.Generator()),
        ValueError,
        "size must be from 1 to 3",
    ),
    "width": (
        lambda: Heads(4, 4, MatchingConfig(dim=2)).score(torch.rand(1, 3), torch.rand(1, 2)),
        ValueError,
        "width 2",
    ),
    "tower": (lambda: towers("vgg"), ValueError, "image must be one of efficientnet-lite0"),
    "text tower": (lambda: towers(text="gpt"), ValueError, "name must be one of minilm"),
    "stages": (lambda: tune(small_bert(), 5), ValueError, "last must be from 0 to 4"),
    "negative": (lambda: tune(small_bert(), -1), ValueError, "last must be"),
    "unknown": (lambda: stages(nn.Linear(2, 2)), TypeError, "got Linear"),
    "names": (lambda: ClassWords(nn.Linear(2, 3), WIDE), ValueError, "each of 3 classes"),
    "temperature": (lambda: ClassWords(nn.Linear(2, 3), SQUARE, 0.0), ValueError, "temperature"),
    "nothing to adapt to": (
        lambda: ClassWords(nn.Linear(2, 3), SQUARE).adapt(torch.zeros(0, 2)),
        ValueError,
        "at least one picture",
    ),
}


@pytest.mark.parametrize("call, error, words", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, error, words, monkeypatch, unchecked):
    for name in ("matching_loss", "hard_negatives", "hard_batch"):
        plain = unchecked(getattr(matching, name))
        monkeypatch.setattr(matching, name, plain)
        if name in globals():
            monkeypatch.setitem(globals(), name, plain)
    methods = (MatchingConfig, "__init__"), (Heads, "score"), (ClassWords, "__init__")
    for owner, name in (*methods, (ClassWords, "adapt")):
        monkeypatch.setattr(owner, name, unchecked(getattr(owner, name)))
    with pytest.raises(error, match=words):
        call()


def test_a_batch_without_texts_is_refused(model):
    with pytest.raises(ValueError, match="images and text: got images"):
        model(pairs().without("text"))

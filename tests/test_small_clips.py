"""The small CLIPs of chapter 10: their towers, texts and checkpoints."""

import pytest
import torch

from mmlib import small_clips
from mmlib.clip import CLIP
from mmlib.data import emoji, scenes
from mmlib.data.scene_styles import outlines
from mmlib.data.twins import twin_scores, twins
from mmlib.encoders.image import EfficientNetLite0, ViT
from mmlib.encoders.preprocessing import preprocess
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.metrics.retrieval import hit_rate, ranks
from mmlib.small_clips import (
    GROUPS,
    TEMPLATES,
    BagOfWords,
    FixedFeatures,
    picture_clip,
    picture_features,
    picture_tokenizer,
    scene_clip,
    scene_ids,
    scene_tokenizer,
    scene_vectors,
    sentence,
)

PAD = scene_tokenizer().pad_id
SOME = scenes.sample(8, seed=1, objects=(1, 3))


def same(one, other, tolerance=1e-6):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# ---- a bag of words


def test_a_bag_does_not_know_the_order_and_does_not_count_padding():
    torch.manual_seed(0)
    bag = BagOfWords(9, 4, pad_id=0)
    ids = torch.tensor([[1, 5, 7, 2], [7, 1, 2, 5], [5, 5, 7, 2]])
    pooled = bag(ids).pooled
    same(pooled[0], pooled[1])
    assert (pooled[0] - pooled[2]).abs().max() > 1e-3
    same(bag(torch.cat([ids, torch.zeros_like(ids)], 1)).pooled, pooled)
    same(bag(ids, ids != 7).pooled[0], bag(torch.tensor([[1, 5, 2]])).pooled[0])
    assert bag(ids).keep.all()


def test_a_bag_is_the_network_of_the_mean():
    torch.manual_seed(0)
    bag = BagOfWords(9, 4, pad_id=0)
    ids = torch.tensor([[1, 5, 7, 0]])
    same(bag(ids).pooled[0], bag.layers(bag.token.weight[[1, 5, 7]].mean(0)))


# ---- features that are fixed


def test_fixed_features_are_standardised_by_their_reference():
    reference = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2
    out = FixedFeatures(6, reference)(reference[..., None, None])
    same(out.pooled.mean(0), torch.zeros(6), 1e-5)
    same(out.pooled.std(0), torch.ones(6), 1e-4)
    same(out.tokens[:, 0], out.pooled)
    assert not list(FixedFeatures(6, reference).parameters())


def test_fixed_features_travel_with_the_weights():
    reference = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    other = FixedFeatures(6)
    x = reference[..., None, None]
    same(other(x).pooled, reference)
    other.load_state_dict(FixedFeatures(6, reference).state_dict())
    same(other(x).pooled, FixedFeatures(6, reference)(x).pooled)


def test_a_feature_without_spread_gives_no_infinity():
    assert FixedFeatures(2, torch.ones(5, 2))(torch.ones(5, 2, 1, 1)).pooled.isfinite().all()


def test_picture_features_are_the_networks():
    pictures = emoji.load("test", 64).select(range(3)).images.float() / 255
    with torch.no_grad():
        ready = preprocess(pictures, small_clips._HALVES)
        expected = EfficientNetLite0(frozen=True).eval()(ready).pooled
    assert ready.shape[-1] == 128
    same(picture_features(pictures, chunk=2), expected, 1e-4)


# ---- scenes


def test_towers_are_the_ones_asked_for():
    assert isinstance(scene_clip().image, SmallCNN)
    assert isinstance(scene_clip("vit").image, ViT)
    assert isinstance(scene_clip(text="bag").text, BagOfWords)


def test_a_seed_draws_the_weights_and_leaves_the_global_state():
    before = torch.random.get_rng_state()
    one, same_again, other = scene_clip(seed=1), scene_clip(seed=1), scene_clip(seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.image_projection.weight, same_again.image_projection.weight)
    assert not torch.equal(one.image_projection.weight, other.image_projection.weight)


def test_every_canonical_caption_is_made_of_known_words():
    tokenizer, drawn = scene_tokenizer(), scenes.sample(300, seed=0)
    assert tokenizer.unknown_id not in scene_ids(drawn)
    texts = [scenes.caption(scene) for scene in drawn]
    assert [t.replace(" ,", ",") for t in tokenizer.decode(scene_ids(drawn))] == texts


@pytest.mark.parametrize("text", ["transformer", "bag"])
def test_vectors_do_not_depend_on_the_chunk_or_the_mode(text):
    model = scene_clip(text=text).train()
    whole = scene_vectors(model, SOME)
    parts = scene_vectors(model, SOME, chunk=3)
    assert model.training
    for one, other in zip(whole, parts, strict=True):
        same(one, other, 1e-5)
    model.eval()
    with torch.no_grad():
        same(whole[0], model.encode_image(scenes.render(SOME, 32)), 1e-5)
        same(whole[1], model.encode_text(scene_ids(SOME)), 1e-5)


def test_a_style_changes_the_pictures_alone():
    model = scene_clip()
    plain, styled = scene_vectors(model, SOME), scene_vectors(model, SOME, outlines)
    same(plain[1], styled[1])
    assert (plain[0] - styled[0]).abs().max() > 1e-4


def test_the_trained_clip_finds_unseen_scenes_and_tells_twins_apart():
    model = scene_clip(trained=True)
    assert isinstance(model, CLIP)
    assert not model.training
    drawn = list({scenes.caption(s): s for s in scenes.sample(200, 5, split="test", objects=2)})
    items = scenes.sample(200, 5, split="test", objects=2)
    items = [next(s for s in items if scenes.caption(s) == caption) for caption in drawn[:100]]
    image, text = scene_vectors(model, items)
    assert hit_rate(ranks(image @ text.T, torch.eye(100, dtype=torch.bool)), 1) > 0.95
    sides = [scene_vectors(model, side) for side in twins(100, 3, split="test")]
    assert twin_scores(*zip(*sides, strict=True))["caption"] > 0.9


# ---- emoji and clip art


def test_the_locked_clip_names_groups_better_than_chance():
    model = picture_clip()
    assert not model.training
    assert model.image.spread.std() > 0  # the statistics came with the weights
    data = emoji.load("test", 128)
    rows = [i for i, group in enumerate(data.groups) if group in GROUPS][:60]
    features = picture_features(data.images[rows].float() / 255)
    names = [words["en"] for words in GROUPS.values()]
    ids = picture_tokenizer().encode(names).ids
    with torch.no_grad():
        logits = model(features[..., None, None], ids)
    truth = torch.tensor([list(GROUPS).index(data.groups[i]) for i in rows])
    assert (logits.argmax(1) == truth).float().mean() > 0.3


def test_groups_are_those_of_the_emoji():
    found = set(emoji.load("all", 8).groups)
    assert found - set(GROUPS) == {"Component"}
    assert set(GROUPS) <= found


def test_the_tokenizer_loses_nothing_in_either_language():
    data = emoji.load("test", 8)
    texts = [*data.names[:40], *data.names_zh[:40]]
    tokenizer = picture_tokenizer()
    assert [t.strip() for t in tokenizer.decode(tokenizer.encode(texts).ids)] == texts
    assert tokenizer.vocab_size <= 2000


def test_sentences_hold_one_to_three_words_in_a_template():
    words, dice = ["cat", "dog", "cow", "hen"], torch.Generator().manual_seed(0)
    counts, templates = set(), set()
    for _ in range(200):
        said = sentence(words, "en", dice)
        found = [word for word in words if word in said]
        counts.add(len(found))
        form = said
        for word in found:
            form = form.replace(word, "")
        templates.add(form.replace(", ", ""))
    assert counts == {1, 2, 3}
    assert templates == {t.replace("{}", "") for t in TEMPLATES["en"]}
    assert "、" in "".join(sentence(["猫", "狗"], "zh", dice) for _ in range(20))
    assert sentence(("cat",), "en", dice).count("cat") == 1


@pytest.mark.parametrize("language", TEMPLATES)
def test_templates_have_one_gap_each_and_begin_with_the_name(language):
    assert all(template.count("{}") == 1 for template in TEMPLATES[language])
    assert TEMPLATES[language][0] == "{}"


# ---- bad inputs

BAD = [
    (lambda: scene_clip("resnet"), ValueError, "image must be one of cnn, vit: got 'resnet'"),
    (lambda: scene_clip(text="lstm"), ValueError, "text must be one of transformer, bag"),
    (lambda: scene_clip("vit", trained=True), ValueError, "trained must be False"),
    (lambda: scene_clip(text="bag", trained=True), ValueError, "trained must be False"),
    (lambda: BagOfWords(5, 4, 0)(torch.tensor([[7]])), ValueError, "ids"),
    (lambda: FixedFeatures(4)(torch.ones(2, 3, 1, 1)), ValueError, r"\(batch, 4, 1, 1\)"),
    (lambda: sentence([], "en", torch.Generator()), ValueError, "words must not be empty"),
    (lambda: sentence(["a"], "fr", torch.Generator()), ValueError, "language must be one of"),
]


@pytest.mark.parametrize("call, error, message", BAD)
def test_bad_inputs(monkeypatch, unchecked, call, error, message):
    monkeypatch.setattr(FixedFeatures, "forward", unchecked(FixedFeatures.forward))
    with pytest.raises(error, match=message):
        call()

"""The Chinese tower and the search: what they learn, what they read, bad input."""

import pytest
import torch
import torch.nn.functional as F

from mmlib import picture_search
from mmlib.chinese_tower import ChineseTower, distillation_loss
from mmlib.data import emoji, pairs
from mmlib.training import TrainConfig, fit

TEXTS = ["红色的苹果", "月亮", "绿色的苹果", "太阳"]


def small():
    torch.manual_seed(0)
    return ChineseTower(TEXTS, out_dim=6, dim=16, layers=1, dropout=0.0)


def test_padding_changes_no_vector():
    tower = small().eval()
    ids, keep = tower.tokenizer.encode(TEXTS)
    together = tower(ids, keep)
    for row, text in enumerate(TEXTS):
        alone = tower(*tower.tokenizer.encode([text]))
        torch.testing.assert_close(alone.pooled[0], together.pooled[row])
        torch.testing.assert_close(alone.tokens[0], together.tokens[row, : keep[row].sum()])
    assert not together.tokens[~keep].any()
    assert together.pooled.shape == (4, tower.dim) == (4, 6)


def test_distillation_brings_translations_to_their_originals():
    tower, teacher = small(), F.normalize(torch.randn(4, 6), dim=1)
    ids, keep = tower.tokenizer.encode(TEXTS)
    fit(
        tower,
        lambda model, batch: distillation_loss(model(ids, keep).pooled, teacher),
        [teacher],
        TrainConfig(150, learning_rate=1e-2, progress=False),
    )
    tower.eval()
    assert F.cosine_similarity(tower(ids, keep).pooled, teacher).min() > 0.95


def test_distillation_loss_is_its_formula():
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    cosine = F.cosine_similarity(student[:, None], teacher[None], dim=2)
    right = torch.arange(5)
    both = F.cross_entropy(7 * cosine, right) + F.cross_entropy(7 * cosine.T, right)
    expected = both / 2 + (1 - cosine.diagonal()).mean()
    found = distillation_loss(student, teacher, 7.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_teacher_gets_no_gradient():
    student, teacher = torch.randn(4, 3).requires_grad_(), torch.randn(4, 3).requires_grad_()
    distillation_loss(student, teacher).backward()
    assert student.grad is not None and teacher.grad is None


def test_the_chinese_tower_knows_no_held_out_character():
    known = set("".join(emoji.load("train", 8).names_zh))
    tokenizer = picture_search.chinese_tower(trained=False).tokenizer
    held_out = set("".join(emoji.load("test", 8).names_zh)) - known
    tagged = set("".join(tag for tags in emoji.load("train", 8).tags_zh for tag in tags))
    unknown = sorted(held_out - tagged)
    assert unknown
    ids = (
        tokenizer.encode(unknown).ids[:, 1:-1]
        if tokenizer.encode(["月"]).ids.shape[1] == 3
        else (tokenizer.encode(unknown).ids)
    )
    assert len(ids.unique()) == 1


@pytest.fixture(scope="module")
def search():
    test = pairs.load("test")
    rows = pairs.distinct(test.names, 40)
    return test.select(rows), picture_search.PictureSearch(test.images[rows])


def test_shipped_search_finds_unknown_pictures(search):
    items, found = search
    vectors = found.encode(list(items.names))
    place = (vectors @ found.vectors.T).argsort(dim=1, descending=True)
    ranks = (place == torch.arange(40)[:, None]).float().argmax(dim=1) + 1
    assert ranks.float().median() <= 10  # chance is 20
    scores, best = found.find(items.names[3], 5)
    assert torch.equal(best, place[3, :5]) and (scores.diff() <= 0).all()


def test_chinese_goes_to_the_chinese_tower(search):
    _, found = search
    ids, keep = found.chinese.tokenizer.encode(["动物"])
    expected = found.model.heads.texts(found.chinese(ids, keep).pooled)
    both = found.encode(["动物", "animal"])
    torch.testing.assert_close(both[:1], expected)
    english = found.model.encode_texts(*found.tokenizer.encode(["animal"]))
    torch.testing.assert_close(both[1:], english)


def test_parts_of_the_checkpoint_are_what_differs():
    model = picture_search.matching_model(trained=False)
    parts = picture_search.checkpoint_parts(model)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in parts.parameters()} == trained
    size = sum(x.numel() for x in parts.state_dict().values()) * 2 / 1e6
    assert size < 5  # megabytes in bf16


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda s: s.find("dog", 41), "count must be from 1 to 40"),
        (lambda s: s.find("dog", 0), "count must be from 1 to 40"),
        (lambda s: s.find(" "), "none empty"),
        (lambda s: s.encode([]), "at least one"),
        (lambda s: ChineseTower(TEXTS, out_dim=0), "out_dim must be"),
        (
            lambda s: picture_search.PictureSearch(torch.zeros(1, 3, 8, 8).byte(), batch_size=0),
            "batch_size",
        ),
    ],
)
def test_bad_input_is_named(call, words, search):
    with pytest.raises(ValueError, match=words):
        call(search[1])


def test_one_string_is_not_several_queries(search, unchecked):
    with pytest.raises(ValueError, match="at least one"):
        unchecked(picture_search.PictureSearch.encode)(search[1], "dog")


def test_distillation_refuses_other_shapes(unchecked):
    with pytest.raises((ValueError, RuntimeError)):
        unchecked(distillation_loss)(torch.zeros(3, 2), torch.zeros(4, 2))

"""The two models of chapter 13: what they compute, share and refuse."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from mmlib.encoders.small_cnn import SmallCNN
from mmlib.encoders.text import TextTransformer, TextTransformerConfig
from mmlib.fusion import OPERATORS
from mmlib.reader import LOUD_PLACES, LOUD_WORDS, Reader, ReaderConfig
from mmlib.vqa import VQA, VQAConfig, soft_target_loss


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IDS = torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0], [8, 9, 2, 0]])
KEEP = IDS > 0
IMAGES = draw(2, 3, 16, 16).sigmoid()
OF = torch.tensor([0, 1, 0])


def classic(**options):
    torch.manual_seed(0)
    question = TextTransformer(TextTransformerConfig(12, dim=16, heads=2, layers=1))
    return VQA(question, SmallCNN(8), VQAConfig(5, dim=12, **options)).eval()


def reader(**options):
    torch.manual_seed(0)
    config = ReaderConfig(12, 5, regions=16, dim=16, heads=2, layers=2, **options)
    model = Reader(SmallCNN(8), config)
    for parameter in (
        model.answer_token,
        model.region_pos,
        model.token.weight,
        model.position.table,
    ):
        parameter.data.normal_()
    return model.eval()


@pytest.mark.parametrize("fusion", OPERATORS)
def test_the_classic_form_is_two_towers_a_fusion_and_a_head(fusion):
    model = classic(fusion=fusion)
    q, v = model.question(IDS, KEEP).pooled, model.image(IMAGES).pooled[OF]
    q, v = F.layer_norm(q, (16,)), F.layer_norm(v, (8,))
    hidden = F.gelu(model.head[2](F.gelu(model.fusion([q, v]))))
    torch.testing.assert_close(model(IDS, KEEP, IMAGES, OF), model.head[5](hidden))


def test_without_norms_the_vectors_go_in_as_they_are():
    model = classic(normalise=False)
    q, v = draw(3, 16), draw(3, 8, seed=1)
    want = model.head(model.fusion([q, v]))
    torch.testing.assert_close(model.answer(q, v), want)


@pytest.mark.parametrize("make", [classic, reader])
def test_sharing_a_picture_is_repeating_it(make):
    model = make()
    shared, repeated = model(IDS, KEEP, IMAGES, OF), model(IDS, KEEP, IMAGES[OF])
    torch.testing.assert_close(
        getattr(shared, "logits", shared), getattr(repeated, "logits", repeated)
    )


@pytest.mark.parametrize("make", [classic, reader])
def test_padding_changes_nothing(make):
    model = make()
    junk = torch.where(KEEP, IDS, 11)
    longer = F.pad(junk, (0, 3), value=7), F.pad(KEEP, (0, 3))
    for ids, keep in ((junk, KEEP), longer):
        one, two = model(IDS, KEEP, IMAGES, OF), model(ids, keep, IMAGES, OF)
        torch.testing.assert_close(getattr(one, "logits", one), getattr(two, "logits", two))


def test_the_reader_looks_at_words_picture_and_order():
    model = reader()
    plain = model(IDS, KEEP, IMAGES, OF).logits
    for other in (
        model(IDS.flip(1), KEEP.flip(1), IMAGES, OF),
        model(IDS, KEEP, IMAGES, 1 - OF),
        model(IDS, KEEP, IMAGES.flip(3), OF),
    ):
        assert (plain - other.logits).abs().max() > 1e-4


def test_given_words_regions_and_tokens_are_used():
    model = reader()
    plain = model(IDS, KEEP, IMAGES, OF).logits
    tokens = model.image(IMAGES).tokens
    for same in (
        model(IDS, KEEP, IMAGES, OF, words=model.embed(IDS)),
        model(IDS, KEEP, None, OF, regions=model.read(IMAGES)),
        model(IDS, KEEP, tokens, OF),
    ):
        torch.testing.assert_close(same.logits, plain)
    moved = model(IDS, KEEP, IMAGES, OF, words=model.embed(IDS) + draw(3, 4, 16)).logits
    assert (moved - plain).abs().max() > 1e-4


def test_the_weights_are_of_answer_token_and_words_to_regions():
    answered = reader()(IDS, KEEP, IMAGES, OF, return_weights=True)
    assert len(answered.weights) == 2
    for layer in answered.weights:
        assert layer.cross_attention.shape == (3, 2, 5, 16)
        torch.testing.assert_close(layer.cross_attention.sum(-1), torch.ones(3, 2, 5))
        assert (layer.self_attention[1, :, 0, 3:] == 0).all()
        assert (layer.self_attention[..., 0] > 0).all()  # the answer token is read, too
    assert reader()(IDS, KEEP, IMAGES, OF).weights is None


def test_places_start_as_loud_as_what_is_there():
    # Four pictures, all their regions alike: only where a region is can tell it from its neighbour.
    torch.manual_seed(0)
    model = Reader(SmallCNN(8), ReaderConfig(12, 5, regions=16, dim=64, heads=2))
    regions = model.read(draw(4, 1, 8).expand(4, 16, 8))
    where, what = regions.var(dim=1).mean(), regions.var(dim=0).mean()
    assert where > what / 4
    assert model.region_pos.std().item() == pytest.approx(LOUD_PLACES, rel=0.1)
    assert model.token.weight.std().item() == pytest.approx(LOUD_WORDS, rel=0.1)
    assert 0.5 * model.answer_token.std().item() < LOUD_WORDS  # words and answer token alike


def test_a_new_head_is_the_seeds_and_leaves_the_rest():
    model = reader()
    before = {name: p.clone() for name, p in model.named_parameters() if "head" not in name}
    state = torch.random.get_rng_state()
    assert model.new_head(9, seed=1) is model
    assert torch.equal(torch.random.get_rng_state(), state)
    first = model.head.weight.clone()
    assert torch.equal(model.new_head(9, seed=1).head.weight, first)
    assert not torch.equal(model.new_head(9, seed=2).head.weight, first)
    assert model(IDS, KEEP, IMAGES, OF).logits.shape == (3, 9)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_the_soft_loss_by_hand():
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.9, 0.3]])
    p = 1 / (1 + torch.exp(-logits.double()))
    want = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum()
    torch.testing.assert_close(soft_target_loss(logits, targets).double(), want)
    twice = soft_target_loss(logits.repeat(4, 1), targets.repeat(4, 1))
    torch.testing.assert_close(twice.double(), want)


BAD = [
    (lambda: VQAConfig(0), "answers"),
    (lambda: VQAConfig(3, dim=0), "dim"),
    (lambda: VQAConfig(3, fusion="sum"), "fusion"),
    (lambda: VQAConfig(3, dropout=1.0), "dropout"),
    (lambda: ReaderConfig(0, 3, 4), "vocab_size"),
    (lambda: ReaderConfig(9, 0, 4), "answers"),
    (lambda: ReaderConfig(9, 3, 0), "regions"),
    (lambda: ReaderConfig(9, 3, 4, dim=10, heads=4), "heads"),
    (lambda: classic()(IDS, KEEP, IMAGES), "of must say"),
    (lambda: reader()(IDS, KEEP, IMAGES), "of must say"),
    (lambda: reader()(IDS, KEEP, IMAGES, OF[:2]), "of must have shape"),
    (lambda: reader()(IDS, KEEP, None, OF), "images or regions"),
    (lambda: reader()(IDS + 9, KEEP, IMAGES, OF), "ids"),
    (lambda: reader()(IDS, KEEP, draw(2, 3, 32, 32), OF), "16 regions"),
    (lambda: reader().new_head(0), "answers"),
    (lambda: soft_target_loss(torch.zeros(2, 3), torch.zeros(2, 2)), "one shape"),
    (lambda: soft_target_loss(torch.zeros(0, 3), torch.zeros(0, 3)), "not empty"),
    (lambda: soft_target_loss(torch.zeros(1, 3), torch.full((1, 3), 1.1)), "targets"),
]


@pytest.mark.parametrize("call, words", BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(call, words, monkeypatch):
    for owner, name in ((Reader, "forward"), (VQA, "forward")):
        monkeypatch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))
    monkeypatch.setitem(globals(), "soft_target_loss", inspect.unwrap(soft_target_loss))
    with pytest.raises(ValueError, match=words):
        call()

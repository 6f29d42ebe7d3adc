"""Captioners: what a word may depend on, scheduled sampling, penalties, and bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.captioning import (
    CaptionDecoding,
    Captioner,
    CaptionerConfig,
    ImageCaptioner,
    LSTMCaptioner,
)
from mmlib.captioning_attention import (
    PlacedRegions,
    RegionAttention,
    doubly_stochastic,
    mass_inside,
)
from mmlib.captioning_transformer import TransformerCaptioner
from mmlib.decoding import NextToken, greedy
from mmlib.encoders.small_cnn import SmallCNN
from mmlib.training import TrainConfig, fit

KINDS = pytest.mark.parametrize("kind", [LSTMCaptioner, TransformerCaptioner])
CONFIG = CaptionerConfig(vocab=7, region_dim=6, max_regions=5, dim=8, heads=2, layers=2)
BEGIN, END = 1, 2


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(kind, config=CONFIG):
    torch.manual_seed(2)
    return kind(config).eval()


REGIONS, TOKENS = draw(3, 5, 6), torch.tensor([[1, 3, 4, 5, 2], [1, 6, 6, 2, 0], [1, 3, 2, 0, 0]])


@KINDS
@pytest.mark.parametrize("at", [1, 3, 4])
def test_no_word_sees_a_later_one(kind, at):
    model, changed = make(kind), TOKENS.clone()
    changed[:, at] = (changed[:, at] + 1) % 7
    before, after = (model(REGIONS, ids, return_weights=True) for ids in (TOKENS, changed))
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[:, :at], b[:, :at])
        assert (a[:, at:] != b[:, at:]).any() or a.shape[-1] == 5
    assert (before[0][:, at] != after[0][:, at]).any(-1).all()


@KINDS
def test_each_word_depends_on_the_picture_and_on_no_other_one(kind):
    model, changed = make(kind), REGIONS.clone()
    changed[1] += 1
    before, after = model(REGIONS, TOKENS)[0], model(changed, TOKENS)[0]
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] != after[1]).any(-1).all()


@KINDS
def test_the_place_of_a_region_counts(kind):
    model = make(kind)
    turned = model(REGIONS.flip(1), TOKENS)[0]
    # Without places the order changes no more than the rounding of the sums.
    assert (model(REGIONS, TOKENS)[0] - turned).abs().max() > 1e-3


@KINDS
def test_padding_of_captions_changes_nothing_before_it(kind):
    model = make(kind)
    alone = model(REGIONS[2:], TOKENS[2:, :3])[0]
    torch.testing.assert_close(model(REGIONS, TOKENS)[0][2:, :3], alone)


@KINDS
@pytest.mark.parametrize("rubbish", [0.0, 1e4, math.nan, math.inf])
def test_padding_of_regions_changes_nothing(kind, rubbish):
    model, padded = make(kind), REGIONS.clone()
    padded[:, 3:] = rubbish
    keep = (torch.arange(5) < 3).expand(3, 5)
    logits, weights = model(padded, TOKENS, keep, return_weights=True)
    alone, alone_weights = model(REGIONS[:, :3], TOKENS, return_weights=True)
    torch.testing.assert_close(logits, alone)
    torch.testing.assert_close(weights[..., :3], alone_weights)
    assert torch.equal(weights[..., 3:], torch.zeros(3, 5, 2))


@KINDS
def test_a_picture_without_regions_gives_numbers(kind):
    model, regions = make(kind), REGIONS.clone().requires_grad_()
    keep = torch.tensor([[True] * 5, [False] * 5, [True] * 5])
    logits, weights = model(regions, TOKENS, keep, return_weights=True)
    logits.sum().backward()
    assert logits.isfinite().all() and regions.grad.isfinite().all()
    assert torch.equal(weights[1], torch.zeros(5, 5))
    assert torch.equal(regions.grad[1], torch.zeros(5, 6))


@KINDS
def test_weights_are_a_distribution(kind):
    _, weights = make(kind)(REGIONS, TOKENS, return_weights=True)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 5))
    assert (weights > 0).all()
    assert make(kind)(REGIONS, TOKENS)[1] is None


@KINDS
def test_inputs_are_not_changed(kind):
    model, regions, tokens = make(kind), REGIONS.clone(), TOKENS.clone()
    keep = torch.ones(3, 5, dtype=torch.bool)
    model(regions, tokens, keep, return_weights=True)
    decoding = CaptionDecoding(model, regions, keep, keep_weights=True)
    greedy(decoding, begin=BEGIN, end=END, max_length=4)
    assert torch.equal(regions, REGIONS) and torch.equal(tokens, TOKENS) and keep.all()


def test_a_step_leaves_the_state_before_it():
    model = make(LSTMCaptioner)
    state = model.begin(REGIONS)
    hidden = state.hidden.clone()
    first = model.step(state, TOKENS[:, 0])[0]
    assert torch.equal(state.hidden, hidden)
    assert torch.equal(model.step(state, TOKENS[:, 0])[0], first)


@KINDS
def test_selected_rows_go_on_as_they_would_alone(kind):
    model = make(kind)
    decoding = CaptionDecoding(model, REGIONS)
    assert isinstance(decoding, NextToken) and isinstance(model, Captioner)
    decoding(TOKENS[:, 0])
    decoding.select(torch.tensor([2, 0, 0]))
    assert decoding.rows == 3
    got = decoding(torch.tensor([3, 3, 4]))
    rows = torch.tensor([[1, 3], [1, 3], [1, 4]])
    expected = model(REGIONS[[2, 0, 0]], rows)[0][:, -1]
    torch.testing.assert_close(got, expected)


def test_own_share_zero_is_teacher_forcing():
    model = make(LSTMCaptioner)
    forced = model(REGIONS, TOKENS)[0]
    assert torch.equal(model(REGIONS, TOKENS, own_share=0.0)[0], forced)


def test_own_words_replace_the_given_ones():
    """With a model that is sure of word 5, every input but the first is 5."""
    model = make(LSTMCaptioner)
    with torch.no_grad():
        model.output.bias[5] += 1e4
    sure = torch.where(torch.arange(5) > 0, torch.tensor(5), TOKENS)
    generator = torch.Generator().manual_seed(0)
    own = model(REGIONS, TOKENS, own_share=1.0, generator=generator)[0]
    assert torch.equal(own, model(REGIONS, sure)[0])
    assert not torch.equal(own, model(REGIONS, TOKENS)[0])


def test_own_share_is_a_probability():
    """A model that says 5 for sure, to captions of 3s: which of the two was read shows."""
    model = make(LSTMCaptioner)
    with torch.no_grad():
        model.output.bias[5] += 1e4
        model.cell.weight_hh.zero_()
    many = torch.full((500, 2), 3)
    regions = REGIONS[:1].expand(500, -1, -1)
    generator = torch.Generator().manual_seed(1)
    second = model(regions, many, own_share=0.3, generator=generator)[0][:, 1]
    given = model(regions, many)[0][:, 1]
    share = (second != given).any(-1).float().mean().item()
    assert abs(share - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 500)


def test_own_words_follow_the_models_probabilities():
    model = make(LSTMCaptioner)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor([0.1, 0.0, 0.2, 0.3, 0.4, 0.0, 0.0]).log())
    # Only the word's own part of the next logits is left, and it tells the word.
    with torch.no_grad():
        model.word.weight.copy_(torch.eye(7, 8))
        for layer in (model.from_hidden, model.from_seen):
            for parameter in layer.parameters():
                parameter.zero_()
    read: list[torch.Tensor] = []
    model.word.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    count = 4000
    tokens = torch.ones(count, 2, dtype=torch.long)
    generator = torch.Generator().manual_seed(2)
    model(REGIONS[:1].expand(count, -1, -1), tokens, own_share=1.0, generator=generator)
    shares = torch.bincount(read[1], minlength=7) / count
    expected = torch.tensor([0.1, 0.0, 0.2, 0.3, 0.4, 0.0, 0.0])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_draws_are_the_generators():
    model = make(LSTMCaptioner)
    state = torch.get_rng_state()
    runs = [
        model(REGIONS, TOKENS, own_share=0.5, generator=torch.Generator().manual_seed(seed))[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_penalty_is_zero_where_every_region_is_seen_once():
    weights = torch.eye(4)[None]
    assert doubly_stochastic(weights, torch.ones(1, 4, dtype=torch.bool)).item() == 0.0
    # Three words cannot: one region is left out, or all are seen too little.
    three = torch.ones(1, 3, dtype=torch.bool)
    assert doubly_stochastic(weights[:, :3], three).item() == 1.0
    even = torch.full((1, 3, 4), 0.25)
    assert doubly_stochastic(even, three).item() == pytest.approx(4 * 0.25**2)


def test_penalty_counts_no_padding():
    weights = draw(1, 3, 4).softmax(-1)
    keep = torch.tensor([[True, True, False]])
    regions = torch.tensor([[True, True, True, False]])
    whole = doubly_stochastic(weights[:, :2], keep[:, :2])
    assert torch.equal(doubly_stochastic(weights, keep), whole)
    last = (1 - weights[:, :2, 3].sum()) ** 2
    torch.testing.assert_close(doubly_stochastic(weights, keep, regions), whole - last)


def test_an_even_map_has_the_boxs_area():
    box = torch.tensor([[0.13, 0.2, 0.61, 0.97]])
    area = (0.61 - 0.13) * (0.97 - 0.2)
    assert mass_inside(torch.full((1, 7, 5), 3.0), box).item() == pytest.approx(area)


@KINDS
def test_a_captioner_learns_two_pictures(kind):
    torch.manual_seed(0)
    model = kind(CONFIG)
    regions, tokens = draw(2, 5, 6, seed=3), torch.tensor([[1, 3, 4, 5, 2], [1, 5, 3, 6, 2]])

    def loss(model, batch):
        return F.cross_entropy(model(regions, tokens)[0][:, :-1].flatten(0, 1), batch.flatten())

    fit(model, loss, [tokens[:, 1:]], TrainConfig(150, learning_rate=0.02, progress=False))
    made = greedy(CaptionDecoding(model.eval(), regions), begin=BEGIN, end=END, max_length=6)
    assert made.best() == [[3, 4, 5], [5, 3, 6]]


def test_encoder_and_captioner_are_one_model():
    captioner = LSTMCaptioner(CaptionerConfig(vocab=7, region_dim=8, max_regions=64, dim=8))
    model = ImageCaptioner(SmallCNN(8), captioner)
    images = draw(3, 3, 32, 32)
    model(images, TOKENS)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.encoder.parameters())
    model.eval()
    logits, weights = model(images, TOKENS, return_weights=True)
    expected = captioner(model.encoder(images).tokens, TOKENS)[0]
    assert torch.equal(logits, expected) and weights.shape == (3, 5, 64)
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"encoder", "captioner"}


def test_regions_of_the_small_network_stay_in_place():
    """A dot in one cell of the picture is loudest in that region."""
    model = SmallCNN(8).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(1.0)
    picture = torch.zeros(1, 3, 32, 32)
    picture[..., 9:11, 21:23] = 1.0  # the middle of row 2, column 5
    loud = model(picture).tokens[0].sum(-1).reshape(8, 8)
    assert divmod(int(loud.argmax()), 8) == (2, 5)
    torch.testing.assert_close(loud[2, 4], loud[2, 6])
    torch.testing.assert_close(loud[1, 5], loud[3, 5])


def test_the_small_network_sees_26_pixels():
    model = SmallCNN(8).eval()
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    model(picture).tokens[0, 3 * 8 + 4].sum().backward()
    seen = picture.grad.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 26, 5, 30)


def test_missing_pictures_give_zeros():
    model, pictures = SmallCNN(8).eval(), draw(2, 3, 32, 32)
    pictures[1] = math.nan
    encoded = model(pictures, torch.tensor([True, False]))
    assert torch.equal(encoded.tokens[1], torch.zeros(64, 8)) and not encoded.keep[1].any()
    torch.testing.assert_close(encoded.tokens[0], model(pictures[:1]).tokens[0])


def lstm(**changes):
    sizes = {"vocab": 7, "region_dim": 6, "max_regions": 5, "dim": 8} | changes
    return CaptionerConfig(**sizes)


MODEL, OTHER, LAYER = make(LSTMCaptioner), make(TransformerCaptioner), PlacedRegions(6, 5, 8)
BOX, YES = torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.ones(1, 2, dtype=torch.bool)
BAD = {
    "vocab": (lambda: lstm(vocab=0), ValueError, "vocab must be at least 1: got 0"),
    "width": (lambda: lstm(dim=0), ValueError, "dim must be at least 1"),
    "regions": (lambda: lstm(max_regions=0), ValueError, "max_regions must be"),
    "dropout": (lambda: lstm(dropout=1.0), ValueError, "dropout must lie in"),
    "heads": (lambda: TransformerCaptioner(lstm(heads=3)), ValueError, "heads must divide dim"),
    "attention": (lambda: RegionAttention(4, 0, 4), ValueError, "query_dim must be at least 1"),
    "cnn": (lambda: SmallCNN(7), ValueError, "dim must be even"),
    "channels": (lambda: SmallCNN(8, 0), ValueError, "channels must be at least 1"),
    "whole regions": (
        lambda u: u(PlacedRegions.forward)(LAYER, REGIONS.long()),
        TypeError,
        "regions must be floating point",
    ),
    "flat regions": (
        lambda u: u(PlacedRegions.forward)(LAYER, REGIONS[0]),
        ValueError,
        r"regions must have shape \(batch, 1 to 5 regions, 6\): got \(5, 6\)",
    ),
    "wide regions": (
        lambda u: u(PlacedRegions.forward)(LAYER, draw(3, 5, 7)),
        ValueError,
        r"got \(3, 5, 7\)",
    ),
    "many regions": (
        lambda u: u(PlacedRegions.forward)(LAYER, draw(3, 6, 6)),
        ValueError,
        "1 to 5 regions",
    ),
    "no pictures": (
        lambda u: u(PlacedRegions.forward)(LAYER, draw(0, 5, 6)),
        ValueError,
        "must have shape",
    ),
    "mask of numbers": (
        lambda u: u(PlacedRegions.forward)(LAYER, REGIONS, torch.ones(3, 5)),
        TypeError,
        "keep must be boolean",
    ),
    "mask of another shape": (
        lambda u: u(PlacedRegions.forward)(LAYER, REGIONS, torch.ones(3, 4, dtype=torch.bool)),
        ValueError,
        r"keep must have shape \(3, 5\): got \(3, 4\)",
    ),
    "tokens of another type": (
        lambda u: u(MODEL.forward)(MODEL, REGIONS, TOKENS.float()),
        TypeError,
        "tokens must hold whole numbers",
    ),
    "one caption for three": (
        lambda u: u(OTHER.forward)(OTHER, REGIONS, TOKENS[:1]),
        ValueError,
        r"tokens must have shape \(3, length\)",
    ),
    "unknown word": (
        lambda u: u(MODEL.forward)(MODEL, REGIONS, TOKENS + 3),
        ValueError,
        "tokens must lie from 0 to 6: got 3 to 9",
    ),
    "share": (
        lambda u: u(MODEL.forward)(MODEL, REGIONS, TOKENS, own_share=1.5),
        ValueError,
        r"own_share must lie in \[0, 1\]: got 1.5",
    ),
    "no weights kept": (
        lambda: CaptionDecoding(MODEL, REGIONS).weights,
        ValueError,
        "keep_weights=True",
    ),
    "penalty of a matrix": (
        lambda u: u(doubly_stochastic)(torch.ones(2, 2), YES),
        ValueError,
        "weights must have shape",
    ),
    "penalty with a wrong mask": (
        lambda u: u(doubly_stochastic)(torch.ones(1, 3, 2), YES),
        ValueError,
        r"keep must have shape \(1, 3\): got \(1, 2\)",
    ),
    "penalty with numbers": (
        lambda u: u(doubly_stochastic)(torch.ones(1, 2, 2), YES, YES.float()),
        TypeError,
        "region_keep must be boolean",
    ),
    "flat map": (lambda u: u(mass_inside)(torch.ones(2, 2), BOX), ValueError, "heat must have"),
    "two boxes": (
        lambda u: u(mass_inside)(torch.ones(1, 2, 2), BOX.repeat(2, 1)),
        ValueError,
        r"box must have shape \(1, 4\)",
    ),
    "empty map": (
        lambda u: u(mass_inside)(torch.zeros(1, 2, 2), BOX),
        ValueError,
        "not zero everywhere",
    ),
    "whole pictures": (
        lambda u: u(SmallCNN.forward)(SmallCNN(8), torch.ones(1, 3, 8, 8).long()),
        TypeError,
        "images must be floating point",
    ),
}


@pytest.mark.parametrize("call, kind, words", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, kind, words, unchecked):
    with pytest.raises(kind, match=words):
        call(unchecked) if call.__code__.co_argcount else call()


def test_regions_are_placed():
    layer, regions = PlacedRegions(6, 5, 8), draw(2, 3, 6)
    expected = F.linear(regions, layer.projection.weight, layer.projection.bias)
    torch.testing.assert_close(layer(regions), expected + layer.place.table[:3])

"""Captioners against formulas written out, PyTorch's own decoder, and enumeration."""

import itertools
import math

import pytest
import torch
from torch import nn

from mmlib.captioning import CaptionDecoding, CaptionerConfig, LSTMCaptioner
from mmlib.captioning_attention import RegionAttention, doubly_stochastic, mass_inside
from mmlib.captioning_transformer import TransformerCaptioner
from mmlib.decoding import beam_search, greedy
from mmlib.positions import sinusoids

KINDS = (LSTMCaptioner, TransformerCaptioner)
CONFIG = CaptionerConfig(
    vocab=5, region_dim=3, max_regions=4, dim=8, heads=2, layers=2, max_length=12
)
BEGIN, END = 1, 2


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make(kind, config=CONFIG):
    """A captioner in double precision whose biases and norms are no zeros and ones."""
    torch.manual_seed(1)
    model = kind(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


REGIONS, TOKENS = draw(2, 4, 3), torch.tensor([[1, 3, 4, 0, 2], [1, 2, 2, 4, 3]])
KEEP = torch.tensor([[True, True, True, False], [True, True, True, True]])


def linear(layer, x):
    """A layer with or without a bias, number by number."""
    rows = []
    for i, row in enumerate(layer.weight.tolist()):
        total = sum(w * value for w, value in zip(row, x, strict=True))
        rows.append(total + (0.0 if layer.bias is None else layer.bias[i].item()))
    return rows


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def lstm_by_hand(cell, x, hidden, state):
    """Hochreiter and Schmidhuber's cell with a forget gate, in PyTorch's order of the gates."""
    size, weights = len(hidden), (cell.weight_ih, cell.weight_hh)
    sums = []
    for row in range(4 * size):
        total = cell.bias_ih[row].item() + cell.bias_hh[row].item()
        for weight, vector in zip(weights, (x, hidden), strict=True):
            total += sum(w * v for w, v in zip(weight[row].tolist(), vector, strict=True))
        sums.append(total)
    new_hidden, new_state = [], []
    for k in range(size):
        let_in, forget = sigmoid(sums[k]), sigmoid(sums[size + k])
        content, let_out = math.tanh(sums[2 * size + k]), sigmoid(sums[3 * size + k])
        new_state.append(forget * state[k] + let_in * content)
        new_hidden.append(let_out * math.tanh(new_state[k]))
    return new_hidden, new_state


def test_lstm_by_hand_is_pytorchs():
    cell = nn.LSTMCell(3, 2).double()
    x, hidden, state = draw(3, seed=1), draw(2, seed=2), draw(2, seed=3)
    expected = cell(x[None], (hidden[None], state[None]))
    ours = lstm_by_hand(cell, x.tolist(), hidden.tolist(), state.tolist())
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(torch.tensor(a, dtype=torch.float64), b[0])


@torch.no_grad()
@pytest.mark.parametrize("row, regions", [(0, 3), (1, 4)])
def test_show_attend_and_tell_is_its_formulas(row, regions):
    model = make(LSTMCaptioner)
    logits, weights = model(REGIONS, TOKENS, KEEP, return_weights=True)
    places = model.region.place.table.tolist()
    v = []
    for i in range(regions):
        projected = linear(model.region.projection, REGIONS[row, i].tolist())
        v.append([a + p for a, p in zip(projected, places[i], strict=True)])
    mean = [sum(column) / regions for column in zip(*v, strict=True)]
    hidden = [math.tanh(x) for x in linear(model.first_hidden, mean)]
    state = [math.tanh(x) for x in linear(model.first_cell, mean)]
    for t, token in enumerate(TOKENS[row].tolist()):
        asked = linear(model.attention.query, hidden)
        scores = []
        for region in v:
            key = linear(model.attention.region, region)
            inside = [math.tanh(a + b) for a, b in zip(key, asked, strict=True)]
            scores.append(linear(model.attention.score, inside)[0])
        total = sum(map(math.exp, scores))
        alpha = [math.exp(score) / total for score in scores]
        gate = [sigmoid(x) for x in linear(model.gate, hidden)]
        z = [
            g * sum(a * region[k] for a, region in zip(alpha, v, strict=True))
            for k, g in enumerate(gate)
        ]
        word = model.word.weight[token].tolist()
        hidden, state = lstm_by_hand(model.cell, word + z, hidden, state)
        parts = (word, linear(model.from_hidden, hidden), linear(model.from_seen, z))
        expected = linear(model.output, [sum(part) for part in zip(*parts, strict=True)])
        torch.testing.assert_close(logits[row, t], torch.tensor(expected, dtype=torch.float64))
        full = torch.tensor(alpha + [0.0] * (4 - regions), dtype=torch.float64)
        torch.testing.assert_close(weights[row, t], full)


def test_attention_has_a_closed_form():
    """One number a region, all layers the identity: softmax of tanh(v + h)."""
    attention = RegionAttention(1, 1, 1).double()
    with torch.no_grad():
        for layer in (attention.region, attention.query, attention.score):
            layer.weight.fill_(1.0)
        attention.region.bias.zero_()
    regions, query = torch.tensor([[[0.0], [1.0]]]).double(), torch.tensor([[0.5]]).double()
    seen, weights = attention(query, attention.keys(regions), regions)
    right = 1 / (1 + math.exp(math.tanh(0.5) - math.tanh(1.5)))
    torch.testing.assert_close(weights, torch.tensor([[1 - right, right]]).double())
    torch.testing.assert_close(seen, torch.tensor([[right]]).double())


NAMES = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}
NAMES |= {"self_norm": "norm1", "cross_norm": "norm2", "mlp_norm": "norm3"}
NAMES |= {"mlp.0": "linear1", "mlp.3": "linear2", "qkv_proj.": "in_proj_"}


@torch.no_grad()
def test_transformer_captioner_is_pytorchs_decoder():
    model = make(TransformerCaptioner)
    layer = nn.TransformerDecoderLayer(
        8, 2, 32, 0.0, "gelu", norm_first=True, batch_first=True, dtype=torch.float64
    )
    theirs = nn.TransformerDecoder(layer, 2, nn.LayerNorm(8, dtype=torch.float64)).eval()
    state = {}
    for name, tensor in model.decoder.state_dict().items():
        for ours, other in {"blocks": "layers", **NAMES}.items():
            name = name.replace(ours, other)
        state[name] = tensor
    theirs.load_state_dict(state)
    placed = model.region.projection(REGIONS) + model.region.place.table
    memory = placed.masked_fill(~KEEP[..., None], 0.0)
    words = math.sqrt(8) * model.word.weight[TOKENS] + sinusoids(5, 8)
    future = torch.ones(5, 5).triu(1).bool()
    looks = []
    last = theirs.layers[-1].multihead_attn
    last.register_forward_pre_hook(lambda _, inputs: looks.append(inputs))
    hidden = theirs(words, memory, tgt_mask=future, memory_key_padding_mask=~KEEP)
    expected = hidden @ model.word.weight.T + model.output_bias
    torch.testing.assert_close(model(REGIONS, TOKENS, KEEP)[0], expected)
    # The path that returns weights is another one.
    logits, weights = model(REGIONS, TOKENS, KEEP, return_weights=True)
    torch.testing.assert_close(logits, expected)
    _, expected_weights = last(*looks[0], key_padding_mask=~KEEP)  # of the last layer, all heads
    torch.testing.assert_close(weights, expected_weights)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_is_all_at_once(kind):
    model = make(kind)
    logits, weights = model(REGIONS, TOKENS, KEEP, return_weights=True)
    decoding = CaptionDecoding(model, REGIONS, KEEP, keep_weights=True)
    steps = torch.stack([decoding(TOKENS[:, t]) for t in range(TOKENS.shape[1])], dim=1)
    torch.testing.assert_close(steps, logits)
    torch.testing.assert_close(decoding.weights, weights)


@torch.no_grad()
def every_caption(model, longest):
    """Log-probability of every possible caption of the first picture, from whole passes."""
    found = {}
    for length in range(1, longest + 1):
        for words in itertools.product(range(5), repeat=length):
            ends = words[-1] == END
            if END in words[:-1] or (not ends and length < longest):
                continue
            tokens = torch.tensor([[BEGIN, *words]])
            logs = model(REGIONS[:1], tokens, KEEP[:1])[0].log_softmax(-1)[0]
            found[words] = sum(logs[t, word].item() for t, word in enumerate(words))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search_finds_what_enumeration_finds(kind, penalty):
    model = make(kind)
    found = every_caption(model, longest=3)
    assert math.isclose(sum(map(math.exp, found.values())), 1.0)
    score = {words: p / ((5 + len(words)) / 6) ** penalty for words, p in found.items()}
    best = sorted(score, key=score.get, reverse=True)[:20]
    made = beam_search(
        CaptionDecoding(model, REGIONS[:1], KEEP[:1]),
        begin=BEGIN,
        end=END,
        beams=125,
        max_length=3,
        length_penalty=penalty,
    )
    lengths = made.lengths[0].tolist()
    ours = [tuple(row[:n]) for row, n in zip(made.tokens[0].tolist(), lengths, strict=True)]
    assert ours[:20] == best
    expected = torch.tensor([found[words] for words in best], dtype=made.log_probs.dtype)
    torch.testing.assert_close(made.log_probs[0, :20], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_one_beam_is_greedy(kind):
    model, limits = make(kind), dict(begin=BEGIN, end=END, max_length=6)
    one = beam_search(CaptionDecoding(model, REGIONS, KEEP), beams=1, **limits)
    assert one.best() == greedy(CaptionDecoding(model, REGIONS, KEEP), **limits).best()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_weights_follow_the_beams(kind):
    model = make(kind)
    decoding = CaptionDecoding(model, REGIONS, KEEP, keep_weights=True)
    made = beam_search(decoding, begin=BEGIN, end=END, beams=3, max_length=5)
    rows = decoding.weights.reshape(2, 3, -1, 4)
    for picture, beam in itertools.product(range(2), range(3)):
        words = made.tokens[picture, beam, : rows.shape[2] - 1]
        tokens = torch.cat([torch.tensor([BEGIN]), words])[None]
        picked = slice(picture, picture + 1)
        _, expected = model(REGIONS[picked], tokens, KEEP[picked], return_weights=True)
        torch.testing.assert_close(rows[picture, beam], expected[0])


def test_penalty_is_its_loops():
    weights = draw(2, 5, 4, seed=4).softmax(-1)
    words = torch.tensor([[True] * 5, [True, True, False, False, False]])
    total = 0.0
    for b, i in itertools.product(range(2), range(4)):
        if KEEP[b, i]:
            total += (1 - sum(weights[b, t, i].item() for t in range(5) if words[b, t])) ** 2
    assert math.isclose(doubly_stochastic(weights, words, KEEP).item(), total)


def test_mass_inside_is_an_integral():
    """The share of the mass is what a fine grid of points, each with its cell's weight, finds."""
    heat, box = draw(3, 4, 5, seed=5).abs(), torch.tensor([[0.1, 0.2, 0.45, 0.9]]).double()
    box = torch.cat([box, torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.71, 0.3, 0.78, 0.33]])])
    side = 1000
    at = (torch.arange(side) + 0.5) / side
    fine = heat[:, (at * 4).long()][:, :, (at * 5).long()]
    left, top, right, bottom = box.unbind(-1)
    inside = ((left[:, None] <= at) & (at < right[:, None]))[:, None]
    inside = inside & ((top[:, None] <= at) & (at < bottom[:, None]))[:, :, None]
    expected = (fine * inside).sum((1, 2)) / fine.sum((1, 2))
    torch.testing.assert_close(mass_inside(heat, box), expected, atol=1e-3, rtol=0)


def test_gradients():
    attention, model = RegionAttention(3, 2, 4).double(), make(LSTMCaptioner)
    query, regions = draw(2, 2, seed=6).requires_grad_(), REGIONS.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda q, r: attention(q, attention.keys(r), r, KEEP), (query, regions)
    )
    assert torch.autograd.gradcheck(
        lambda r: model(r, TOKENS, KEEP, return_weights=True), (regions,)
    )
    words = TOKENS != 0
    assert torch.autograd.gradcheck(
        lambda a: doubly_stochastic(a.softmax(-1), words, KEEP),
        (draw(2, 5, 4, seed=7).requires_grad_(),),
    )
    transformer = make(TransformerCaptioner)
    assert torch.autograd.gradcheck(
        lambda r: transformer(r, TOKENS, KEEP, return_weights=True), (regions,)
    )

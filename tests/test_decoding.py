"""Greedy and beam search against enumeration, against each other, and at their borders."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.attention import padding_keep
from mmlib.block import TransformerConfig
from mmlib.decoding import NextToken, TransformerDecoding, beam_search, greedy
from mmlib.transformer import EncoderDecoder

BEGIN, END, VOCAB = 0, 1, 4


class Table:
    """A model without a network: random logits for every prefix, in float64."""

    def __init__(self, batch, seed=0, vocab=VOCAB, boldness=1.5):
        self.seed, self.vocab, self.boldness = seed, vocab, boldness
        self.prefixes = [(row,) for row in range(batch)]  # the row stands for the source
        self.calls = 0

    rows = property(lambda self: len(self.prefixes))
    device = torch.device("cpu")

    def logits(self, prefix):
        seed = hash((self.seed, *prefix)) % 2**31  # of integers: the same in every process
        generator = torch.Generator().manual_seed(seed)
        return self.boldness * torch.randn(self.vocab, generator=generator, dtype=torch.float64)

    def __call__(self, tokens):
        self.calls += 1
        new = tokens.tolist()
        self.prefixes = [(*p, t) for p, t in zip(self.prefixes, new, strict=True)]
        return torch.stack([self.logits(prefix) for prefix in self.prefixes])

    def select(self, rows):
        self.prefixes = [self.prefixes[row] for row in rows.tolist()]


def log_prob(model, row, sequence):
    """Sum of the log-probabilities of the tokens, computed one by one."""
    total, prefix = 0.0, (row, BEGIN)
    for token in sequence:
        total += model.logits(prefix).log_softmax(0)[token].item()
        prefix = (*prefix, token)
    return total


def penalised(value, length, alpha):
    return value / ((5 + length) / 6) ** alpha


def enumerate_all(model, row, max_length, min_length=0, alpha=0.0):
    """Every sequence there is, best first: (score, log-probability, tokens)."""
    others = [token for token in range(VOCAB) if token != END]
    found = []
    for length in range(min_length, max_length):
        found += [(*body, END) for body in itertools.product(others, repeat=length)]
    found += list(itertools.product(others, repeat=max_length))  # cut off
    scored = [(log_prob(model, row, s), s) for s in found]
    return sorted(((penalised(p, len(s), alpha), p, s) for p, s in scored), reverse=True)


def sequences(found, row):
    """Tokens of each hypothesis, with the end token."""
    lengths = found.lengths[row].tolist()
    return [tuple(t[:n]) for t, n in zip(found.tokens[row].tolist(), lengths, strict=True)]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("min_length", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_what_enumeration_finds(seed, min_length, alpha):
    max_length, beams = 4, 150  # 121 sequences: the beam holds all
    found = beam_search(
        Table(2, seed),
        begin=BEGIN,
        end=END,
        beams=beams,
        max_length=max_length,
        min_length=min_length,
        length_penalty=alpha,
    )
    for row in range(2):
        expected = enumerate_all(Table(2, seed), row, max_length, min_length, alpha)
        count = len(expected)
        assert sequences(found, row)[:count] == [s for _, _, s in expected]
        for name, column in (("scores", 0), ("log_probs", 1)):
            values = torch.tensor([e[column] for e in expected], dtype=torch.float64)
            torch.testing.assert_close(getattr(found, name)[row, :count], values)
        assert (found.log_probs[row, count:] == -torch.inf).all()


def beam_by_hand(model, row, beams, max_length, min_length, alpha):
    """The same search in plain Python, one source at a time."""
    beam = [((), 0.0)]
    for position in range(max_length):
        candidates = []
        for sequence, value in beam:
            if sequence and sequence[-1] == END:
                candidates.append((sequence, value))
                continue
            log_probs = model.logits((row, BEGIN, *sequence)).log_softmax(0)
            for token in range(VOCAB):
                if token != END or position >= min_length:
                    candidates.append(((*sequence, token), value + log_probs[token].item()))
        candidates.sort(key=lambda c: penalised(c[1], len(c[0]), alpha), reverse=True)
        beam = candidates[:beams]
    return beam


@given(
    seed=st.integers(0, 10_000),
    beams=st.integers(1, 5),
    min_length=st.integers(0, 3),
    alpha=st.sampled_from([0.0, 0.7, 1.5]),
)
@settings(max_examples=40, deadline=None)
def test_beam_search_equals_plain_python(seed, beams, min_length, alpha):
    found = beam_search(
        Table(3, seed),
        begin=BEGIN,
        end=END,
        beams=beams,
        max_length=6,
        min_length=min_length,
        length_penalty=alpha,
    )
    for row in range(3):
        expected = beam_by_hand(Table(3, seed), row, beams, 6, min_length, alpha)
        assert sequences(found, row)[: len(expected)] == [s for s, _ in expected]
        for got, (sequence, value) in zip(found.log_probs[row].tolist(), expected, strict=False):
            assert math.isclose(got, value, abs_tol=1e-12)
            assert math.isclose(got, log_prob(Table(3, seed), row, sequence), abs_tol=1e-12)


@given(
    seed=st.integers(0, 10_000),
    min_length=st.integers(0, 3),
    alpha=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_one_beam_is_greedy(seed, min_length, alpha):
    options = dict(begin=BEGIN, end=END, max_length=7, min_length=min_length)
    one = beam_search(Table(4, seed), beams=1, length_penalty=alpha, **options)
    plain = greedy(Table(4, seed), **options)
    for name in ("tokens", "lengths", "finished", "log_probs"):
        assert torch.equal(getattr(one, name), getattr(plain, name)), name
    for row in range(4):
        expected = log_prob(Table(4, seed), row, sequences(plain, row)[0])
        assert math.isclose(plain.log_probs[row, 0].item(), expected, abs_tol=1e-12)


def test_greedy_takes_the_first_choice_and_rows_that_end_wait():
    model, found = Table(8), greedy(Table(8), begin=BEGIN, end=END, max_length=9)
    assert len(set(found.lengths.flatten().tolist())) > 1  # rows end at different times
    for row in range(8):
        sequence, prefix = sequences(found, row)[0], (row, BEGIN)
        for token in sequence:
            assert token == model.logits(prefix).argmax()
            prefix = (*prefix, token)
        assert found.finished[row, 0] == (sequence[-1] == END)
        assert (found.tokens[row, 0, len(sequence) :] == END).all()
        assert found.best()[row] == [t for t in sequence if t != END]


def test_the_search_stops_when_every_row_has_ended():
    class Short(Table):
        def logits(self, prefix):
            return torch.tensor([0.0, 5.0 if len(prefix) > 3 else -5.0, 0.1, -9.0]).double()

    model = Short(3)
    assert greedy(model, begin=BEGIN, end=END, max_length=50).lengths.flatten().tolist() == [3] * 3
    assert model.calls == 3
    model = Short(3)
    beam_search(model, begin=BEGIN, end=END, beams=2, max_length=50)
    assert model.calls <= 4


def test_limits_of_length():
    class Endless(Table):
        def logits(self, prefix):
            return torch.tensor([0.0, -9.0, 1.0, 0.5]).double()

    class Silent(Table):
        def logits(self, prefix):
            return torch.tensor([0.0, 9.0, 1.0, 0.5]).double()

    options = dict(begin=BEGIN, end=END)
    for search, more in ((greedy, {}), (beam_search, dict(beams=2))):
        cut = search(Endless(2), max_length=5, **options, **more)
        assert cut.lengths[:, 0].tolist() == [5, 5] and not cut.finished[:, 0].any()
        assert cut.best() == [[2] * 5] * 2
        empty = search(Silent(2), max_length=5, **options, **more)
        assert empty.lengths[:, 0].tolist() == [1, 1] and empty.best() == [[], []]
        longer = search(Silent(2), max_length=5, min_length=3, **options, **more)
        assert longer.lengths[:, 0].tolist() == [4, 4] and longer.finished[:, 0].all()


def test_the_length_penalty_favours_longer_sequences():
    """Ending at once has 0.4, a second token 0.6 and then a certain end: 0.6 wins only later."""

    class Model(Table):
        def logits(self, prefix):
            certain = torch.tensor([1e-9, 1.0, 1e-9, 1e-9])
            return (torch.tensor([0.3, 0.4, 0.299, 0.001]) if len(prefix) < 3 else certain).log()

    lengths = [
        beam_search(
            Model(1), begin=BEGIN, end=END, beams=3, max_length=4, length_penalty=alpha
        ).lengths[0, 0]
        for alpha in (0.0, 3.0)
    ]
    assert lengths == [1, 2]


# --- with a Transformer ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        dim=16, heads=2, layers=2, mlp_dim=24, source_vocab=9, target_vocab=6, max_length=12
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        made = EncoderDecoder(config).double().eval()
        with torch.no_grad():
            made.target_embedding.weight.mul_(3)  # bolder predictions, so that rows differ
            made.output_bias[END] += 1.0
    return made


def state(model, use_cache=True):
    source = torch.randint(9, (5, 6), generator=torch.Generator().manual_seed(1))
    keep = padding_keep(torch.tensor([6, 3, 1, 4, 5]))
    return TransformerDecoding(model, source, keep, use_cache=use_cache)


SEARCHES = {
    "greedy": lambda step: greedy(step, begin=BEGIN, end=END, max_length=10),
    "beams": lambda step: beam_search(
        step, begin=BEGIN, end=END, beams=4, max_length=10, length_penalty=0.6
    ),
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_cached_search_equals_uncached_search(model, search):
    cached, plain = search(state(model)), search(state(model, use_cache=False))
    assert torch.equal(cached.tokens, plain.tokens)
    assert torch.equal(cached.lengths, plain.lengths)
    torch.testing.assert_close(cached.log_probs, plain.log_probs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_log_probabilities_are_those_of_teacher_forcing(model, search):
    found, step = search(state(model)), state(model)
    for beam in range(found.tokens.shape[1]):
        tokens = found.tokens[:, beam]
        begin = torch.full_like(tokens[:, :1], BEGIN)
        inputs = torch.cat([begin, tokens[:, :-1]], dim=1)
        logits, _ = model.decode(inputs, step.memory, step.source_keep)
        chosen = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        real = padding_keep(found.lengths[:, beam], tokens.shape[1])
        torch.testing.assert_close(found.log_probs[:, beam], (chosen * real).sum(1))


def test_each_row_is_decoded_as_if_it_were_alone(model):
    together, source = SEARCHES["beams"](state(model)), state(model)
    tokens = torch.randint(9, (5, 6), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate([6, 3, 1, 4, 5]):
        alone = SEARCHES["beams"](TransformerDecoding(model, tokens[row : row + 1, :length]))
        assert sequences(alone, 0) == sequences(together, row)
    assert isinstance(source, NextToken)


def test_decoding_leaves_no_graph_and_no_change(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = SEARCHES["beams"](state(model))
    assert not found.log_probs.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- bad input ---------------------------------------------------------------------------------

BAD = {
    "no beams": (dict(beams=0), "beams must be at least 1: got 0"),
    "penalty": (dict(length_penalty=-1.0), "length_penalty must be finite and at least 0"),
    "infinite": (dict(length_penalty=math.inf), "length_penalty must be finite"),
    "length": (dict(max_length=0), "min_length=0, max_length=0"),
    "order": (dict(min_length=5), "min_length=5, max_length=5"),
    "end": (dict(end=VOCAB), "end must be below the vocabulary's size 4: got 4"),
    "negative": (dict(begin=-1), "begin=-1"),
}


@pytest.mark.parametrize("changes, message", BAD.values(), ids=BAD)
def test_bad_limits_are_named(changes, message):
    options = dict(begin=BEGIN, end=END, beams=2, max_length=5) | changes
    with pytest.raises(ValueError, match=message):
        beam_search(Table(1), **options)
    if not {"beams", "length_penalty"} & set(changes):
        options.pop("beams")
        with pytest.raises(ValueError, match=message):
            greedy(Table(1), **options)


def test_nan_is_named():
    class Broken(Table):
        def logits(self, prefix):
            return torch.full((VOCAB,), torch.nan)

    with pytest.raises(ValueError, match="logits hold NaN"):
        greedy(Broken(1), begin=BEGIN, end=END, max_length=3)

"""The causal language model, sampling, and counting; GPT-2 and NLTK are in tests/reference."""

import inspect
import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlib.block import TransformerConfig
from mmlib.language_model import CausalLM, NGram, _draw, next_token_loss, sample

VOCAB, END = 12, 2


def model(**changes) -> CausalLM:
    torch.manual_seed(3)
    sizes = dict(dim=16, heads=2, layers=2, target_vocab=VOCAB, max_length=20, dropout=0.0)
    made = CausalLM(TransformerConfig(**{**sizes, **changes}))
    with torch.no_grad():  # sharper than at the start, so that differences show
        made.token.weight.mul_(8.0)
    return made


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, shape, generator=generator(seed))


def test_no_token_sees_a_later_one():
    lm, ids = model(), draw(2, 10)
    changed = ids.clone()
    changed[:, 6:] = draw(2, 4, seed=1)
    torch.testing.assert_close(lm(ids)[:, :6], lm(changed)[:, :6])
    assert (lm(ids)[:, 6] - lm(changed)[:, 6]).abs().max() > 1e-3


def test_positions_matter():
    lm = model()
    assert (lm(torch.tensor([[5, 5, 5]])) - lm(torch.tensor([[5, 5, 5]]))[:, :1]).abs().max() > 1e-4


def test_cache_gives_the_same():
    lm, ids = model(), draw(2, 9)
    cache = lm.decoder.new_cache()
    parts = [lm(ids[:, :4], cache=cache), lm(ids[:, 4:5], cache=cache), lm(ids[:, 5:], cache=cache)]
    torch.testing.assert_close(torch.cat(parts, dim=1), lm(ids))


def test_padding_at_the_end_changes_nothing():
    lm, ids = model(), draw(2, 9)
    keep = torch.arange(9).expand(2, 9) < 6
    torch.testing.assert_close(lm(ids, keep)[:, :6], lm(ids[:, :6]))


def test_the_output_matrix_is_the_embedding():
    names = dict(model().named_parameters())
    assert [name for name, p in names.items() if p.shape == (VOCAB, 16)] == ["token.weight"]


def test_there_is_no_cross_attention():
    assert not model(cross_attention=True).config.cross_attention


def test_loss_by_hand():
    logits = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [9.0, -9.0]]])
    total, count = next_token_loss(logits, torch.tensor([[0, 1, 1]]))
    assert count == 2  # -log sigmoid(1) - log sigmoid(-2); the last logits have no next token
    assert total.item() == pytest.approx(0.313262 + 2.126928, abs=1e-5)
    keep = torch.tensor([[True, True, False]])
    total, count = next_token_loss(logits, torch.tensor([[0, 1, 1]]), keep)
    assert count == 1 and total.item() == pytest.approx(0.313262, abs=1e-5)


def test_padding_may_hold_anything():
    logits = torch.zeros(1, 3, 2)
    logits[0, 1] = torch.nan  # predicts padding
    total, count = next_token_loss(logits, torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 0]]) > 0)
    assert count == 1 and total.item() == pytest.approx(math.log(2))


def test_temperature_0_takes_the_most_probable():
    lm, prompt = model(), draw(3, 4)
    texts = sample(lm, prompt, end=END, max_length=12, generator=generator(), temperature=0.0)
    for row, text in zip(prompt, texts, strict=True):
        ids = row.tolist()
        while len(ids) < 12:
            best = int(lm(torch.tensor([ids]))[0, -1].argmax())
            if best == END:
                break
            ids.append(best)
        assert text == ids


def test_draws_follow_the_distribution():
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0])
    for temperature in (0.5, 1.0, 2.0):
        drawn = _draw(logits.expand(20000, 4), temperature, 1.0, generator())[:, 0]
        shares = torch.bincount(drawn, minlength=4) / 20000
        wanted = (logits / temperature).softmax(0)
        assert ((shares - wanted).abs() < 4.5 * (wanted * (1 - wanted) / 20000).sqrt() + 1e-9).all()


def test_nucleus_is_the_smallest_set_that_reaches_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    for top_p, count in ((0.4, 1), (0.49, 1), (0.6, 2), (0.81, 3), (1.0, 4)):
        drawn = _draw(logits.expand(5000, 4), 1.0, top_p, generator())
        assert set(drawn.flatten().tolist()) == set(range(count))


def test_sampling_stops_at_the_end_and_keeps_the_prompt():
    lm, prompt = model(), draw(40, 3)
    prompt[0, 1] = END  # an end token in the prompt ends nothing
    texts = sample(lm, prompt, end=END, max_length=15, generator=generator())
    lengths = set()
    for row, text in zip(prompt.tolist(), texts, strict=True):
        assert text[:3] == row and END not in text[3:] and len(text) <= 15
        lengths.add(len(text))
    assert len(lengths) > 3
    again = sample(lm, prompt, end=END, max_length=15, generator=generator())
    assert again == texts
    assert texts != sample(lm, prompt, end=END, max_length=15, generator=generator(1))


def test_mode_and_global_state_stay():
    lm, state = model(), torch.get_rng_state()
    sample(lm.train(), draw(2, 3), end=END, max_length=5, generator=generator())
    assert lm.training and torch.equal(torch.get_rng_state(), state)


def test_learns_to_copy_what_counting_cannot():
    """A random word twice, five places apart: no 3-gram can know the second."""
    g, lm = generator(), model()
    with torch.no_grad():
        torch.nn.init.normal_(lm.token.weight, std=0.25, generator=generator())

    def batch(rows):
        ids = torch.randint(3, VOCAB, (rows, 8), generator=g)
        ids[:, 1:6] = 1
        ids[:, 6] = ids[:, 0]
        return ids[:, :7]

    optimizer = torch.optim.Adam(lm.parameters(), lr=5e-3)
    for _ in range(200):
        ids = batch(64)
        total, count = next_token_loss(lm(ids), ids)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    ids = batch(200)
    assert (lm(ids)[:, 5].argmax(-1) == ids[:, 6]).double().mean() > 0.95
    counted = NGram(batch(500).tolist(), order=3, vocab=VOCAB)
    assert max(counted.probability(word, [1, 1]) for word in range(3, VOCAB)) < 0.1


def test_ngram_by_hand():
    """a b a b | a c: after a came b twice and c once; two kinds."""
    counted = NGram([[0, 1, 0, 1], [0, 2]], order=2, vocab=3)
    # Tokens after the first of a text: 1, 0, 1, 2: four, of three kinds, and 1/3 below.
    one = [(1 + 3 / 3) / 7, (2 + 3 / 3) / 7, (1 + 3 / 3) / 7]
    assert [counted.probability(t, []) for t in range(3)] == pytest.approx(one)
    two = [(0 + 2 * one[0]) / 5, (2 + 2 * one[1]) / 5, (1 + 2 * one[2]) / 5]
    assert [counted.probability(t, [0]) for t in range(3)] == pytest.approx(two)
    # Only the last token of a history counts, and an unknown one counts for nothing.
    assert counted.probability(1, [2, 2, 0]) == counted.probability(1, [0])
    assert counted.probability(1, [2]) == counted.probability(1, [])


@given(
    texts=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=12), min_size=1, max_size=5),
    order=st.integers(1, 4),
    history=st.lists(st.integers(0, 4), max_size=4),
)
def test_probabilities_sum_to_one(texts, order, history):
    counted = NGram(texts, order, vocab=5)
    shares = [counted.probability(token, history) for token in range(5)]
    assert min(shares) > 0 and sum(shares) == pytest.approx(1)


def test_perplexity_is_that_of_the_whole_text():
    """Two to the entropy of a fair coin is two, however it is written."""
    coins = [list(row) for row in itertools.product((0, 1), repeat=6)]
    counted = NGram(coins, order=1, vocab=2)
    assert counted.perplexity(coins) == pytest.approx(2.0)
    certain = NGram([[0, 1] * 200], order=2, vocab=2)
    assert certain.perplexity([[0, 1, 0, 1]]) == pytest.approx(1.0, abs=0.02)
    log = sum(math.log(certain.probability(t, [1 - t])) for t in (1, 0, 1))
    assert certain.perplexity([[0, 1], [1, 0, 1]]) == pytest.approx(math.exp(-log / 3))


def test_longer_histories_do_better_where_they_matter():
    text = [0, 1, 2, 0, 3, 2] * 100  # what follows 2, 0 or 1, 2 is known, what follows 2 is not
    scores = [NGram([text], order, vocab=4).perplexity([text]) for order in (1, 2, 3)]
    assert scores[0] > scores[1] > scores[2]


IDS = draw(2, 6)
BAD = {
    "float": (lambda: unchecked_forward(IDS.float()), TypeError, "ids must hold whole numbers"),
    "flat": (lambda: unchecked_forward(IDS[0]), ValueError, "ids must have shape (batch, length)"),
    "range": (lambda: unchecked_forward(IDS + 9), ValueError, "ids must lie from 0 to 11"),
    "long": (lambda: unchecked_forward(draw(1, 21)), ValueError, "positions 0 to 20"),
    "no vocab": (
        lambda: CausalLM(TransformerConfig(dim=8, heads=2)),
        ValueError,
        "target_vocab must be given",
    ),
    "logits": (
        lambda: inspect.unwrap(next_token_loss)(torch.zeros(2, 5, 9), IDS),
        ValueError,
        "got (2, 5, 9) and (2, 6)",
    ),
    "one token": (
        lambda: next_token_loss(torch.zeros(2, 1, 9), IDS[:, :1]),
        ValueError,
        "length 2 or more",
    ),
    "temperature": (lambda: draws(temperature=-1.0), ValueError, "temperature must be at least 0"),
    "nan": (lambda: draws(temperature=float("nan")), ValueError, "temperature must be at least 0"),
    "top_p": (lambda: draws(top_p=0.0), ValueError, "top_p must be above 0 and at most 1: got 0.0"),
    "short": (lambda: draws(max_length=6), ValueError, "max_length must be above the prompt's 6"),
    "too long": (lambda: draws(max_length=21), ValueError, "at most the model's 20: got 21"),
    "prompt": (lambda: draws(prompt=IDS[:, :0]), ValueError, "prompt must have shape"),
    "order": (lambda: NGram([[0, 1]], 0, 3), ValueError, "order must be at least 1: got 0"),
    "empty": (lambda: NGram([[0]], 2, 3), ValueError, "at least one token after the first"),
    "id": (lambda: NGram([[0, 3]], 2, 3), ValueError, "ids from 0 to 2: got 3"),
    "token": (lambda: NGram([[0, 1]], 2, 3).probability(7, []), ValueError, "0 to 2: got 7"),
    "nothing": (lambda: NGram([[0, 1]], 2, 3).perplexity([]), ValueError, "at least one token"),
}


def unchecked_forward(ids):
    return inspect.unwrap(CausalLM.forward)(model(), ids)


def draws(**changes):
    arguments = dict(prompt=IDS, end=END, max_length=9, generator=generator())
    arguments.update(changes)
    return inspect.unwrap(sample)(model(), **arguments)


@pytest.mark.parametrize("call, error, words", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()

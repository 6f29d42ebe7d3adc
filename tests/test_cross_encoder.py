"""The cross-encoder and re-ranking: what they read, what they leave alone, bad input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlib.cross_encoder import CrossEncoder, CrossEncoderConfig, rerank
from mmlib.encoders.encoded import Encoded
from mmlib.metrics.retrieval import ranks
from mmlib.training import TrainConfig, fit

CONFIG = CrossEncoderConfig(image_dim=6, text_dim=5, dim=16, heads=2, layers=2, dropout=0.0)


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(x, keep=None):
    keep = torch.ones(x.shape[:2], dtype=torch.bool) if keep is None else keep
    return Encoded(x, keep, x.mean(dim=1))


@pytest.fixture
def model():
    return CrossEncoder(CONFIG).eval()


REGIONS, WORDS = draw(3, 4, 6, seed=1), draw(3, 5, 5, seed=2)


def test_padding_changes_nothing(model):
    keep = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    expected = [
        model(encoded(REGIONS[i : i + 1]), encoded(WORDS[i : i + 1, : keep[i].sum()]))
        for i in range(3)
    ]
    noisy = WORDS.masked_fill(~keep[..., None], 1e3)
    for words in (WORDS, noisy):
        found = model(encoded(REGIONS), encoded(words, keep))
        torch.testing.assert_close(found, torch.cat(expected))


def test_every_region_and_word_counts(model):
    before = model(encoded(REGIONS), encoded(WORDS))
    for tokens, other in ((REGIONS, WORDS), (WORDS, REGIONS)):
        for place in range(tokens.shape[1]):
            changed = tokens.clone()
            changed[0, place] = draw(tokens.shape[2], seed=9)
            both = (changed, other) if tokens is REGIONS else (other, changed)
            after = model(*map(encoded, both))
            assert abs(after[0] - before[0]) > 1e-6
            torch.testing.assert_close(after[1:], before[1:])


def test_kinds_tell_regions_from_words():
    config = CrossEncoderConfig(image_dim=5, text_dim=5, dim=16, heads=2, layers=1)
    model = CrossEncoder(config).eval()
    model.text.load_state_dict(model.image.state_dict())
    a, b = encoded(draw(3, 4, 5, seed=1)), encoded(draw(3, 4, 5, seed=2))
    assert (model(a, b) - model(b, a)).abs().max() > 1e-6
    with torch.no_grad():
        model.kind_embedding[2] = model.kind_embedding[1]
    torch.testing.assert_close(model(a, b), model(b, a))


def test_it_learns_what_no_two_vectors_of_means_can_tell():
    # A pair matches when the word names the region at a place: the means of all pairs are equal.
    torch.manual_seed(0)
    model = CrossEncoder(CrossEncoderConfig(4, 4, dim=32, heads=2, layers=2, dropout=0.0))
    things = torch.eye(4)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    images = torch.stack([torch.stack([s[0] * things[0], s[1] * things[1]]) for s in signs])
    image, text = images.repeat_interleave(2, 0), images.repeat(2, 1, 1)
    match = torch.tensor([1.0, 0.0, 0.0, 1.0])

    def loss_fn(model, batch):
        logits = model(encoded(image), encoded(text))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, match)

    fit(model, loss_fn, [match], TrainConfig(150, learning_rate=3e-3, progress=False))
    with torch.no_grad():
        assert ((model(encoded(image), encoded(text)) > 0) == match.bool()).all()


# ---- re-ranking


@given(st.integers(1, 5), st.integers(2, 30), st.integers(0, 99))
def test_ranks_below_the_top_stay(queries, items, seed):
    top = max(1, items // 3)
    scores, better = draw(queries, items, seed=seed), draw(queries, items, seed=seed + 1)
    kept = scores.clone()
    found = rerank(scores, lambda q, i: better[q, i], top)
    assert torch.equal(scores, kept)
    for q in range(queries):
        old = scores[q].argsort(descending=True).tolist()
        new = found[q].argsort(descending=True).tolist()
        assert new[:top] == sorted(old[:top], key=lambda i: -better[q, i])
        assert new[top:] == old[top:]
        assert torch.equal(found[q, old[top:]], scores[q, old[top:]])
        assert found[q].sort().values.equal(scores[q].sort().values)


def test_a_right_item_below_the_top_stays_where_it_is():
    scores = -torch.arange(50.0)[None]
    relevant = torch.zeros(1, 50, dtype=torch.bool)
    relevant[0, 20] = True
    best = rerank(scores, lambda q, i: 100.0 * relevant[q, i], 20)
    assert ranks(best, relevant).item() == 21
    best = rerank(scores, lambda q, i: 100.0 * relevant[q, i], 21)
    assert ranks(best, relevant).item() == 1


def test_each_pair_is_scored_once():
    asked = []

    def rescore(queries, items):
        asked.extend(zip(queries.tolist(), items.tolist(), strict=True))
        return torch.zeros(len(queries))

    scores = draw(3, 8, seed=1)
    assert torch.equal(rerank(scores, rescore, 4), scores)  # equal scores keep their order
    assert len(asked) == len(set(asked)) == 12


BAD = {
    "image dim": (lambda f: CrossEncoderConfig(0, 5), "image_dim must be"),
    "text dim": (lambda f: CrossEncoderConfig(5, 0), "text_dim must be"),
    "heads": (lambda f: CrossEncoderConfig(5, 5, dim=16, heads=3), "heads must divide dim"),
    "dropout": (lambda f: CrossEncoderConfig(5, 5, dropout=1.0), "dropout must lie"),
    "wide": (
        lambda f: f(CrossEncoder.forward)(CrossEncoder(CONFIG), encoded(WORDS), encoded(WORDS)),
        "image tokens must have width 6: got 5",
    ),
    "fewer": (
        lambda f: f(CrossEncoder.forward)(
            CrossEncoder(CONFIG), encoded(REGIONS), encoded(WORDS[:2])
        ),
        "as many items: got 3 and 2",
    ),
    "top": (lambda f: f(rerank)(torch.zeros(2, 3), None, 4), "top must be from 1 to 3"),
    "no top": (lambda f: f(rerank)(torch.zeros(2, 3), None, 0), "top must be from 1 to 3"),
    "scores": (
        lambda f: f(rerank)(torch.zeros(2, 3), lambda q, i: torch.zeros(2), 2),
        "must give 4 scores",
    ),
}


@pytest.mark.parametrize("call, words", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, words, unchecked):
    with pytest.raises(ValueError, match=words):
        call(unchecked)

"""Text encoders: padding changes nothing, pooling, causality, missing texts, bad input."""

import inspect
import math

import pytest
import torch
from torch import nn

from mmlib.attention import padding_keep
from mmlib.encoders.encoded import Encoded
from mmlib.encoders.loading import load_renamed
from mmlib.encoders.pooling import end_positions, mean_tokens, take_tokens
from mmlib.encoders.text import (
    Bert,
    BertConfig,
    TextRNN,
    TextRNNConfig,
    TextTransformer,
    TextTransformerConfig,
    embed_texts,
)
from mmlib.encoders.tokenizers import word_tokenizer

END = 29
SIZES = dict(vocab_size=30, dim=8)
TRANSFORMER = dict(**SIZES, heads=2, max_length=12)
KINDS = {
    "bert-cls": (Bert, BertConfig(**TRANSFORMER, layers=2)),
    "bert-mean": (Bert, BertConfig(**TRANSFORMER, layers=2, pool="mean")),
    "mean": (TextTransformer, TextTransformerConfig(**TRANSFORMER)),
    "first": (TextTransformer, TextTransformerConfig(**TRANSFORMER, pool="first")),
    "clip": (
        TextTransformer,
        TextTransformerConfig(**TRANSFORMER, causal=True, pool="end", end_id=END),
    ),
    "causal-mean": (TextTransformer, TextTransformerConfig(**TRANSFORMER, causal=True)),
    "gru": (TextRNN, TextRNNConfig(**SIZES, layers=2)),
    "lstm-both": (TextRNN, TextRNNConfig(**SIZES, cell="lstm", bidirectional=True)),
    "gru-mean": (TextRNN, TextRNNConfig(**SIZES, bidirectional=True, pool="mean")),
}
LENGTHS = torch.tensor([7, 3, 1, 5])
KEEP = padding_keep(LENGTHS)


def make(kind, dtype=torch.float64):
    module, config = KINDS[kind]
    encoder = module(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return encoder


def some_ids(seed=0):
    ids = torch.randint(1, END, (4, 7), generator=torch.Generator().manual_seed(seed))
    ids[torch.arange(4), LENGTHS - 1] = END
    return ids


@pytest.fixture(params=KINDS)
def encoder(request):
    return make(request.param)


# --- what all have in common -------------------------------------------------------------------


def test_it_returns_what_every_encoder_returns(encoder):
    ids = some_ids()
    before = ids.clone()
    out = encoder(ids, KEEP)
    assert isinstance(out, Encoded)
    assert out.tokens.shape == (4, 7, 8) and out.pooled.shape == (4, 8) and encoder.dim == 8
    assert out.tokens.dtype == out.pooled.dtype == torch.float64
    assert torch.equal(out.keep, KEEP) and out.weights is None
    assert torch.equal(ids, before)
    assert out.pooled.unique(dim=0).shape[0] == 4


def test_padding_changes_nothing_and_gives_zeros(encoder):
    ids = some_ids()
    out = encoder(ids, KEEP)
    assert (out.tokens[~KEEP] == 0).all() and (out.tokens[KEEP] != 0).any(dim=-1).all()
    other = encoder(torch.where(KEEP, ids, 17), KEEP)
    torch.testing.assert_close(other.tokens, out.tokens, rtol=0, atol=0)
    torch.testing.assert_close(other.pooled, out.pooled, rtol=0, atol=0)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = encoder(ids[row : row + 1, :length])
        torch.testing.assert_close(alone.tokens[0], out.tokens[row, :length])
        torch.testing.assert_close(alone.pooled[0], out.pooled[row])
        assert alone.keep.all() and alone.keep.shape == (1, length)


def test_padding_gets_no_gradient(encoder):
    table = encoder.embeddings.token if isinstance(encoder, Bert) else encoder.token
    ids = some_ids().where(KEEP, torch.tensor(17))
    ids[ids == 17] = 16
    ids = ids.where(KEEP, torch.tensor(17))
    out = encoder(ids, KEEP)
    (out.tokens.square().sum() + out.pooled.square().sum()).backward()
    touched = table.weight.grad.abs().sum(dim=1) > 0
    assert set(touched.nonzero().flatten().tolist()) == set(ids[KEEP].tolist())


def test_a_missing_text_gives_zeros_and_finite_gradients(encoder):
    keep = KEEP.clone()
    keep[1] = False
    ids = some_ids()
    out, whole = encoder(ids, keep), encoder(ids, KEEP)
    assert (out.pooled[1] == 0).all() and (out.tokens[1] == 0).all()
    rest = torch.tensor([0, 2, 3])
    torch.testing.assert_close(out.pooled[rest], whole.pooled[rest])
    (out.tokens.square().sum() + out.pooled.square().sum()).backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)
    assert encoder(ids, torch.zeros_like(keep)).pooled.abs().sum() == 0


def test_the_order_of_words_matters(encoder):
    ids = torch.tensor([[4, 9, 6, END], [6, 9, 4, END]])
    pooled = encoder(ids).pooled
    assert (pooled[0] - pooled[1]).abs().max() > 1e-4


def test_weights_are_returned_on_request(encoder):
    out = encoder(some_ids(), KEEP, return_weights=True)
    plain = encoder(some_ids(), KEEP)
    torch.testing.assert_close(out.tokens, plain.tokens)
    if isinstance(encoder, TextRNN):
        assert out.weights is None
        return
    assert len(out.weights) == 2
    for layer in out.weights:
        assert layer.self_attention.shape == (4, 2, 7, 7) and layer.cross_attention is None
        kept = layer.self_attention.masked_select(KEEP[:, None, None, :].expand(4, 2, 7, 7))
        torch.testing.assert_close(kept.sum(), torch.tensor(4.0 * 2 * 7, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(encoder, dtype):
    exact = encoder(some_ids(), KEEP)
    out = encoder.to(dtype)(some_ids(), KEEP)
    assert out.tokens.dtype == out.pooled.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.15
    torch.testing.assert_close(out.pooled.double(), exact.pooled, rtol=0, atol=tolerance)


def test_a_causal_encoder_sees_nothing_that_comes_later():
    for kind, causal in {
        "clip": True,
        "causal-mean": True,
        "mean": False,
        "bert-cls": False,
    }.items():
        encoder, ids = make(kind), some_ids()[:1]
        changed = ids.clone()
        changed[0, 4] = 1 + ids[0, 4] % 20
        difference = (encoder(ids).tokens - encoder(changed).tokens).abs().amax(dim=-1)[0]
        assert (difference[4:] > 1e-6).all()
        assert (difference[:4] == 0).all() if causal else (difference[:4] > 1e-6).all()


def test_dropout_only_in_training():
    ids = some_ids()
    for kind, (module, config) in KINDS.items():
        options = {**vars(config), "dropout": 0.5}
        encoder = module(type(config)(**options))
        assert not torch.equal(encoder(ids, KEEP).pooled, encoder(ids, KEEP).pooled), kind
        encoder.eval()
        assert torch.equal(encoder(ids, KEEP).pooled, encoder(ids, KEEP).pooled)


# --- pooling -----------------------------------------------------------------------------------


def test_pooled_is_what_the_configuration_says():
    ids = some_ids()
    rows = torch.arange(4)
    for kind in ("bert-mean", "mean", "causal-mean", "gru-mean"):
        out = make(kind)(ids, KEEP)
        for row, length in enumerate(LENGTHS.tolist()):
            torch.testing.assert_close(out.pooled[row], out.tokens[row, :length].mean(dim=0))
    out = make("first")(ids, KEEP)
    assert torch.equal(out.pooled, out.tokens[:, 0])
    out = make("clip")(ids, KEEP)
    assert torch.equal(out.pooled, out.tokens[rows, LENGTHS - 1])
    encoder = make("bert-cls")
    out = encoder(ids, KEEP)
    expected = torch.tanh(out.tokens[:, 0] @ encoder.pooler.weight.T + encoder.pooler.bias)
    torch.testing.assert_close(out.pooled, expected)
    out = make("gru")(ids, KEEP)
    assert torch.equal(out.pooled, out.tokens[rows, LENGTHS - 1])


def test_the_end_is_found_by_its_id_and_not_by_its_size():
    ids = torch.tensor([[4, 2, 9, 9, 2], [9, 8, 7, 2, 0]])
    assert end_positions(ids, 2).tolist() == [1, 3]
    encoder = TextTransformer(
        TextTransformerConfig(**TRANSFORMER, causal=True, pool="end", end_id=2)
    )
    out = encoder(ids)
    assert torch.equal(out.pooled, out.tokens[torch.arange(2), torch.tensor([1, 3])])


def test_an_end_in_the_padding_does_not_count():
    ids = torch.tensor([[4, 2, 2, 2], [5, 2, 2, 2]])
    assert end_positions(ids, 2, padding_keep(torch.tensor([2, 0]), 4)).tolist() == [1, 0]
    with pytest.raises(
        ValueError, match=r"end-of-text token 2 in every row: row 1 is \[5, 2, 2, 2"
    ):
        end_positions(ids, 2, padding_keep(torch.tensor([2, 1]), 4))


def test_mean_and_take():
    x = torch.randn(3, 4, 2)
    keep = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    x[~keep] = math.inf
    expected = torch.stack([(x[0, 0] + x[0, 2]) / 2, torch.zeros(2), x[2].mean(dim=0)])
    torch.testing.assert_close(mean_tokens(x, keep), expected)
    assert torch.equal(take_tokens(x, torch.tensor([0, 3, 2])), x[torch.arange(3), [0, 3, 2]])


# --- how they begin ----------------------------------------------------------------------------


def test_bert_begins_as_in_the_paper():
    bert = Bert(BertConfig(vocab_size=500, dim=64, heads=4, layers=2))
    for name, parameter in bert.named_parameters():
        if parameter.ndim == 2:
            if parameter.numel() > 1000:
                assert 0.019 < parameter.std() < 0.021, name
        else:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name
    norms = [module for module in bert.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5 and {norm.eps for norm in norms} == {1e-12}


def test_token_types_change_the_second_text():
    bert, ids = make("bert-cls"), some_ids()
    types = torch.zeros_like(ids)
    assert torch.equal(bert(ids, KEEP, types).tokens, bert(ids, KEEP).tokens)
    types[:, 2:] = 1
    assert not torch.allclose(bert(ids, KEEP, types).tokens, bert(ids, KEEP).tokens)


def test_the_embedding_table_can_be_tied():
    bert = Bert(BertConfig(**TRANSFORMER, layers=1))
    head = nn.Linear(8, 30, bias=False)
    head.weight = bert.embeddings.token.weight
    head(bert(some_ids(), KEEP).tokens).square().sum().backward()
    assert bert.embeddings.token.weight.grad[END].abs().sum() > 0


def test_a_clip_tower_learns_to_tell_texts_apart():
    """The pooled vectors are driven by the words: a linear probe on them learns in a few steps."""
    encoder = TextTransformer(
        TextTransformerConfig(**TRANSFORMER, causal=True, pool="end", end_id=END)
    )
    ids = torch.cat([some_ids(seed) for seed in range(8)])
    ids[:, 6] = END
    targets = (ids[:, 0] > 14).long()
    head = nn.Linear(8, 2)
    optimiser = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(head(encoder(ids).pooled), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


# --- whole lists of texts ----------------------------------------------------------------------

TEXTS = ["a red star", "star", "a blue ring and a red star and a ring", "", "ring ring"]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_embedding_many_texts_keeps_their_order(encoder, batch_size):
    tokenizer = word_tokenizer(TEXTS)
    ids, keep = tokenizer.encode(TEXTS)
    if isinstance(encoder, TextTransformer) and encoder.config.pool == "end":
        encoder = TextTransformer(
            TextTransformerConfig(**TRANSFORMER, causal=True, pool="end", end_id=tokenizer.end_id)
        ).double()
    encoder.train()
    vectors = embed_texts(encoder, tokenizer, TEXTS, batch_size=batch_size, normalise=False)
    assert encoder.training and not vectors.requires_grad
    torch.testing.assert_close(vectors, encoder.eval()(ids, keep).pooled.detach())
    unit = embed_texts(encoder, tokenizer, TEXTS, batch_size=batch_size)
    assert not encoder.training
    torch.testing.assert_close(unit, nn.functional.normalize(vectors))


def test_embedding_refuses_what_it_cannot_do(unchecked):
    tokenizer, encoder = word_tokenizer(TEXTS), make("mean")
    with pytest.raises(ValueError, match="batch_size must be at least 1: got 0"):
        embed_texts(encoder, tokenizer, TEXTS, batch_size=0)
    with pytest.raises(ValueError, match=r"texts\[2\] has 12 tokens, more than max_length=6"):
        embed_texts(encoder, tokenizer, TEXTS, max_length=6)
    assert embed_texts(encoder, tokenizer, TEXTS, max_length=6, truncate=True).shape == (5, 8)
    encoder.train()
    with pytest.raises(ValueError, match="at most 12 positions: got 32"):
        embed_texts(encoder, tokenizer, ["star " * 30])
    assert encoder.training  # also after an error


# --- bad input ---------------------------------------------------------------------------------

IDS = torch.tensor([[3, 4, END]])
BAD_INPUT = [
    (IDS.float(), None, TypeError, "ids must hold whole numbers: got torch.float32"),
    (IDS.bool(), None, TypeError, "ids must hold whole numbers: got torch.bool"),
    (IDS[0], None, ValueError, r"ids must have shape \(batch, length\), not empty: got \(3,\)"),
    (IDS[:, :0], None, ValueError, r"not empty: got \(1, 0\)"),
    (IDS + 1, None, ValueError, "ids must lie from 0 to 29: got 4 to 30"),
    (IDS - 4, None, ValueError, "ids must lie from 0 to 29: got -1 to 25"),
    (
        IDS,
        torch.ones(1, 3),
        TypeError,
        r"keep must be boolean \(True = exists\): got torch.float32",
    ),
    (IDS, torch.ones(1, 2).bool(), ValueError, r"shape of ids, \(1, 3\): got \(1, 2\)"),
]


@pytest.mark.parametrize("ids, keep, error, message", BAD_INPUT)
def test_bad_input(encoder, unchecked, ids, keep, error, message):
    with pytest.raises(error, match=message):
        unchecked(type(encoder).forward)(encoder, ids, keep)


@pytest.mark.parametrize("kind", ["bert-cls", "mean", "clip"])
def test_too_long(kind):
    with pytest.raises(ValueError, match="ids must have at most 12 positions: got 13"):
        make(kind)(torch.ones(1, 13, dtype=torch.long))


def test_bad_token_types(unchecked):
    bert = make("bert-cls")
    with pytest.raises(ValueError, match=r"token_types must have the shape of ids, \(1, 3\)"):
        unchecked(Bert.forward)(bert, IDS, None, IDS[:, :2])
    with pytest.raises(ValueError, match="token_types must lie from 0 to 1: got 0 to 2"):
        bert(IDS, None, torch.tensor([[0, 1, 2]]))
    with pytest.raises(TypeError, match="token_types must hold whole numbers"):
        unchecked(Bert.forward)(bert, IDS, None, IDS.float())


def test_a_text_without_an_end():
    with pytest.raises(ValueError, match="must hold the end-of-text token 29 in every row: row 0"):
        make("clip")(torch.tensor([[1, 2, 3]]))


def test_an_rnn_wants_padding_at_the_end():
    keep = torch.tensor([[False, True, True]])
    with pytest.raises(ValueError, match="keep must have its padding at the end"):
        make("gru")(IDS, keep)


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        (BertConfig, dict(vocab_size=0), "vocab_size must be at least 1: got 0"),
        (BertConfig, dict(token_types=0), "token_types must be at least 1: got 0"),
        (BertConfig, dict(pool="max"), "pool must be 'cls' or 'mean': got 'max'"),
        (BertConfig, dict(heads=5), "heads must divide dim: got dim=8, heads=5"),
        (BertConfig, dict(dropout=1.0), r"dropout must lie in \[0, 1\): got 1.0"),
        (TextTransformerConfig, dict(vocab_size=-1), "vocab_size must be at least 1: got -1"),
        (TextTransformerConfig, dict(pool="cls"), "pool must be 'mean', 'first' or 'end': got"),
        (TextTransformerConfig, dict(pool="first", causal=True), "the first token sees no other"),
        (TextTransformerConfig, dict(pool="end"), "end_id is needed"),
        (TextTransformerConfig, dict(end_id=30), "end_id must lie from 0 to 29: got 30"),
        (TextTransformerConfig, dict(max_length=0), "max_length must be at least 1: got 0"),
        (TextRNNConfig, dict(layers=0), "layers must be at least 1: got 0"),
        (TextRNNConfig, dict(embedding_dim=0), "embedding_dim must be at least 1: got 0"),
        (TextRNNConfig, dict(dim=7, bidirectional=True), "dim must be even when bidirectional"),
        (TextRNNConfig, dict(cell="rnn"), "cell must be one of .*: got 'rnn'"),
        (TextRNNConfig, dict(pool="max"), "pool must be one of .*: got 'max'"),
        (TextRNNConfig, dict(dropout=-0.1), r"dropout must lie in \[0, 1\): got -0.1"),
    ],
)
def test_bad_configurations(kind, changes, message):
    base = SIZES if kind is TextRNNConfig else TRANSFORMER
    config = kind(**base)
    for name, value in {**base, **changes}.items():
        object.__setattr__(config, name, value)  # past the shape checks of the constructor
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(kind.__post_init__)(config)


def test_there_is_no_such_pretrained_model():
    with pytest.raises(
        ValueError, match="name must be one of minilm, bert-base-uncased: got 'gpt'"
    ):
        Bert.pretrained("gpt")


def test_weights_are_joined_in_order():
    model = nn.Linear(2, 4, bias=False)
    state = {"a": torch.ones(1, 2), "b": torch.zeros(3, 2), "old.x": torch.zeros(1)}
    load_renamed(model, state, {"weight": ["a", "b"]}, ignore=("old.",))
    assert model.weight.tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="do not fit Linear: missing c; left over b, old.x"):
        load_renamed(model, state, {"weight": ["a", "c"]})

"""What must be true of positions, blocks and stacks: properties, gradients, caches, errors."""

import dataclasses
import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.attention import padding_keep
from mmlib.block import LayerWeights, TransformerBlock, TransformerConfig
from mmlib.positions import LearnedPositions, SinusoidalPositions, sinusoids
from mmlib.transformer import Decoder, Encoder, EncoderDecoder

SMALL = TransformerConfig(
    dim=8, heads=2, layers=2, mlp_dim=12, source_vocab=11, target_vocab=7, max_length=16
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape, vocab, seed=0):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def make(kind, seed=0, **changes):
    """A float64 module with random biases and norms, in eval mode."""
    config = dataclasses.replace(SMALL, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = kind(config).double().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module


both_norms = pytest.mark.parametrize("norm_first", [True, False], ids=["pre", "post"])


# --- positions ---------------------------------------------------------------------------------


def test_moving_on_is_one_rotation_wherever_one_starts():
    table = sinusoids(40, 8).unflatten(1, (4, 2))
    angle = 3 * 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    sine, cosine = table[:-3, :, 0], table[:-3, :, 1]
    moved_sine = sine * angle.cos() + cosine * angle.sin()
    torch.testing.assert_close(table[3:, :, 0], moved_sine)
    products = sinusoids(40, 8) @ sinusoids(40, 8).T
    for shift in (0, 1, 7):
        diagonal = products.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


@pytest.mark.parametrize("kind", [SinusoidalPositions, LearnedPositions])
def test_positions_are_added_from_the_offset(kind):
    positions, x = kind(6, 10), torch.zeros(2, 4, 6)
    whole = positions(torch.zeros(1, 10, 6))
    torch.testing.assert_close(positions(x, offset=3)[1], whole[0, 3:7])
    assert (x == 0).all()
    assert whole[0].unique(dim=0).shape[0] == 10


def test_sinusoids_are_not_saved_and_learned_positions_are():
    assert not SinusoidalPositions(4, 3).state_dict()
    assert LearnedPositions(4, 3, std=2.0).state_dict()["table"].std() > 0.5


@pytest.mark.parametrize("kind", [SinusoidalPositions, LearnedPositions])
def test_positions_keep_the_dtype_of_x(kind):
    assert kind(4, 3)(torch.zeros(1, 2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


# --- blocks and stacks -------------------------------------------------------------------------


@both_norms
def test_gradcheck_of_a_decoder_block(norm_first):
    block = make(lambda config: TransformerBlock(config, cross=True), norm_first=norm_first)
    x, memory = draw(2, 3, 8).requires_grad_(), draw(2, 4, 8, seed=1).requires_grad_()
    keep = padding_keep(torch.tensor([4, 2]))

    def run(x, memory):
        return block(x, memory, memory_keep=keep, causal=True)[0]

    assert torch.autograd.gradcheck(run, (x, memory))


@both_norms
@given(length=st.integers(2, 7), seed=st.integers(0, 50), data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_later_token_has_no_influence(norm_first, length, seed, data):
    decoder = make(Decoder, norm_first=norm_first, cross_attention=False)
    cut = data.draw(st.integers(1, length - 1))
    x = draw(2, length, 8, seed=seed)
    changed = torch.cat([x[:, :cut], 100 * draw(2, length - cut, 8, seed=seed + 1)], dim=1)
    before, after = decoder(x)[0], decoder(changed)[0]
    torch.testing.assert_close(before[:, :cut], after[:, :cut], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before[:, cut:], after[:, cut:])


@both_norms
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_padding_has_no_influence(norm_first, lengths, seed):
    encoder, x = make(Encoder, norm_first=norm_first), draw(len(lengths), 7, 8, seed=seed)
    keep = padding_keep(torch.tensor(lengths), 7)
    noise = torch.where(keep[..., None], x, 100 * draw(*x.shape, seed=seed + 1))
    out = encoder(x, keep)[0]
    assert torch.equal(out[keep], encoder(noise, keep)[0][keep])
    for row, length in enumerate(lengths):  # as if each had been alone, without padding
        alone = encoder(x[row : row + 1, :length])[0][0]
        torch.testing.assert_close(out[row, :length], alone, rtol=1e-11, atol=1e-11)


@both_norms
def test_an_encoder_without_positions_does_not_know_the_order(norm_first):
    encoder, x = make(Encoder, norm_first=norm_first), draw(2, 6, 8)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(encoder(x[:, order])[0], encoder(x)[0][:, order])
    positions = SinusoidalPositions(8, 6).double()
    shuffled, plain = encoder(positions(x[:, order]))[0], encoder(positions(x))[0][:, order]
    assert not torch.allclose(shuffled, plain)


@both_norms
def test_a_row_of_nothing_but_padding_stays_finite(norm_first):
    model = make(EncoderDecoder, norm_first=norm_first)
    source, target = tokens(2, 5, vocab=11), tokens(2, 4, vocab=7)
    source_keep, target_keep = padding_keep(torch.tensor([0, 3]), 5), torch.ones(2, 4) > 0
    target_keep[0] = False
    logits, weights = model(source, target, source_keep, target_keep, return_weights=True)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all((layer.cross_attention[0] == 0).all() for layer in weights)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_weights_are_those_of_each_layer_and_only_on_request():
    model = make(EncoderDecoder, layers=3)
    source, target = tokens(2, 5, vocab=11), tokens(2, 4, vocab=7)
    keep = padding_keep(torch.tensor([5, 2]))
    plain, none = model(source, target, keep)
    logits, weights = model(source, target, keep, return_weights=True)
    assert none is None and len(weights) == 3
    torch.testing.assert_close(plain, logits)  # the fused kernel and the formula agree
    for layer in weights:
        assert isinstance(layer, LayerWeights)
        assert layer.self_attention.shape == (2, 2, 4, 4)
        assert (layer.self_attention.triu(1) == 0).all()
        assert layer.cross_attention.shape == (2, 2, 4, 5)
        assert (layer.cross_attention[1, ..., 2:] == 0).all()
        torch.testing.assert_close(layer.cross_attention.sum(-1), torch.ones(2, 2, 4).double())
    _, encoder_weights = model.encode(source, keep, return_weights=True)
    assert [layer.cross_attention for layer in encoder_weights] == [None] * 3


def test_dropout_is_active_in_training_only():
    model = make(EncoderDecoder, dropout=0.5)
    source, target = tokens(2, 5, vocab=11), tokens(2, 4, vocab=7)
    assert torch.equal(model(source, target)[0], model(source, target)[0])
    model.train()
    assert not torch.equal(model(source, target)[0], model(source, target)[0])


def test_inputs_are_not_changed():
    model = make(EncoderDecoder)
    source, target = tokens(2, 5, vocab=11), tokens(2, 4, vocab=7)
    keep = padding_keep(torch.tensor([5, 2]))
    given_ = [source, target, keep]
    before = [x.clone() for x in given_]
    model(source, target, keep)
    assert all(torch.equal(x, y) for x, y in zip(given_, before, strict=True))


# --- encoder and decoder together --------------------------------------------------------------


@pytest.mark.parametrize(
    "norm_first, cross, positions",
    list(itertools.product([True, False], [True, False], ["sinusoidal", "learned", "none"])),
)
def test_cached_decoding_equals_full_decoding(norm_first, cross, positions):
    model = make(EncoderDecoder, norm_first=norm_first, cross_attention=cross, positions=positions)
    source, target = tokens(3, 5, vocab=11), tokens(3, 7, vocab=7)
    keep = padding_keep(torch.tensor([5, 2, 4]))
    memory, _ = model.encode(source, keep)
    full, _ = model.decode(target, memory, keep)
    for sizes in ([1] * 7, [3, 1, 2, 1]):
        cache, parts = model.decoder.new_cache(), target.split(sizes, dim=1)
        steps = [model.decode(part, memory, keep, cache=cache)[0] for part in parts]
        torch.testing.assert_close(torch.cat(steps, dim=1), full, rtol=1e-12, atol=1e-12)


def test_a_cache_follows_its_selected_rows():
    model = make(EncoderDecoder)
    source, target = tokens(3, 5, vocab=11), tokens(3, 4, vocab=7)
    memory, _ = model.encode(source)
    cache, rows = model.decoder.new_cache(), torch.tensor([2, 0, 2])
    model.decode(target[:, :2], memory, cache=cache)
    for layer in cache:
        layer.select(rows)
    out, _ = model.decode(target[rows, 2:], memory[rows], cache=cache)
    full, _ = model.decode(target[rows], memory[rows])
    torch.testing.assert_close(out, full[:, 2:], rtol=1e-12, atol=1e-12)


def test_tied_embeddings_are_one_matrix():
    tied, free = make(EncoderDecoder), make(EncoderDecoder, tie_embeddings=False)
    assert "output_weight" not in tied.state_dict() and "output_weight" in free.state_dict()
    source, target = tokens(1, 3, vocab=11), tokens(1, 2, vocab=7)
    x, _ = tied.decoder(
        tied.target_positions(8**0.5 * tied.target_embedding(target)), tied.encode(source)[0]
    )
    expected = x @ tied.target_embedding.weight.T + tied.output_bias
    torch.testing.assert_close(tied(source, target)[0], expected)


def test_without_cross_attention_the_source_is_not_read():
    model = make(EncoderDecoder, cross_attention=False)
    target = tokens(2, 4, vocab=7)
    one, other = tokens(2, 5, vocab=11), tokens(2, 5, vocab=11, seed=1)
    assert not torch.equal(one, other)
    assert torch.equal(model(one, target)[0], model(other, target)[0])


def test_logits_start_with_unit_size():
    torch.manual_seed(0)
    model = EncoderDecoder(dataclasses.replace(SMALL, dim=64, target_vocab=500))
    logits, _ = model(tokens(4, 6, vocab=11), tokens(4, 6, vocab=7))
    assert 0.7 < logits.std() < 1.5


# --- bad input ---------------------------------------------------------------------------------

BAD_CONFIGS = {
    "heads": (dict(dim=64, heads=5), "heads must divide dim: got dim=64, heads=5"),
    "layers": (dict(layers=0), "layers must be at least 1: got 0"),
    "mlp": (dict(mlp_dim=0), "mlp_dim must be at least 1"),
    "length": (dict(max_length=0), "max_length must be at least 1"),
    "norm_eps": (dict(norm_eps=0.0), "norm_eps must be above 0: got 0.0"),
    "dropout": (dict(dropout=1.0), r"dropout must lie in \[0, 1\): got 1.0"),
    "vocabulary": (dict(source_vocab=-2), "source_vocab must be at least 1: got -2"),
}


@pytest.mark.parametrize("changes, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configuration_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**changes)


@pytest.mark.parametrize("name", ["activation", "positions"])
def test_unknown_choice_is_named(name):
    config = TransformerConfig()
    object.__setattr__(config, name, "cubic")  # past the shape checks of the tests' import hook
    with pytest.raises(ValueError, match=f"{name} must be one of .* got 'cubic'"):
        inspect.unwrap(TransformerConfig.__post_init__)(config)


MEMORY = torch.zeros(2, 5, 8).double()
BAD_SOURCES = {
    "float tokens": (torch.zeros(2, 3), TypeError, "source must hold token ids: got torch.float"),
    "rank": (tokens(3, vocab=4), ValueError, r"shape \(batch, length\), not empty: got \(3,\)"),
    "empty batch": (tokens(0, 3, vocab=4), ValueError, "not empty"),
    "no tokens": (tokens(3, 0, vocab=4), ValueError, "not empty"),
    "unknown id": (torch.full((1, 2), 11), ValueError, "ids from 0 to 10: got 11 to 11"),
    "negative id": (torch.full((1, 2), -1), ValueError, "ids from 0 to 10: got -1 to -1"),
    "too long": (tokens(1, 17, vocab=4), ValueError, "positions 0 to 16 must lie in 0 to 15"),
}


@pytest.mark.parametrize("source, error, message", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_bad_source_is_named(source, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(EncoderDecoder.encode)(make(EncoderDecoder), source)


def test_bad_target_is_named():
    decode, model = inspect.unwrap(EncoderDecoder.decode), make(EncoderDecoder)
    with pytest.raises(ValueError, match="target must hold ids from 0 to 6: got 9 to 9"):
        decode(model, torch.full((2, 2), 9), MEMORY)
    with pytest.raises(ValueError, match="cache must hold one entry for each of 2 blocks: got 1"):
        decode(model, tokens(2, 2, vocab=7), MEMORY, cache=model.decoder.new_cache()[:1])


def test_missing_or_unwanted_memory_is_named():
    with pytest.raises(ValueError, match="memory is needed"):
        make(Decoder)(MEMORY)
    with pytest.raises(ValueError, match="memory must be None"):
        make(Decoder, cross_attention=False)(MEMORY, MEMORY)


def test_missing_vocabulary_is_named():
    with pytest.raises(ValueError, match="target_vocab are needed: got 11 and None"):
        make(EncoderDecoder, target_vocab=None)


BAD_POSITIONS = {
    "odd": (sinusoids, (3, 5), "dim must be even and at least 2: got 5"),
    "length": (sinusoids, (0, 4), "length must be at least 1: got 0"),
    "learned": (LearnedPositions, (4, 0), "dim=4, max_length=0"),
}


@pytest.mark.parametrize("function, args, message", BAD_POSITIONS.values(), ids=BAD_POSITIONS)
def test_bad_positions_are_named(function, args, message):
    with pytest.raises(ValueError, match=message):
        function(*args)


@pytest.mark.parametrize("kind", [SinusoidalPositions, LearnedPositions])
def test_bad_call_of_positions_is_named(kind):
    forward, positions = inspect.unwrap(kind.forward), kind(4, 3)
    with pytest.raises(
        ValueError, match=r"x must have shape \(batch, length, 4\): got \(1, 2, 6\)"
    ):
        forward(positions, torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="positions 2 to 3 must lie in 0 to 2"):
        forward(positions, torch.zeros(1, 2, 4), 2)
    with pytest.raises(ValueError, match="positions -1 to 0 must lie"):
        forward(positions, torch.zeros(1, 2, 4), -1)

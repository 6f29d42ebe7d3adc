"""What must be true of attention whatever it is compared with: properties, gradients, errors."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.attention import (
    KVCache,
    MultiHeadAttention,
    attention,
    causal_keep,
    padding_keep,
)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(dim=12, heads=3, seed=0, dtype=torch.float64, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = MultiHeadAttention(dim, heads, **options).to(dtype).eval()
        for bias in (p for name, p in module.named_parameters() if name.endswith("bias")):
            torch.nn.init.normal_(bias)  # zero biases would hide a swapped one
    return module


# --- attention() -------------------------------------------------------------------------------


def test_by_hand():
    """Two keys, scores 1/sqrt(2) and 0, computed on paper."""
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    key = torch.eye(2, dtype=torch.float64)
    value = torch.tensor([[10.0], [20.0]], dtype=torch.float64)
    out, weights = attention(query, key, value)
    first = math.exp(1 / math.sqrt(2)) / (math.exp(1 / math.sqrt(2)) + 1)
    torch.testing.assert_close(weights, weights.new_tensor([[first, 1 - first]]))
    torch.testing.assert_close(out, out.new_tensor([[10 * first + 20 * (1 - first)]]))


@given(
    queries=st.integers(1, 5),
    keys=st.integers(1, 6),
    dim=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_rows_sum_to_one_or_to_zero(queries, keys, dim, seed):
    query, key, value = draw(2, queries, dim, seed=seed), draw(2, keys, dim), draw(2, keys, 3)
    keep = draw(2, queries, keys, seed=seed + 1) > 0
    _, weights = attention(query, key, value, keep)
    assert (weights >= 0).all()
    assert (weights[~keep] == 0).all()
    torch.testing.assert_close(weights.sum(-1), keep.any(-1).to(weights.dtype))


def test_permuting_keys_changes_nothing_and_permuting_queries_permutes_the_output():
    query, key, value = draw(2, 5, 4), draw(2, 7, 4, seed=1), draw(2, 7, 3, seed=2)
    out, _ = attention(query, key, value)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    shuffled, _ = attention(query, key[:, order], value[:, order])
    torch.testing.assert_close(shuffled, out)
    turned, _ = attention(query.flip(1), key, value)
    torch.testing.assert_close(turned, out.flip(1))


def test_masked_keys_have_no_influence_at_all():
    query, key, value = draw(1, 3, 4), draw(1, 5, 4, seed=1), draw(1, 5, 2, seed=2)
    keep = torch.tensor([True, True, False, True, False])[None, None]
    out, _ = attention(query, key, value, keep)
    key[:, ~keep[0, 0]], value[:, ~keep[0, 0]] = 1e6, -1e6
    changed, _ = attention(query, key, value, keep)
    assert torch.equal(out, changed)
    short, _ = attention(query, key[:, keep[0, 0]], value[:, keep[0, 0]])
    torch.testing.assert_close(out, short)


def test_fully_masked_row_gives_zeros_and_finite_gradients():
    query, key, value = (draw(1, 3, 4, seed=s).requires_grad_() for s in range(3))
    keep = torch.ones(1, 3, 3, dtype=torch.bool)
    keep[:, 1] = False
    out, weights = attention(query, key, value, keep)
    assert (out[:, 1] == 0).all() and (weights[:, 1] == 0).all()
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        attention(query, key, value, keep)[0].sum().backward()  # raises at any hidden NaN
    for grad in (query.grad, key.grad, value.grad):
        assert grad.isfinite().all()
    assert (query.grad[:, 1] == 0).all()


def test_gradients_match_finite_differences():
    inputs = tuple(draw(1, 3, 2, seed=s).requires_grad_() for s in range(3))
    keep = causal_keep(3)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, keep), inputs)


def test_large_scores_do_not_overflow():
    out, weights = attention(draw(1, 2, 4) * 1e5, draw(1, 3, 4) * 1e5, draw(1, 3, 4))
    assert out.isfinite().all() and weights.isfinite().all()


def test_narrow_types_stay_narrow_and_still_sum_to_one():
    """4,096 equal weights: summed one by one in bfloat16 they would never pass 1/16."""
    query, key = torch.zeros(1, 1, 8), torch.zeros(1, 4096, 8)
    value = torch.ones(1, 4096, 1)
    out, weights = attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert out.dtype == weights.dtype == torch.bfloat16
    assert abs(out.item() - 1) < 0.01


def test_inputs_are_not_changed():
    tensors = [draw(1, 3, 4, seed=s) for s in range(3)] + [causal_keep(3)]
    before = [t.clone() for t in tensors]
    attention(*tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


# --- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries, keys", [(1, 1), (4, 4), (1, 6), (3, 7)])
def test_causal_keep_is_aligned_to_the_end(queries, keys):
    keep = causal_keep(queries, keys)
    for i in range(queries):
        for j in range(keys):
            assert keep[i, j] == (j <= i + keys - queries)
    assert torch.equal(keep, causal_keep(keys)[-queries:])


def test_padding_keep_counts():
    lengths = torch.tensor([3, 0, 5])
    keep = padding_keep(lengths, 6)
    assert keep.shape == (3, 6)
    assert torch.equal(keep.sum(1), lengths)
    assert not (keep[:, 1:] & ~keep[:, :-1]).any()  # real tokens come first


# --- MultiHeadAttention ------------------------------------------------------------------------

KEEPS = {
    "none": None,
    "tokens": padding_keep(torch.tensor([5, 3])),
    "pairs": draw(2, 5, 5, seed=7) > -0.5,
    "heads": draw(2, 3, 5, 5, seed=8) > -0.5,
    "one row empty": torch.tensor([[True] * 5, [False] * 5]),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_fast_path_equals_weights_path(keep, causal):
    module = layer()
    x = draw(2, 5, 12, seed=1)
    fast_in, slow_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    fast, none = module(fast_in, keep=keep, causal=causal)
    slow, weights = module(slow_in, keep=keep, causal=causal, return_weights=True)
    assert none is None and weights.shape == (2, 3, 5, 5)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    probe = draw(2, 5, 12, seed=9)
    (fast * probe).sum().backward()
    (slow * probe).sum().backward()
    assert fast_in.grad.isfinite().all()
    torch.testing.assert_close(fast_in.grad, slow_in.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("return_weights", [False, True])
def test_causal_attention_sees_no_later_position(return_weights):
    module = layer()
    x = draw(1, 6, 12)
    changed = x.clone()
    changed[:, 4:] += 100
    before, _ = module(x, causal=True, return_weights=return_weights)
    after, _ = module(changed, causal=True, return_weights=return_weights)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-13)
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_self_attention_without_positions_is_permutation_equivariant():
    module, x = layer(), draw(1, 6, 12)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(module(x[:, order])[0], module(x)[0][:, order])


@pytest.mark.parametrize("return_weights", [False, True])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_cached_decoding_equals_full_decoding(padded, step, return_weights):
    module, x = layer(), draw(2, 6, 12)
    keep = torch.tensor([[True] * 6, [False] * 2 + [True] * 4]) if padded else None
    full, _ = module(x, keep=keep, causal=True)
    cache, parts = KVCache(), []
    for start in range(0, 6, step):
        end = start + step
        part, _ = module(
            x[:, start:end],
            keep=keep[:, :end] if padded else None,
            causal=True,
            cache=cache,
            return_weights=return_weights,
        )
        parts.append(part)
    assert len(cache) == 6
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=0, atol=1e-12)


@pytest.mark.parametrize("context_dim", [12, 7])
def test_cross_attention_projects_a_cached_context_once(context_dim):
    module = layer(context_dim=context_dim)
    x, context = draw(2, 3, 12), draw(2, 5, context_dim, seed=1)
    expected, _ = module(x, context)
    cache = KVCache()
    first, _ = module(x, context, cache=cache)
    # Later calls read the cache, so the values of the context no longer matter.
    second, _ = module(x, torch.full_like(context, torch.nan), cache=cache)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, expected)
    with pytest.raises(ValueError, match="filled the cache"):
        module(x, context[:, :4], cache=cache)


def test_cache_follows_the_chosen_beams():
    cache = KVCache()
    key = draw(3, 2, 4, 5)
    cache.append(key, key + 1)
    cache.select(torch.tensor([2, 2, 0]))
    assert torch.equal(cache.key, key[[2, 2, 0]])
    assert torch.equal(cache.value, key[[2, 2, 0]] + 1)


@pytest.mark.parametrize("return_weights", [False, True])
def test_dropout_acts_in_training_only_and_keeps_the_mean(return_weights):
    module = layer(dim=4, heads=1, dropout=0.5)
    x = draw(1, 8, 4)
    still, _ = module(x, return_weights=return_weights)
    again, _ = module(x, return_weights=return_weights)
    assert torch.equal(still, again)
    module.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        runs = torch.stack([module(x, return_weights=return_weights)[0] for _ in range(4000)])
    assert (runs[0] != runs[1]).any()
    torch.testing.assert_close(runs.mean(0), still, rtol=0, atol=0.08)


def test_gradients_of_the_layer_match_finite_differences():
    module = layer(dim=4, heads=2)
    x = draw(1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: module(t, causal=True)[0], (x,))
    assert torch.autograd.gradcheck(lambda t: module(t, return_weights=True), (x,))


def test_projections_start_with_the_bound_of_their_own_shape():
    """Xavier's bound for one dim x dim matrix, not for the fused dim x 3 dim one."""
    module = MultiHeadAttention(64, 4)
    bound = math.sqrt(6 / (64 + 64))
    for block in module.qkv_proj.weight.split(64):
        assert 0.97 * bound < block.abs().max() <= bound
    assert (module.qkv_proj.bias == 0).all()


# --- errors ------------------------------------------------------------------------------------

q = torch.zeros(2, 3, 4)
BAD = {
    "attention: rank": (attention, (torch.zeros(4), q, q), ValueError, "query must have at least"),
    "attention: width": (attention, (q, torch.zeros(2, 3, 5), q), ValueError, "4 and 5"),
    "attention: length": (attention, (q, q, torch.zeros(2, 2, 4)), ValueError, "3 and 2"),
    "attention: no keys": (
        attention,
        (q, torch.zeros(2, 0, 4), torch.zeros(2, 0, 4)),
        ValueError,
        "at least one position",
    ),
    "attention: float mask": (attention, (q, q, q, torch.ones(3, 3)), TypeError, "torch.float32"),
    "attention: mask shape": (
        attention,
        (q, q, q, torch.ones(3, 2, dtype=torch.bool)),
        ValueError,
        r"\(3, 3\).*got \(3, 2\)",
    ),
    "causal_keep: order": (causal_keep, (3, 2), ValueError, "query_length=3, key_length=2"),
    "causal_keep: zero": (causal_keep, (0,), ValueError, "query_length=0"),
    "padding_keep: float": (padding_keep, (torch.ones(2),), TypeError, "torch.float32"),
    "padding_keep: rank": (
        padding_keep,
        (torch.ones(1, 1, dtype=torch.long),),
        ValueError,
        r"\(1, 1\)",
    ),
    "padding_keep: too long": (padding_keep, (torch.tensor([4]), 3), ValueError, "length=3"),
    "layer: heads": (MultiHeadAttention, (64, 5), ValueError, "dim=64, heads=5"),
    "layer: size": (MultiHeadAttention, (0, 1), ValueError, "dim=0"),
}


@pytest.mark.parametrize("function, args, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(function, args, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(function)(*args)


BAD_CALLS = {
    "rank": (dict(query=torch.zeros(3, 8)), ValueError, r"query must have shape .*\(3, 8\)"),
    "width": (dict(query=torch.zeros(2, 3, 9)), ValueError, r"\(batch, length, 8\)"),
    "empty batch": (dict(query=torch.zeros(0, 3, 8)), ValueError, "must not be empty"),
    "no tokens": (dict(query=torch.zeros(2, 0, 8)), ValueError, "must not be empty"),
    "batch": (
        dict(query=torch.zeros(2, 3, 8), context=torch.zeros(1, 3, 8)),
        ValueError,
        "got 2 and 1",
    ),
    "float mask": (
        dict(query=torch.zeros(2, 3, 8), keep=torch.ones(2, 3)),
        TypeError,
        "keep must be boolean",
    ),
    "mask rank": (
        dict(query=torch.zeros(2, 3, 8), keep=torch.ones(3, dtype=torch.bool)),
        ValueError,
        "keep must have rank 2",
    ),
    "mask shape": (
        dict(query=torch.zeros(2, 3, 8), keep=torch.ones(3, 3, dtype=torch.bool)),
        ValueError,
        r"keep does not fit batch=2.*got shape \(3, 3\)",
    ),
}


@pytest.mark.parametrize("inputs, error, message", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_call_is_named(inputs, error, message):
    module = MultiHeadAttention(8, 2)
    with pytest.raises(error, match=message):
        inspect.unwrap(MultiHeadAttention.forward)(module, **inputs)


def test_dropout_of_one_and_missing_context_are_named():
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\): got 1.0"):
        MultiHeadAttention(8, 2, dropout=1.0)
    with pytest.raises(ValueError, match="context is needed"):
        MultiHeadAttention(8, 2, context_dim=4)(torch.zeros(1, 2, 8))


def test_cache_of_another_batch_is_named():
    cache = KVCache()
    cache.append(torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))
    with pytest.raises(ValueError, match="must have the batch, heads and head_dim"):
        cache.append(torch.zeros(3, 1, 1, 4), torch.zeros(3, 1, 1, 4))

"""Attention is equal to PyTorch's, values and gradients, for shapes, masks and types."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.attention import MultiHeadAttention, attention, causal_keep, padding_keep

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def draw(*shape, seed, dtype):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype)


def masks(batch, heads, queries, keys):
    random = draw(batch, 1, queries, keys, seed=5, dtype=torch.float64) > -0.3
    padded = padding_keep(torch.arange(batch) % keys + 1, keys)[:, None, None]
    empty_row = random.clone()
    empty_row[:, :, 0] = False
    per_head = draw(batch, heads, queries, keys, seed=6, dtype=torch.float64) > -0.3
    found = {"none": None, "random": random, "padded": padded, "empty row": empty_row}
    found["per head"] = per_head
    if queries <= keys:
        found["causal"] = causal_keep(queries, keys)
    return found


SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 5, 4), (2, 1, 3, 7, 8), (3, 2, 7, 2, 16), (1, 4, 65, 130, 32)]
CASES = [
    pytest.param(shape, name, dtype, id=f"{shape}-{name}-{str(dtype)[6:]}")
    for shape, dtype in itertools.product(SHAPES, TOLERANCE)
    for name in masks(*shape[:4])
]


@pytest.mark.parametrize("shape, mask, dtype", CASES)
def test_equals_scaled_dot_product_attention(shape, mask, dtype):
    batch, heads, queries, keys, dim = shape
    keep = masks(batch, heads, queries, keys)[mask]
    ours = [
        draw(batch, heads, length, dim, seed=seed, dtype=dtype).requires_grad_()
        for seed, length in enumerate((queries, keys, keys))
    ]
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    out, _ = attention(*ours, keep)
    expected = F.scaled_dot_product_attention(*theirs, attn_mask=keep)
    close = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(out, expected, **close)
    probe = draw(*out.shape, seed=9, dtype=dtype)
    out.backward(probe)
    expected.backward(probe)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=10 * close["atol"])


@pytest.mark.parametrize("scale", [0.25, 1.0, -2.0])
def test_scale_means_the_same(scale):
    q, k, v = (draw(2, 4, 8, seed=s, dtype=torch.float64) for s in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, scale=scale)
    torch.testing.assert_close(attention(q, k, v, scale=scale)[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_agree_within_their_rounding(dtype):
    q, k, v = (draw(2, 3, 9, 16, seed=s, dtype=dtype) for s in range(3))
    out, _ = attention(q, k, v)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


def pair(dim, heads, dtype, bias=True, context_dim=None):
    """Our layer and PyTorch's with the same random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ours = MultiHeadAttention(dim, heads, bias=bias, context_dim=context_dim)
        for p in ours.parameters():
            nn.init.normal_(p, std=dim**-0.5)
        theirs = nn.MultiheadAttention(
            dim, heads, bias=bias, kdim=context_dim, vdim=context_dim, batch_first=True
        )
    with torch.no_grad():
        if context_dim in (None, dim):
            theirs.in_proj_weight.copy_(ours.qkv_proj.weight)
            qkv_bias = ours.qkv_proj.bias
        else:
            theirs.q_proj_weight.copy_(ours.query_proj.weight)
            for name, block in zip("kv", ours.key_value_proj.weight.chunk(2), strict=True):
                getattr(theirs, f"{name}_proj_weight").copy_(block)
            if bias:
                qkv_bias = torch.cat([ours.query_proj.bias, ours.key_value_proj.bias])
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        if bias:
            theirs.in_proj_bias.copy_(qkv_bias)
            theirs.out_proj.bias.copy_(ours.out_proj.bias)
    return ours.to(dtype), theirs.to(dtype)


@pytest.mark.parametrize("return_weights", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("context_dim", [None, 24, 10])
@pytest.mark.parametrize("heads, bias", [(1, True), (4, True), (4, False)])
def test_equals_multihead_attention(heads, bias, context_dim, dtype, return_weights):
    ours, theirs = pair(24, heads, dtype, bias, context_dim)
    x = draw(3, 5, 24, seed=1, dtype=dtype)
    context = None if context_dim is None else draw(3, 7, context_dim, seed=2, dtype=dtype)
    other = x if context is None else context
    keep = padding_keep(torch.tensor([3, 5, 1]), other.shape[1])
    out, weights = ours(x, context, keep, return_weights=return_weights)
    expected, expected_weights = theirs(
        x, other, other, key_padding_mask=~keep, average_attn_weights=False
    )
    close = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(out, expected, **close)
    if return_weights:
        torch.testing.assert_close(weights, expected_weights, **close)
    probe = draw(*out.shape, seed=3, dtype=dtype)
    out.backward(probe)
    expected.backward(probe)
    torch.testing.assert_close(
        ours.out_proj.weight.grad, theirs.out_proj.weight.grad, rtol=1e-5, atol=10 * close["atol"]
    )
    if context_dim in (None, 24):
        torch.testing.assert_close(
            ours.qkv_proj.weight.grad,
            theirs.in_proj_weight.grad,
            rtol=1e-5,
            atol=10 * close["atol"],
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_causal_flag_equals_their_causal_mask(dtype):
    ours, theirs = pair(24, 4, dtype)
    x = draw(2, 6, 24, seed=1, dtype=dtype)
    expected, _ = theirs(x, x, x, attn_mask=~causal_keep(6))
    torch.testing.assert_close(
        ours(x, causal=True)[0], expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )

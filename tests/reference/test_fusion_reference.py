"""Fusion is equal to einsum, torch.nn.Bilinear and nn.MultiheadAttention."""

import pytest
import torch
from torch import nn

from mmlib.block import TransformerConfig
from mmlib.encoders.encoded import Encoded
from mmlib.fusion import Bilinear, Concatenation, Gate, WeightedSum
from mmlib.fusion_tokens import BottleneckLayer, CrossModalAttention


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_one(x):
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_low_rank_equals_nn_bilinear_with_the_full_tensor(rank):
    ours = Bilinear([5, 3], 4, rank=rank).double()
    theirs = nn.Bilinear(6, 4, 4, bias=False).double()
    with torch.no_grad():
        theirs.weight.copy_(ours.tensor())
    x, y = draw(7, 5, seed=1), draw(7, 3, seed=2)
    torch.testing.assert_close(ours([x, y]), theirs(with_one(x), with_one(y)))


def test_three_modalities_equal_the_outer_product():
    ours = Bilinear([5, 3, 2], 4, rank=3).double()
    x, y, z = draw(7, 5, seed=1), draw(7, 3, seed=2), draw(7, 2, seed=3)
    outer = torch.einsum("bi,bj,bk->bijk", with_one(x), with_one(y), with_one(z))
    expected = torch.einsum("bijk,dijk->bd", outer, ours.tensor())
    torch.testing.assert_close(ours([x, y, z]), expected)


def test_a_missing_modality_is_the_vector_of_its_one():
    ours = Bilinear([5, 3], 4).double()
    x, y = draw(7, 5, seed=1), draw(7, 3, seed=2)
    keep = torch.tensor([[True, False]] * 7)
    expected = torch.einsum("bi,di->bd", with_one(x), ours.tensor()[..., -1])
    torch.testing.assert_close(ours([x, y], keep), expected)


def test_the_factors_are_far_fewer_than_the_tensor():
    ours = Bilinear([64, 64], 32, rank=4)
    assert sum(p.numel() for p in ours.parameters()) == 4 * 2 * 65 * 32
    assert ours.tensor().numel() == 65 * 65 * 32


def test_concatenation_is_a_sum_of_maps():
    ours = Concatenation([5, 3], 4).double()
    x, y = draw(7, 5, seed=1), draw(7, 3, seed=2)
    left, right = ours.map.weight.split([5, 3], dim=1)
    torch.testing.assert_close(ours([x, y]), x @ left.T + y @ right.T + ours.map.bias)


def test_weighted_sum_by_hand():
    ours = WeightedSum([5, 3], 4).double()
    with torch.no_grad():
        ours.logits.copy_(torch.tensor([0.0, 1.0]))
    x, y = draw(7, 5, seed=1), draw(7, 3, seed=2)
    share = 1 / (1 + torch.e)
    expected = share * ours.projections[0](x) + (1 - share) * ours.projections[1](y)
    torch.testing.assert_close(ours([x, y]), expected)


def test_two_gates_are_the_gated_multimodal_unit():
    """Arevalo et al.: h = z * tanh(W x) + (1 - z) * tanh(V y), z a sigmoid of both."""
    ours = Gate([5, 3], 4).double()
    x, y = draw(7, 5, seed=1), draw(7, 3, seed=2)
    first, second = ours.gates(torch.cat([x, y], dim=1)).chunk(2, dim=1)
    z = torch.sigmoid(first - second)
    u, v = (p(g).tanh() for p, g in zip(ours.projections, (x, y), strict=True))
    torch.testing.assert_close(ours([x, y]), z * u + (1 - z) * v)


@pytest.mark.parametrize("context_dim", [8, 6])
def test_cross_modal_attention_equals_nn_multiheadattention(context_dim):
    ours = CrossModalAttention(8, 2, context_dim=context_dim).double()
    theirs = nn.MultiheadAttention(
        8, 2, kdim=context_dim, vdim=context_dim, batch_first=True
    ).double()
    inner = ours.attention
    with torch.no_grad():
        if context_dim == 8:
            theirs.in_proj_weight.copy_(inner.qkv_proj.weight)
            theirs.in_proj_bias.copy_(inner.qkv_proj.bias.normal_())
        else:
            theirs.q_proj_weight.copy_(inner.query_proj.weight)
            key, value = inner.key_value_proj.weight.chunk(2)
            theirs.k_proj_weight.copy_(key)
            theirs.v_proj_weight.copy_(value)
            inner.query_proj.bias.normal_()
            inner.key_value_proj.bias.normal_()
            theirs.in_proj_bias.copy_(torch.cat([inner.query_proj.bias, inner.key_value_proj.bias]))
        theirs.out_proj.weight.copy_(inner.out_proj.weight)
        theirs.out_proj.bias.copy_(inner.out_proj.bias.normal_())
    keep = torch.tensor([[True, True, False], [True, False, False]])
    x, c = draw(2, 4, 8, seed=1), draw(2, 3, context_dim, seed=2)
    context = Encoded(c, keep, c[:, 0])
    out, weights = ours(
        Encoded(x, torch.ones(2, 4, dtype=torch.bool), x[:, 0]), context, return_weights=True
    )
    q = nn.functional.layer_norm(x, (8,))
    k = nn.functional.layer_norm(c, (context_dim,))
    expected, expected_weights = theirs(q, k, k, key_padding_mask=~keep, average_attn_weights=False)
    torch.testing.assert_close(out, x + expected)
    torch.testing.assert_close(weights, expected_weights)


def test_a_bottleneck_layer_equals_nn_transformerencoderlayers():
    config = TransformerConfig(dim=8, heads=2, mlp_dim=12)
    layer = BottleneckLayer(config, 2).double()
    tokens = [draw(3, 4, 8, seed=1), draw(3, 2, 8, seed=2)]
    shared, keeps = draw(3, 2, 8, seed=3), [torch.ones(3, n, dtype=torch.bool) for n in (4, 2)]
    keeps[0][1, 2:] = False
    expected, means = [], 0
    for block, x, keep in zip(layer.blocks, tokens, keeps, strict=True):
        theirs = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
        ).double()
        with torch.no_grad():
            theirs.self_attn.in_proj_weight.copy_(block.self_attention.qkv_proj.weight)
            theirs.self_attn.in_proj_bias.copy_(block.self_attention.qkv_proj.bias)
            theirs.self_attn.out_proj.weight.copy_(block.self_attention.out_proj.weight)
            theirs.self_attn.out_proj.bias.copy_(block.self_attention.out_proj.bias)
            theirs.linear1.load_state_dict(block.mlp[0].state_dict())
            theirs.linear2.load_state_dict(block.mlp[3].state_dict())
        padding = ~torch.cat([keep, torch.ones(3, 2, dtype=torch.bool)], dim=1)
        out = theirs(torch.cat([x, shared], dim=1), src_key_padding_mask=padding)
        expected.append(out[:, : x.shape[1]] * keep[..., None])
        means = means + out[:, x.shape[1] :] / 2
    found, new = layer(tokens, keeps, shared)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(new, means)

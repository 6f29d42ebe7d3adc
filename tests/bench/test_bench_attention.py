"""mmlib's attention beside PyTorch's: the same mathematics should cost the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.attention import MultiHeadAttention, attention, causal_keep

AREA = "Attention (chapter 1)"


def modules(dim, heads):
    ours, theirs = (
        MultiHeadAttention(dim, heads),
        nn.MultiheadAttention(dim, heads, batch_first=True),
    )
    with torch.no_grad():
        ours.qkv_proj.weight.copy_(theirs.in_proj_weight)
        ours.qkv_proj.bias.copy_(theirs.in_proj_bias)
        ours.out_proj.weight.copy_(theirs.out_proj.weight)
        ours.out_proj.bias.copy_(theirs.out_proj.bias)
    return ours, theirs


def by_hand(module, x, causal=False):
    """The least that can be done: one projection, the kernel, one projection."""
    batch, length, dim = x.shape
    qkv = F.linear(x, module.qkv_proj.weight, module.qkv_proj.bias)
    q, k, v = qkv.view(batch, length, 3, module.heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    out = out.transpose(1, 2).reshape(batch, length, dim)
    return F.linear(out, module.out_proj.weight, module.out_proj.bias)


@pytest.mark.parametrize("batch, length, dim, heads", [(8, 64, 128, 4), (4, 256, 256, 8)])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_self_attention(side_by_side, batch, length, dim, heads, causal, backward):
    ours, theirs = modules(dim, heads)
    x = torch.randn(batch, length, dim)
    mask = ~causal_keep(length) if causal else None
    outputs = {
        "mmlib": lambda: ours(x, causal=causal)[0],
        "SDPA by hand": lambda: by_hand(ours, x, causal),
        "nn.MultiheadAttention": lambda: theirs(
            x, x, x, attn_mask=mask, is_causal=causal, need_weights=False
        )[0],
    }
    for output in outputs.values():
        torch.testing.assert_close(output(), outputs["mmlib"](), rtol=1e-4, atol=1e-5)

    def step(output):
        ours.zero_grad()
        theirs.zero_grad()
        output().square().mean().backward()

    if backward:
        contestants = {name: lambda f=f: step(f) for name, f in outputs.items()}
    else:
        contestants = {name: torch.no_grad()(f) for name, f in outputs.items()}
    what = f"{'causal ' if causal else ''}self-attention {batch}×{length}×{dim}, {heads} heads"
    table = side_by_side(f"{what}, {'forward + backward' if backward else 'forward'}", contestants)
    table.as_fast("mmlib", "SDPA by hand")
    table.as_fast("mmlib", "nn.MultiheadAttention")
    for peer in ("SDPA by hand", "nn.MultiheadAttention"):
        table.light("mmlib", peer)


def test_cross_attention(side_by_side):
    ours, theirs = modules(256, 8)
    x, context = torch.randn(4, 64, 256), torch.randn(4, 256, 256)
    keep = torch.rand(4, 256) < 0.8
    outputs = {
        "mmlib": lambda: ours(x, context, keep)[0],
        "nn.MultiheadAttention": lambda: theirs(
            x, context, context, key_padding_mask=~keep, need_weights=False
        )[0],
    }
    torch.testing.assert_close(*(f() for f in outputs.values()), rtol=1e-4, atol=1e-5)
    contestants = {name: torch.no_grad()(f) for name, f in outputs.items()}
    table = side_by_side("padded cross-attention 4×64 to 4×256×256, 8 heads, forward", contestants)
    table.as_fast("mmlib", "nn.MultiheadAttention")
    table.light("mmlib", "nn.MultiheadAttention")


def test_the_fast_path_does_not_hold_the_weights(side_by_side):
    module = MultiHeadAttention(64, 4).eval()
    x = torch.randn(1, 2048, 64)
    contestants = {
        "fast path": torch.no_grad()(lambda: module(x)),
        "weights path": torch.no_grad()(lambda: module(x, return_weights=True)),
    }
    table = side_by_side("2048 positions, 4 heads", contestants, rounds=10)
    # The weights alone are 4 × 2048² × 4 bytes = 64 MiB.
    table.goal("the weights are held", table.memory("weights path"), at_least=64, unit="MiB")
    table.light("fast path", "weights path", 0.2, 0)
    table.at_most("fast path", "weights path", 1)


def test_the_textbook_formula(side_by_side):
    q, k, v = torch.randn(3, 8, 4, 128, 32)
    contestants = {
        "mmlib.attention": lambda: attention(q, k, v)[0],
        "three lines of torch": lambda: (q @ k.transpose(-2, -1) * 32**-0.5).softmax(-1) @ v,
        "SDPA": lambda: F.scaled_dot_product_attention(q, k, v),
    }
    table = side_by_side("textbook attention 8×4×128×32", contestants)
    table.as_fast("mmlib.attention", "three lines of torch")

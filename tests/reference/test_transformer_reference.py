"""Blocks and stacks are equal to PyTorch's with copied weights, values and gradients."""

import itertools
import math

import pytest
import torch
from torch import nn

from mmlib.attention import causal_keep, padding_keep
from mmlib.block import QuickGELU, TransformerBlock, TransformerConfig
from mmlib.positions import sinusoids
from mmlib.transformer import Decoder, Encoder

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
LENGTHS = torch.tensor([5, 2, 4])  # of the rows of x
MEMORY_LENGTHS = torch.tensor([1, 6, 3])


def draw(*shape, seed, dtype=torch.float64):
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(dtype)


def randomise(module, seed=3):
    """Random biases and norms too: zeros and ones would hide a missing one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise + (parameter.ndim == 1))


def names(cross):
    """PyTorch's names of our parameters, in our order."""
    pairs = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}
    norms = ["self_norm", "cross_norm", "mlp_norm"] if cross else ["self_norm", "mlp_norm"]
    found = {}
    for ours, theirs in pairs.items():
        if ours == "cross_attention" and not cross:
            continue
        found[f"{ours}.qkv_proj.weight"] = f"{theirs}.in_proj_weight"
        found[f"{ours}.qkv_proj.bias"] = f"{theirs}.in_proj_bias"
        for kind in ("weight", "bias"):
            found[f"{ours}.out_proj.{kind}"] = f"{theirs}.out_proj.{kind}"
    for kind in ("weight", "bias"):
        for index, norm in enumerate(norms, 1):
            found[f"{norm}.{kind}"] = f"norm{index}.{kind}"
        found[f"mlp.0.{kind}"] = f"linear1.{kind}"
        found[f"mlp.3.{kind}"] = f"linear2.{kind}"
    return found


def copy_weights(block, layer, cross):
    state, mapping = block.state_dict(), names(cross)
    assert set(state) == set(mapping)
    layer.load_state_dict({mapping[name]: tensor for name, tensor in state.items()})


def compare(ours, theirs, inputs, run_ours, run_theirs, valid, dtype, cross, layers=1):
    """Forward and gradients of inputs and weights; ``valid`` marks the rows that are real."""
    mine = [x.clone().requires_grad_() for x in inputs]
    other = [x.clone().requires_grad_() for x in inputs]
    out, expected = run_ours(*mine), run_theirs(*other)
    close = dict(rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(out[valid], expected[valid], **close)
    probe = draw(*out.shape, seed=9, dtype=dtype) * valid[..., None]
    (out * probe).sum().backward()
    (expected * probe).sum().backward()
    # A gradient sums some hundred products, so its rounding is that much larger.
    scale = 100 * TOLERANCE[dtype]
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=scale, atol=scale)
    their_gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        index, _, rest = name.removeprefix("blocks.").partition(".")
        if layers == 1:
            their_name = names(cross)[name]
        elif index == "norm":
            their_name = name
        else:
            their_name = f"layers.{index}.{names(cross)[rest]}"
        gradient = their_gradients[their_name].grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=scale, atol=scale)


OPTIONS = [
    pytest.param(first, activation, dtype, id=f"{'pre' if first else 'post'}-{activation}-{kind}")
    for first, activation, (kind, dtype) in itertools.product(
        (True, False), ("relu", "gelu"), (("fp32", torch.float32), ("fp64", torch.float64))
    )
]


@pytest.mark.parametrize("norm_first, activation, dtype", OPTIONS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fast", [False, True], ids=["weights path", "fast path"])
def test_block_equals_encoder_layer(norm_first, activation, dtype, causal, fast):
    config = TransformerConfig(
        dim=16, heads=4, mlp_dim=24, activation=activation, norm_first=norm_first
    )
    ours = TransformerBlock(config).to(dtype)
    randomise(ours)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 24, 0.0, activation, norm_first=norm_first, batch_first=True, dtype=dtype
    )
    copy_weights(ours, theirs, cross=False)
    keep = padding_keep(LENGTHS)
    order = ~causal_keep(5) if causal else None
    compare(
        ours,
        theirs,
        [draw(3, 5, 16, seed=1, dtype=dtype)],
        lambda x: ours(x, keep=keep, causal=causal, return_weights=not fast)[0],
        lambda x: theirs(x, src_mask=order, src_key_padding_mask=~keep),
        keep,
        dtype,
        cross=False,
    )


@pytest.mark.parametrize("norm_first, activation, dtype", OPTIONS)
def test_block_equals_decoder_layer(norm_first, activation, dtype):
    config = TransformerConfig(
        dim=16, heads=4, mlp_dim=24, activation=activation, norm_first=norm_first
    )
    ours = TransformerBlock(config, cross=True).to(dtype)
    randomise(ours)
    theirs = nn.TransformerDecoderLayer(
        16, 4, 24, 0.0, activation, norm_first=norm_first, batch_first=True, dtype=dtype
    )
    copy_weights(ours, theirs, cross=True)
    keep, memory_keep = padding_keep(LENGTHS), padding_keep(MEMORY_LENGTHS)
    compare(
        ours,
        theirs,
        [draw(3, 5, 16, seed=1, dtype=dtype), draw(3, 6, 16, seed=2, dtype=dtype)],
        lambda x, memory: ours(x, memory, keep=keep, memory_keep=memory_keep, causal=True)[0],
        lambda x, memory: theirs(
            x,
            memory,
            tgt_mask=~causal_keep(5),
            tgt_key_padding_mask=~keep,
            memory_key_padding_mask=~memory_keep,
        ),
        keep,
        dtype,
        cross=True,
    )


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("cross", [False, True], ids=["encoder", "decoder"])
def test_stack_equals_pytorch_stack(norm_first, cross):
    dtype = torch.float64
    config = TransformerConfig(dim=16, heads=2, layers=3, mlp_dim=24, norm_first=norm_first)
    options = dict(norm_first=norm_first, batch_first=True, dtype=dtype)
    keep, memory_keep = padding_keep(LENGTHS), padding_keep(MEMORY_LENGTHS)
    norm = nn.LayerNorm(16, dtype=dtype) if norm_first else None
    if cross:
        ours = Decoder(config).to(dtype)
        layer = nn.TransformerDecoderLayer(16, 2, 24, 0.0, "gelu", **options)
        theirs = nn.TransformerDecoder(layer, 3, norm)
    else:
        ours = Encoder(config).to(dtype)
        layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", **options)
        theirs = nn.TransformerEncoder(layer, 3, norm, enable_nested_tensor=False)
    randomise(ours)
    for block, other in zip(ours.blocks, theirs.layers, strict=True):
        copy_weights(block, other, cross)
    if norm_first:
        theirs.norm.load_state_dict(ours.norm.state_dict())
    inputs = [draw(3, 5, 16, seed=1, dtype=dtype)]
    if cross:
        inputs.append(draw(3, 6, 16, seed=2, dtype=dtype))

    def run_ours(x, memory=None):
        if cross:
            return ours(x, memory, keep=keep, memory_keep=memory_keep)[0]
        return ours(x, keep)[0]

    def run_theirs(x, memory=None):
        if cross:
            return theirs(
                x,
                memory,
                tgt_mask=~causal_keep(5),
                tgt_key_padding_mask=~keep,
                memory_key_padding_mask=~memory_keep,
            )
        return theirs(x, src_key_padding_mask=~keep)

    compare(ours, theirs, inputs, run_ours, run_theirs, keep, dtype, cross, layers=3)


def test_sinusoids_equal_the_closed_form():
    table = sinusoids(50, 12)
    assert table.dtype == torch.float64
    for position in range(50):
        for column in range(12):
            angle = position / 10000 ** (2 * (column // 2) / 12)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert abs(table[position, column].item() - expected) < 1e-12


def test_quick_gelu_equals_transformers():
    from transformers.activations import QuickGELUActivation

    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    torch.testing.assert_close(QuickGELU()(x), QuickGELUActivation()(x), rtol=0, atol=1e-15)
    # It approximates the exact one, and is not it.
    gap = (QuickGELU()(x) - nn.functional.gelu(x)).abs().max()
    assert 0.01 < gap < 0.03


@pytest.mark.parametrize("norm_first", [True, False])
def test_norm_eps_reaches_every_norm(norm_first):
    config = TransformerConfig(dim=8, heads=2, layers=2, norm_first=norm_first, norm_eps=0.3)
    for stack in (Encoder(config), Decoder(config)):
        norms = [module for module in stack.modules() if isinstance(module, nn.LayerNorm)]
        assert len(norms) >= 4
        assert {norm.eps for norm in norms} == {0.3}

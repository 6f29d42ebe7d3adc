"""The U-Net: identity at the start, attention against torch's, conditions, places, bad input."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlib.unet import FilmBlock, SpatialAttention, UNet


def loud(module, seed=0):
    """Weights that are nowhere zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.double().eval()


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_parts_start_as_the_identity():
    x, vector = draw(2, 16, 4, 4).float(), draw(2, 5).float()
    assert FilmBlock(16, 5)(x, vector).equal(x)
    assert SpatialAttention(16)(x).equal(x)


def test_a_block_by_hand():
    block = loud(FilmBlock(8, 3))
    x, vector = draw(2, 8, 4, 4), draw(2, 3)
    scale, shift = (vector @ block.film.weight.T + block.film.bias).split(8, dim=1)

    def norm(z):  # eight groups of one channel each
        mean, variance = z.mean((2, 3), keepdim=True), z.var((2, 3), keepdim=True, correction=0)
        return (z - mean) / (variance + 1e-5).sqrt()

    first = block.first_norm
    hidden = norm(x) * first.weight[:, None, None] + first.bias[:, None, None]
    hidden = norm(block.first(hidden * hidden.sigmoid()))
    hidden = hidden * (1 + scale[..., None, None]) + shift[..., None, None]
    expected = x + block.second(hidden * hidden.sigmoid())
    torch.testing.assert_close(block(x, vector), expected)


def test_attention_is_torch_s():
    ours = loud(SpatialAttention(16, heads=4))
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight[:, :, 0, 0])
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight[:, :, 0, 0])
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = draw(2, 16, 3, 5)
    tokens = F.group_norm(x, 8, ours.norm.weight, ours.norm.bias).flatten(2).mT
    expected = x + theirs(tokens, tokens, tokens)[0].mT.reshape(x.shape)
    torch.testing.assert_close(ours(x), expected)


def test_every_parameter_gets_a_gradient_and_every_pixel_is_seen():
    model = loud(UNet(size=8, width=8, vector=4))
    x, vector = draw(2, 3, 8, 8).requires_grad_(), draw(2, 4).requires_grad_()
    out = model(x, vector)
    assert out.shape == x.shape
    out[0, 0, 0, 0].backward()
    assert (x.grad[0] != 0).all()
    assert (vector.grad[0] != 0).all()
    assert (x.grad[1] == 0).all()  # pictures do not mix
    model.zero_grad()
    model(x, vector).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_places_are_known():
    # The same picture moved gives another answer than the answer moved: positions are learned.
    model = loud(UNet(size=16, width=8, vector=4))
    x, vector = torch.zeros(1, 3, 16, 16, dtype=torch.float64), draw(1, 4)
    x[..., 4:8, 4:8] = 1
    moved = model(x.roll(4, 3), vector)
    assert not torch.allclose(moved[..., 4:12], model(x, vector).roll(4, 3)[..., 4:12])


@pytest.mark.parametrize(
    ("change", "word"),
    [({"size": 6}, "size"), ({"size": 0}, "size"), ({"width": 12}, "width")]
    + [({"width": 0}, "width"), ({"channels": 0}, "channels"), ({"vector": 0}, "vector")],
)
def test_bad_sizes_are_named(change, word):
    with pytest.raises(ValueError, match=word):
        UNet(**{"size": 8, "width": 8} | change)


@pytest.mark.parametrize(
    "shapes", [((2, 3, 8, 4), (2, 4)), ((2, 3, 8, 8), (1, 4)), ((2, 3, 8, 8), (2, 5))]
)
def test_bad_shapes_are_named(unchecked, shapes):
    model = UNet(size=8, width=8, vector=4)
    with pytest.raises(ValueError, match="x must have shape"):
        unchecked(UNet.forward)(model, *(torch.zeros(shape) for shape in shapes))

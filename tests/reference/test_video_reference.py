"""The video encoder equals transformers' ViViT and VideoMAE with copied weights."""

import pytest
import torch
from transformers import VideoMAEConfig, VivitConfig, VivitModel
from transformers.models.videomae.modeling_videomae import VideoMAEModel

from mmlib.encoders.video import VideoEncoder, VideoEncoderConfig

FRAMES, SIZE, TUBELET, PATCH, DIM = 6, 16, 2, 8, 24
TOKENS = FRAMES // TUBELET * (SIZE // PATCH) ** 2


def ours(eps, dtype):
    torch.manual_seed(0)
    model = VideoEncoder(
        VideoEncoderConfig(
            frames=FRAMES, image_size=SIZE, patch_size=PATCH, tubelet=TUBELET, dim=DIM,
            heads=4, layers=3, mlp_dim=40, norm_eps=eps,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # zeros and ones would hide what is not copied
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.to(dtype).eval()


def positions(model):
    """One vector for each tube, of the two tables: the moments one after the other."""
    return (model.time[:, None] + model.space).flatten(0, 1)


def copy(target, source):
    assert target.shape == source.shape
    with torch.no_grad():
        target.copy_(source)


def copy_block(block, layer, attention, query, key, value, out, norms, mlp):
    find = layer.get_submodule
    for kind in ("weight", "bias"):
        parts = getattr(block.self_attention.qkv_proj, kind).chunk(3)
        for name, part in zip((query, key, value), parts, strict=True):
            target = getattr(find(f"{attention}.{name}"), kind, None)
            if target is not None:
                copy(target, part)
        copy(getattr(find(out), kind), getattr(block.self_attention.out_proj, kind))
        for name, module in zip(
            (*norms, *mlp), (block.self_norm, block.mlp_norm, block.mlp[0], block.mlp[3]),
            strict=True,
        ):  # fmt: skip
            copy(getattr(find(name), kind), getattr(module, kind))


def vivit(model, dtype):
    config = VivitConfig(
        image_size=SIZE, num_frames=FRAMES, tubelet_size=[TUBELET, PATCH, PATCH], hidden_size=DIM,
        num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, hidden_act="gelu",
        attn_implementation="sdpa",  # eager takes its softmax in float32
    )  # fmt: skip
    theirs = VivitModel(config, add_pooling_layer=False).to(dtype).eval()
    embeddings = theirs.embeddings
    for kind in ("weight", "bias"):
        copy(
            getattr(embeddings.patch_embeddings.projection, kind),
            getattr(model.embedding.projection, kind),
        )
        copy(getattr(theirs.layernorm, kind), getattr(model.encoder.norm, kind))
    with torch.no_grad():
        embeddings.cls_token.normal_()
        embeddings.position_embeddings[:, 1:] = positions(model)
    for block, layer in zip(model.encoder.blocks, theirs.layers, strict=True):
        copy_block(
            block, layer, "attention", "q_proj", "k_proj", "v_proj", "attention.o_proj",
            ("layernorm_before", "layernorm_after"), ("mlp.fc1", "mlp.fc2"),
        )  # fmt: skip
    return theirs


@pytest.mark.parametrize("dtype, close", [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_equals_vivit(dtype, close):
    model = ours(1e-6, dtype)
    theirs = vivit(model, dtype)
    video = torch.rand(2, FRAMES, 3, SIZE, SIZE, dtype=dtype)
    # Their class token is there, but nobody attends to it.
    seen = torch.ones(2, 1 + TOKENS, dtype=torch.long)
    seen[:, 0] = 0
    expected = theirs(video, attention_mask=seen).last_hidden_state[:, 1:]
    encoded = model(video)
    torch.testing.assert_close(encoded.tokens, expected, rtol=0, atol=close)
    torch.testing.assert_close(encoded.pooled, expected.mean(dim=1), rtol=0, atol=close)
    probe = torch.randn(expected.shape, dtype=dtype)
    expected.backward(probe)
    encoded.tokens.backward(probe)
    torch.testing.assert_close(
        model.embedding.projection.weight.grad,
        theirs.embeddings.patch_embeddings.projection.weight.grad,
        rtol=1e-3,
        atol=100 * close,
    )


@pytest.mark.parametrize("lengths", [(6, 2), (4, 0)])
def test_equals_vivit_where_tubes_are_missing(lengths):
    model = ours(1e-6, torch.float64)
    theirs = vivit(model, torch.float64)
    video = torch.rand(2, FRAMES, 3, SIZE, SIZE, dtype=torch.float64)
    keep = torch.arange(FRAMES) < torch.tensor(lengths)[:, None]
    seen = torch.zeros(2, 1 + TOKENS, dtype=torch.long)
    for row, length in enumerate(lengths):
        seen[row, 1 : 1 + 2 * length] = 1  # four tubes for two frames
    expected = theirs(video, attention_mask=seen).last_hidden_state[:, 1:]
    encoded = model(video, keep)
    assert torch.equal(encoded.keep, seen[:, 1:].bool())
    torch.testing.assert_close(
        encoded.tokens[encoded.keep], expected[encoded.keep], rtol=0, atol=1e-12
    )


def test_equals_videomae():
    """It has no class token. Its keys have no bias, which adds the same to all of a query's scores.

    VideoMAE's positions are fixed sinusoids; ours stand in for them.
    """
    model = ours(1e-12, torch.float64)
    config = VideoMAEConfig(
        image_size=SIZE, patch_size=PATCH, num_frames=FRAMES, tubelet_size=TUBELET,
        hidden_size=DIM, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
        use_mean_pooling=False, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = VideoMAEModel(config).double().eval()
    theirs.embeddings.position_embeddings = positions(model).detach()[None]
    for kind in ("weight", "bias"):
        copy(
            getattr(theirs.embeddings.patch_embeddings.projection, kind),
            getattr(model.embedding.projection, kind),
        )
        copy(getattr(theirs.layernorm, kind), getattr(model.encoder.norm, kind))
    for block, layer in zip(model.encoder.blocks, theirs.encoder.layer, strict=True):
        copy_block(
            block, layer, "attention.attention", "query", "key", "value",
            "attention.output.dense", ("layernorm_before", "layernorm_after"),
            ("intermediate.dense", "output.dense"),
        )  # fmt: skip
    video = torch.rand(2, FRAMES, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(video).last_hidden_state
        torch.testing.assert_close(model(video).tokens, expected, rtol=0, atol=1e-12)

"""Our ViT is transformers' ViT and CLIP's vision tower, weights copied, at full size."""

import pytest
import torch
import transformers
from torch import nn

from mmlib.encoders.vit import ViT
from mmlib.encoders.vit_names import their_state

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}


def randomise(model, seed=0):
    """Weights of about the published size, random biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            is_norm = "norm" in name or "layrnorm" in name
            parameter.copy_((0.1 if is_norm else 0.03) * noise)
            if is_norm and name.endswith("weight"):
                parameter.add_(1.0)
    return model.eval()


def vit(attention="eager", **options):
    config = transformers.ViTConfig(attn_implementation=attention, **options)
    return randomise(transformers.ViTModel(config, add_pooling_layer=False))


def clip_tower(attention="eager", **options):
    config = transformers.CLIPVisionConfig(attn_implementation=attention, **options)
    return randomise(transformers.CLIPVisionModel(config))


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_vit_b16_equals_transformers():
    theirs = vit()  # the defaults are ViT-B/16 at 224 pixels
    ours = ViT.from_transformers(theirs)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == 85_798_656
    images = torch.randn(1, 3, 224, 224)
    expected = theirs(images, output_attentions=True)
    found = ours(images, return_weights=True)
    close(found.tokens, expected.last_hidden_state, 1e-5)
    close(found.pooled, expected.last_hidden_state[:, 0], 1e-5)
    assert len(found.weights) == len(expected.attentions) == 12
    for mine, attention in zip(found.weights, expected.attentions, strict=True):
        close(mine.self_attention, attention, 1e-5)
    close(ours(images).tokens, expected.last_hidden_state, 1e-5)  # the fused path


@torch.no_grad()
def test_clip_vit_b32_equals_transformers():
    theirs = clip_tower()  # the defaults are ViT-B/32 at 224 pixels
    ours = ViT.from_transformers(theirs)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    images = torch.randn(2, 3, 224, 224)
    expected = theirs(images, output_attentions=True)
    found = ours(images, return_weights=True)
    close(found.pooled, expected.pooler_output, 1e-5)
    norm = getattr(theirs, "vision_model", theirs).post_layernorm
    close(found.tokens, norm(expected.last_hidden_state), 1e-5)
    for mine, attention in zip(found.weights, expected.attentions, strict=True):
        close(mine.self_attention, attention, 1e-5)


@pytest.mark.parametrize("make", [vit, clip_tower])
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (16, 40), (8, 8)])
def test_values_and_gradients_at_any_size_in_float64(make, size):
    # transformers' eager attention takes its softmax in float32 whatever the model's dtype.
    theirs = make("sdpa", **SMALL).double()
    ours = ViT.from_transformers(theirs)
    mine = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    other = mine.detach().clone().requires_grad_()
    found = ours(mine, interpolate_positions=True).pooled
    output = theirs(other, interpolate_pos_encoding=True)
    expected = output.last_hidden_state[:, 0] if make is vit else output.pooler_output
    close(found, expected, 1e-12)
    probe = torch.randn_like(found)
    (found * probe).sum().backward()
    (expected * probe).sum().backward()
    close(mine.grad, other.grad, 1e-10)
    positions = their_gradient(theirs, "position")
    close(ours.positions.grad, positions.reshape(-1, 32), 1e-10)
    close(ours.class_token.grad, their_gradient(theirs, "class_emb", "cls_tok").flatten(), 1e-10)


def their_gradient(model, *parts):
    grads = [p.grad for name, p in model.named_parameters() if any(part in name for part in parts)]
    assert len(grads) == 1
    return grads[0]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("epsilon", [1e-12, 1e-2])
def test_activation_and_epsilon_are_taken_over(activation, epsilon):
    options = SMALL | {"hidden_act": activation, "layer_norm_eps": epsilon}
    for make in (vit, clip_tower):
        theirs = make(**options)
        images = torch.randn(1, 3, 32, 32)
        output = theirs(images)
        expected = output.last_hidden_state[:, 0] if make is vit else output.pooler_output
        close(ViT.from_transformers(theirs)(images).pooled, expected, 1e-5)


def test_models_around_a_tower_are_opened():
    images = torch.randn(1, 3, 32, 32)
    classifier = randomise(transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)))
    pooled = ViT.from_transformers(classifier)(images).pooled
    close(classifier.classifier(pooled), classifier(images).logits, 1e-5)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(vision_config=SMALL, text_config=text, projection_dim=16)
    clip = randomise(transformers.CLIPModel(config))
    pooled = clip.visual_projection(ViT.from_transformers(clip)(images).pooled)
    features = clip.get_image_features(images)
    close(pooled, getattr(features, "pooler_output", features), 1e-5)


def test_training_ours_leaves_theirs_alone():
    theirs = vit(**SMALL)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    ours = ViT.from_transformers(theirs)
    with torch.no_grad():
        for parameter in ours.parameters():
            assert parameter.requires_grad
            parameter.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in theirs.state_dict().items())


def test_weights_that_do_not_fit_are_named():
    theirs = vit(**SMALL)
    del theirs.layernorm.bias
    with pytest.raises(ValueError, match=r"missing layernorm\.bias"):
        ViT.from_transformers(theirs)
    with pytest.raises(ValueError, match="biases"):
        ViT.from_transformers(vit(**SMALL, qkv_bias=False))
    with pytest.raises(ValueError, match="activation"):
        ViT.from_transformers(vit(**SMALL, hidden_act="gelu_new"))


def test_older_names_of_transformers_are_known():
    """As ``transformers`` 5.0 and the files on the hub call them."""
    older = [
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "encoder.layer.3.attention.attention.query.weight",
        "encoder.layer.3.attention.attention.value.bias",
        "encoder.layer.3.attention.output.dense.weight",
        "encoder.layer.3.intermediate.dense.bias",
        "encoder.layer.3.output.dense.weight",
        "encoder.layer.3.layernorm_before.weight",
        "layernorm.bias",
    ]
    tower = nn.Module()
    tower.state_dict = lambda: {name: torch.zeros(1, 1, 4) for name in older}
    assert list(their_state(tower)) == [
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "layers.3.attention.q_proj.weight",
        "layers.3.attention.v_proj.bias",
        "layers.3.attention.o_proj.weight",
        "layers.3.mlp.fc1.bias",
        "layers.3.mlp.fc2.weight",
        "layers.3.layernorm_before.weight",
        "layernorm.bias",
    ]

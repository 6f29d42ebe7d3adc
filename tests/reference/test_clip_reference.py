"""Our CLIP is transformers' and open_clip's: features, logits, loss and every gradient."""

import json

import open_clip
import pytest
import torch
import transformers
from open_clip.model import CLIP as OpenCLIP
from torch import nn

from mmlib.clip import CLIP, CLIPConfig
from mmlib.encoders.tokenizers import clip_tokenizer

END = 50
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 12,
    "eos_token_id": END,
}


def randomise(model, seed=0):
    """Weights of about the published size, random biases and norms too, and another scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "layrnorm" in name
            parameter.copy_((0.1 if is_norm else 0.05) * noise)
            if is_norm and name.endswith("weight"):
                parameter.add_(1.0)
        model.logit_scale.fill_(3.0)
    return model.eval()


def huggingface(**options):
    """A small one of transformers; its eager attention takes the softmax in fp32 whatever comes."""
    vision = VISION | options.pop("vision", {})
    text = TEXT | options.pop("text", {})
    config = transformers.CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=24, **options
    )
    config._attn_implementation = "sdpa"
    return randomise(transformers.CLIPModel(config))


def inputs(dtype=torch.float64, batch=3):
    """Pictures, and ids of which some are larger than the end's, before it and after it."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch, 3, 32, 32, generator=generator, dtype=dtype)
    ids = torch.randint(51, 60, (batch, 10), generator=generator)
    ids[torch.arange(batch), torch.tensor([9, 2, 5])] = END
    return images, ids


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def gradients(model, loss):
    """The gradients of a model of transformers under our names; they take its weights' place."""
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    return dict(CLIP.from_transformers(model).named_parameters())


def same_gradients(ours, expected, tolerance):
    for name, parameter in ours.named_parameters():
        assert expected[name].abs().max() > 0, name
        scale = expected[name].abs().max()
        difference = (parameter.grad - expected[name]).abs().max() / scale
        assert difference < tolerance, f"{name}: {difference}"


def test_vit_b_32_from_a_folder_equals_transformers(tmp_path):
    """As ``openai/clip-vit-base-patch32`` would load: 151 M parameters, features to gradients."""
    config = transformers.CLIPConfig(text_config={"eos_token_id": 49_407})
    config._attn_implementation = "sdpa"
    theirs = randomise(transformers.CLIPModel(config))
    theirs.save_pretrained(tmp_path)
    ours = CLIP.from_transformers(tmp_path)
    assert ours.config.image == CLIPConfig.vit_b_32().image
    assert ours.config.text == CLIPConfig.vit_b_32().text
    assert sum(p.numel() for p in ours.parameters()) == 151_277_313
    assert not ours.training and all(p.requires_grad for p in ours.parameters())
    texts = ["a large red circle above a small blue square", "une étoile jaune 在左边 😀"]
    ids, keep = clip_tokenizer().encode(texts, pad_to=77)
    images = torch.randn(2, 3, 224, 224)
    out = theirs(input_ids=ids, attention_mask=keep.long(), pixel_values=images, return_loss=True)
    close(ours.encode_image(images), out.image_embeds, 1e-4)
    close(ours.encode_text(ids), out.text_embeds, 1e-4)
    close(ours.encode_text(ids, keep), out.text_embeds, 1e-4)
    close(ours(images, ids), out.logits_per_image, 1e-4)
    loss = ours.loss(images, ids)
    close(loss, out.loss, 1e-4)
    loss.backward()
    same_gradients(ours, gradients(theirs, out.loss), 1e-4)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_everything_equals_transformers_in_float64(activation):
    options = {"hidden_act": activation}
    theirs = huggingface(vision=options, text=options).double()
    ours = CLIP.from_transformers(theirs)
    images, ids = inputs()
    out = theirs(input_ids=ids, pixel_values=images, return_loss=True)
    close(ours.encode_image(images), out.image_embeds, 1e-10)
    close(ours.encode_text(ids), out.text_embeds, 1e-10)
    close(ours(images, ids), out.logits_per_image, 1e-10)
    loss = ours.loss(images, ids)
    close(loss, out.loss, 1e-10)
    loss.backward()
    same_gradients(ours, gradients(theirs, out.loss), 1e-10)
    # The end is not where the largest id is.
    assert (ids.argmax(1) != (ids == END).int().argmax(1)).all()


@torch.no_grad()
def test_pictures_of_another_size_equal_transformers():
    theirs = huggingface().double()
    ours = CLIP.from_transformers(theirs)
    images = torch.randn(2, 3, 48, 40, dtype=torch.float64)
    expected = theirs.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    found = ours.encode_image(images, interpolate_positions=True)
    close(found, nn.functional.normalize(expected), 1e-10)
    with pytest.raises(ValueError, match="images must be 32 × 32 pixels: got 48 × 40"):
        ours.encode_image(images)


@torch.no_grad()
def test_a_folder_as_openai_left_it_loads(tmp_path):
    """A pickle with buffers of positions, and a configuration that calls the end 2."""
    theirs = huggingface(text={"eos_token_id": 2})
    state = theirs.state_dict()
    for tower, length in (("text_model", 12), ("vision_model", 17)):
        state[f"{tower}.embeddings.position_ids"] = torch.arange(length)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = theirs.config.to_dict()
    config["text_config_dict"], config["vision_config_dict"] = None, None
    assert config["text_config"]["eos_token_id"] == 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = CLIP.from_transformers(str(tmp_path))
    assert ours.config.text.end_id == 59  # what 2 means there: the largest id
    images, ids = inputs(torch.float32)
    ids = torch.where(ids == END, 59, ids.where(ids < 59, 58))
    out = theirs(input_ids=ids, pixel_values=images)
    close(ours(images, ids), out.logits_per_image, 1e-4)


def test_a_scale_above_the_limit_is_kept():
    theirs = huggingface()
    with torch.no_grad():
        theirs.logit_scale.fill_(5.0)  # 148
        images, ids = inputs(torch.float32)
        ours = CLIP.from_transformers(theirs)
        expected = theirs(input_ids=ids, pixel_values=images).logits_per_image
        close(ours(images, ids), expected, 1e-4)
        assert ours.config.maximum_scale == pytest.approx(148.413, abs=1e-3)
        ours.logit_scale.log_scale.fill_(9.0)
        assert ours.logit_scale().item() == pytest.approx(148.413, abs=1e-2)
    assert CLIP.from_transformers(huggingface()).config.maximum_scale == 100.0


def test_training_ours_leaves_theirs_alone():
    theirs = huggingface()
    before = {name: value.clone() for name, value in theirs.state_dict().items()}
    ours = CLIP.from_transformers(theirs)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in theirs.state_dict().items())


def test_half_precision_checkpoints_stay_half():
    ours = CLIP.from_transformers(huggingface().bfloat16())
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}


def test_what_is_no_clip_is_refused(tmp_path):
    theirs = huggingface()
    with pytest.raises(TypeError, match="must be a CLIPModel: got CLIPVisionModel without vision_"):
        CLIP.from_transformers(transformers.CLIPVisionModel(theirs.config.vision_config))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 1}
    siglip = transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config=sizes | {"vocab_size": 9},
            vision_config=sizes | {"image_size": 8, "patch_size": 4},
        )
    )
    with pytest.raises(TypeError, match="got SiglipModel without visual_projection, text_proj"):
        CLIP.from_transformers(siglip)
    with pytest.raises(ValueError, match="activation"):
        CLIP.from_transformers(huggingface(vision={"hidden_act": "gelu_new"}))
    with pytest.raises(OSError, match="no file named model.safetensors"):
        CLIP.from_transformers(tmp_path)


# ---- open_clip


def open_clip_model(ours):
    """An open_clip of the same configuration, whose end is found by its id too."""
    image, text = ours.config.image, ours.config.text
    vision = open_clip.CLIPVisionCfg(
        layers=image.layers,
        width=image.dim,
        head_width=image.dim // image.heads,
        patch_size=image.patch_size,
        image_size=image.image_size,
    )
    words = open_clip.CLIPTextCfg(
        context_length=text.max_length,
        vocab_size=text.vocab_size,
        width=text.dim,
        heads=text.heads,
        layers=text.layers,
        eos_id=text.end_id,
        pool_type="eos",
    )
    quick = image.activation == "quick_gelu"
    return OpenCLIP(ours.config.dim, vision, words, quick_gelu=quick)


def open_clip_names(tensors):
    """Tensors under our names, renamed and reshaped to open_clip's."""
    blocks = {
        "self_norm": "ln_1",
        "mlp_norm": "ln_2",
        "self_attention.out_proj": "attn.out_proj",
        "mlp.0": "mlp.c_fc",
        "mlp.3": "mlp.c_proj",
    }
    renamed = {}
    for name, value in tensors.items():
        name = name.replace("image.encoder.blocks", "visual.transformer.resblocks")
        name = name.replace("text.stack.blocks", "transformer.resblocks")
        for mine, other in blocks.items():
            name = name.replace(f".{mine}.", f".{other}.")
        name = name.replace("self_attention.qkv_proj.", "attn.in_proj_")
        renamed[name] = value
    for mine, other in {
        "image.class_token": "visual.class_embedding",
        "image.positions": "visual.positional_embedding",
        "image.patch_embedding.projection.weight": "visual.conv1.weight",
        "image.norm_before.weight": "visual.ln_pre.weight",
        "image.norm_before.bias": "visual.ln_pre.bias",
        "image.encoder.norm.weight": "visual.ln_post.weight",
        "image.encoder.norm.bias": "visual.ln_post.bias",
        "text.token.weight": "token_embedding.weight",
        "text.position.table": "positional_embedding",
        "text.stack.norm.weight": "ln_final.weight",
        "text.stack.norm.bias": "ln_final.bias",
        "logit_scale.log_scale": "logit_scale",
    }.items():
        renamed[other] = renamed.pop(mine)
    renamed["visual.proj"] = renamed.pop("image_projection.weight").T
    renamed["text_projection"] = renamed.pop("text_projection.weight").T
    return renamed


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_everything_equals_open_clip_in_float64(activation):
    options = {"hidden_act": activation}
    ours = CLIP.from_transformers(huggingface(vision=options, text=options).double())
    theirs = open_clip_model(ours).double()
    theirs.load_state_dict(open_clip_names(ours.state_dict()))
    images, ids = inputs()
    ids = torch.cat([ids, torch.zeros(3, 2, dtype=torch.long)], dim=1)  # it takes 12, no fewer
    image, text, scale = theirs(images, ids)
    close(ours.encode_image(images), image, 1e-10)
    close(ours.encode_text(ids), text, 1e-10)
    close(ours(images, ids), scale * image @ text.T, 1e-10)
    loss, expected = ours.loss(images, ids), open_clip.ClipLoss()(image, text, scale)
    close(loss, expected, 1e-10)
    loss.backward()
    expected.backward()
    mine = open_clip_names({name: p.grad for name, p in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        close(mine.pop(name), parameter.grad, 1e-10)
    assert not mine

"""CLIP's training step and encoding beside transformers and open_clip, with the same weights.

The peers take their best settings on a CPU, but for compilation, which takes minutes for each. All
run in the precision that is the faster one here. transformers has two implementations of attention,
of which the plain one is the faster in bf16, and it takes texts padded to the longest only;
open_clip's model takes 77 positions, whatever the texts. All have AdamW in its fused form.
"""

import copy
from unittest import mock

import open_clip
import pytest
import torch
import transformers
from open_clip.model import CLIP as OpenCLIP
from torch import nn

from mmlib.clip import CLIP
from mmlib.contrastive import clip_loss
from mmlib.data import scenes
from mmlib.encoders import pooled_only
from mmlib.encoders.tokenizers import clip_tokenizer
from mmlib.training import choose_precision
from mmlib.training.optimizer import adamw

SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
SMALL |= {"num_hidden_layers": 6}
SIZES = {"small": (SMALL, SMALL, 64, 8, 256, 64), "vit-b/32": ({}, {}, 224, 32, 512, 8)}
END = 49_407


class Setting:
    """One size and precision: the three models with equal weights, pictures and texts."""

    def __init__(self, size: str, precision: str) -> None:
        vision, words, side, patch, dim, self.batch = SIZES[size]
        self.size, self.precision = size, precision
        config = transformers.CLIPConfig(
            vision_config=vision | {"image_size": side, "patch_size": patch},
            text_config=words | {"eos_token_id": END},
            projection_dim=dim,
        )
        config._attn_implementation = "eager" if precision == "bf16" else "sdpa"
        self.theirs = transformers.CLIPModel(config).train()
        self.ours = CLIP.from_transformers(self.theirs).train()
        image, text = self.ours.config.image, self.ours.config.text
        self.open_clip = OpenCLIP(
            dim,
            open_clip.CLIPVisionCfg(
                layers=image.layers,
                width=image.dim,
                head_width=image.dim // image.heads,
                patch_size=patch,
                image_size=side,
            ),
            open_clip.CLIPTextCfg(width=text.dim, heads=text.heads, layers=text.layers),
            quick_gelu=True,
        )
        self.images = torch.randn(self.batch, 3, side, side)
        captions = [scenes.caption(s) for s in scenes.sample(self.batch, seed=0, objects=2)]
        self.ids, self.keep = clip_tokenizer().encode(captions)
        self.padded = clip_tokenizer().encode(captions, pad_to=77).ids

    @property
    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")


def open_clip_loss(model, images, ids):
    return open_clip.ClipLoss()(*model(images, ids))


def step(setting, model, loss):
    """A function that trains a model by one step, and returns the loss."""
    optimizer = adamw(model, 1e-4)

    def run():
        optimizer.zero_grad()
        with setting.autocast:
            value = loss(model)
        value.backward()
        optimizer.step()
        return value.item()

    return run


@pytest.fixture(scope="module")
def precision():
    """The faster one here, for everybody."""
    return choose_precision()


@pytest.fixture(scope="module", params=SIZES)
def setting(request, precision):
    return Setting(request.param, precision)


def test_training(side_by_side, setting):
    x, ids, padded = setting.images, setting.ids, setting.padded
    losses = {
        "mmlib": (setting.ours, lambda m: m.loss(x, ids)),
        "transformers": (
            setting.theirs,
            lambda m: m(input_ids=ids, pixel_values=x, return_loss=True).loss,
        ),
        "open_clip": (setting.open_clip, lambda m: open_clip_loss(m, x, padded)),
    }
    contestants = {
        name: step(setting, copy.deepcopy(model), loss) for name, (model, loss) in losses.items()
    }
    # The same curve: the first steps from the same weights, before anything is timed.
    ours, theirs = ([contestants[name]() for _ in range(3)] for name in ("mmlib", "transformers"))
    tolerance = 0.03 if setting.precision == "bf16" else 1e-3
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    title = f"CLIP {setting.size}, batch {setting.batch}, {setting.precision}, training step"
    table = side_by_side(title, contestants, rounds=3)
    for name in contestants:
        print(f"{title}, {name}: {setting.batch / table.seconds(name):.1f} pairs a second")
        assert table.as_fast("mmlib", name, 1.05)


@torch.inference_mode()
def test_encoding(side_by_side, setting):
    """In bf16 the weights are bf16, and nothing is cast."""
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    models = (setting.ours, setting.theirs, setting.open_clip)
    ours, theirs, third = (copy.deepcopy(model).to(dtype).eval() for model in models)
    x, ids, padded = setting.images.to(dtype), setting.ids, setting.padded
    unit = nn.functional.normalize
    kinds = {
        "pictures": {
            "mmlib": lambda: ours.encode_image(x),
            "transformers": lambda: unit(theirs.get_image_features(x).pooler_output),
            "open_clip": lambda: third.encode_image(x, normalize=True),
        },
        "texts": {
            "mmlib": lambda: ours.encode_text(ids),
            "transformers": lambda: unit(theirs.get_text_features(ids).pooler_output),
            "open_clip": lambda: third.encode_text(padded, normalize=True),
        },
    }
    for kind, contestants in kinds.items():
        tolerance = 0.05 if setting.precision == "bf16" else 1e-4
        found, expected = (contestants[name]().float() for name in ("mmlib", "transformers"))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        title = f"CLIP {setting.size}, encoding {setting.batch} {kind}, {setting.precision}"
        table = side_by_side(title, contestants, rounds=5)
        for name in contestants:
            print(f"{title}, {name}: {setting.batch / table.seconds(name):.1f} a second")
            assert table.as_fast("mmlib", name, 1.05)


def test_each_technique_pays(side_by_side, precision):
    """The small training step with one technique at a time taken away: nothing gets faster."""
    setting = Setting("small", precision)
    x, ids = setting.images, setting.ids
    long = torch.where(setting.padded == END, 1, setting.padded)
    long[:, -1] = END  # every position up to the last is needed

    def whole_blocks(model):
        image = model.image_projection(model.image(x, return_weights=True).pooled)
        text = model.text_projection(model.text(ids, return_weights=True).pooled)
        return clip_loss(image, text, model.logit_scale())

    def fused_attention(model):
        with mock.patch.object(pooled_only, "written_out", return_value=False):
            return model.loss(x, ids)

    variants = {
        "all of them": lambda m: m.loss(x, ids),
        "whole last block": whole_blocks,
        "77 text positions": lambda m: m.loss(x, long),
    }
    if precision == "bf16":  # in fp32 the kernel is what runs
        variants["fused attention kernel"] = fused_attention
    contestants = {
        name: step(setting, copy.deepcopy(setting.ours), loss) for name, loss in variants.items()
    }
    title = f"CLIP small, batch 64, {precision}, training step without one technique"
    table = side_by_side(title, contestants, rounds=3)
    for name in contestants:
        print(f"{title}, {name}: {table.ratio(name, 'all of them'):.2f} times as long")
        assert table.as_fast("all of them", name, 1.05)

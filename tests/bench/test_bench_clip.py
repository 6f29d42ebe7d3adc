"""CLIP's training step and encoding beside transformers and open_clip, with the same weights.

The peers take their best settings on a CPU. transformers has two implementations of attention, of
which the plain one is the faster in bf16, and it takes texts padded to the longest only;
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
from mmlib.training.optimizer import adamw

SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
SMALL |= {"num_hidden_layers": 6}
SIZES = {"small": (SMALL, SMALL, 64, 8, 256, 64), "vit-b/32": ({}, {}, 224, 32, 512, 8)}
END = 49_407


class Setting:
    """One size and precision: the three models with equal weights, pictures and texts."""

    def __init__(self, size: str, precision: str) -> None:
        vision, words, side, patch, dim, self.batch = SIZES[size]
        self.precision = precision
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


def step(setting, model, loss, optimiser=None):
    """A function that trains a model by one step, and returns the loss."""
    optimizer = adamw(model, 1e-4) if optimiser is None else optimiser(model)

    def run():
        optimizer.zero_grad()
        with setting.autocast:
            value = loss(model)
        value.backward()
        optimizer.step()
        return value.item()

    return run


def trainers(setting, compiled):
    """What trains each model; compiled, all of a loss is one function to the compiler."""
    x, ids, padded = setting.images, setting.ids, setting.padded
    losses = {
        "mmlib": (setting.ours, lambda m: m.loss(x, ids)),
        "transformers": (
            setting.theirs,
            lambda m: m(input_ids=ids, pixel_values=x, return_loss=True).loss,
        ),
        "transformers, 77 tokens": (
            setting.theirs,
            lambda m: m(input_ids=padded, pixel_values=x, return_loss=True).loss,
        ),
        "open_clip": (setting.open_clip, lambda m: open_clip_loss(m, x, padded)),
    }
    wrap = torch.compile if compiled else (lambda function: function)
    return {
        name: step(setting, copy.deepcopy(model), wrap(loss))
        for name, (model, loss) in losses.items()
    }


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("size", SIZES)
def test_training(side_by_side, size, precision, compiled):
    setting = Setting(size, precision)
    contestants = trainers(setting, compiled)
    # The same curve: the first steps from the same weights, before anything is timed.
    ours, theirs = ([contestants[name]() for _ in range(3)] for name in ("mmlib", "transformers"))
    tolerance = 0.03 if precision == "bf16" else 1e-3
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    mode = "compiled" if compiled else "not compiled"
    title = f"CLIP {size}, batch {setting.batch}, {precision}, {mode}, training step"
    table = side_by_side(title, contestants, rounds=4)
    for name in contestants:
        print(f"{title}, {name}: {setting.batch / table.seconds(name):.1f} pairs a second")
        assert name == "mmlib" or table.ratio("mmlib", name) < 1.05


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_encoding(side_by_side, size, precision):
    """In bf16 the weights are bf16, and nothing is cast."""
    setting = Setting(size, precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    models = (setting.ours, setting.theirs, setting.open_clip)
    ours, theirs, third = (model.to(dtype).eval() for model in models)
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
            "transformers, 77 tokens": lambda: theirs.get_text_features(padded).pooler_output,
            "open_clip": lambda: third.encode_text(padded, normalize=True),
        },
    }
    for kind, contestants in kinds.items():
        tolerance = 0.05 if precision == "bf16" else 1e-4
        found, expected = (contestants[name]().float() for name in ("mmlib", "transformers"))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        title = f"CLIP {size}, encoding {setting.batch} {kind}, {precision}"
        table = side_by_side(title, contestants, rounds=8)
        for name in contestants:
            print(f"{title}, {name}: {setting.batch / table.seconds(name):.1f} a second")
            assert name == "mmlib" or table.ratio("mmlib", name) < 1.05


def test_what_each_technique_buys(side_by_side):
    """The small training step in bf16, with one technique at a time taken away."""
    setting = Setting("small", "bf16")
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

    def fp32(model):
        with torch.autocast("cpu", enabled=False):
            return model.loss(x, ids)

    def loop(model):
        return torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)

    def plain(model):
        return model.loss(x, ids)

    variants = {
        "all of them": (plain, None),
        "fused attention kernel": (fused_attention, None),
        "whole last block": (whole_blocks, None),
        "77 text positions": (lambda m: m.loss(x, long), None),
        "fp32": (fp32, None),
        "AdamW by a loop": (plain, loop),
    }
    contestants = {
        name: step(setting, copy.deepcopy(setting.ours), loss, optimiser)
        for name, (loss, optimiser) in variants.items()
    }
    table = side_by_side("CLIP small, batch 64, bf16, without one technique", contestants, rounds=4)
    for name in contestants:
        print(f"{name}: {table.ratio(name, 'all of them'):.2f} times as long")

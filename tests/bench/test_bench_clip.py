"""CLIP's training step and encoding beside transformers and open_clip, with the same weights.

The peers take their best settings on a CPU. All run in the precision that is the faster one here.
transformers has two implementations of attention, of which the plain one is the faster in bf16, and
it takes texts padded to the longest only; open_clip's model takes 77 positions, whatever the texts.
All have AdamW in its fused form. Compiling a whole model took two to three minutes here and gained
no more than compiling its blocks, which takes a quarter of one; so blocks are compiled, ours and
those of transformers, the faster peer, beside the single techniques.
"""

import contextlib
import copy
from unittest import mock

import open_clip
import pytest
import torch
import transformers
from open_clip.model import CLIP as OpenCLIP
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlib.clip import CLIP
from mmlib.contrastive import clip_loss
from mmlib.data import scenes
from mmlib.encoders import pooled_only
from mmlib.encoders.tokenizers import clip_tokenizer
from mmlib.encoders.vit import PatchEmbedding
from mmlib.training import choose_precision
from mmlib.training.optimizer import adamw, decay_groups

AREA = "CLIP (chapter 10)"

SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
SMALL |= {"num_hidden_layers": 6}
SIZES = {"small": (SMALL, SMALL, 64, 8, 256, 64), "vit-b/32": ({}, {}, 224, 32, 512, 8)}
END = 49_407
RATE = 1e-4
PEERS = ["transformers", "open_clip"]


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


def step(setting, model, loss, optimizer=None, fp32=False):
    """A function that trains a model by one step, and returns the loss."""
    optimizer = optimizer or adamw(model, RATE)

    def run():
        optimizer.zero_grad()
        with contextlib.nullcontext() if fp32 else setting.autocast:
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


def why_not(table, function, peak):
    """Why 1.5 times as fast is out of reach: what of the time is spent on products alone."""
    with FlopCounterMode(display=False) as counter:
        function()
    share = counter.get_total_flops() / peak / table.seconds("mmlib")
    return (
        f"at the speed of one large product the products alone take {share:.0%} of mmlib's time, "
        "and transformers has nearly the same products"
    )


def test_training(side_by_side, matrix_peak, setting):
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
    table = side_by_side(title, contestants, rounds=5)
    table.per_second(setting.batch, "pairs")
    for name in PEERS:
        table.as_fast("mmlib", name, 1.05)
    why = why_not(table, contestants["mmlib"], matrix_peak(setting.precision))
    table.times_as_fast("mmlib", PEERS, 1.5, known=why)


@torch.inference_mode()
def test_encoding(side_by_side, matrix_peak, setting):
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
        table = side_by_side(title, contestants, rounds=10)
        table.per_second(setting.batch, kind)
        for name in PEERS:
            table.as_fast("mmlib", name, 1.05)
        why = why_not(table, contestants["mmlib"], matrix_peak(setting.precision))
        table.times_as_fast("mmlib", PEERS, 1.5, known=why)


class Apart(nn.Module):
    """Queries, keys and values by three products instead of one."""

    def __init__(self, fused):
        super().__init__()
        dim = fused.in_features
        self.parts = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        weights, biases = fused.weight.detach().split(dim), fused.bias.detach().split(dim)
        for part, weight, bias in zip(self.parts, weights, biases, strict=True):
            part.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], dim=-1)


def apart(model):
    """A copy of the model with products apart; the last blocks look for one token only."""
    model = copy.deepcopy(model)
    for block in (*model.image.encoder.blocks[:-1], *model.text.stack.blocks[:-1]):
        block.self_attention.qkv_proj = Apart(block.self_attention.qkv_proj)
    return model


def patches_by_a_product(self, images):
    """What ``PatchEmbedding`` computes, without a convolution."""
    batch, channels, height, width = images.shape
    rows, columns, size = height // self.patch_size, width // self.patch_size, self.patch_size
    x = images.view(batch, channels, rows, size, columns, size)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
    return nn.functional.linear(x, self.projection.weight.flatten(1), self.projection.bias)


class Compiled:
    """Blocks that are compiled while a loss runs, and are not otherwise."""

    def __init__(self, blocks, loss):
        self.loss, self.calls = loss, {}
        for block in blocks:
            block.compile()
            self.calls[block] = block._compiled_call_impl
            block._compiled_call_impl = None

    def __call__(self, model):
        for block, call in self.calls.items():
            block._compiled_call_impl = call
        try:
            return self.loss(model)
        finally:
            for block in self.calls:
                block._compiled_call_impl = None


def test_each_technique_pays(side_by_side, setting):
    """The training step with one technique at a time taken away, or one more.

    Models and moments are shared where they can be: thirteen of each would not fit into memory.
    """
    x, ids, precision = setting.images, setting.ids, setting.precision
    ours, theirs = copy.deepcopy(setting.ours), copy.deepcopy(setting.theirs)
    long = torch.where(setting.padded == END, 1, setting.padded)
    long[:, -1] = END  # every position up to the last is needed
    channels_last = x.contiguous(memory_format=torch.channels_last)
    fused = adamw(ours, RATE)
    loop = torch.optim.AdamW(decay_groups(ours, 0.01), lr=RATE, betas=(0.9, 0.98), foreach=False)
    ours_blocks = [*ours.image.encoder.blocks[:-1], *ours.text.stack.blocks[:-1]]
    their_blocks = [*theirs.vision_model.encoder.layers, *theirs.text_model.encoder.layers]

    def plain(model):
        return model.loss(x, ids)

    def whole_blocks(model):
        image = model.image_projection(model.image(x, return_weights=True).pooled)
        text = model.text_projection(model.text(ids, return_weights=True).pooled)
        return clip_loss(image, text, model.logit_scale())

    def fused_attention(model):
        with mock.patch.object(pooled_only, "written_out", return_value=False):
            return plain(model)

    def product(model):
        with mock.patch.object(PatchEmbedding, "forward", patches_by_a_product):
            return plain(model)

    def transformers_loss(model):
        return model(input_ids=ids, pixel_values=x, return_loss=True).loss

    contestants = {
        "all of them": step(setting, ours, plain, fused),
        "whole last block": step(setting, ours, whole_blocks, fused),
        "77 text positions": step(setting, ours, lambda m: m.loss(x, long), fused),
        "AdamW in a loop": step(setting, ours, plain, loop),
    }
    if precision == "bf16":  # in fp32 the kernel is what runs
        contestants["fused attention kernel"] = step(setting, ours, fused_attention, fused)
        contestants["fp32"] = step(setting, ours, plain, fused, fp32=True)
    must_pay = list(contestants)[1:]
    them = adamw(theirs, RATE)
    contestants |= {
        "q, k and v apart": step(setting, apart(ours), plain),
        "pictures channels last": step(setting, ours, lambda m: m.loss(channels_last, ids), fused),
        "patches by a product": step(setting, ours, product, fused),
        "all, blocks compiled": step(setting, ours, Compiled(ours_blocks, plain), fused),
        "transformers": step(setting, theirs, transformers_loss, them),
        "transformers, compiled": step(
            setting, theirs, Compiled(their_blocks, transformers_loss), them
        ),
    }
    title = f"CLIP {setting.size}, batch {setting.batch}, {precision}, one technique taken away"
    table = side_by_side(title, contestants, rounds=5)
    table.per_second(setting.batch, "pairs")
    for name in must_pay:
        table.as_fast("all of them", name, 1.05)
    table.as_fast("all, blocks compiled", "transformers, compiled", 1.05)

"""Sampling with the cache beside sampling without, at the chapter's size."""

import torch

from mmlib.dalle_generate import generate
from mmlib.data import scenes
from mmlib.painters import caption_ids, scene_dalle

AREA = "DALL·E (chapter 11)"


def test_cached_sampling_is_five_times_as_fast(side_by_side):
    model = scene_dalle(trained=True)
    text = caption_ids(scenes.sample(32, 0, objects=(1, 2)))

    def sampling(use_cache):
        dice = torch.Generator().manual_seed(0)
        return lambda: generate(model, text, dice, use_cache=use_cache)

    table = side_by_side(
        "32 pictures of 64 codes", {"cached": sampling(True), "uncached": sampling(False)}
    )
    table.times_as_fast("cached", ["uncached"], 5)

"""The chapter's small generators: their words, their weights, choosing among candidates."""

import pytest
import torch
import torch.nn.functional as F

from mmlib import painters
from mmlib.dalle_generate import generate
from mmlib.data import scenes
from mmlib.painters import (
    caption_ids,
    emoji_dalle,
    grid_scenes,
    name_ids,
    paint,
    paint_flow,
    rerank,
    scene_dalle,
    scene_flows,
    tokenizer,
)
from mmlib.small_clips import picture_tokenizer, scene_clip, scene_ids, scene_tokenizer
from mmlib.unclip import draw_flow


def test_captions_of_one_and_two_objects_fit_whole():
    items = scenes.sample(300, 0, objects=(1, 2))
    ids = caption_ids(items)
    assert ids.shape == (300, painters.CAPTION_LENGTH)
    assert scene_tokenizer().decode(ids) == [scenes.caption(scene) for scene in items]
    assert (ids == scene_tokenizer().pad_id).any()


def test_grid_scenes_stand_on_corners_and_keep_to_their_split():
    for split in ("train", "test"):
        found = grid_scenes(300, 1, split)
        assert len(found) == 300
        assert {scenes.DEFAULT_HOLDOUT.split(scene) for scene in found} == {split}
        assert {len(scene.objects) for scene in found} == {1, 2}
        centres = [v * 8 for scene in found for item in scene.objects for v in (item.x, item.y)]
        assert all(v == int(v) for v in centres)
        assert len(set(centres)) == 7  # none on the rim
    assert grid_scenes(5, 1) == grid_scenes(50, 1)[:5]
    assert grid_scenes(0, 1) == []


def test_an_object_moves_to_the_nearest_corner_inside():
    def moved(x, size):
        item = scenes.Object("star", "red", size, x, 0.5)
        return painters._on_corner(item).x

    assert [moved(x, "small") for x in (0.11, 0.18, 0.19, 0.88)] == [0.125, 0.125, 0.25, 0.875]
    assert [moved(x, "large") for x in (0.17, 0.32, 0.83)] == [0.25, 0.375, 0.75]


def test_names_are_filled_up_or_cut():
    ids = name_ids(["cat", "a very long name of something " * 5])
    assert ids.shape == (2, painters.NAME_LENGTH)
    assert ids[0, -1] == picture_tokenizer().pad_id
    assert ids[1, -1] == picture_tokenizer().end_id


@pytest.mark.parametrize("make", [scene_dalle, emoji_dalle])
def test_models_come_from_their_seed_and_leave_the_global_state(make):
    state = torch.get_rng_state()
    first, again, other = make(), make(), make(seed=1)
    assert first.word.weight.equal(again.word.weight)
    assert not first.word.weight.equal(other.word.weight)
    assert first.config.codes == tokenizer().config.codes
    assert first.config.side == tokenizer().config.side
    assert torch.get_rng_state().equal(state)


def test_painting_decodes_what_is_generated():
    model = scene_dalle()
    text = caption_ids(scenes.sample(5, 0, objects=1))
    found = paint(model, text, torch.Generator().manual_seed(1), top_k=3, chunk=3)
    dice = torch.Generator().manual_seed(1)
    ids = torch.cat([generate(model, part, dice, top_k=3) for part in text.split(3)])
    with torch.no_grad():
        torch.testing.assert_close(found, tokenizer().decode(ids))


def test_reranking_takes_the_nearest_candidate():
    clip, wanted = scene_clip(trained=True), scenes.sample(6, 3, objects=2)
    others = scenes.sample(24, 4, objects=2)
    candidates = scenes.render(others, 32).unflatten(0, (6, 4))
    candidates[range(6), [0, 1, 2, 3, 0, 1]] = scenes.render(wanted, 32)
    assert rerank(clip, candidates, scene_ids(wanted)).equal(scenes.render(wanted, 32))
    with torch.no_grad():
        image = clip.encode_image(candidates.flatten(0, 1)).unflatten(0, (6, 4))
        text = clip.encode_text(scene_ids(wanted[::-1]))
    best = F.cosine_similarity(image, text[:, None], dim=-1).argmax(1)
    assert rerank(clip, candidates, scene_ids(wanted[::-1])).equal(candidates[range(6), best])


def test_bad_counts_are_named(unchecked):
    with pytest.raises(ValueError, match="count"):
        unchecked(grid_scenes)(-3, 0)
    with pytest.raises(ValueError, match="split"):
        unchecked(grid_scenes)(3, 0, "validation")


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (3, 4, 3, 32, 32), (2, 0, 3, 32, 32)])
def test_bad_candidates_are_named(unchecked, shape):
    text = scene_ids(scenes.sample(2, 0, objects=1))
    with pytest.raises(ValueError, match="pictures must have shape"):
        unchecked(rerank)(scene_clip(), torch.zeros(shape), text)


@pytest.mark.parametrize("make", [scene_dalle, emoji_dalle, scene_flows])
def test_trained_weights_load_and_differ(make):
    made, trained = make(), make(trained=True)
    pairs = zip(made, trained, strict=True) if make is scene_flows else [(made, trained)]
    for plain, loaded in pairs:
        assert not loaded.training
        state = plain.state_dict()
        assert any(not state[name].equal(x) for name, x in loaded.state_dict().items())


def test_the_trained_dalle_knows_what_a_caption_says():
    model, items = scene_dalle(trained=True), scenes.sample(24, 99, split="test", objects=2)
    with torch.no_grad():
        codes = tokenizer().encode(scenes.render(items, 32)).flatten(1)
    text = caption_ids(items)
    with torch.no_grad():
        gain = model.log_prob(text, codes).sum(1) - model.log_prob(text.roll(1, 0), codes).sum(1)
    assert gain.mean() > 5  # nats a picture


def test_a_flow_s_codes_are_painted_by_the_tokenizer():
    _, decoder = scene_flows()
    vectors = torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(0))
    drop = torch.tensor([[False, True]]).expand(3, 2)
    dice = torch.Generator().manual_seed(1)
    found = paint_flow(decoder, vectors, dice, drop=drop, guidance=2.0, steps=2)
    dice = torch.Generator().manual_seed(1)
    options = {"drop": drop, "guidance": 2.0, "steps": 2}
    codes = decoder.nearest(draw_flow(decoder, vectors, (64, 32), dice, **options))
    with torch.no_grad():
        torch.testing.assert_close(found, tokenizer().decode(codes))

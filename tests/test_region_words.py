"""Region–word scores against loops; the loss, the model's geometry and the pointing game."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmlib.contrastive import clip_loss
from mmlib.region_words import (
    RegionWordModel,
    matching_loss,
    points_inside,
    word_region_scores,
)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


REGIONS, WORDS = draw(3, 5, 4, seed=1), draw(2, 6, 4, seed=2)
KEEP = torch.arange(6) < torch.tensor([[6], [2]])
REGION_KEEP = torch.arange(5) < torch.tensor([[5], [3], [1]])


def by_loops(sharpness, region_keep, cosine):
    scores = torch.zeros(3, 2, dtype=torch.float64)
    for p in range(3):
        regions = [v for v, kept in zip(REGIONS[p], region_keep[p], strict=True) if kept]
        for t in range(2):
            kept = [w for w, keep in zip(WORDS[t], KEEP[t], strict=True) if keep]
            for w in kept:
                fits = [float(w @ v / (w.norm() * v.norm() if cosine else 2)) for v in regions]
                weights = [math.exp(sharpness * c) for c in fits]
                mean = sum(a * c for a, c in zip(weights, fits, strict=True)) / sum(weights)
                scores[p, t] += mean / len(kept)
    return scores


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("region_keep", [None, REGION_KEEP])
@pytest.mark.parametrize("cosine", [False, True])
def test_scores_are_the_formula(sharpness, region_keep, cosine):
    kept = torch.ones(3, 5).bool() if region_keep is None else region_keep
    scores = word_region_scores(REGIONS, WORDS, KEEP, sharpness, region_keep, cosine=cosine)
    torch.testing.assert_close(scores, by_loops(sharpness, kept, cosine))


def test_a_sharp_word_takes_its_best_region():
    scores = word_region_scores(REGIONS, WORDS, KEEP, 1e4, cosine=True)
    cosine = F.normalize(WORDS, dim=-1)[None] @ F.normalize(REGIONS, dim=-1).mT[:, None]
    best = cosine.amax(-1)
    expected = torch.stack([best[:, 0].mean(-1), best[:, 1, :2].mean(-1)], dim=1)
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)


def test_gradients_of_the_scores():
    leaves = [x.clone().requires_grad_() for x in (REGIONS, WORDS)]
    assert torch.autograd.gradcheck(
        lambda r, w: word_region_scores(r, w, KEEP, 3.0, REGION_KEEP), leaves
    )


def test_no_words_score_nothing():
    scores = word_region_scores(REGIONS, WORDS, torch.zeros(2, 6).bool())
    assert torch.equal(scores, torch.zeros(3, 2, dtype=torch.float64))


def test_the_loss_is_clips_when_scores_are_cosines():
    image, text = draw(6, 8, seed=3), draw(6, 8, seed=4)
    cosine = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    torch.testing.assert_close(matching_loss(cosine, 12.0), clip_loss(image, text, 12.0))


@pytest.mark.parametrize("size", [48, 64])
def test_a_region_sees_pixels_around_its_own_centre(size):
    model = RegionWordModel(3, dim=8).eval()
    picture = torch.rand(1, 3, size, size, requires_grad=True)
    grid = model.picture(picture)
    cell = size // grid.shape[2]
    assert grid.shape == (1, 8, size // 4, size // 4)
    row, column = 4, 5
    seen = torch.autograd.grad(grid[0, :, row, column].square().sum(), picture)[0]
    seen = seen.abs().sum((0, 1)) > 0
    for axis, place in ((1, row), (0, column)):
        along = seen.any(axis).nonzero().flatten()
        middle = (along[0] + along[-1] + 1) / 2
        assert middle == cell * (place + 0.5)
        assert along[-1] - along[0] + 1 == model.sees


def test_model_scores_and_heat_are_the_formula():
    model = RegionWordModel(9, dim=8, sharpness=4.0).eval()
    pictures, words = torch.rand(2, 3, 32, 32), torch.tensor([[1, 2, 3], [4, 5, 0]])
    keep = torch.tensor([[True, True, True], [True, True, False]])
    with torch.no_grad():
        regions = model.picture(pictures).flatten(2).transpose(1, 2)
        expected = word_region_scores(regions, model.word(words), keep, 4.0)
        torch.testing.assert_close(model(pictures, words, keep), expected)
        fits = model.fits(pictures)
        own = fits[0, words[0]].sum(0), fits[1, words[1, :2]].sum(0)
        torch.testing.assert_close(model.heat(pictures, words, keep).flatten(1), torch.stack(own))
        by_hand = regions[1] @ model.word(torch.tensor(4)) / math.sqrt(8)
        torch.testing.assert_close(fits[1, 4], by_hand)


def traced_by_differences(model, pictures, words, said):
    """The product of gradient and input of every pixel, by finite differences."""
    maps = torch.zeros(len(pictures), *pictures.shape[2:], dtype=torch.float64)
    for at in torch.cartesian_prod(*(torch.arange(n) for n in pictures.shape[1:])).tolist():
        up, down = pictures.clone(), pictures.clone()
        place = (slice(None), *at)
        up[place] += 1e-5
        down[place] -= 1e-5
        best = [model.heat(x, words, said).flatten(1).amax(1) for x in (up, down)]
        maps[:, at[1], at[2]] += (best[0] - best[1]) / 2e-5 * pictures[place]
    return maps.abs()


def test_tracing_is_gradient_times_input():
    model = RegionWordModel(9, dim=4).double().eval()
    pictures = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    words, said = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, True], [True, False]])
    with torch.no_grad():
        seen = traced_by_differences(model, pictures, words, said)
    expected = torch.zeros(2, 12, 12, dtype=torch.float64)
    for i in range(12):
        for j in range(12):
            rows, columns = slice(max(i - 2, 0), i + 3), slice(max(j - 2, 0), j + 3)
            expected[:, i, j] = seen[:, rows, columns].mean((1, 2))
    torch.testing.assert_close(model.trace(pictures, words, said), expected, rtol=1e-4, atol=1e-7)


def test_tracing_looks_at_one_picture_alone_and_leaves_no_gradient():
    model = RegionWordModel(9, dim=4).eval()
    pictures, words = torch.rand(3, 3, 16, 16), torch.tensor([[1, 2], [3, 4], [5, 6]])
    said = torch.ones(3, 2, dtype=torch.bool)
    with torch.no_grad():
        together = model.trace(pictures, words, said)
        alone = model.trace(pictures[1:2], words[1:2], said[1:2])
    torch.testing.assert_close(together[1:2], alone)
    assert not together.requires_grad and not pictures.requires_grad
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="eval mode"):
        model.train().trace(pictures, words, said)


def test_the_pointing_game():
    heat = torch.zeros(4, 2, 4)
    heat[0, 1, 2] = heat[1, 0, 0] = heat[2, 1, 3] = heat[3, 0, 1] = 1.0
    boxes = torch.zeros(4, 2, 4)
    boxes[0, 1] = torch.tensor([0.5, 0.5, 0.75, 1.0])  # centre (0.625, 0.75): inside
    boxes[1, 0] = torch.tensor([0.2, 0.0, 1.0, 1.0])  # centre (0.125, 0.25): left of it
    boxes[2, 0] = torch.tensor([0.875, 0.75, 1.0, 1.0])  # on its left and top edges: inside
    boxes[3, 0] = torch.tensor([0.0, 0.0, 0.375, 0.5])  # on its right edge: outside
    assert points_inside(heat, boxes).tolist() == [True, False, True, False]


BAD = [
    (word_region_scores, (REGIONS[0], WORDS, KEEP), ValueError, "regions must have shape"),
    (word_region_scores, (REGIONS, WORDS[..., :3], KEEP), ValueError, "must have one dim"),
    (word_region_scores, (REGIONS, WORDS, KEEP.float()), TypeError, "keep must be boolean"),
    (word_region_scores, (REGIONS, WORDS, KEEP[:, :3]), ValueError, "keep must have shape"),
    (word_region_scores, (REGIONS, WORDS, KEEP, -1.0), ValueError, "sharpness must be at least 0"),
    (word_region_scores, (REGIONS, WORDS, KEEP, 1.0, KEEP), ValueError, "region_keep must have"),
    (
        word_region_scores,
        (REGIONS, WORDS, KEEP, 1.0, torch.zeros(3, 5).bool()),
        ValueError,
        "at least one region",
    ),
    (matching_loss, (torch.rand(2, 3), 1.0), ValueError, "scores must be a square matrix"),
    (points_inside, (torch.rand(2, 3), torch.rand(2, 1, 4)), ValueError, "heat must have shape"),
    (points_inside, (torch.rand(2, 3, 3), torch.rand(1, 1, 4)), ValueError, "boxes must have"),
    (RegionWordModel, (0,), ValueError, "vocab must be at least 1: got 0"),
    (RegionWordModel, (5, 0), ValueError, "dim must be at least 1: got 0"),
]


@pytest.mark.parametrize("function, arguments, error, message", BAD)
def test_bad_input(unchecked, function, arguments, error, message):
    if isinstance(function, type):
        with pytest.raises(error, match=message):
            function(*arguments)
    else:
        with pytest.raises(error, match=message):
            unchecked(function)(*arguments)

"""The judge: what it sees in pictures of scenes, and that it is nobody's relative."""

import dataclasses

import pytest
import torch

from mmlib import judge as module
from mmlib.data import scenes
from mmlib.data.scenes import Object, Scene
from mmlib.judge import CELLS, REACH, Judge, JudgeConfig, judge_pictures, load_judge
from mmlib.marks import mark, mark_objects

STAR = Object("star", "red", "small", 0.25, 0.5)
RING = Object("ring", "blue", "large", 0.7, 0.625)
SCENE = Scene((STAR, RING), "navy")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Judge(JudgeConfig((8, 16)))


@pytest.fixture(scope="module")
def judge():
    return load_judge()


# ---- what it sees


def test_it_reads_new_combinations(judge):
    drawn = scenes.sample(300, seed=31, split="test", background="any")
    found = judge.read(scenes.render(drawn))
    assert mark(found, drawn).right.float().mean() >= 0.99
    for name, good in mark_objects(found, drawn)._asdict().items():
        assert good.float().mean() >= 0.99, name


def test_it_measures_places_to_half_a_pixel(judge):
    drawn = scenes.sample(200, seed=32, background="any")
    found = judge.read(scenes.render(drawn))
    errors = torch.tensor(
        [
            min(max(abs(seen.x - item.x), abs(seen.y - item.y)) for seen in objects)
            for objects, scene in zip(found, drawn, strict=True)
            for item in scene.objects
        ]
    )
    assert errors.quantile(0.99) < 0.5 / 32


@pytest.mark.parametrize("change", [{"colour": "orange"}, {"shape": "cross"}, {"size": "large"}])
def test_it_sees_each_change(judge, change):
    other = Scene((dataclasses.replace(STAR, **change), RING), "navy")
    marks = mark(judge.read(scenes.render([SCENE, other])), [SCENE, SCENE])
    assert marks.right.tolist() == [True, False]
    assert [name for name, good in marks._asdict().items() if not good[1]] == list(change)


def test_it_sees_soft_and_noisy_pictures(judge):
    drawn = scenes.sample(300, seed=33, background="any")
    found = judge.read(judge_pictures(drawn, generator()))
    assert mark(found, drawn).right.float().mean() >= 0.95


def test_an_empty_picture_holds_nothing(judge):
    empty = [scenes.BACKGROUND_HEX[name] for name in scenes.BACKGROUNDS]
    colours = [[int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)] for code in empty]
    pictures = torch.tensor(colours)[:, :, None, None].expand(-1, 3, 32, 32)
    assert judge.read(pictures) == [[], [], [], []]


def test_a_picture_is_read_as_if_it_stood_alone(judge):
    pictures = scenes.render(scenes.sample(5, seed=34))
    alone = [judge.read(picture[None])[0] for picture in pictures]
    assert [[o.shape for o in row] for row in judge.read(pictures)] == [
        [o.shape for o in row] for row in alone
    ]
    assert judge.read(pictures[:0]) == []


# ---- the grid


def test_answers_say_where_what_is():
    exists, offset, labels = module._answers([SCENE])
    for item in SCENE.objects:
        column, row = int(item.x * CELLS), int(item.y * CELLS)
        assert exists[0, row, column]
        centre = torch.tensor([(column + 0.5) / CELLS, (row + 0.5) / CELLS])
        place = centre + offset[0, row, column] * REACH
        torch.testing.assert_close(place, torch.tensor([item.x, item.y]))
        words = scenes.SHAPES, scenes.COLOURS, scenes.SIZES
        said = [names[number] for names, number in zip(words, labels[0, row, column], strict=True)]
        assert said == [item.shape, item.colour, item.size]
    assert 2 <= int(exists.sum()) <= 8


def test_no_cell_speaks_of_two_objects():
    for scene in scenes.sample(300, seed=3, objects=4):
        each = sum(module._answers([Scene((item,))])[0].int() for item in scene.objects)
        assert each.max() == 1 and torch.equal(each.bool(), module._answers([scene])[0])


def test_reading_inverts_the_answers(judge):
    """A network that says exactly what it should is read as the scene itself."""
    drawn = scenes.sample(50, seed=4)
    exists, offset, labels = module._answers(drawn)
    said = torch.full((50, 21, CELLS, CELLS), -9.0)
    said[:, 0][exists] = 9.0
    said[:, 1:3] = offset.permute(0, 3, 1, 2)
    first = 3
    for kind, words in enumerate((scenes.SHAPES, scenes.COLOURS, scenes.SIZES)):
        said[:, first : first + len(words)].scatter_(1, labels[..., kind][:, None], 9.0)
        first += len(words)
    parrot = tiny()
    parrot.forward = lambda pictures: said
    found = parrot.read(torch.zeros(50, 3, 32, 32))
    for objects, scene in zip(found, drawn, strict=True):
        for seen, item in zip(objects, scene.objects, strict=True):
            assert (seen.x, seen.y) == pytest.approx((item.x, item.y), abs=1e-5)
            assert dataclasses.replace(seen, x=item.x, y=item.y) == item


def test_loss_of_the_right_answers_is_nothing_and_of_others_is_not():
    model, drawn = tiny().eval(), [SCENE]
    exists, offset, labels = module._answers(drawn)
    said = torch.full((1, 21, CELLS, CELLS), -30.0)
    said[:, 0][exists] = 30.0
    said[:, 1:3] = offset.permute(0, 3, 1, 2)
    for first, kind, count in ((3, 0, 8), (11, 1, 8), (19, 2, 2)):
        said[:, first : first + count].scatter_(1, labels[..., kind][:, None], 30.0)
    model.forward = lambda pictures: said
    picture = torch.zeros(1, 3, 32, 32)
    assert model.loss(picture, drawn) == pytest.approx(0, abs=1e-6)
    for number, change in enumerate(
        ({"shape": "heart"}, {"colour": "cyan"}, {"size": "large"}, {"x": 0.2})
    ):
        other = Scene((dataclasses.replace(STAR, **change), RING), "navy")
        assert model.loss(picture, [other]) > (0.01 if number == 3 else 5)


def test_it_learns():
    model, drawn = tiny(), scenes.sample(16, seed=1)
    pictures = scenes.render(drawn)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(pictures, drawn)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


# ---- its pictures


def test_its_pictures_are_the_same_from_the_same_seed_and_drawn_otherwise():
    drawn = scenes.sample(20, seed=1, background="any")
    first = judge_pictures(drawn, generator(1))
    assert torch.equal(first, judge_pictures(drawn, generator(1)))
    assert not torch.equal(first, judge_pictures(drawn, generator(2)))
    assert first.shape == (20, 3, 32, 32) and first.min() >= 0 and first.max() <= 1
    difference = (first - scenes.render(drawn)).abs().mean()
    assert 0.01 < difference < 0.08


def test_each_picture_is_blurred_to_its_own_degree():
    """The steepest step between two pixels, as a share of the picture's range."""
    pictures = judge_pictures([SCENE] * 60, generator(3))
    steepest = (pictures[..., 1:] - pictures[..., :-1]).abs().amax((1, 2, 3))
    steepest = steepest / (pictures.amax((1, 2, 3)) - pictures.amin((1, 2, 3)))
    assert steepest.min() < 0.55 < 0.8 < steepest.max()
    # A plain background stays plain, up to the noise and up to the border.
    rows = pictures[:, :, :4]
    assert (rows - rows.mean((2, 3), keepdim=True)).abs().mean() < 0.06


# ---- bad input


def test_bad_input(unchecked):
    model = tiny()
    with pytest.raises(ValueError, match=r"of shape \(batch, 3, 32, 32\): got \(1, 3, 16, 16\)"):
        unchecked(Judge.forward)(model, torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"of shape \(batch, 3, 32, 32\): got \(1, 3, 64, 64\)"):
        model.read(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="one for each scene: got 1 for 2"):
        model.loss(torch.zeros(1, 3, 32, 32), [SCENE, SCENE])
    with pytest.raises(ValueError, match=r"widths must be two numbers of at least 1: got \(0, 4\)"):
        JudgeConfig((0, 4))

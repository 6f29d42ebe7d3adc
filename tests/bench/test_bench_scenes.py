"""How fast scenes are drawn, and what grouping objects by shape gains."""

import torch

from mmlib.data import scenes
from mmlib.data.scenes.pictures import layout, paint
from mmlib.data.scenes.shapes import signed_distance
from mmlib.data.scenes.world import COLOUR_HEX, RADIUS, SHAPES

AREA = "Scenes"

COUNT = 2000


def every_shape_for_every_object(batch, size=32):
    """The plain way: each object's slot computes all eight distances everywhere and picks one."""
    rgb = {name: [int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)] for name, code in
           COLOUR_HEX.items()}  # fmt: skip
    ground = torch.tensor([20, 20, 26]) / 255
    pictures = ground[None, :, None, None].expand(len(batch), 3, size, size).clone()
    at = (torch.arange(size) + 0.5) / size
    for slot in range(4):
        rows = [n for n, scene in enumerate(batch) if len(scene.objects) > slot]
        items = [batch[n].objects[slot] for n in rows]
        place = torch.tensor([(item.x, item.y, RADIUS[item.size]) for item in items])
        shape = torch.tensor([SHAPES.index(item.shape) for item in items])
        colour = torch.tensor([rgb[item.colour] for item in items])
        x, y, radius = place.unbind(1)
        across = ((at - x[:, None]) / radius[:, None])[:, None, :].expand(-1, size, size)
        down = ((at - y[:, None]) / radius[:, None])[:, :, None].expand(-1, size, size)
        all_distances = torch.stack([signed_distance(name, across, down) for name in SHAPES])
        chosen = all_distances[shape, torch.arange(len(rows))] * (radius * size)[:, None, None]
        share = (0.5 - chosen).clamp(0, 1)[:, None]
        old = pictures[rows]
        pictures[rows] = old + share * (colour[:, :, None, None] - old)
    return pictures


def test_rendering(side_by_side):
    batch = scenes.sample(COUNT, seed=0)
    drawn, plain = scenes.render(batch), every_shape_for_every_object(batch)
    torch.testing.assert_close(drawn, plain, atol=1e-4, rtol=0)
    objects = layout(batch)
    table = side_by_side(
        f"draw {COUNT} scenes, 32 × 32",
        {
            "render": lambda: scenes.render(batch),
            "paint (arrays ready)": lambda: paint(objects, 32, "cpu", torch.float32),
            "every shape": lambda: every_shape_for_every_object(batch),
        },
        rounds=10,
    )
    table.goal("scenes drawn in a second", COUNT / table.seconds("render"), at_least=20_000)
    table.at_most("render", "every shape", 0.5)


def test_sampling(side_by_side):
    table = side_by_side(
        f"draw up {COUNT} scenes",
        {
            "any": lambda: scenes.sample(COUNT, seed=0),
            "train split": lambda: scenes.sample(COUNT, seed=0, split="train"),
            "four objects": lambda: scenes.sample(COUNT, seed=0, objects=4),
        },
        rounds=5,
    )
    table.goal("scenes drawn up in a second", COUNT / table.seconds("any"), at_least=10_000)


def test_captions(side_by_side):
    batch = scenes.sample(200, seed=0)
    texts = [scenes.caption(scene) for scene in batch]
    side_by_side(
        "200 captions",
        {
            "canonical": lambda: [scenes.caption(scene) for scene in batch],
            "free": lambda: [scenes.caption(scene, "en", "free", 1) for scene in batch],
            "is_true": lambda: [scenes.is_true(*pair) for pair in zip(texts, batch, strict=True)],
            "questions": lambda: [scenes.questions(scene, 0) for scene in batch],
        },
        rounds=5,
    )

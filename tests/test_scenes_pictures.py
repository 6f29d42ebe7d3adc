"""Pictures of scenes against a slow renderer that shares no code with the fast one."""

import hashlib
import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path

from mmlib.data import scenes
from mmlib.data.scenes import pictures as module
from mmlib.data.scenes import shapes
from mmlib.data.scenes.world import GRID

FINE = 16  # points of the reference along each side of a pixel


def outlines(shape):
    """Polygons of a shape in units of its radius, and those to cut out of them."""
    around = [(math.sin(a), -math.cos(a)) for a in np.linspace(0, 2 * math.pi, 121)]
    scaled = [(shapes.RING_HOLE * x, shapes.RING_HOLE * y) for x, y in around]
    w, s, d, a = shapes.DIAMOND_WIDTH, shapes.SQUARE, 1.0, shapes.CROSS_ARM
    tips = [
        (r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5))
        for k in range(10)
        for r in [shapes.STAR_INNER if k % 2 else 1.0]
    ]
    half = shapes.HEART_SIDE / 2
    corner, middle = half * math.sqrt(2), shapes.HEART_MIDDLE
    lobes = [
        [(side * corner / 2 + half * x, middle - corner / 2 + half * y) for x, y in around]
        for side in (-1, 1)
    ]
    box = [(0, middle - corner), (corner, middle), (0, middle + corner), (-corner, middle)]
    return {
        "circle": ([around], []),
        "ring": ([around], [scaled]),
        "square": ([[(-s, -s), (s, -s), (s, s), (-s, s)]], []),
        "diamond": ([[(0, -d), (w, 0), (0, d), (-w, 0)]], []),
        "triangle": (
            [[(0, shapes.TRIANGLE_TOP), (1, shapes.TRIANGLE_BASE), (-1, shapes.TRIANGLE_BASE)]],
            [],
        ),
        "cross": (
            [[(-1, -a), (1, -a), (1, a), (-1, a)], [(-a, -1), (a, -1), (a, 1), (-a, 1)]],
            [],
        ),
        "star": ([tips], []),
        "heart": ([box, *lobes], []),
    }[shape]


def coverage(thing, size):
    """The share of every pixel that an object covers: the share of its points inside a polygon."""
    low = [max(math.floor((at - thing.radius) * size) - 1, 0) for at in (thing.x, thing.y)]
    high = [min(math.ceil((at + thing.radius) * size) + 1, size) for at in (thing.x, thing.y)]
    x, y = (
        ((np.arange((to - start) * FINE) + 0.5) / FINE + start) / size
        for start, to in zip(low, high, strict=True)
    )
    points = np.stack(np.meshgrid((x - thing.x), (y - thing.y)), axis=-1) / thing.radius
    inside = np.zeros(points.shape[:2], dtype=bool)
    for polygons, value in zip(outlines(thing.shape), (True, False), strict=True):
        for polygon in polygons:
            within = Path([*polygon, polygon[0]]).contains_points(points.reshape(-1, 2))
            inside[within.reshape(inside.shape)] = value
    share = np.zeros((size, size))
    rows, columns = len(y) // FINE, len(x) // FINE
    share[low[1] : high[1], low[0] : high[0]] = inside.reshape(rows, FINE, columns, FINE).mean(
        axis=(1, 3)
    )
    return share


def rgb(code):
    return np.array([int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)])


def reference(scene, size):
    """The picture of a scene, one object after another."""
    ground = rgb(scenes.BACKGROUND_HEX[scene.background])
    picture = np.broadcast_to(ground[:, None, None], (3, size, size)).copy()
    for thing in scene.objects:
        share = coverage(thing, size)
        picture += share * (rgb(scenes.COLOUR_HEX[thing.colour])[:, None, None] - picture)
    return picture


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_every_shape_equals_the_reference(shape, size):
    batch = [
        scenes.Scene((scenes.Object(shape, "white", big, x / GRID, y / GRID),))
        for big in scenes.SIZES
        for x, y in [(128, 128), (101, 150), (43, 42), (214, 97), (77, 213)]
    ]
    drawn = scenes.render(batch, size, dtype=torch.float64).numpy()
    wrong = np.abs(drawn - np.stack([reference(scene, size) for scene in batch]))
    # A distance knows nothing of corners: in a corner's pixel it is some way off, nowhere else.
    assert wrong.max() < 0.36
    # The mean over the square of the object, not over the empty picture.
    inside = sum((2 * scene.objects[0].radius) ** 2 for scene in batch) / len(batch)
    assert wrong.mean() / inside < 0.02 * 32 / size


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_whole_scenes_equal_the_reference(seed):
    for scene in scenes.sample(2, seed, background="any"):
        wrong = np.abs(scenes.render(scene, 48).numpy()[0] - reference(scene, 48))
        assert wrong.max() < 0.36
        assert wrong.mean() < 0.01


@pytest.mark.parametrize("size", [8, 32, 50])
def test_patches_cut_nothing_off(size):
    """The same formula over the whole picture gives the same picture."""
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    for scene in scenes.sample(60, seed=5, objects=(3, 4)):
        expected = torch.tensor(rgb(scenes.BACKGROUND_HEX["black"]))[:, None, None]
        ground = expected
        for thing in scene.objects:
            x, y = (at[None] - thing.x) / thing.radius, (at[:, None] - thing.y) / thing.radius
            distance = shapes.signed_distance(thing.shape, *torch.broadcast_tensors(x, y))
            share = (0.5 - distance * thing.radius * size).clamp(0, 1)
            shift = torch.tensor(rgb(scenes.COLOUR_HEX[thing.colour]))[:, None, None] - ground
            expected = expected + share * shift
        drawn = scenes.render(scene, size, dtype=torch.float64)[0]
        torch.testing.assert_close(drawn, expected.clamp(0, 1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", scenes.SIZES)
@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_boxes_are_tight_around_the_pixels(shape, size):
    pixels = 512
    scene = scenes.Scene((scenes.Object(shape, "white", size, 100 / GRID, 150 / GRID),))
    share = scenes.render(scene, pixels)[0, 0]
    rows, columns = torch.nonzero(share > 0.5, as_tuple=True)
    seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / pixels
    # A sharp tip covers less than half of its last pixels.
    assert (scenes.boxes(scene)[0] - seen).abs().max() < 3.5 / pixels
    left, top, right, bottom = (scenes.boxes(scene)[0] * pixels).tolist()
    outside = torch.ones(pixels, pixels, dtype=torch.bool)
    outside[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = False
    ground = rgb(scenes.BACKGROUND_HEX["black"])[0]
    # Beyond the box, only the half pixel of soft edge.
    assert share[outside].max() < ground + 0.5
    assert (share[outside] > ground + 1e-6).float().mean() < 0.01


def test_boxes_have_the_order_of_the_objects_and_do_not_overlap():
    for scene in scenes.sample(50, seed=3, objects=4):
        boxes = scenes.boxes(scene)
        assert boxes.shape == (4, 4)
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        for thing, (left, top, right, bottom) in zip(scene.objects, boxes.tolist(), strict=True):
            assert left < thing.x < right
            assert top < thing.y < bottom
        for i in range(4):
            for j in range(i):
                near = torch.maximum(boxes[i, :2], boxes[j, :2])
                far = torch.minimum(boxes[i, 2:], boxes[j, 2:])
                assert (near > far).any()


def test_a_batch_is_its_scenes():
    batch = scenes.sample(20, seed=1, background="any", noise=0.1)
    together = scenes.render(batch)
    apart = torch.cat([scenes.render(scene) for scene in batch])
    assert torch.equal(together, apart)
    assert scenes.render([]).shape == (0, 3, 32, 32)


def test_inside_and_outside_have_the_exact_colours():
    for scene in scenes.sample(50, seed=4, background="any"):
        picture = scenes.render(scene, 64, dtype=torch.float64)[0]
        ground = torch.tensor(rgb(scenes.BACKGROUND_HEX[scene.background]))
        covered = torch.zeros(64, 64, dtype=torch.bool)
        for thing, (left, top, right, bottom) in zip(
            scene.objects, (scenes.boxes(scene) * 64).tolist(), strict=True
        ):
            covered[int(top) : int(bottom) + 2, int(left) : int(right) + 2] = True
            covered[int(top) - 1 : int(bottom) + 1, int(left) - 1 : int(right) + 1] = True
            if thing.shape != "ring":
                centre = picture[:, int(thing.y * 64), int(thing.x * 64)]
                expected = torch.tensor(rgb(scenes.COLOUR_HEX[thing.colour]))
                torch.testing.assert_close(centre, expected, atol=1e-12, rtol=0)
        outside = picture[:, ~covered]
        torch.testing.assert_close(outside, ground[:, None].expand_as(outside), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 5e-3)]
)
def test_dtypes(dtype, tolerance):
    batch = scenes.sample(10, seed=6, noise=0.1)
    exact = scenes.render(batch, dtype=torch.float64)
    drawn = scenes.render(batch, dtype=dtype)
    assert drawn.dtype == dtype
    assert ((drawn >= 0) & (drawn <= 1)).all()
    torch.testing.assert_close(drawn.double(), exact, atol=tolerance, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_any_device():
    batch = scenes.sample(50, seed=6, noise=0.1, background="any")
    there = scenes.render(batch, device="cuda")
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), scenes.render(batch), atol=1e-5, rtol=0)


# --- noise -------------------------------------------------------------------------------------


def test_noise_hashes_as_murmur3_does():
    """``fmix32`` of MurmurHash3, computed with Python's own integers."""

    def fmix32(h):
        h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
        h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
        return h ^ (h >> 16)

    assert fmix32(1) == 0x514E28B7
    words = [0, 1, 12345, 2**31, 2**32 - 1]
    assert module._finalise(torch.tensor(words)).tolist() == [fmix32(word) for word in words]


def test_noise_has_mean_zero_deviation_one_and_no_pattern():
    noise = module.pixel_noise(torch.arange(40), 32).double()
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert noise.abs().max() <= math.sqrt(3)
    for shift, axis in [(1, 0), (1, 1), (1, 2), (1, 3)]:
        assert abs((noise * noise.roll(shift, axis)).mean()) < 0.015


def test_noise_depends_on_its_seed_alone_and_is_added_to_the_picture():
    thing = scenes.Object("star", "green", "small", 0.5, 0.5)
    plain = scenes.Scene((thing,), background="grey")
    noisy, same, other = (
        scenes.Scene((thing,), background="grey", noise=0.05, noise_seed=seed) for seed in (7, 7, 8)
    )
    pictures = scenes.render([plain, noisy, same, other])
    assert torch.equal(pictures[1], pictures[2])
    assert not torch.allclose(pictures[1], pictures[3])
    assert torch.equal(pictures[0], scenes.render(plain)[0])
    assert abs((pictures[1] - pictures[0]).std() - 0.05) < 0.002


def test_pinned_picture():
    """In eighths, so that the last bits of a machine's arithmetic do not matter."""
    picture = (scenes.render(scenes.sample(20, seed=0)) * 8 + 0.25).byte()
    assert (
        hashlib.sha256(picture.numpy().tobytes()).hexdigest()
        == "1081be1d3ffc69cb570a6360928dd1e773e71ccec02c91844f22301a5d6ef51d"
    )


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"size": 7}, ValueError, "size must be an integer of at least 8 pixels: got 7"),
        ({"size": 32.0}, ValueError, "size must be an integer"),
        ({"size": True}, ValueError, "size must be an integer"),
        ({"dtype": torch.uint8}, TypeError, "dtype must be a floating-point type: got torch.uint8"),
        ({"scenes": [3]}, TypeError, "scenes must be a Scene or a sequence of them: got 3"),
        ({"scenes": "abc"}, TypeError, "scenes must be"),
    ],
)
def test_bad_input(options, error, message):
    arguments = {"scenes": scenes.sample(1, seed=0), **options}
    with pytest.raises(error, match=message):
        inspect.unwrap(scenes.render)(**arguments)

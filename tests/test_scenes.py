"""The world of the scenes: its random numbers, objects, sampling, splits and relations."""

import hashlib
import inspect
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlib.data import scenes
from mmlib.data.scenes import draws
from mmlib.data.scenes.world import GRID

SEEDS = st.integers(0, 2**63 - 1)


def item(shape="star", colour="red", size="small", x=0.25, y=0.5):
    return scenes.Object(shape, colour, size, x, y)


# --- random numbers ----------------------------------------------------------------------------


def test_words_are_splitmix64():
    """The published test vector of SplitMix64 for the seed 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert draws.words(np.array(1234567, dtype=np.uint64), 5).tolist() == expected


@given(st.integers(0, 2**64 - 1))
def test_mix_of_an_array_is_mix_of_its_elements(word):
    assert draws.mix_array(np.array([word], dtype=np.uint64))[0] == draws.mix(word)


@given(SEEDS, st.integers(0, 100), st.integers(0, 2**40))
def test_keys_of_an_array_are_the_keys(seed, salt, index):
    assert draws.keys(seed, salt, np.array([index]))[0] == draws.key(seed, salt, index)


def test_dice_are_fair():
    dice = draws.Dice(0)
    faces = Counter(dice.below(6) for _ in range(12_000))
    # 2,000 expected, standard deviation 41.
    assert set(faces) == set(range(6))
    assert all(abs(count - 2_000) < 180 for count in faces.values())
    orders = Counter(tuple(dice.shuffled("abc")) for _ in range(3_000))
    assert len(orders) == 6
    assert all(abs(count - 500) < 100 for count in orders.values())


def test_shuffled_leaves_its_input_alone():
    items = [1, 2, 3, 4]
    assert sorted(draws.Dice(3).shuffled(items)) == items == [1, 2, 3, 4]


# --- objects and scenes ------------------------------------------------------------------------


def test_the_world_is_as_large_as_promised():
    assert len(scenes.SHAPES) >= 6
    assert len(scenes.COLOURS) >= 8
    assert len(scenes.SIZES) == 2


def test_scenes_of_the_same_objects_are_equal():
    first, second = item(x=0.25), item(x=0.75)
    assert scenes.Scene((first, second)) == scenes.Scene((second, first))
    above, below = item(y=0.25), item(y=0.75)
    assert scenes.Scene((below, above)).objects == (above, below)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shape": "blob"}, "shape must be one of .* got 'blob'"),
        ({"colour": "pink"}, "colour must be one of .* got 'pink'"),
        ({"size": "tiny"}, "size must be one of small, large: got 'tiny'"),
        ({"x": 0.01}, "x must keep a small object inside the picture"),
        ({"y": 0.99}, "y must keep a small object inside the picture"),
        ({"x": float("nan")}, "x must keep"),
        ({"size": "large", "x": 0.12}, "x must keep a large object"),
    ],
)
def test_bad_objects(change, message):
    with pytest.raises(ValueError, match=message):
        item(**change)


@pytest.mark.parametrize(
    "objects, options, message",
    [
        ((), {}, "objects must be 1 to 4: got 0"),
        ((item(), item(x=0.3)), {}, "objects must leave a gap"),
        ((item(),), {"background": "white"}, "background must be one of .* got 'white'"),
        ((item(),), {"noise": -0.1}, "noise must be between 0 and 0.5: got -0.1"),
        ((item(),), {"noise": float("nan")}, "noise must be"),
        ((item(),), {"noise_seed": 2**32}, "noise_seed must be"),
    ],
)
def test_bad_scenes(objects, options, message):
    with pytest.raises(ValueError, match=message):
        scenes.Scene(objects, **options)


def machado(kind):
    """Matrices of complete colour blindness in linear RGB (Machado et al. 2009, table 1)."""
    return {
        "normal": np.eye(3),
        "protanopia": np.array(
            [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ]
        ),
        "deuteranopia": np.array(
            [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.011820, 0.042940, 0.968881],
            ]
        ),
        "tritanopia": np.array(
            [
                [1.255528, -0.076749, -0.178779],
                [-0.078411, 0.930809, 0.147602],
                [0.004733, 0.691367, 0.303900],
            ]
        ),
    }[kind]


def lab(codes, sight):
    """CIELAB of hex codes as seen with a kind of sight."""
    rgb = np.array([[int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)] for code in codes])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ machado(sight).T, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    share = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


@pytest.mark.parametrize(
    "sight, apart", [("normal", 45), ("protanopia", 25), ("deuteranopia", 25), ("tritanopia", 25)]
)
def test_colours_stay_apart_whoever_looks(sight, apart):
    """A difference of 2.3 is just noticeable."""
    seen = lab(scenes.COLOUR_HEX.values(), sight)
    distance = np.linalg.norm(seen[:, None] - seen, axis=-1)
    assert distance[np.triu_indices(len(seen), 1)].min() > apart
    grounds = lab(scenes.BACKGROUND_HEX.values(), sight)
    assert np.linalg.norm(seen[:, None] - grounds, axis=-1).min() > 20


# --- sampling ----------------------------------------------------------------------------------


def digest(things):
    return hashlib.sha256(repr(things).encode()).hexdigest()


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, "d6eaad13a26eedee39fe865bb8a7dbd4ea56020ff8dc1f2f97be13f52fd16042"),
        (
            {"split": "train", "background": "any", "noise": 0.1},
            "ab1e5940083e7cb733a58123bda4feb7317521d95e10dff617d315ba532b5721",
        ),
        (
            {"split": "test", "objects": 4},
            "c85998c4c194bec65a2f91bb3620ca40a2fbc54fb210f33c78307e34632294c8",
        ),
    ],
    ids=["all", "train", "test"],
)
def test_the_same_seed_gives_the_same_scenes_everywhere(options, expected):
    assert digest(scenes.sample(100, seed=0, **options)) == expected


def test_a_scene_does_not_depend_on_how_many_are_drawn(monkeypatch):
    from mmlib.data.scenes import sampling

    many = scenes.sample(50, seed=5, split="test")
    assert scenes.sample(20, seed=5, split="test") == many[:20]
    monkeypatch.setattr(sampling, "_CHUNK", 7)
    assert scenes.sample(50, seed=5, split="test") == many


def test_other_seeds_give_other_scenes():
    assert not set(scenes.sample(200, seed=0)) & set(scenes.sample(200, seed=1))


def test_everything_is_drawn_evenly():
    batch = scenes.sample(4_000, seed=2)
    objects = [thing for scene in batch for thing in scene.objects]
    assert len({(o.shape, o.colour, o.size) for o in objects}) == 8 * 8 * 2
    for field, kinds in (("shape", 8), ("colour", 8), ("size", 2)):
        counts = Counter(getattr(thing, field) for thing in objects)
        assert len(counts) == kinds
        expected = len(objects) / kinds
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())
    numbers = Counter(len(scene.objects) for scene in batch)
    assert all(abs(numbers[count] - 1_000) < 130 for count in (1, 2, 3, 4))
    assert len({scene.noise_seed for scene in batch}) > 3_990
    # Free positions: most of the grid is used, and the mean is the middle.
    assert len({thing.x for thing in objects}) == GRID - 2 * 26 + 1
    assert abs(np.mean([thing.x for thing in objects]) - 0.5) < 0.01
    assert abs(np.mean([thing.y for thing in objects]) - 0.5) < 0.01


@settings(max_examples=25)
@given(SEEDS, st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted).map(tuple))
def test_sampled_scenes_are_valid(seed, limits):
    for scene in scenes.sample(10, seed, objects=limits, background="any", noise=0.05):
        # Building a scene checks places and gaps, so building it again must give the same.
        assert scenes.Scene(scene.objects, scene.background, 0.05, scene.noise_seed) == scene
        assert limits[0] <= len(scene.objects) <= limits[1]
        assert all((thing.x * GRID).is_integer() for thing in scene.objects)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"count": -1}, ValueError, "count must be at least 0: got -1"),
        ({"seed": -1}, ValueError, "seed must be between 0"),
        ({"seed": 0.5}, TypeError, "seed must be an integer: got 0.5"),
        ({"seed": True}, TypeError, "seed must be an integer"),
        ({"split": "dev"}, ValueError, "split must be one of train, test, all: got 'dev'"),
        ({"objects": 5}, ValueError, "objects must be 1 <= low <= high <= 4: got 5"),
        ({"objects": (3, 2)}, ValueError, "objects must be"),
        ({"background": "white"}, ValueError, "background must be one of"),
        ({"noise": 2.0}, ValueError, "noise must be between"),
        ({"split": "test", "holdout": scenes.Holdout()}, ValueError, "holdout must hold something"),
        (
            {"split": "test", "holdout": scenes.holdout(0, triples=3), "objects": 1},
            ValueError,
            "objects must reach 2",
        ),
    ],
)
def test_bad_samples(arguments, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(scenes.sample)(**{"count": 3, "seed": 0, **arguments})


def test_what_cannot_be_found_is_said():
    """With every relation of every pair held out, no training scene can have two objects."""
    everywhere = frozenset(
        (colour, shape, relation)
        for colour in scenes.COLOURS
        for shape in scenes.SHAPES
        for relation in scenes.RELATIONS
    )
    with pytest.raises(ValueError, match="no scene found .* hold out less"):
        scenes.sample(
            1, seed=0, split="train", objects=2, holdout=scenes.Holdout(triples=everywhere)
        )


# --- splits ------------------------------------------------------------------------------------


def combinations(scene):
    """All pairs and triples of a scene, found without :class:`Holdout`."""
    found = {(thing.colour, thing.shape) for thing in scene.objects}
    for one in scene.objects:
        for other in scene.objects:
            steps = {
                "left": other.x - one.x,
                "right": one.x - other.x,
                "above": other.y - one.y,
                "below": one.y - other.y,
            }
            for relation, step in steps.items():
                if step >= scenes.MARGIN:
                    found.add((one.colour, one.shape, relation))
    return found


@settings(max_examples=20)
@given(st.integers(0, 7), st.integers(0, 8), SEEDS)
def test_train_has_no_held_out_combination_and_test_always_one(per_colour, triples, seed):
    held = scenes.holdout(per_colour, triples, seed)
    assert len(held.pairs) == 8 * per_colour
    assert len(held.triples) == triples
    assert all(triple[:2] not in held.pairs for triple in held.triples)
    forbidden = held.pairs | held.triples
    for scene in scenes.sample(20, seed, split="train", holdout=held):
        assert not combinations(scene) & forbidden
        assert held.split(scene) == "train"
    if forbidden:
        for scene in scenes.sample(20, seed, split="test", holdout=held):
            assert combinations(scene) & forbidden == held.found(scene) != frozenset()
            assert held.split(scene) == "test"


@pytest.mark.parametrize("per_colour", [1, 3, 7])
def test_every_colour_and_shape_loses_the_same_number_of_partners(per_colour):
    pairs = scenes.holdout(per_colour).pairs
    assert set(Counter(colour for colour, _ in pairs).values()) == {per_colour}
    assert set(Counter(shape for _, shape in pairs).values()) == {per_colour}


def test_train_still_has_every_colour_and_shape():
    batch = scenes.sample(500, seed=0, split="train")
    objects = [thing for scene in batch for thing in scene.objects]
    assert {thing.colour for thing in objects} == set(scenes.COLOURS)
    assert {thing.shape for thing in objects} == set(scenes.SHAPES)
    pairs = {(thing.colour, thing.shape) for thing in objects}
    assert len(pairs) == 56
    assert not pairs & scenes.DEFAULT_HOLDOUT.pairs


def test_test_scenes_use_all_held_out_pairs_and_others():
    batch = scenes.sample(500, seed=0, split="test")
    found = frozenset().union(*(scenes.DEFAULT_HOLDOUT.found(scene) for scene in batch))
    assert found == scenes.DEFAULT_HOLDOUT.pairs
    assert len({(o.colour, o.shape) for scene in batch for o in scene.objects}) == 64


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: scenes.holdout(per_colour=8), "per_colour must be 0 to 7: got 8"),
        (lambda: scenes.holdout(triples=-1), "triples must be 0 to 56: got -1"),
        (lambda: scenes.Holdout(frozenset({("pink", "star")})), "colour must be one of"),
        (lambda: scenes.Holdout(frozenset({("red", "blob")})), "shape must be one of"),
        (
            lambda: scenes.Holdout(triples=frozenset({("red", "star", "near")})),
            "relation must be one of left, right, above, below: got 'near'",
        ),
        (
            lambda: scenes.Holdout(frozenset(("red", shape) for shape in scenes.SHAPES)),
            "every colour a shape: red has none",
        ),
        (
            lambda: scenes.Holdout(frozenset((colour, "star") for colour in scenes.COLOURS)),
            "every shape a colour: star has none",
        ),
    ],
)
def test_bad_holdouts(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- relations ---------------------------------------------------------------------------------


@settings(max_examples=30)
@given(SEEDS)
def test_relations_are_antisymmetric_and_some_always_holds(seed):
    for scene in scenes.sample(5, seed, objects=(2, 4)):
        graph = scenes.graph(scene)
        edges = set(graph.edges)
        assert len(edges) == len(graph.edges)
        for first, relation, second in edges:
            assert (second, scenes.OPPOSITE[relation], first) in edges
            assert (second, relation, first) not in edges
            one, other = scene.objects[first], scene.objects[second]
            assert scenes.holds(relation, one, other)
            assert relation in scenes.direction(one, other).split()
        number = len(scene.objects)
        pairs = {(first, second) for first, _, second in edges}
        assert pairs == {(i, j) for i in range(number) for j in range(number) if i != j}


def test_margin_by_hand():
    """24/256 is far enough, 23/256 is not."""
    base = item(x=0.5, y=0.25)
    assert scenes.holds("right", item(x=0.5 + 24 / 256, y=0.75), base)
    near = item(x=0.5 + 23 / 256, y=0.75)
    assert scenes.direction(near, base) == "below"
    assert scenes.direction(base, near) == "above"
    assert scenes.direction(item(x=0.75, y=0.75), base) == "below right"


@pytest.mark.parametrize(
    "x, y, expected",
    [
        (0.2, 0.2, "top left"),
        (0.5, 0.2, "top"),
        (0.8, 0.3, "top right"),
        (0.2, 0.5, "left"),
        (0.5, 0.5, "centre"),
        (0.8, 0.6, "right"),
        (0.3, 0.7, "bottom left"),
        (0.5, 0.8, "bottom"),
        (0.7, 0.8, "bottom right"),
    ],
)
def test_places(x, y, expected):
    assert scenes.place(item(x=x, y=y)) == expected


def test_graph_nodes_are_the_objects_in_reading_order():
    scene = scenes.Scene((item(x=0.75), item("ring", "blue", "large")))
    assert scenes.graph(scene).nodes == (
        scenes.Node("large", "blue", "ring", "left"),
        scenes.Node("small", "red", "star", "right"),
    )


def test_unknown_relation():
    with pytest.raises(ValueError, match="relation must be one of .* got 'near'"):
        scenes.holds("near", item(), item(x=0.75))

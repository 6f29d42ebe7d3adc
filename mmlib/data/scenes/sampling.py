"""Draw scenes: vectorised, and the same from the same seed on every machine."""

import numpy as np

from mmlib.data.scenes.draws import below_array, check_seed, key, keys, mix_array, words
from mmlib.data.scenes.splits import DEFAULT_HOLDOUT, SPLITS, Holdout
from mmlib.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    GRID,
    MAX_OBJECTS,
    RADIUS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    choice,
)

_RADII = np.array([int(RADIUS[size] * GRID) for size in SIZES])
_GAP = int(GAP * GRID)
_PAIRS = [(colour, shape) for colour in COLOURS for shape in SHAPES]
_TRIES = 16  # places tried for each object, before the whole scene is placed anew
_ROUNDS = 512  # placings of a scene; what it is made of is drawn anew every _PATIENCE
_PATIENCE = 16
_CHUNK = 8192
_COUNT, _CONTENT, _PLACES, _REST = range(4)  # streams


def sample(
    count: int,
    seed: int,
    *,
    split: str = "all",
    holdout: Holdout | None = None,
    objects: int | tuple[int, int] = (1, MAX_OBJECTS),
    background: str = "black",
    noise: float = 0.0,
) -> list[Scene]:
    """Draw scenes at random.

    The number of objects, shapes, colours and sizes are uniform and independent (apart from what
    the split excludes); places are drawn until no two objects overlap. Scene ``i`` depends on the
    seed and ``i`` alone: ``sample(10, 0) == sample(100, 0)[:10]``.

    Args:
        count: How many scenes.
        seed: The same seed gives the same scenes on every machine.
        split: ``"train"``: no scene contains a held-out combination; ``"test"``: every scene
            contains at least one (and, if only triples are held out, at least two objects);
            ``"all"``: no matter.
        holdout: The held-out combinations; by default :data:`DEFAULT_HOLDOUT`.
        objects: How many objects a scene has: a number, or the smallest and the largest.
        background: One of :data:`BACKGROUNDS`, or ``"any"`` to draw one for each scene.
        noise: Standard deviation of the pixel noise of every scene.

    Returns:
        The scenes.

    Raises:
        ValueError: If an argument is out of range, or no such scene can be found (e.g. a test
            split of a holdout that holds nothing out).

    >>> sample(2, seed=0) == sample(3, seed=0)[:2]
    True
    """
    seed = check_seed(seed)
    if count < 0:
        raise ValueError(f"count must be at least 0: got {count}")
    choice("split", split, SPLITS)
    choice("background", background, (*BACKGROUNDS, "any"))
    low, high = (objects, objects) if isinstance(objects, int) else objects
    if not 1 <= low <= high <= MAX_OBJECTS:
        raise ValueError(f"objects must be 1 <= low <= high <= {MAX_OBJECTS}: got {objects}")
    holdout = DEFAULT_HOLDOUT if holdout is None else holdout
    if split == "test" and not holdout.pairs:
        if not holdout.triples:
            raise ValueError("holdout must hold something out for split 'test': got an empty one")
        low = max(low, 2)  # a relation takes two
        if high < low:
            raise ValueError(f"objects must reach 2 for a test split of triples: got {objects}")
    scenes: list[Scene] = []
    for start in range(0, count, _CHUNK):
        index = np.arange(start, min(start + _CHUNK, count))
        scenes += _chunk(index, seed, split, holdout, (low, high), background, noise)
    return scenes


def _chunk(index, seed, split, holdout, limits, background, noise) -> list[Scene]:
    """The scenes of the given numbers."""
    low, high = limits
    numbers = low + below_array(words(keys(seed, _COUNT, index), 1)[:, 0], high - low + 1)
    found: dict[int, Scene] = {}
    pending = np.arange(len(index))
    for turn in range(_ROUNDS):
        content = _stream(seed, _CONTENT, index[pending], turn // _PATIENCE)
        pairs, sizes = _contents(content, numbers[pending], split, holdout)
        places, placed = _places(
            _stream(seed, _PLACES, index[pending], turn), numbers[pending], _RADII[sizes]
        )
        rest = words(keys(seed, _REST, index[pending]), 2)
        grounds = below_array(rest[:, 0], len(BACKGROUNDS))
        noise_seeds = below_array(rest[:, 1], 2**32)
        rows = zip(
            pending.tolist(), numbers[pending].tolist(), pairs.tolist(), sizes.tolist(),
            (places / GRID).tolist(), grounds.tolist(), noise_seeds.tolist(), placed.tolist(),
            strict=True,
        )  # fmt: skip
        for row, number, pair, size, place, ground, noise_seed, fits in rows:
            if not fits:
                continue
            scene = Scene(
                tuple(
                    Object(_PAIRS[pair[k]][1], _PAIRS[pair[k]][0], SIZES[size[k]], *place[k])
                    for k in range(number)
                ),
                BACKGROUNDS[ground] if background == "any" else background,
                noise,
                noise_seed,
            )
            if split == "all" or not holdout.triples or holdout.split(scene) == split:
                found[row] = scene
        pending = np.array([row for row in pending.tolist() if row not in found], dtype=np.int64)
        if not len(pending):
            return [found[row] for row in range(len(index))]
    raise ValueError(
        f"no scene found in {_ROUNDS} tries for split={split!r}, objects={limits}, "
        f"holdout={holdout}: hold out less, or allow more objects"
    )


def _stream(seed: int, salt: int, index: np.ndarray, turn: int) -> np.ndarray:
    """Keys that differ for every scene and every turn."""
    return mix_array(keys(seed, salt, index) ^ np.uint64(key(turn)))


def _contents(stream, numbers, split, holdout) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the colour–shape pairs and of the sizes: two arrays (scenes, MAX_OBJECTS)."""
    draws = words(stream, 2 * MAX_OBJECTS + 2)
    sizes = below_array(draws[:, :MAX_OBJECTS], len(SIZES))
    held = np.array([i for i, pair in enumerate(_PAIRS) if pair in holdout.pairs], dtype=np.int64)
    free = np.array([i for i, pair in enumerate(_PAIRS) if pair not in holdout.pairs])
    allowed = free if split == "train" else np.arange(len(_PAIRS))
    pairs = allowed[below_array(draws[:, MAX_OBJECTS:-2], len(allowed))]
    if split == "test":
        # One object takes a held-out combination: of a pair, or one that may make a triple,
        # which the caller then looks for.
        triples = sorted(_PAIRS.index(triple[:2]) for triple in holdout.triples)
        must = np.array([*held, *triples], dtype=np.int64)
        lucky = below_array(draws[:, -2], numbers)
        pairs[np.arange(len(pairs)), lucky] = must[below_array(draws[:, -1], len(must))]
    return pairs, sizes


def _places(stream, numbers, radii) -> tuple[np.ndarray, np.ndarray]:
    """Places (scenes, MAX_OBJECTS, 2) on the grid, and whether every object found one.

    Objects are placed one after another; each takes the first of ``_TRIES`` random places that
    is free of those before it.
    """
    draws = words(stream, MAX_OBJECTS * _TRIES).reshape(-1, MAX_OBJECTS, _TRIES)
    # One word gives both coordinates: its upper half x, its lower half y.
    halves = np.stack([draws, draws << np.uint64(32)], axis=-1)
    span = GRID - 2 * radii + 1
    tried = radii[:, :, None, None] + below_array(halves, span[:, :, None, None])
    places = np.zeros((len(draws), MAX_OBJECTS, 2), dtype=np.int64)
    fits = np.ones(len(draws), dtype=bool)
    rows = np.arange(len(draws))
    for k in range(MAX_OBJECTS):
        free = np.ones((len(draws), _TRIES), dtype=bool)
        for before in range(k):
            distance = np.abs(tried[:, k] - places[:, None, before]).max(axis=-1)
            free &= distance >= (radii[:, k] + radii[:, before] + _GAP)[:, None]
        fits &= free.any(axis=1) | (k >= numbers)
        places[:, k] = tried[rows, k, free.argmax(axis=1)]
    return places, fits

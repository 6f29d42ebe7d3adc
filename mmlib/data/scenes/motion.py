"""Moving scenes: what a motion and a clip are, their frames and their captions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.grammar import Tree, check_language, leaf, realise, tree
from mmlib.data.scenes.pictures import Layout, add_noise, check_picture, layout, paint
from mmlib.data.scenes.splits import SPLITS
from mmlib.data.scenes.world import (
    COLOURS,
    GAP,
    GRID,
    RADIUS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    choice,
)

_DIAGONAL = 181 / 256  # 1/sqrt(2) on the grid
#: Headings as steps along x and y, all of length 1.
HEADINGS = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up left": (-_DIAGONAL, -_DIAGONAL),
    "up right": (_DIAGONAL, -_DIAGONAL),
    "down left": (-_DIAGONAL, _DIAGONAL),
    "down right": (_DIAGONAL, _DIAGONAL),
}
#: Picture widths in the time of a whole clip.
SPEEDS = {"slow": 48 / GRID, "fast": 112 / GRID}
#: When the objects that stop do so, as a share of the clip.
STOP_TIME = 0.5
# Times at which a clip is checked. Between two of them no distance shrinks by a gap's width.
_MOMENTS = np.linspace(0, 1, 33)


@dataclass(frozen=True, slots=True)
class Motion:
    """How one object moves: straight on, at one speed, perhaps stopping half-way; or not at all.

    Args:
        heading: One of :data:`HEADINGS`; None for an object that stays still.
        speed: ``"slow"`` or ``"fast"``; None for an object that stays still.
        stops: Whether it stops at half of the clip.

    Raises:
        ValueError: If a word is unknown, or only some of what a movement needs is given.
    """

    heading: str | None = None
    speed: str | None = None
    stops: bool = False

    def __post_init__(self) -> None:
        if self.heading is None and self.speed is None and not self.stops:
            return
        choice("heading", self.heading, tuple(HEADINGS))
        choice("speed", self.speed, tuple(SPEEDS))

    def velocity(self) -> tuple[float, float]:
        """Picture widths a clip along x and y, while it moves."""
        if self.heading is None:
            return 0.0, 0.0
        x, y = HEADINGS[self.heading]
        return x * SPEEDS[self.speed], y * SPEEDS[self.speed]

    def end(self) -> float:
        """When it comes to rest, as a share of the clip."""
        return STOP_TIME if self.stops else 1.0


@dataclass(frozen=True, slots=True)
class Clip:
    """A scene that moves.

    Args:
        scene: The scene at the start. No two of its objects look alike, so that "the small red
            star" names one.
        motions: The motion of each object, in the scene's reading order.

    Raises:
        ValueError: If the motions are not as many as the objects, two objects look alike, or one
            leaves the picture or comes too near another on the way.
    """

    scene: Scene
    motions: tuple[Motion, ...]

    def __post_init__(self) -> None:
        objects = self.scene.objects
        if len(self.motions) != len(objects):
            raise ValueError(
                f"motions must be one for each object: got {len(self.motions)} for {len(objects)}"
            )
        looks = {(item.size, item.colour, item.shape) for item in objects}
        if len(looks) < len(objects):
            raise ValueError(f"scene must have no two objects that look alike: got {objects}")
        starts = np.array([(item.x, item.y) for item in objects])
        radii = np.array([item.radius for item in objects])
        if not _clear(starts, radii, self.motions):
            raise ValueError(
                f"motions must keep the objects inside the picture and {GAP} apart: "
                f"got {self.motions} of {objects}"
            )


def _paths(starts: np.ndarray, motions: Sequence[Motion], times: np.ndarray) -> np.ndarray:
    """Places at the given times: (times, objects, 2)."""
    velocity = np.array([motion.velocity() for motion in motions])
    ends = np.array([motion.end() for motion in motions])
    return starts + velocity * np.minimum(times[:, None], ends)[:, :, None]


def _clear(starts: np.ndarray, radii: np.ndarray, motions: Sequence[Motion]) -> bool:
    """Whether no object leaves the picture or comes near another."""
    paths = _paths(starts, motions, _MOMENTS)
    if (paths < radii[:, None]).any() or (paths > 1 - radii[:, None]).any():
        return False
    distance = np.abs(paths[:, :, None] - paths[:, None]).max(axis=-1)
    wanted = radii[:, None] + radii + GAP
    np.fill_diagonal(wanted, 0)
    return bool((distance >= wanted).all())


def held_out_moves() -> frozenset[tuple[str, str]]:
    """Pairs (shape, heading) that :func:`sample_clips` holds out: one heading for each shape."""
    dice = Dice(0, 0xC11F)
    return frozenset(zip(SHAPES, dice.shuffled(tuple(HEADINGS)), strict=True))


def sample_clips(
    count: int,
    seed: int,
    *,
    split: str = "all",
    objects: tuple[int, int] = (1, 2),
    background: str = "black",
    noise: float = 0.0,
) -> list[Clip]:
    """Draw clips at random.

    One object in five stays still; headings, speeds and stopping are uniform for the others.
    Clip ``i`` depends on the seed and ``i`` alone.

    Args:
        count: How many clips.
        seed: The same seed gives the same clips on every machine.
        split: ``"train"``: no shape moves with the heading that :func:`held_out_moves` holds
            out for it; ``"test"``: at least one does; ``"all"``: no matter.
        objects: The smallest and the largest number of objects, within 1–3.
        background: Background of every clip.
        noise: Standard deviation of the pixel noise of every clip.

    Returns:
        The clips.

    Raises:
        ValueError: If an argument is out of range.

    >>> sample_clips(2, seed=0) == sample_clips(3, seed=0)[:2]
    True
    """
    check_seed(seed)
    if count < 0:
        raise ValueError(f"count must be at least 0: got {count}")
    choice("split", split, SPLITS)
    low, high = objects
    if not 1 <= low <= high <= 3:
        raise ValueError(f"objects must be 1 <= low <= high <= 3: got {objects}")
    held = held_out_moves()
    return [
        _sample_clip(Dice(seed, 0x0C119, number), split, held, low, high, background, noise)
        for number in range(count)
    ]


def _sample_clip(dice, split, held, low, high, background, noise) -> Clip:
    number = low + dice.below(high - low + 1)
    noise_seed = dice.below(2**32)
    while True:
        kinds = [
            (dice.choice(SHAPES), dice.choice(COLOURS), dice.choice(SIZES)) for _ in range(number)
        ]
        motions = [_draw_motion(dice) for _ in range(number)]
        moves = {(kind[0], motion.heading) for kind, motion in zip(kinds, motions, strict=True)}
        wrong = {"train": bool(moves & held), "test": not moves & held, "all": False}[split]
        if wrong or len(set(kinds)) < number:
            continue
        # Places are drawn for what moves, not motions for what has a place: otherwise an
        # object's place would tell where it is going.
        radii = np.array([RADIUS[size] for _, _, size in kinds])
        for _ in range(64):
            pairs = zip(radii, motions, strict=True)
            starts = np.array([_draw_start(dice, *pair) for pair in pairs])
            if _clear(starts, radii, motions):
                break
        else:
            continue
        items = [Object(*kind, *start) for kind, start in zip(kinds, starts.tolist(), strict=True)]
        order = sorted(range(number), key=lambda at: (items[at].x, items[at].y))
        scene = Scene(tuple(items), background, noise, noise_seed)
        return Clip(scene, tuple(motions[at] for at in order))


def _draw_motion(dice: Dice) -> Motion:
    if not dice.below(5):
        return Motion()
    return Motion(dice.choice(tuple(HEADINGS)), dice.choice(tuple(SPEEDS)), bool(dice.below(2)))


def _draw_start(dice: Dice, radius: float, motion: Motion) -> tuple[float, float]:
    """A place on the grid from which the motion stays inside the picture."""
    start = []
    for speed in motion.velocity():
        way = speed * motion.end()
        low = math.ceil((radius + max(0.0, -way)) * GRID)
        high = math.floor((1 - radius - max(0.0, way)) * GRID)
        start.append((low + dice.below(high - low + 1)) / GRID)
    return start[0], start[1]


def render_clip(
    clips: Clip | Sequence[Clip],
    frames: int = 8,
    size: int = 32,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch time 3 height width"]:
    """Draw clips.

    Args:
        clips: One clip or several; one gives a batch of one.
        frames: Frames of each, the first at the start and the last at the end; at least 2.
        size: Height and width in pixels, at least 8.
        device: Where to draw.
        dtype: A floating-point type.

    Returns:
        Frames, red, green and blue in [0, 1]. Noise, if the scene has any, differs by frame.

    Raises:
        ValueError: If the size or the number of frames is too small.
        TypeError: If the dtype is not a floating-point type or a clip is not one.

    >>> render_clip(sample_clips(2, seed=0), frames=8).shape
    torch.Size([2, 8, 3, 32, 32])
    """
    check_picture(size, dtype)
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 2:
        raise ValueError(f"frames must be an integer of at least 2: got {frames!r}")
    clips = [clips] if isinstance(clips, Clip) else list(clips)
    for clip in clips:
        if not isinstance(clip, Clip):
            raise TypeError(f"clips must be a Clip or a sequence of them: got {clip!r}")
    scenes = [clip.scene for clip in clips]
    start = layout(scenes)
    motions = [motion for clip in clips for motion in clip.motions]
    times = np.linspace(0, 1, frames)
    paths = _paths(start.centre.numpy(), motions, times) if motions else np.zeros((frames, 0, 2))
    # One picture a frame: the frames of a clip follow one another.
    moved = Layout(
        picture=(start.picture * frames + torch.arange(frames)[:, None]).flatten(),
        kind=start.kind.repeat(frames),
        colour=start.colour.repeat(frames),
        centre=torch.from_numpy(paths).reshape(-1, 2),
        background=start.background.repeat_interleave(frames),
    )
    pictures = paint(moved, size, device, dtype)
    levels = [scene.noise for scene in scenes for _ in range(frames)]
    seeds = [(scene.noise_seed + frame) % 2**32 for scene in scenes for frame in range(frames)]
    return add_noise(pictures, levels, seeds).view(len(clips), frames, 3, size, size)


def clip_caption(clip: Clip, language: str = "en") -> str:
    """Say what moves where.

    The caption names every object once, from left to right at the start, with its size, colour,
    shape, heading and speed, and whether it stops. It is the same for two clips exactly if they
    agree in all that; of places it says no more than the order.

    Args:
        clip: The clip.
        language: ``"en"`` or ``"zh"``.

    Returns:
        The caption.

    Raises:
        ValueError: If the language is unknown.

    >>> from mmlib.data.scenes import Object, Scene
    >>> scene = Scene((Object("star", "red", "small", 0.75, 0.5),))
    >>> clip_caption(Clip(scene, (Motion("left", "slow", stops=True),)))
    'the small red star moves left slowly, then stops'
    >>> clip_caption(Clip(scene, (Motion("left", "slow", stops=True),)), "zh")
    '红色的小星形慢慢地向左移动，然后停下'
    """
    check_language(language)
    moves = [_move(*pair) for pair in zip(clip.scene.objects, clip.motions, strict=True)]
    root = tree("CLIP", "one", MOVE=moves[-1])
    for move in reversed(moves[:-1]):
        root = tree("CLIP", "and", MOVE=move, CLIP=root)
    return realise(root, language)


def _move(item: Object, motion: Motion) -> Tree:
    leaves = {
        "SIZE": leaf("SIZE", item.size),
        "COLOUR": leaf("COLOUR", item.colour),
        "SHAPE": leaf("SHAPE", item.shape),
    }
    if motion.heading is None:
        return tree("MOVE", "still", **leaves)
    heading, speed = leaf("HEADING", motion.heading), leaf("SPEED", motion.speed)
    rule = "stops" if motion.stops else "goes"
    return tree("MOVE", rule, **leaves, HEADING=heading, SPEED=speed)

"""Longer clips: an object that does one thing after another, with the times of its events.

A clip of :mod:`mmlib.data.scenes` shows one movement of each object. Here one object makes several,
each for some frames, and what is wanted is a list of events with their times, and a summary that
leaves out what hardly lasted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mmlib.data.clip_questions import heading_words
from mmlib.data.scenes import (
    COLOURS,
    HEADINGS,
    RADIUS,
    SHAPES,
    SIZES,
    SPLITS,
    Object,
    Scene,
    held_out_moves,
    render,
)
from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.world import GRID, choice

__all__ = [
    "FRAMES",
    "KEY_FRAMES",
    "SHORTEST",
    "Event",
    "LongClip",
    "event_text",
    "match_events",
    "parse_events",
    "render_long",
    "sample_long",
    "summary",
]

FRAMES = 24
#: Frames of the shortest event, and of one that belongs in a summary.
SHORTEST, KEY_FRAMES = 3, 6
_STEP = 10 / GRID  # picture widths from one frame to the next
_STILL = "still"


@dataclass(frozen=True, slots=True)
class Event:
    """What an object does for some time.

    Attributes:
        what: One of :data:`mmlib.data.scenes.HEADINGS`, or ``"still"``.
        start: The frame at which it begins.
        end: The frame at which it is over, later than ``start``.

    Raises:
        ValueError: an unknown word, or an end that is not after the start.
    """

    what: str
    start: int
    end: int

    def __post_init__(self) -> None:
        choice("what", self.what, (*HEADINGS, _STILL))
        if not 0 <= self.start < self.end:
            raise ValueError(f"0 <= start < end is wanted: got {self.start} and {self.end}")

    @property
    def frames(self) -> int:
        """How long it lasts."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class LongClip:
    """An object and what it does.

    Attributes:
        item: The object where it is at first.
        events: One after the other from frame 0, without gaps.

    Raises:
        ValueError: there are no events or gaps between them, or the object leaves the picture.
    """

    item: Object
    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        starts = [0, *(event.end for event in self.events[:-1])]
        if not self.events or [event.start for event in self.events] != starts:
            raise ValueError(f"events must follow each other from frame 0: got {self.events}")
        self.places()

    def places(self) -> list[Object]:
        """The object in each frame, one more than the last event's end has steps."""
        x, y = self.item.x, self.item.y
        found = [self.item]
        for event in self.events:
            dx, dy = HEADINGS.get(event.what, (0, 0))
            for _ in range(event.frames):
                x, y = x + dx * _STEP, y + dy * _STEP
                found.append(Object(self.item.shape, self.item.colour, self.item.size, x, y))
        return found[:-1]  # the last step would be seen in a frame that is not there


def sample_long(count: int, seed: int, *, split: str = "all") -> list[LongClip]:
    """Draw longer clips of :data:`FRAMES` frames with three to five events.

    Neighbouring events differ; every fifth or so is a pause. Three events are the most frequent
    number, since more of them leave the picture more often and are drawn again.

    Args:
        count: How many.
        seed: The same seed gives the same clips; clip ``i`` depends on the seed and ``i`` alone.
        split: As for :func:`mmlib.data.scenes.sample_clips`: in ``"train"`` no shape moves with the
            heading held out for it, in ``"test"`` each does at least once.

    Raises:
        ValueError: an argument is out of range.

    >>> [len(clip.events) for clip in sample_long(3, 0)]
    [3, 3, 3]
    """
    check_seed(seed)
    if count < 0:
        raise ValueError(f"count must be at least 0: got {count}")
    choice("split", split, SPLITS)
    held = held_out_moves()
    return [_sample(Dice(seed, 0x10C11, number), split, held) for number in range(count)]


def _sample(dice: Dice, split: str, held: frozenset) -> LongClip:
    while True:
        shape, colour, size = dice.choice(SHAPES), dice.choice(COLOURS), dice.choice(SIZES)
        number = 3 + dice.below(3)
        cuts = sorted(dice.shuffled(range(SHORTEST, FRAMES - SHORTEST + 1))[: number - 1])
        edges = [0, *cuts, FRAMES]
        if min(b - a for a, b in zip(edges, edges[1:], strict=False)) < SHORTEST:
            continue
        what: list[str] = []
        while len(what) < number:
            drawn = _STILL if not dice.below(5) else dice.choice(tuple(HEADINGS))
            if drawn not in what[-1:]:
                what.append(drawn)
        moves = {(shape, heading) for heading in what}
        if {"train": bool(moves & held), "test": not moves & held, "all": False}[split]:
            continue
        spans = zip(what, edges, edges[1:], strict=False)
        events = tuple(Event(word, start, end) for word, start, end in spans)
        start = _start(dice, RADIUS[size], events)
        if start is not None:
            return LongClip(Object(shape, colour, size, *start), events)


def _start(dice: Dice, radius: float, events: Sequence[Event]) -> tuple[float, float] | None:
    """A place from which the object stays inside the picture, if there is one."""
    found = []
    for axis in (0, 1):
        at, low, high = 0.0, 0.0, 0.0
        for event in events:
            at += HEADINGS.get(event.what, (0, 0))[axis] * _STEP * event.frames
            low, high = min(low, at), max(high, at)
        first = math.ceil((radius - low) * GRID)
        last = math.floor((1 - radius - high) * GRID)
        if last < first:
            return None
        found.append((first + dice.below(last - first + 1)) / GRID)
    return found[0], found[1]


def render_long(clips: Sequence[LongClip], size: int = 32) -> Float[Tensor, "batch frames 3 h w"]:
    """Draw longer clips of equally many frames.

    Args:
        clips: The clips.
        size: Height and width in pixels.

    Raises:
        ValueError: there are none, or their numbers of frames differ.
    """
    if not clips or len({clip.events[-1].end for clip in clips}) > 1:
        raise ValueError(f"clips must be at least one, of equally many frames: got {clips}")
    pictures = [Scene((item,)) for clip in clips for item in clip.places()]
    drawn = render(pictures, size)
    return drawn.reshape(len(clips), -1, *drawn.shape[1:]).to(torch.float32)


def _phrase(what: str) -> str:
    return "stays still" if what == _STILL else f"moves {heading_words(what)}"


def event_text(clip: LongClip) -> str:
    """All events with their times, numbers of frames, as words.

    >>> star = Object("star", "red", "small", 0.75, 0.5)
    >>> event_text(LongClip(star, (Event("left", 0, 7), Event("still", 7, 10))))
    '0 moves left 7 stays still 10'
    """
    parts = [f"{event.start} {_phrase(event.what)}" for event in clip.events]
    return " ".join([*parts, str(clip.events[-1].end)])


def parse_events(text: str) -> list[Event]:
    """Read what :func:`event_text` writes; events that make no sense are left out.

    >>> parse_events("0 moves left 7 stays still 5 moves 9")
    [Event(what='left', start=0, end=7)]
    """
    names = {_phrase(what): what for what in (*HEADINGS, _STILL)}
    events, phrase, start = [], [], None
    for word in text.split():
        if not word.isdecimal():
            phrase.append(word)
            continue
        end = int(word)
        what = names.get(" ".join(phrase))
        if start is not None and what is not None and start < end:
            events.append(Event(what, start, end))
        start, phrase = end, []
    return events


def summary(clip: LongClip) -> str:
    """What the object does, without what lasts less than :data:`KEY_FRAMES`.

    What is then said twice in a row is said once.

    >>> star = Object("star", "red", "small", 0.75, 0.5)
    >>> events = (Event("left", 0, 7), Event("up", 7, 10), Event("left", 10, 17))
    >>> summary(LongClip(star, events))
    'the small red star moves left'
    """
    said: list[str] = []
    for event in clip.events:
        if event.frames >= KEY_FRAMES and _phrase(event.what) not in said[-1:]:
            said.append(_phrase(event.what))
    name = f"the {clip.item.size} {clip.item.colour} {clip.item.shape}"
    return f"{name} {', then '.join(said)}" if said else f"{name} hardly does anything for long"


def match_events(
    true: Sequence[Event], found: Sequence[Event], overlap: float = 0.5
) -> tuple[int, list[int]]:
    r"""How many events were found, and how far their edges are off.

    An event is found if one of the same kind, not yet taken, overlaps it by at least ``overlap``
    of the frames that either covers (temporal intersection over union).

    Args:
        true: What happens.
        found: What was said to happen.
        overlap: Above 0, at most 1.

    Returns:
        The number of found events, and for each of them the errors in frames of start and end.

    Raises:
        ValueError: ``overlap`` is out of range.

    >>> match_events([Event("left", 0, 8)], [Event("left", 1, 8), Event("up", 0, 8)])
    (1, [1, 0])
    """
    if not 0.0 < overlap <= 1.0:
        raise ValueError(f"overlap must lie in (0, 1]: got {overlap}")
    left, errors, hits = list(found), [], 0
    for event in true:
        same = [other for other in left if other.what == event.what]
        best = max(same, key=lambda other: _overlap(event, other), default=None)
        if best is not None and _overlap(event, best) >= overlap:
            left.remove(best)
            hits += 1
            errors += [abs(best.start - event.start), abs(best.end - event.end)]
    return hits, errors


def _overlap(one: Event, other: Event) -> float:
    shared = max(0, min(one.end, other.end) - max(one.start, other.start))
    return shared / (one.frames + other.frames - shared)

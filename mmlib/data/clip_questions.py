"""Questions about moving scenes, with their answers: what moves, where to, how fast."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmlib.data.scenes.draws import Dice, check_seed
from mmlib.data.scenes.motion import HEADINGS, SPEEDS, Clip
from mmlib.data.scenes.wording import RULES
from mmlib.data.scenes.world import choice

__all__ = ["CLIP_KINDS", "ClipQuestion", "clip_questions", "heading_words"]

#: What can be asked about a clip.
CLIP_KINDS = ("heading", "speed", "stop", "moves", "which")
_SPEED_WORDS = {speed: RULES["SPEED"][speed][0] for speed in SPEEDS}


@dataclass(frozen=True, slots=True)
class ClipQuestion:
    """A question about a clip.

    Attributes:
        kind: One of :data:`CLIP_KINDS`.
        text: The question, in lower case.
        answer: A few words.
    """

    kind: str
    text: str
    answer: str


def heading_words(heading: str) -> str:
    """A heading in words.

    Raises:
        ValueError: the heading is unknown.

    >>> heading_words("down left")
    'down and to the left'
    """
    choice("heading", heading, tuple(HEADINGS))
    return RULES["HEADING"][heading][0]


def clip_questions(clip: Clip, seed: int, kinds: Sequence[str] = CLIP_KINDS) -> list[ClipQuestion]:
    """Ask one question of each kind, where the clip allows it.

    ``"heading"``, ``"speed"`` and ``"stop"`` are about an object that moves; ``"which"`` names a
    heading that only one object has, and wants the object; ``"moves"`` is about any object. An
    object is called by its size, colour and shape, which no two of a clip share.

    Args:
        clip: The clip.
        seed: Which objects are asked about.
        kinds: Which kinds, in this order.

    Returns:
        The questions; a kind is missing if nothing moves, or, for ``"which"``, if all that moves
        moves alike.

    Raises:
        ValueError: a kind is unknown, or the seed out of range.

    >>> from mmlib.data import scenes
    >>> star = scenes.Object("star", "red", "small", 0.75, 0.5)
    >>> clip = scenes.Clip(scenes.Scene((star,)), (scenes.Motion("left", "slow"),))
    >>> [(q.text, q.answer) for q in clip_questions(clip, 0, ["heading", "stop"])]
    [('which way does the small red star move?', 'left'), ('does the small red star stop?', 'no')]
    """
    for kind in kinds:
        choice("kinds", kind, CLIP_KINDS)
    dice = Dice(check_seed(seed), 0xC1193)
    pairs = list(zip(clip.scene.objects, clip.motions, strict=True))
    moving = [pair for pair in pairs if pair[1].heading is not None]
    found = []
    for kind in kinds:
        among = pairs if kind == "moves" else moving
        if kind == "which":
            headings = [motion.heading for _, motion in moving]
            among = [pair for pair in moving if headings.count(pair[1].heading) == 1]
        if not among:
            continue
        item, motion = dice.choice(among)
        name = f"the {item.size} {item.colour} {item.shape}"
        text, answer = {
            "heading": (f"which way does {name} move?", motion.heading),
            "speed": (f"how does {name} move?", _SPEED_WORDS.get(motion.speed)),
            "stop": (f"does {name} stop?", "yes" if motion.stops else "no"),
            "moves": (f"does {name} move?", "no" if motion.heading is None else "yes"),
            "which": ("what moves {}?", name),
        }[kind]
        if kind == "heading":
            answer = heading_words(answer)
        elif kind == "which":
            text = text.format(heading_words(motion.heading))
        found.append(ClipQuestion(kind, text, answer))
    return found

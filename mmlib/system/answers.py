"""The system's answers to people: the language model writes, and CLIP chooses what is shown.

Of several pictures that the language model draws for a request, the one is shown that stage 1's
CLIP finds nearest to the request's words, as in chapter 11.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mmlib.data import scenes
from mmlib.small_clips import scene_tokenizer
from mmlib.system.stages import System
from mmlib.system.tasks import Turn
from mmlib.system.writing import Reply, reply

__all__ = ["answers", "readable"]

CHUNK = 32


def answers(
    system: System,
    dialogues: Sequence[Sequence[Turn]],
    generator: torch.Generator | None = None,
    most: int | None = None,
) -> list[Reply]:
    """What the system says, or draws, next in each dialogue.

    Args:
        system: In evaluation mode.
        dialogues: The person speaks last in each.
        generator: What pictures are drawn from.
        most: Most words of an answer, by default as many as the system's words say.

    Raises:
        ValueError: an empty dialogue, or one that leaves no room for so many words.
    """
    config, found = system.config, []
    for start in range(0, len(dialogues), CHUNK):
        part = dialogues[start : start + CHUNK]

        def choose(row: int, grids: Int[Tensor, "candidates rows columns"], part=part) -> int:
            return _nearest(system, part[row][-1].text, grids)

        found += reply(
            system.language,
            system.known,
            [system.writer.dialogue(turns) for turns in part],
            most=system.known.most if most is None else most,
            generator=generator,
            guidance=config.guidance,
            temperature=config.temperature,
            candidates=config.candidates,
            choose=choose if config.candidates > 1 else None,
        )
    return found


def readable(text: str) -> str | None:
    """What CLIP can read of a request: the words of canonical captions, in English.

    >>> readable("please paint a small red star"), readable("请画出在上方有一个红色的小星形")
    ('a small red star', 'a small red star at the top')
    """
    if text.isascii():
        known = set(scenes.vocabulary("en", "canonical"))
        return " ".join(word for word in text.lower().split() if word in known) or None
    for start in range(len(text)):
        try:
            return scenes.translate(text[start:], "zh", "en")
        except ValueError:  # a request's first words belong to no caption
            continue
    return None


def _nearest(system: System, text: str, grids: Int[Tensor, "candidates rows columns"]) -> int:
    caption = readable(text)
    if caption is None:
        return 0
    ids = scene_tokenizer().encode([caption]).ids
    return int(system.pictures.find(system.pictures.paint(grids), ids).argmax())

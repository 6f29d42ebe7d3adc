"""The words of chapter 12's tasks, one vocabulary for all, and a token for each task."""

from functools import cache

from mmlib.data import scenes
from mmlib.encoders.tokenizers import Tokenizer, word_tokenizer
from mmlib.multimodal import MultimodalConfig

__all__ = ["ASKED", "TASKS", "WRITTEN", "config", "plain", "task_id", "vocabulary"]

#: Tasks that end in words; each has a token with which the decoder begins.
WRITTEN = ("caption", "clip", "transcribe", "answer", "events", "summary")
TASKS = (*WRITTEN, "speak")
#: Kinds of questions about pictures.
ASKED = ("exist", "count", "colour", "shape")
_SOURCES = (
    *(" ".join(scenes.vocabulary("en", mode)) for mode in ("canonical", "clip")),
    " ".join(scenes.ANSWERS),
    " ".join(map(str, range(25))),
    "is there a an object ? how many objects are there ? what colour shape is the ?",
    "which way does move ? how does move ? stop ? what moves hardly does anything for long",
    *(shape + ("es" if shape.endswith("s") else "s") for shape in scenes.SHAPES),
)


@cache
def vocabulary() -> Tokenizer:
    """All words of all tasks, a token each."""
    return word_tokenizer(_SOURCES)


def task_id(task: str) -> int:
    """The token with which the decoder begins a task.

    Raises:
        ValueError: no words are written in this task.

    >>> task_id("caption") == vocabulary().vocab_size
    True
    """
    if task not in WRITTEN:
        raise ValueError(f"task must be one of {', '.join(WRITTEN)}: got {task!r}")
    return vocabulary().vocab_size + WRITTEN.index(task)


def config(**options: int | float) -> MultimodalConfig:
    """The model's sizes for this vocabulary."""
    return MultimodalConfig(vocabulary().vocab_size + len(WRITTEN), **options)


def plain(text: str) -> str:
    """What can be heard of a text: its words, without marks.

    >>> plain("is there a red star?")
    'is there a red star'
    """
    return " ".join(word for word in vocabulary().tokenize(text) if word.isalnum())

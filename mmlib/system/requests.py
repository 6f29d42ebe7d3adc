"""How people ask the system for things, in English and Chinese.

``{}`` stands for what is to be drawn. Each list's last wording is held out of training
(:func:`wordings`), so that a test can ask in words that were never heard.
"""

from mmlib.data.scenes.world import choice

__all__ = ["REQUESTS", "wordings"]

#: By language, then by what is wanted.
REQUESTS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "caption": (
            "describe the picture",
            "what do you see?",
            "what is in the picture?",
            "tell me what the picture shows",
            "what does the picture show?",
        ),
        "draw": (
            "draw {}",
            "please draw {}",
            "paint {}",
            "show me {}",
            "please paint {}",
        ),
    },
    "zh": {
        "caption": (
            "描述这幅图",
            "你看到了什么？",
            "图里有什么？",
            "说说这幅图的内容",
            "这幅图里有什么？",
        ),
        "draw": ("画{}", "请画{}", "画出{}", "给我看{}", "请画出{}"),
    },
}


def wordings(task: str, language: str, split: str = "train") -> tuple[str, ...]:
    """The wordings of a request.

    Args:
        task: ``"caption"`` or ``"draw"``.
        language: ``"en"`` or ``"zh"``.
        split: ``"train"`` for all but the last, ``"test"`` for the last.

    Raises:
        ValueError: another word.

    >>> wordings("draw", "zh", "test")
    ('请画出{}',)
    """
    choice("language", language, tuple(REQUESTS))
    choice("task", task, tuple(REQUESTS["en"]))
    choice("split", split, ("train", "test"))
    found = REQUESTS[language][task]
    return found[:-1] if split == "train" else found[-1:]

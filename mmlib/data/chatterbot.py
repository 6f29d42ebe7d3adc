r"""Real questions and replies in English and Chinese: the ChatterBot corpus (问答语料).

Pairs that volunteers wrote for a chat program, in files by topic: "do you drink", "My brain does
not require any beverages." They come from the Python package ``chatterbot-corpus`` 1.3.3, fetched
and checked by :mod:`mmlib.download` and read out of the wheel; nothing of it ships with this
library. Its licence has three clauses (BSD-3-Clause): the wheel's metadata say "BSD License", the
text stands in the file ``license.md`` of the source distribution. Only the first question and the
first reply of each conversation are used. (Its Chinese part is largely a translation of the English
one.)

**The split** is by topic: those of :data:`HELD_OUT` are the test set with all their pairs, so that
no test question is about what was trained on.
"""

import re
import zipfile
from dataclasses import dataclass

from mmlib.data.shipped import SPLITS
from mmlib.download import WHOLE, File, Source, Wheel, fetch

__all__ = ["HELD_OUT", "LANGUAGES", "SOURCE", "Pairs", "load", "read_conversations"]

_WHEEL = "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
SOURCE = Source(
    name="chatterbot-corpus",
    about="questions and replies of a chat program",
    licence="BSD-3-Clause",
    wheel=Wheel(
        "chatterbot-corpus", "1.3.3", _WHEEL, 345_706, {"wheel": File(WHOLE, 345_706, _WHEEL)}
    ),
)
"""Where the data come from."""

LANGUAGES = {"en": "english", "zh": "chinese"}
"""The languages, and their folders in the package."""

HELD_OUT = ("ai", "emotion", "food", "humor", "money", "science")
"""The topics of the test set."""


@dataclass(frozen=True)
class Pairs:
    """Questions and replies; item ``i`` of each field is about the same pair.

    Attributes:
        questions: What was said.
        replies: What was answered.
        topics: Of each pair, the name of its file.
    """

    questions: tuple[str, ...]
    replies: tuple[str, ...]
    topics: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        return f"Pairs({len(self)} pairs on {len(set(self.topics))} topics)"


def load(
    split: str = "all",
    language: str = "en",
    *,
    offline: bool | None = None,
    progress: bool = True,
) -> Pairs:
    """Load the pairs of a split, in the order of the files; a pair that comes twice is kept once.

    Two technical topics of the English part, which are larger than all others together and hold
    documents more than talk, are left out: ``coding`` and ``tech_support``.

    Args:
        split: ``"train"``, ``"test"`` (:data:`HELD_OUT`) or ``"all"``.
        language: ``"en"`` or ``"zh"``.
        offline: Use no network; None asks the environment.
        progress: Say what is downloaded.

    Raises:
        ValueError: There is no such split or language.
        mmlib.download.SourceUnavailable: The package is to be had in no way.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}: got {split!r}")
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}: got {language!r}")
    path = fetch(SOURCE, offline=offline, progress=progress)["wheel"]
    folder, rows = f"chatterbot_corpus/data/{LANGUAGES[language]}/", {}
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(wheel.namelist()):
            if not (name.startswith(folder) and name.endswith(".yml")):
                continue
            topic = name.removeprefix(folder).removesuffix(".yml")
            part = "test" if topic in HELD_OUT else "train"
            if topic in ("coding", "tech_support") or split not in (part, "all"):
                continue
            for turns in read_conversations(wheel.read(name).decode("utf-8")):
                rows[(*turns[:2], topic)] = None
    questions, replies, topics = zip(*rows, strict=True)
    return Pairs(questions, replies, topics)


def read_conversations(text: str) -> list[list[str]]:
    r"""Read the conversations out of one of the package's YAML files.

    The files are lists of lists of strings and nothing else, so that no YAML library is needed;
    quotes around a string and lines that go on are understood, an empty turn ends a conversation.

    Args:
        text: The whole file.

    Returns:
        Conversations of two turns or more.

    >>> read_conversations("categories:\n- food\nconversations:\n- - hello\n  - 'it''s me'\n")
    [['hello', "it's me"]]
    """
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if re.match(r"\w+:", line):
            inside = line.startswith("conversations:")
        elif inside and (new := re.match(r"\s*- -(?:\s(.*))?$", line)):
            found.append([new[1] or ""])
        elif inside and found and (more := re.match(r"\s+-(?:\s(.*))?$", line)):
            found[-1].append(more[1] or "")
        elif inside and found and line.strip():
            found[-1][-1] += f" {line.strip()}"  # a long string goes on
    cleaned = ([_unquoted(turn) for turn in turns] for turns in found)
    return [turns for turns in cleaned if len(turns) > 1 and turns[0] and turns[1]]


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1]).strip()
    return text

"""Write the numbers and the generated parts of ``book/data.md`` and its subpages.

    python book/scripts/data_page.py

A number that is followed by ``<!--D:key-->`` is the value of that key in `numbers`; the text
between ``<!-- begin:name -->`` and ``<!-- end:name -->`` is the value of that name in `blocks`.
Both are computed from ``mmlib.data`` here, and ``tests/book/test_data_page.py`` computes them
again: no number on those pages is typed by hand. The numbers of each subpage have a module of
their own, ``data_numbers_NAME.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import data_numbers_clipart
import data_numbers_easy_vqa
import data_numbers_speech
import numpy as np
from emoji_concepts import NEAR, Entry, concepts, distances

from mmlib.data import emoji, scenes

BOOK = Path(__file__).resolve().parents[1]
PAGES = [BOOK / "data.md", *sorted(BOOK.glob("data-*.md"))]
FILES = Path(emoji.__file__).parent / "files" / "emoji"
NUMBER = re.compile(r"[\d,.]+(?=<!--D:([\w.]+)-->)")
BLOCK = re.compile(r"(<!-- begin:(\w+) -->\n).*?(<!-- end:\2 -->)", re.DOTALL)
# Seeds of the scene and the clip that the page shows: three objects; one that moves and stops.
EXAMPLE, CLIP = 4, 3
DRAWN = 10_000  # scenes drawn to estimate how many hold a held-out pair


def scene_at(seed: int) -> scenes.Scene:
    """A scene of three objects."""
    return scenes.sample(1, seed=seed, objects=3)[0]


def clip_at(seed: int) -> scenes.Clip:
    """A clip of two objects."""
    return scenes.sample_clips(1, seed=seed, objects=(2, 2))[0]


@cache
def measured() -> tuple[emoji.EmojiSet, list[Entry], np.ndarray]:
    """The emoji, what the rule reads of them, and the distances of their pictures."""
    data = emoji.load(background=None)
    fields = zip(data.codes, data.names, data.subgroups, strict=True)
    pictures = data.images.permute(0, 2, 3, 1).numpy()
    return data, [Entry(*values) for values in fields], distances(pictures)


@cache
def splits() -> dict[str, np.ndarray]:
    """Which emoji are held out, when the hash is taken of single emoji and of concepts."""
    data = measured()[0]
    keys = {"emoji one by one": data.codes, "whole concepts": data.concepts}
    return {
        label: np.array([emoji.split_of(key) == "test" for key in values])
        for label, values in keys.items()
    }


def nearest_training() -> dict[str, np.ndarray]:
    """Distance from every held-out emoji to the nearest in the training set, for each split."""
    distance = measured()[2]
    return {label: distance[test][:, ~test].min(1) for label, test in splits().items()}


def apart(labels: Sequence) -> int:
    """Pairs of near-duplicates of which one has another label than the other."""
    labels = np.asarray(labels)
    return int(((measured()[2] < NEAR) & (labels[:, None] != labels[None])).sum()) // 2


@cache
def numbers() -> dict[str, str]:
    """Every number of the pages, as it is printed."""
    data, entries, distance = measured()
    test = splits()["whole concepts"]
    sizes = Counter(data.concepts)
    held_concepts = [name for name in sizes if emoji.split_of(name) == "test"]
    drawn = scenes.sample(DRAWN, seed=0)
    held = np.mean([bool(scenes.DEFAULT_HOLDOUT.found(scene)) for scene in drawn])
    values = {
        "emoji.count": len(data),
        "emoji.train": int((~test).sum()),
        "emoji.test": int(test.sum()),
        "emoji.test_percent": 100 * test.mean(),
        "emoji.megabytes": sum(path.stat().st_size for path in FILES.iterdir()) / 1e6,
        "emoji.groups": len(set(data.groups)),
        "emoji.tags": np.mean([len(tags) for tags in data.tags]),
        "emoji.tags_zh": np.mean([len(tags) for tags in data.tags_zh]),
        "emoji.concepts": len(sizes),
        "emoji.concepts_test": len(held_concepts),
        "emoji.concepts_test_percent": 100 * len(held_concepts) / len(sizes),
        "emoji.near": f"{NEAR:.2f}",
        "emoji.median": f"{np.median(distance):.2f}",
        "emoji.pairs": int((distance < NEAR).sum()) // 2,
        "emoji.single": apart(splits()["emoji one by one"]),
        "emoji.single_percent": 100 * (nearest_training()["emoji one by one"] < NEAR).mean(),
        "emoji.by_name": apart(concepts(entries, distance, near=0)),
        "emoji.straddling": apart(test),
        "emoji.nearest": f"{nearest_training()['whole concepts'].min():.3f}",
        "scenes.shapes": len(scenes.SHAPES),
        "scenes.colours": len(scenes.COLOURS),
        "scenes.sizes": len(scenes.SIZES),
        "scenes.backgrounds": len(scenes.BACKGROUNDS),
        "scenes.most": scenes.MAX_OBJECTS,
        "scenes.pairs": len(scenes.SHAPES) * len(scenes.COLOURS),
        "scenes.held": len(scenes.DEFAULT_HOLDOUT.pairs),
        "scenes.drawn": DRAWN,
        "scenes.held_percent": 100 * held,
        "scenes.kinds": len(scenes.KINDS),
        "scenes.answers": len(scenes.ANSWERS),
        "scenes.words_en": len(scenes.vocabulary("en")),
        "scenes.words_zh": len(scenes.vocabulary("zh")),
        "scenes.headings": len(scenes.HEADINGS),
    }
    for rank, (_, size) in enumerate(sizes.most_common(3), 1):
        values[f"emoji.largest{rank}"] = size
    for others in (data_numbers_clipart, data_numbers_easy_vqa, data_numbers_speech):
        values |= others.numbers()
    return {key: _print(value) for key, value in values.items()}


def _print(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


@cache
def blocks() -> dict[str, str]:
    """Every generated part of the pages, Markdown."""
    own = {"groups": _groups(), "scene": _scene(), "clip": _clip()}
    return own | data_numbers_clipart.blocks()


def _groups() -> str:
    data = emoji.load(size=8)
    test = splits()["whole concepts"]
    rows = ["| group | emoji | concepts | train | test |", "|---|--:|--:|--:|--:|"]
    for group in [*dict.fromkeys(data.groups), None]:
        mine = np.array([group in (None, other) for other in data.groups])
        kinds = {c for c, inside in zip(data.concepts, mine, strict=True) if inside}
        cells = (mine.sum(), len(kinds), (mine & ~test).sum(), (mine & test).sum())
        row = [group or "all", *(f"{cell:,}" for cell in cells)]
        rows.append("| " + " | ".join(row if group else [f"**{c}**" for c in row]) + " |")
    return "\n".join(rows)


def _scene() -> str:
    scene = scene_at(EXAMPLE)
    rows = ["| | English | Chinese |", "|---|---|---|"]

    def add(what: str, english: str, chinese: str) -> None:
        rows.append(f"| {what} | {english} | {chinese} |")

    add("canonical caption", scenes.caption(scene), scenes.caption(scene, "zh"))
    for seed in range(2):
        words = [scenes.caption(scene, lang, "free", seed=seed) for lang in ("en", "zh")]
        add(f"free caption, seed {seed}", *words)
    for question in scenes.questions(scene, seed=0):
        add(
            f"question: {question.kind}",
            f"{question.text} *{question.answer}*",
            f"{question.text_zh} *{question.answer_zh}*",
        )
    return "\n".join(rows)


def _clip() -> str:
    said = [scenes.clip_caption(clip_at(CLIP), language) for language in ("en", "zh")]
    return f"| English | Chinese |\n|---|---|\n| {said[0]} | {said[1]} |"


def filled(text: str) -> str:
    """A page with today's numbers and generated parts.

    Raises:
        KeyError: if the page asks for a number or a part that does not exist.
    """
    values, parts = numbers(), blocks()
    text = NUMBER.sub(lambda match: values[match[1]], text)
    return BLOCK.sub(lambda match: f"{match[1]}\n{parts[match[2]]}\n\n{match[3]}", text)


def main() -> None:
    """Fill the pages in."""
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        page.write_text(new, encoding="utf-8")
        print(f"{page.name}: {'unchanged' if new == old else 'rewritten'}")


if __name__ == "__main__":
    main()

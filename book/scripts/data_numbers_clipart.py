"""The numbers and generated parts of the data page's section on the clip art.

`numbers` and `blocks` are computed from ``mmlib.data`` alone; ``book/scripts/data_page.py``
writes them into ``book/data.md``.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
from emoji_concepts import NEAR, distances

from mmlib.data import clipart, emoji

FILES = Path(clipart.__file__).parent / "files" / "clipart"
# Drawings whose titles show what had to be cleaned.
EXAMPLES = (
    "animals/bugs/farfalla_semplice_archit_01",
    "animals/bugs/bee",
    "computer/bb_pckg_",
    "food/desserts/glace_01_jean-victor_bal_01",
    "food/fruit/lemon_simple",
    "signs_and_symbols/clocks/clock03",
    "transportation/vehicles/_chevrolet_celebirt_",
    "unsorted/struzzo",
)


@cache
def measured() -> tuple[clipart.ClipartSet, np.ndarray, np.ndarray]:
    """The clip art, which of it is held out, and the distances of its pictures."""
    data = clipart.load(size=64, background=None)
    test = np.array([clipart.split_of(concept) == "test" for concept in data.concepts])
    return data, test, distances(data.images.permute(0, 2, 3, 1).numpy())


@cache
def numbers() -> dict[str, str]:
    """Every number of the section, as it is printed."""
    data, test, distance = measured()
    symbols = emoji.load(size=8)
    shared = set(data.concepts) & set(symbols.concepts)
    concepts = set(data.concepts)
    held = {concept for concept in concepts if clipart.split_of(concept) == "test"}
    seen = {c for c in symbols.concepts if clipart.split_of(c) == "train"}
    symbols_test = sum(clipart.split_of(concept) == "test" for concept in symbols.concepts)
    one_by_one = np.array([clipart.split_of(source) == "test" for source in data.sources])
    known = {c for c, t in zip(data.concepts, one_by_one, strict=True) if not t}
    leaked = [c in known for c, t in zip(data.concepts, one_by_one, strict=True) if t]
    near = distance < NEAR
    values = {
        "count": len(data),
        "train": int((~test).sum()),
        "test": int(test.sum()),
        "test_percent": 100 * test.mean(),
        "megabytes": sum(path.stat().st_size for path in FILES.iterdir()) / 1e6,
        "categories": len(set(data.categories)),
        "captions": len(set(data.names)),
        "most_alike": max(Counter(data.names).values()),
        "tags": np.mean([len(tags) for tags in data.tags]),
        "authors": len(set(data.authors) - {""}),
        "most_by_one": max(Counter(data.authors).values()),
        "concepts": len(concepts),
        "concepts_test": len(held),
        "concepts_test_percent": 100 * len(held) / len(concepts),
        "shared_concepts": len(shared),
        "shared": sum(concept in shared for concept in data.concepts),
        "in_emoji_train": len(held & seen),
        "joint": len(data) + len(symbols),
        "joint_test": int(test.sum()) + symbols_test,
        "near": f"{NEAR:.2f}",
        "pairs": int(near.sum()) // 2,
        "straddling": int((near & (test[:, None] != test[None])).sum()) // 2,
        "nearest": f"{distance[test][:, ~test].min():.3f}",
        "leaked_percent": 100 * np.mean(leaked),
        "people_test_percent": 100 * _share("people"),
        "buildings_test_percent": 100 * _share("buildings"),
    }
    return {f"clipart.{key}": _print(value) for key, value in values.items()}


def _share(category: str) -> float:
    data, test, _ = measured()
    return float(test[[other == category for other in data.categories]].mean())


def _print(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


@cache
def blocks() -> dict[str, str]:
    """The generated parts of the section, Markdown."""
    return {"clipart_categories": _categories(), "clipart_titles": _titles()}


def _categories() -> str:
    data, test, _ = measured()
    rows = ["| category | drawings | concepts | train | test |", "|---|--:|--:|--:|--:|"]
    for category in [*dict.fromkeys(data.categories), None]:
        mine = np.array([category in (None, other) for other in data.categories])
        kinds = {c for c, inside in zip(data.concepts, mine, strict=True) if inside}
        cells = (mine.sum(), len(kinds), (mine & ~test).sum(), (mine & test).sum())
        row = [category or "all", *(f"{cell:,}" for cell in cells)]
        rows.append("| " + " | ".join(row if category else [f"**{c}**" for c in row]) + " |")
    return "\n".join(rows)


def _titles() -> str:
    data = measured()[0]
    rows = ["| file | title as it came | caption | keywords |", "|---|---|---|---|"]
    for source in EXAMPLES:
        i = data.sources.index(source)
        name = source.split("/")[-1]
        rows.append(
            f"| `{name}` | {data.titles[i]} | {data.names[i]} | {', '.join(data.tags[i])} |"
        )
    return "\n".join(rows)

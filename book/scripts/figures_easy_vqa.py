"""Draw the figure of the section on easy-VQA: ``python book/scripts/figures_easy_vqa.py``.

A contact sheet as WebP. It has text, so it brings its own white page and is legible in light and
in dark; all is drawn from ``mmlib.data.easy_vqa`` and is the same on every run.
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from data_numbers_easy_vqa import sets
from PIL import Image

from mmlib.plotting import use_style

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def chosen(count: int) -> list[tuple[int, int]]:
    """Pick pictures evenly spread over the test set, and a question to each.

    Questions take turns: on the shape, on the colour, and one that is answered yes or no.
    """
    test = sets()[1]
    found = []
    for turn, image in enumerate(np.linspace(0, len(test.images) - 1, count).round().astype(int)):
        mine = (test.image_index == image).nonzero().flatten().tolist()
        answers = {i: test.answer_names[test.answers[i]] for i in mine}
        shapes = [i for i in mine if answers[i] in ("circle", "rectangle", "triangle")]
        yes_no = [i for i in mine if answers[i] in ("yes", "no")]
        colours = [i for i in mine if i not in shapes + yes_no]
        wanted = (shapes, yes_no, colours, yes_no)[turn % 4] or mine
        found.append((int(image), wanted[turn % len(wanted)]))
    return found


def easy_vqa_sheet(columns: int = 6, rows: int = 4) -> Image.Image:
    """Pictures of the test set, each with one question and its answer."""
    test = sets()[1]
    size = (1.55 * columns, 2.1 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="none")
    figure.set_facecolor("white")
    for axis, (image, question) in zip(axes.flat, chosen(columns * rows), strict=True):
        axis.imshow(test.images[image].permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.axis("off")
        words = test.questions[question].split()
        lines = [" ".join(words[: -(-len(words) // 2)]), " ".join(words[-(-len(words) // 2) :])]
        answer = test.answer_names[test.answers[question]]
        ink = dict(transform=axis.transAxes, ha="center", va="top", color="#1a1a1a", size=10)
        axis.text(0.5, -0.04, "\n".join(lines), linespacing=1.15, **ink)
        axis.text(0.5, -0.33, answer, weight="bold", **ink)
    figure.subplots_adjust(0.015, 0.075, 0.985, 0.995, wspace=0.22, hspace=0.46)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=144, facecolor="white")
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


FIGURES = {"data_easy_vqa_sheet.webp": easy_vqa_sheet}


def main() -> None:
    """Draw the figure into the book's assets."""
    use_style()
    for name, draw in FIGURES.items():
        path = ASSETS / name
        draw().save(path, "WEBP", method=6, lossless=True)
        print(f"{name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

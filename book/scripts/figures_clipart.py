"""Draw the figures of the data page's section on the clip art.

    python book/scripts/figures_clipart.py

All is drawn from ``mmlib.data.clipart`` and is the same on every run.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from figures_data import ASSETS, contact_sheet, pixels
from PIL import Image

from mmlib.data import clipart, emoji
from mmlib.plotting import COLOURS, INK_SOFT, to_svg, use_style

CARDS = (
    "animals/bugs/farfalla_semplice_archit_01",
    "food/fruit/apple_with_worm_dan_gerh_01",
    "recreation/music/drums_jarno_vasamaa_",
    "transportation/vehicles/vtt_02",
    "unsorted/spaventapasseri",
    "people/woman_reading_gerald_g._01",
)
SHARED = ("dog face", "tiger face", "balloon", "desktop computer", "guitar", "drum")


def clipart_sheet(columns: int = 14, size: int = 56) -> Image.Image:
    """One row a category: drawings of different concepts, evenly spaced through the category."""
    data = clipart.load(size=size)
    chosen = []
    for category in dict.fromkeys(data.categories):
        first_of = {}
        for i, concept in enumerate(data.concepts):
            if data.categories[i] == category:
                first_of.setdefault(concept, i)
        if len(first_of) >= columns:
            steps = np.linspace(0, len(first_of) - 1, columns).round().astype(int)
            chosen += [list(first_of.values())[step] for step in steps]
    return contact_sheet(pixels(data.images[chosen]), columns)


def clipart_cards(sources=CARDS) -> str:
    """Six drawings with what is known of them, and the titles that they came with."""
    data = clipart.load(size=96, background=None)
    figure, axes = plt.subplots(len(sources), 1, figsize=(6.4, 0.82 * len(sources)))
    for axis, source in zip(axes, sources, strict=True):
        i = data.sources.index(source)
        axis.imshow(pixels(data.images[i : i + 1])[0], extent=(0, 1, 0, 1))
        axis.set(xlim=(0, 8.2), ylim=(0, 1))
        axis.axis("off")
        axis.text(1.3, 0.66, data.names[i], weight="bold", size=11)
        axis.text(1.3, 0.36, ", ".join(data.tags[i][:5]), size=10)
        axis.text(1.3, 0.06, f"was: {data.titles[i]}", size=10, color=INK_SOFT)
        axis.text(8.2, 0.66, data.categories[i], size=10, color=INK_SOFT, ha="right")
    names = [data.names[data.sources.index(source)] for source in sources]
    alt = f"""Six drawings, each with its caption, its keywords, its category and the title that
    it came with: {"; ".join(names)}."""
    return to_svg(figure, alt)


def clipart_shared(names=SHARED) -> str:
    """Concepts that both data sets show, and the side of the split they are on."""
    drawn, symbols = clipart.load(size=48, background=None), emoji.load(size=48, background=None)
    figure, axes = plt.subplots(len(names), 1, figsize=(6.4, 0.66 * len(names)))
    for axis, name in zip(axes, names, strict=True):
        left = 3.6
        for data, most in ((drawn, 5), (symbols, 2)):
            members = [i for i, concept in enumerate(data.concepts) if concept == name]
            steps = np.linspace(0, len(members) - 1, min(most, len(members))).round().astype(int)
            for column, step in enumerate(steps):
                x = left + 1.1 * column
                axis.imshow(pixels(data.images[[members[step]]])[0], extent=(x, x + 1, 0, 1))
            left += 1.1 * most + 0.6
        axis.set(xlim=(0, 12.0), ylim=(0, 1))
        axis.axis("off")
        side = clipart.split_of(name)
        axis.text(0, 0.55, name, weight="bold", size=10.5)
        colour = COLOURS["orange"] if side == "test" else COLOURS["blue"]
        axis.text(0, 0.12, side, size=10, color=colour, weight="bold")
    alt = f"""Six concepts that both data sets show: {", ".join(names)}. In each row drawings come
    first and emoji last; the whole row is in the training or in the test set."""
    return to_svg(figure, alt)


FIGURES = {
    "data_clipart_sheet.webp": clipart_sheet,
    "data_clipart_cards.svg": clipart_cards,
    "data_clipart_shared.svg": clipart_shared,
}


def main() -> None:
    """Draw every figure into the book's assets."""
    use_style()
    for name, draw in FIGURES.items():
        art, path = draw(), ASSETS / name
        if isinstance(art, str):
            path.write_text(art, encoding="utf-8")
        else:
            art.save(path, "WEBP", method=6, quality=70)
        print(f"{name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""Draw the figures of the page on the data: ``python book/scripts/figures_data.py``.

Pictures are WebP with transparent gaps, so that they stand on light and dark pages alike;
what has text is SVG in the style of ``mmlib.plotting``. All is drawn from ``mmlib.data`` and
is the same on every run. ``book/scripts/data_page.py`` writes the numbers of the page.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from data_page import CLIP, EXAMPLE, clip_at, nearest_training, scene_at
from emoji_concepts import NEAR
from matplotlib.patches import Rectangle
from PIL import Image

from mmlib.data import emoji, scenes
from mmlib.plotting import COLOURS, INK, INK_SOFT, to_svg, use_style

ASSETS = Path(__file__).resolve().parents[1] / "assets"
GAP = 4


def pixels(images) -> np.ndarray:
    """Pictures (n, channels, height, width) of bytes or of floats as bytes (n, h, w, channels)."""
    array = images.permute(0, 2, 3, 1).numpy()
    return array if array.dtype == np.uint8 else np.round(array * 255).astype(np.uint8)


def contact_sheet(tiles: np.ndarray, columns: int) -> Image.Image:
    """Opaque pictures in rows, with transparent gaps between them."""
    side = tiles.shape[1]
    lines = -(-len(tiles) // columns)
    page = Image.new("RGBA", (columns * (side + GAP) - GAP, lines * (side + GAP) - GAP))
    for i, tile in enumerate(tiles):
        place = (i % columns * (side + GAP), i // columns * (side + GAP))
        page.paste(Image.fromarray(tile), place)
    return page


def emoji_sheet(columns: int = 14) -> Image.Image:
    """One row a group: emoji of different concepts, evenly spaced through the group."""
    data = emoji.load()
    chosen = []
    for group in dict.fromkeys(data.groups):
        first_of = {}
        for i, concept in enumerate(data.concepts):
            if data.groups[i] == group:
                first_of.setdefault(concept, i)
        if len(first_of) >= columns:
            steps = np.linspace(0, len(first_of) - 1, columns).round().astype(int)
            chosen += [list(first_of.values())[step] for step in steps]
    return contact_sheet(pixels(data.images[chosen]), columns)


def emoji_cards(codes=("1F989", "1F468-200D-1F33E", "1F35C", "1F680", "1F3BB", "262F-FE0F")) -> str:
    """Six emoji with what is known of them."""
    data = emoji.load(background=None)
    figure, axes = plt.subplots(len(codes), 1, figsize=(6.4, 0.82 * len(codes)))
    for axis, code in zip(axes, codes, strict=True):
        i = data.codes.index(code)
        axis.imshow(pixels(data.images[i : i + 1])[0], extent=(0, 1, 0, 1))
        axis.set(xlim=(0, 8.2), ylim=(0, 1))
        axis.axis("off")
        axis.text(1.3, 0.66, data.names[i], weight="bold", size=11)
        axis.text(1.3, 0.36, f"{data.names_zh[i]}   ({'、'.join(data.tags_zh[i][:4])})", size=10)
        axis.text(1.3, 0.06, ", ".join(data.tags[i][:5]), size=10, color=INK_SOFT)
        axis.text(8.2, 0.66, data.subgroups[i], size=10, color=INK_SOFT, ha="right")
    lines = [f"{data.names[i]}, {data.names_zh[i]}" for i in map(data.codes.index, codes)]
    alt = f"Six emoji, each with its English and Chinese name and keywords: {'; '.join(lines)}."
    return to_svg(figure, alt)


def emoji_alike(names=("clock face", "dog face", "person", "cloud", "heart", "book")) -> str:
    """Up to eight emoji of some concepts, and the side of the split they are on."""
    data = emoji.load(size=36, background=None)
    concept_of = dict(zip(data.names, data.concepts, strict=True))
    # A family that looks like another is part of its concept: clock faces are geometric shapes.
    names = [concept_of.get({"clock face": "one o’clock"}.get(name, name), name) for name in names]
    figure, axes = plt.subplots(len(names), 1, figsize=(6.4, 0.62 * len(names)))
    for axis, name in zip(axes, names, strict=True):
        members = [i for i, concept in enumerate(data.concepts) if concept == name]
        steps = np.linspace(0, len(members) - 1, min(8, len(members))).round().astype(int)
        for column, step in enumerate(steps):
            left = 3.6 + 1.1 * column
            picture = pixels(data.images[[members[step]]])[0]
            axis.imshow(picture, extent=(left, left + 1, 0, 1))
        axis.set(xlim=(0, 12.4), ylim=(0, 1))
        axis.axis("off")
        side = emoji.split_of(name)
        axis.text(0, 0.55, name, weight="bold", size=10.5)
        colour = COLOURS["orange"] if side == "test" else COLOURS["blue"]
        axis.text(0, 0.12, side, size=10, color=colour, weight="bold")
        axis.text(0.85, 0.12, f"{len(members)} emoji", size=10, color=INK_SOFT)
    alt = f"""Members of six concepts: {", ".join(names)}. Within a concept the pictures are
    near-duplicates: the same face with other hair and dress, the same heart in other colours.
    Each concept is as a whole in the training or in the test set."""
    return to_svg(figure, alt)


def emoji_nearest() -> str:
    """How near the nearest training picture is, if emoji or if concepts are held out."""
    figure, axis = plt.subplots(figsize=(6.4, 2.9))
    splits = nearest_training()
    styles = {"emoji one by one": ("orange", "--"), "whole concepts": ("blue", "-")}
    for label, (colour, line) in styles.items():
        values = np.sort(splits[label])
        share = 100 * np.arange(1, len(values) + 1) / len(values)
        axis.plot(values, share, color=COLOURS[colour], linestyle=line, label=label)
    axis.axvline(NEAR, color=INK, linewidth=1, linestyle=":")
    axis.text(NEAR + 0.006, 92, "near-duplicates to the left", size=9)
    axis.set(xlabel="distance to the nearest training picture", ylabel="% of test emoji")
    axis.set(xlim=(0, 0.6), ylim=(0, 100))
    axis.legend(title="held out", loc="lower right")
    leaked = 100 * (splits["emoji one by one"] < NEAR).mean()
    alt = f"""Cumulative share of the test emoji against the distance to their nearest training
    picture. When emoji are held out one by one, {leaked:.0f} per cent have a near-duplicate, at a
    distance below {NEAR:.2f}, in the training set; when whole concepts are, none has, and the
    whole curve lies farther right."""
    return to_svg(figure, alt)


def scenes_sheet() -> Image.Image:
    """Eight scenes of each number of objects, one number a row."""
    tiles = [
        pixels(scenes.render(scenes.sample(8, seed=number, objects=number, background="any"), 96))
        for number in range(1, scenes.MAX_OBJECTS + 1)
    ]
    return contact_sheet(np.concatenate(tiles), 8)


def scene_boxes() -> str:
    """The example scene with its boxes, numbered in reading order."""
    scene = scene_at(EXAMPLE)
    figure, axis = plt.subplots(figsize=(3.2, 3.2))
    axis.imshow(pixels(scenes.render(scene, 128))[0], extent=(0, 1, 1, 0))
    for number, (left, top, right, bottom) in enumerate(scenes.boxes(scene).tolist(), 1):
        frame = dict(fill=False, edgecolor="#ffffff", linewidth=1, linestyle=":")
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, **frame))
        axis.text(left + 0.01, top - 0.015, str(number), color="#ffffff", size=10)
    axis.axis("off")
    said = scenes.caption(scene)
    return to_svg(figure, f"A scene with a dotted box around each object: {said}.")


def scenes_pairs() -> str:
    """Every colour with every shape; the held-out pairs are framed."""
    held = scenes.DEFAULT_HOLDOUT.pairs
    figure, axis = plt.subplots(figsize=(5.2, 5.2))
    everything = [
        scenes.Scene((scenes.Object(shape, colour, "large", 0.5, 0.5),))
        for colour in scenes.COLOURS
        for shape in scenes.SHAPES
    ]
    tiles = pixels(scenes.render(everything, 64))[:, 8:-8, 8:-8]
    rows, columns = len(scenes.COLOURS), len(scenes.SHAPES)
    wall = tiles.reshape(rows, columns, 48, 48, 3).swapaxes(1, 2)
    wall = wall.reshape(rows * 48, -1, 3)
    axis.imshow(wall, extent=(0, columns, rows, 0))
    for row, colour in enumerate(scenes.COLOURS):
        for column, shape in enumerate(scenes.SHAPES):
            if (colour, shape) in held:
                place = (column + 0.08, row + 0.08)
                frame = dict(fill=False, edgecolor="#ffffff", linewidth=2)
                axis.add_patch(Rectangle(place, 0.84, 0.84, **frame))
    axis.set_xticks(np.arange(columns) + 0.5, scenes.SHAPES, rotation=30)
    axis.set_yticks(np.arange(rows) + 0.5, scenes.COLOURS)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    names = ", ".join(f"{colour} {shape}" for colour, shape in sorted(held))
    alt = f"""A table of every colour with every shape. One frame in each row and each column
    marks a pair that is held out of the training set: {names}."""
    return to_svg(figure, alt)


def clip_frames() -> Image.Image:
    """The frames of the example clip from left to right."""
    return contact_sheet(pixels(scenes.render_clip(clip_at(CLIP), frames=8, size=96)[0]), 8)


FIGURES = {
    "data_emoji_sheet.webp": emoji_sheet,
    "data_emoji_cards.svg": emoji_cards,
    "data_emoji_alike.svg": emoji_alike,
    "data_emoji_nearest.svg": emoji_nearest,
    "data_scenes_sheet.webp": scenes_sheet,
    "data_scene_boxes.svg": scene_boxes,
    "data_scenes_pairs.svg": scenes_pairs,
    "data_clip_frames.webp": clip_frames,
}


def main() -> None:
    """Draw every figure into the book's assets."""
    use_style()
    for name, draw in FIGURES.items():
        art = draw()
        path = ASSETS / name
        if isinstance(art, str):
            path.write_text(art, encoding="utf-8")
        else:
            lossy = dict(quality=85) if "emoji" in name else dict(lossless=True)
            art.save(path, "WEBP", method=6, **lossy)
        print(f"{name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""Draw the figures of the front pages: ``python book/scripts/figures_front.py [--check]``.

Plain SVG, written by hand: boxes, arrows and text that stays text. The drawings are 340 units
wide, so that on a phone, where a figure has some 320 pixels, their smallest letters are still 11
pixels high. Ink and paper are the four colours of ``mmlib.plotting`` that the book swaps in dark
mode; the others are its data colours, as outlines and as pale fills that let the paper through.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

from mmlib.plotting import COLOURS, GRID, INK, INK_SOFT, PAPER

ASSETS = Path(__file__).resolve().parents[1] / "assets"
FONTS = "system-ui, 'Helvetica Neue', Arial, 'Noto Sans CJK SC', 'PingFang SC', sans-serif"
LEFT, WIDTH = 10, 340


class Drawing:
    """An SVG that grows by one element a call. Its corners are (10, 0) and (350, ``height``)."""

    def __init__(self, height: int, alt: str) -> None:
        self.height, self.alt, self.parts = height, " ".join(alt.split()), []

    def box(self, x, y, width, height, colour=INK_SOFT, fill=None, opacity=0.14, radius=6) -> None:
        """A rounded rectangle, filled with a pale shade of its colour unless told otherwise."""
        style = f"stroke: {colour}; stroke-width: 1.3; fill: {fill or colour}"
        style += f"; fill-opacity: {opacity if fill is None else 1}"
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" '
            f'style="{style}"/>'
        )

    def text(self, x, y, words, size=13, colour=INK, weight=400, anchor="middle") -> None:
        """One line of text; ``y`` is its base line."""
        style = f"fill: {colour}; font-size: {size}px; font-weight: {weight}"
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" style="{style}">'
            f"{escape(words)}</text>"
        )

    def chips(self, x, y, chapters) -> None:
        """Chapter numbers in a row of small frames, centred on ``x``."""
        left = x - (len(chapters) * 26 - 4) / 2
        for i, chapter in enumerate(chapters):
            self.box(left + 26 * i, y, 22, 16, INK_SOFT, fill=PAPER, radius=8)
            self.text(left + 26 * i + 11, y + 12.4, f"{chapter:02d}", 12, INK, 600)

    def arrow(self, x, top, bottom) -> None:
        """A vertical arrow that points down."""
        style = f"stroke: {INK_SOFT}; stroke-width: 1.5; fill: none"
        self.parts.append(f'<path d="M{x:g} {top:g}V{bottom - 5:g}" style="{style}"/>')
        head = f"M{x - 4:g} {bottom - 6:g}h8l-4 6z"
        self.parts.append(f'<path d="{head}" style="fill: {INK_SOFT}"/>')

    def svg(self, width: int = 460) -> str:
        """The document; ``width`` is its size on a wide page, in pixels."""
        alt = escape(self.alt, quote=True)
        height = round(self.height * width / WIDTH)
        # The book's style sheet gives figures a least width; these are drawn to do without it.
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{alt}" '
            f'width="{width}" height="{height}" viewBox="{LEFT} 0 {WIDTH} {self.height}" '
            f'style="font-family: {FONTS}; min-width: 0">'
        )
        paper = f'<rect x="{LEFT}" width="{WIDTH}" height="{self.height}" style="fill: {PAPER}"/>'
        lines = [opening, f"<title>{escape(self.alt)}</title>", paper, *self.parts, "</svg>"]
        return "\n".join(lines) + "\n"


def system() -> str:
    """The whole system, with the chapter of each part."""
    art = Drawing(
        636,
        """The full system, from top to bottom. Image, text, audio and video each pass through an
        encoder of their own: chapters 7 and 10 for images, 3 and 10 for text, 12 for audio and
        video.
        The encoders are aligned with each other in chapters 5 and 6. All of them give tokens,
        which are joined in one sequence, chapter 4, and read by one Transformer, chapters 1, 2,
        3 and 12. It writes text, chapters 8 and 13, pictures, chapters 9 and 11, and sound,
        chapter 12. Below, applications, chapter 14, deployment, chapter 15, and the full system,
        chapter 16.""",
    )
    modalities = [
        ("image", "blue", [7, 10]),
        ("text", "orange", [3, 10]),
        ("audio", "green", [12]),
        ("video", "pink", [12]),
    ]
    centres = [52 + 85.4 * i for i in range(4)]

    for x, (name, colour, chapters) in zip(centres, modalities, strict=True):
        stroke = COLOURS[colour]
        art.box(x - 39, 10, 78, 30, stroke)
        art.text(x, 30, name, 14, weight=600)
        art.arrow(x, 42, 60)
        art.box(x - 39, 61, 78, 52, stroke, fill=PAPER)
        art.text(x, 80, "encoder", 13)
        art.chips(x, 88, chapters)
        art.arrow(x, 114, 180)

    # What holds the encoders together lies across their arrows.
    art.box(14, 128, 332, 30, INK_SOFT, fill=PAPER)
    art.text(26, 147.5, "aligned: what belongs together is near", 13, anchor="start")
    art.chips(317, 135, [5, 6])

    # Tokens, in the colour of the modality they come from.
    x = 21.0
    for count, (_, colour, _) in zip((4, 5, 4, 4), modalities, strict=True):
        for _ in range(count):
            art.box(x, 184, 16, 22, COLOURS[colour], opacity=0.32, radius=3)
            x += 18.8
    art.text(14, 226, "tokens of all kinds in one sequence", 13, anchor="start")
    art.chips(330, 214, [4])
    art.arrow(180, 234, 254)

    art.box(14, 255, 332, 158, INK, opacity=0.05)
    art.text(180, 279, "one Transformer", 16, weight=700)
    rows = (
        ("attention: which token looks at which", [1]),
        ("blocks, encoder, decoder, decoding", [2]),
        ("pre-training without labels", [3]),
        ("several modalities at once", [12]),
    )
    for i, (words, chapters) in enumerate(rows):
        labelled_row(art, 24, 290 + 30 * i, 312, words, chapters)

    outputs = [
        ("text", "captions, replies", "orange", [8, 13]),
        ("pictures", "token by token", "blue", [9, 11]),
        ("sound", "from spectra", "green", [12]),
    ]
    for x, (name, what, colour, chapters) in zip((66.5, 180, 293.5), outputs, strict=True):
        art.arrow(x, 414, 434)
        art.box(x - 52.5, 435, 105, 68, COLOURS[colour])
        art.text(x, 454, name, 14, weight=600)
        art.text(x, 471, what, 12)
        art.chips(x, 479, chapters)

    art.text(14, 530, "Around it", 13, INK_SOFT, anchor="start")
    labelled_row(art, 14, 538, 332, "applications with metrics and baselines", [14])
    labelled_row(art, 14, 568, 332, "deployment: small, fast, behind a URL", [15])
    labelled_row(art, 14, 598, 332, "the full system, trained in one command", [16])
    return art.svg(480)


def labelled_row(art: Drawing, x, y, width, words, chapters) -> None:
    """A line of text in a frame, with its chapter at the right."""
    art.box(x, y, width, 25, GRID, fill=PAPER, radius=4)
    art.text(x + 9, y + 17, words, 13, anchor="start")
    art.chips(x + width - 18, y + 4.5, chapters)


def masks() -> str:
    """A causal mask, a padding mask and both together, as tables of keep and drop."""
    art = Drawing(
        172,
        """Three masks for one query per row and one key per column, four of each; a filled cell
        is kept. Causal: query i keeps keys 1 to i, a lower triangle. Padding, for a sequence of
        length three: the first three columns are kept in every row. Both: the lower triangle
        without its last column.""",
    )
    causal = [[j <= i for j in range(4)] for i in range(4)]
    padding = [[j < 3 for j in range(4)] for _ in range(4)]
    both = [[causal[i][j] and padding[i][j] for j in range(4)] for i in range(4)]
    tables = {"causal": causal, "padding": padding, "both (&)": both}
    for number, (name, keep) in enumerate(tables.items()):
        left = 26 + 118 * number
        art.text(left + 42, 20, name, 14, weight=600)
        art.text(left + 42, 38, "keys →", 12, INK_SOFT)
        for i, row in enumerate(keep):
            art.text(left - 5, 61 + 21 * i, str(i + 1), 12, INK_SOFT, anchor="end")
            for j, kept in enumerate(row):
                cell(art, left + 21 * j, 46 + 21 * i, kept)
    cell(art, 26, 146, True)
    art.text(52, 160, "True: attend", 13, anchor="start")
    cell(art, 144, 146, False)
    art.text(170, 160, "False: no influence at all", 13, anchor="start")
    return art.svg(460)


def cell(art: Drawing, x, y, kept: bool) -> None:
    """One cell of a mask."""
    art.box(x, y, 19, 19, COLOURS["blue"] if kept else GRID, opacity=0.75 * kept, radius=3)


def shapes() -> str:
    """How one tensor of tokens is cut into heads."""
    art = Drawing(
        198,
        """Splitting into heads. On the left one sequence of five tokens, a table of length times
        dim with six columns. On the right three tables of length times head_dim, two columns
        each, in three colours: the columns of the left table, one block per head.""",
    )
    colours = [COLOURS[name] for name in ("blue", "orange", "green")]
    for row in range(5):
        for column in range(6):
            head, inner = divmod(column, 2)
            for left in (58 + 17 * column, 206 + 52 * head + 17 * inner):
                art.box(left, 30 + 17 * row, 15, 15, colours[head], opacity=0.35, radius=2)
    art.text(108, 20, "dim = 6", 13)
    art.text(50, 77, "length", 13, anchor="end")
    art.text(183, 77, "→", 20, INK_SOFT)
    for head in range(3):
        art.text(222 + 52 * head, 20, f"head {head + 1}", 13)
    art.text(180, 141, "(batch, length, dim)  →", 13, weight=600)
    art.text(180, 159, "(batch, heads, length, head_dim)", 13, weight=600)
    art.text(180, 185, "head_dim = dim / heads = 6 / 3 = 2", 12, INK_SOFT)
    return art.svg(460)


FIGURES = {"system.svg": system, "masks.svg": masks, "shapes.svg": shapes}


def main(arguments: list[str] | None = None) -> int:
    """Write the figures, or with ``--check`` say which of the stored ones differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args(arguments).check
    wrong = []
    for name, draw in FIGURES.items():
        path, svg = ASSETS / name, draw()
        if not check:
            path.write_text(svg, encoding="utf8")
        elif not path.exists() or path.read_text(encoding="utf8") != svg:
            wrong.append(name)
    if wrong:
        print(f"run book/scripts/figures_front.py: {', '.join(wrong)} would change")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

"""One style for the book's figures, readable in light and in dark.

A figure is shown as one SVG whose text stays text: it is small, sharp on every screen, and can
be searched and read aloud. Four fixed colours stand for ink and paper; the book inlines the SVG
and swaps just these four when the page is dark, so that a figure is stored once. Elsewhere
(Jupyter, Colab) the figure keeps its paper and reads as it is.

Data colours are those of Okabe and Ito, chosen to be told apart by colour-blind readers, with the
yellow darkened and the black left to the ink; all have a contrast of at least 2.3 against both
papers.
"""

import html
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "DIVERGING",
    "GRID",
    "INK",
    "INK_SOFT",
    "PAPER",
    "SEQUENTIAL",
    "heatmap",
    "show",
    "to_svg",
    "use_style",
]

INK = "#1d2733"
INK_SOFT = "#5b6875"
GRID = "#d5dbe1"
PAPER = "#fdfdfc"

#: Categorical colours, in the order in which matplotlib uses them.
COLOURS = {
    "blue": "#2a7fbf",
    "orange": "#d9722b",
    "green": "#1f9d7a",
    "pink": "#c36a9c",
    "gold": "#b8911c",
    "sky": "#5aa9d6",
    "grey": "#7d8791",
}

#: For quantities from nothing to much. It starts at a mid-tone-free light blue, not at white, so
#: that an empty cell differs from the paper.
SEQUENTIAL = LinearSegmentedColormap.from_list(
    "mmlib_sequential", ["#eef3f7", "#9cc7e3", "#2a7fbf", "#143a5e"]
)
#: For signed quantities around zero.
DIVERGING = LinearSegmentedColormap.from_list(
    "mmlib_diverging", ["#8a3d0f", "#d9722b", "#f3f1ee", "#2a7fbf", "#143a5e"]
)

_STYLE = {
    "figure.facecolor": PAPER,
    "figure.dpi": 100,
    "figure.figsize": (6.4, 3.4),
    "figure.constrained_layout.use": True,
    "savefig.facecolor": PAPER,
    "axes.facecolor": "none",
    "axes.edgecolor": INK_SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=list(COLOURS.values())),
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK_SOFT,
    "ytick.color": INK_SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.9,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "image.cmap": "mmlib_sequential",
    "image.interpolation": "none",  # pixels stay pixels: the browser enlarges them unsmoothed
    "svg.fonttype": "none",
    "svg.hashsalt": "mmlib",
}


def use_style() -> None:
    """Set the book's style for every matplotlib figure that follows."""
    for colour_map in (SEQUENTIAL, DIVERGING):
        if colour_map.name not in matplotlib.colormaps:
            matplotlib.colormaps.register(colour_map)
    matplotlib.rcParams.update(_STYLE)


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` in the notebook as an SVG that carries ``alt``, and close it.

    Args:
        figure: What to show.
        alt: What the picture says, in a sentence or two, for readers who cannot see it.

    Raises:
        ValueError: ``alt`` is shorter than 20 characters: no picture is described by so little.
    """
    from IPython.display import SVG, display

    display(SVG(to_svg(figure, alt)))


def to_svg(figure: Figure, alt: str) -> str:
    """Return ``figure`` as compact SVG text with ``alt`` as its title, and close it.

    The same figure gives the same bytes on every run.

    Raises:
        ValueError: ``alt`` is shorter than 20 characters.
    """
    if len(alt.strip()) < 20:
        raise ValueError(f"alt must describe the figure in a sentence: got {alt!r}")
    buffer = io.StringIO()
    with _without_glyph_warnings():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return _compact(buffer.getvalue(), " ".join(alt.split()))


def heatmap(axes, values, rows, columns, *, write: str | None = "{:.2f}", cmap=SEQUENTIAL, **kw):
    """Draw a small matrix with its row and column names and, if wanted, its numbers.

    Args:
        axes: Where to draw.
        values: Matrix of numbers, tensor or array.
        rows: Names of the rows, or None for none.
        columns: Names of the columns, or None for none.
        write: Format of the numbers in the cells, or None for no numbers.
        cmap: Colour map.
        **kw: Passed on to ``imshow``, for example ``vmin`` and ``vmax``.

    Returns:
        The image, for a colour bar.

    Raises:
        ValueError: ``values`` is not a matrix.
    """
    values = values.detach().float().cpu().numpy() if hasattr(values, "detach") else values
    if values.ndim != 2:
        raise ValueError(f"values must be a matrix: got shape {tuple(values.shape)}")
    picture = axes.imshow(values, cmap=cmap, **kw)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(values.shape[1]), [""] * values.shape[1] if columns is None else columns)
    axes.set_yticks(range(values.shape[0]), [""] * values.shape[0] if rows is None else rows)
    if write is not None:
        for (row, column), value in _cells(values):
            shade = picture.cmap(picture.norm(value))[:3]
            # Cells keep their colours on a dark page, so their numbers must keep theirs: these
            # two are near the ink and the paper, and are not swapped.
            dark_cell = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.55
            colour = "#ffffff" if dark_cell else "#101820"
            axes.text(
                column, row, write.format(value), ha="center", va="center", color=colour, size=9
            )
    return picture


def _cells(values) -> Iterator[tuple[tuple[int, int], float]]:
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            yield (row, column), values[row, column]


@contextmanager
def _without_glyph_warnings() -> Iterator[None]:
    """Text stays text in the SVG, and the reader's browser has the glyphs that this font lacks."""
    import warnings

    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        try:
            yield
        finally:
            logger.setLevel(level)


def _compact(svg: str, alt: str) -> str:
    """Strip what no browser needs, name the picture for those who cannot see it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Coordinates stand inside tags; what stands between them is text, such as the tick "0.125".
    svg = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    # Text takes a sans-serif font of the page's system, with those that have Chinese behind it.
    fonts = "system-ui, 'Helvetica Neue', Arial, 'Noto Sans CJK SC', 'PingFang SC', sans-serif"
    svg = re.sub(r" font-family:[^;\"]*;", "", svg)
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font-size: \1", svg)
    label = html.escape(alt, quote=True)
    opening = f'<svg role="img" aria-label="{label}" style="font-family: {fonts}" '
    svg = svg.replace("<svg ", opening, 1)
    return re.sub(r"(<svg[^>]*>)", rf"\1\n<title>{html.escape(alt)}</title>", svg, count=1)

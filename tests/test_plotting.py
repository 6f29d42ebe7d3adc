"""Figures are compact SVG that says what it shows and that the book can recolour."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402

from mmlib import plotting  # noqa: E402

ALT = "Two rising lines, one steeper & taller than the <other>."


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plotting.use_style()
        yield
    plt.close("all")


def lines():
    figure, axis = plt.subplots(figsize=(3, 2))
    axis.plot([0, 1, 2], [0, 1, 4])
    axis.plot([0, 1, 2], [0, 2, 8])
    axis.set_title("Rising")
    axis.set_xlabel("红色")
    return figure


def test_svg_is_valid_named_and_text_stays_text():
    svg = plotting.to_svg(lines(), ALT)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img" and root.get("aria-label") == ALT
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text == ALT
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Rising" in texts and "红色" in texts


def test_the_same_figure_gives_the_same_bytes():
    assert plotting.to_svg(lines(), ALT) == plotting.to_svg(lines(), ALT)


def test_only_the_four_fixed_colours_stand_for_ink_and_paper():
    """The book swaps these in dark mode; black or white of matplotlib's own would stay."""
    svg = plotting.to_svg(lines(), ALT)
    assert plotting.INK in svg and plotting.PAPER in svg and plotting.GRID in svg
    assert "#000000" not in svg and "#ffffff" not in svg


def test_chinese_labels_give_no_warning(recwarn):
    plotting.to_svg(lines(), ALT)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.mark.parametrize("alt", ["", "   ", "a plot"])
def test_a_figure_without_a_description_is_refused(alt):
    with pytest.raises(ValueError, match="alt must describe the figure"):
        plotting.to_svg(lines(), alt)


def test_figures_are_closed_when_shown():
    figure = lines()
    plotting.to_svg(figure, ALT)
    assert not plt.fignum_exists(figure.number)


def test_heatmap_writes_numbers_that_can_be_read_on_their_cells():
    figure, axis = plt.subplots()
    values = torch.tensor([[0.0, 0.5, 1.0]])
    picture = plotting.heatmap(axis, values, ["row"], list("abc"), vmin=0, vmax=1)
    assert [text.get_text() for text in axis.texts] == ["0.00", "0.50", "1.00"]
    for text, value in zip(axis.texts, values[0].tolist(), strict=True):
        cell = picture.cmap(picture.norm(value))[:3]
        assert contrast(to_rgb(text.get_color()), cell) > 3.5


def test_heatmap_names_a_bad_shape():
    _, axis = plt.subplots()
    with pytest.raises(ValueError, match=r"values must be a matrix: got shape \(3,\)"):
        plotting.heatmap(axis, torch.zeros(3), None, None)


def luminance(rgb):
    rgb = np.asarray(rgb, dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    """Contrast ratio as WCAG 2 defines it."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_ink_is_readable_on_paper():
    assert contrast(to_rgb(plotting.INK), to_rgb(plotting.PAPER)) > 7
    assert contrast(to_rgb(plotting.INK_SOFT), to_rgb(plotting.PAPER)) > 4.5


DARK_PAPER = "#14181e"


@pytest.mark.parametrize("name", plotting.COLOURS)
def test_data_colours_stand_out_on_light_and_on_dark_paper(name):
    colour = to_rgb(plotting.COLOURS[name])
    assert contrast(colour, to_rgb(plotting.PAPER)) > 2.3
    assert contrast(colour, to_rgb(DARK_PAPER)) > 3


# Simulation of full colour blindness in linear RGB: Machado, Oliveira, Fernandes, *A
# Physiologically-based Model for Simulation of Color Vision Deficiency*, 2009, severity 1.
SIGHT = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "normal": np.eye(3).tolist(),
}


def lab(rgb, sight):
    """CIELAB of a colour as somebody with this sight sees it (D65)."""
    rgb = np.asarray(rgb, dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(SIGHT[sight]) @ linear, 0, 1)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    x, y, z = np.asarray(to_xyz) @ linear / [0.95047, 1.0, 1.08883]
    f = [v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_the_first_colours_can_be_told_apart_by_everyone(sight):
    """The first four, which most figures use; a difference of 10 in CIELAB is plain to see."""
    first = [lab(to_rgb(colour), sight) for colour in list(plotting.COLOURS.values())[:4]]
    for one, other in itertools.combinations(first, 2):
        assert np.linalg.norm(one - other) > 10


def test_only_coordinates_lose_decimals():
    fig, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0.123456, 1], [0, 1])
    ax.text(0.5, 0.5, "0.125 of 0.0071")
    svg = plotting.to_svg(fig, ALT)
    assert "0.125 of 0.0071" in svg
    tags = "".join(re.findall(r"<[^>]+>", svg))
    assert re.search(r"\d\.\d{2}\b", tags)
    assert not re.search(r"\d\.\d{3}", tags)

"""SVG figures become part of the page, so that they follow dark mode and the page's font.

A figure in an ``<img>`` cannot see the page's style sheet. Inlined, its four fixed colours
(those of ``mmlib.plotting``) turn into CSS variables that dark mode redefines, and its text
takes the book's sans-serif font.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
HREFS = ("href", f"{{{XLINK}}}href")
# The book's figure colours, as mmlib.plotting writes them, and the variables of book.css.
COLOURS = {
    "#1d2733": "--figure-ink",
    "#5b6875": "--figure-ink-soft",
    "#d5dbe1": "--figure-grid",
    "#fdfdfc": "--figure-paper",
}
# Presentation attributes that can hold a colour.
PAINTED = ("fill", "stroke", "stop-color", "color")

ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)


def recolour(value: str) -> str:
    """Turn the book's fixed colours in a style into variables, the fixed colour as fallback.

    >>> recolour("fill: #1D2733; stroke: red")
    'fill: var(--figure-ink, #1d2733); stroke: red'
    """
    for colour, variable in COLOURS.items():
        value = re.sub(
            re.escape(colour) + r"(?![0-9a-fA-F])", f"var({variable}, {colour})", value, flags=re.I
        )
    return value


def inline(svg: str, prefix: str, alt: str = "") -> str:
    """Prepare one SVG document to stand inside an HTML page.

    Args:
        svg: The document.
        prefix: Put before every id, so that two figures of a page never share one.
        alt: The text alternative, used where the document has none of its own.

    Returns:
        An ``<svg>`` element with ``role="img"`` and a label.

    Raises:
        ValueError: If the text is no SVG document.
    """
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(f"not an SVG document: {error}") from error
    if root.tag != f"{{{SVG}}}svg":
        raise ValueError(f"not an SVG document: the root is <{root.tag}>")

    # Metadata and matplotlib's global `*{…}` rule would leak out of the figure.
    for parent in list(root.iter()):
        for child in list(parent):
            name = child.tag.rsplit("}", 1)[-1] if isinstance(child.tag, str) else ""
            if name in ("metadata", "script"):
                parent.remove(child)
            elif name == "style":
                child.text = scope(child.text or "", f"#{prefix}")

    taken: set[str] = set()
    for element in root.iter():
        if (name := element.get("id")) in taken:
            del element.attrib["id"]  # matplotlib names a picture by its pixels, drawn twice or not
        elif name is not None:
            taken.add(name)
            element.set("id", f"{prefix}-{name}")
        for href in HREFS:
            if element.get(href, "").startswith("#"):
                element.set(href, f"#{prefix}-{element.get(href)[1:]}")
        for name in ("aria-labelledby", "aria-describedby"):
            if name in element.attrib:
                ids = element.get(name, "").split()
                element.set(name, " ".join(f"{prefix}-{one}" for one in ids))
        styles = [element.get("style", "").rstrip("; ")]
        for name in PAINTED:
            if element.get(name, "").lower() in COLOURS:
                styles.append(f"{name}: {element.attrib.pop(name)}")
        if style := recolour("; ".join(filter(None, styles))):
            element.set("style", style)
        for name, value in element.attrib.items():
            if "url(#" in value:
                element.set(name, value.replace("url(#", f"url(#{prefix}-"))

    title = root.find(f"{{{SVG}}}title")
    label = root.get("aria-label") or (title.text if title is not None else "") or alt
    root.set("id", prefix)
    root.set("role", "img")
    if label and "aria-labelledby" not in root.attrib:
        root.set("aria-label", " ".join(label.split()))
    width, height = (length(root.get(name, "")) for name in ("width", "height"))
    if "viewBox" not in root.attrib and width and height:
        root.set("viewBox", f"0 0 {width:g} {height:g}")
    # Its own width at most, the page's width at least: the style sheet does the rest.
    if width:
        root.set("style", f"--figure-width: {width:g}px; {root.get('style', '')}".strip("; "))
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    return ElementTree.tostring(root, encoding="unicode")


def length(text: str) -> float:
    """A length of an SVG document in CSS pixels; 0 when there is none.

    >>> length("72pt"), length("10"), length("100%")
    (96.0, 10.0, 0.0)
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*(px|pt|in|cm|mm)?\s*", text)
    if not match:
        return 0.0
    scale = {"pt": 96 / 72, "in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4}
    return float(match[1]) * scale.get(match[2] or "px", 1.0)


def scope(css: str, selector: str) -> str:
    """Hold every rule of a small style sheet to one figure.

    >>> scope("*{stroke-linecap: butt} .a, .b{fill: red}", "#f")
    '#f *{stroke-linecap: butt} #f .a, #f .b{fill: red}'
    """

    def one(match: re.Match[str]) -> str:
        names = (f"{selector} {name.strip()}" for name in match[2].split(","))
        return f"{match[1]}{', '.join(names)}{{{recolour(match[3])}}}"

    return re.sub(r"(\s*)([^{}]+)\{([^{}]*)\}", one, css)


class InlineFigures(SphinxPostTransform):
    """Replace every SVG image of a page by the drawing itself."""

    # After myst-nb has chosen among a cell's outputs (4), before images are collected.
    default_priority = 250
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        """Inline the images of one page."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.env.docname.lower()).strip("-")
        for count, image in enumerate(list(self.document.findall(nodes.image)), 1):
            uri = image.get("uri", "")
            path = Path(self.env.srcdir) / uri
            if not uri.endswith(".svg") or not path.is_file() or "no-inline" in image["classes"]:
                continue
            try:
                drawing = inline(path.read_text("utf8"), f"{slug}-{count}", image.get("alt", ""))
            except ValueError as error:
                logger.warning("%s: %s", uri, error, location=image)
                continue
            if "aria-label" not in drawing.split(">", 1)[0]:
                logger.warning("%s has no alt text", uri, location=image)
            classes = " ".join(["drawing", *image["classes"]])
            width = f' style="width: {image["width"]}"' if "width" in image else ""
            html = f'<div class="{classes}"{width}>{drawing}</div>'
            image.replace_self(nodes.raw("", html, format="html"))


def register(app: Sphinx) -> None:
    """Add the transform."""
    app.add_post_transform(InlineFigures)

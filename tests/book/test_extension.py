"""The book's own Sphinx extension, part by part."""

import doctest
import json
import sys
from xml.etree import ElementTree

import pytest
from common import ROOT

sys.path.append(str(ROOT / "book" / "extension"))

from mmbook import figures, ledger, references, site  # noqa: E402

SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 width="72pt" height="36pt"><title>A line</title><metadata>noise</metadata>
 <defs><style>*{stroke-linecap: butt}</style><clipPath id="p1"><rect/></clipPath>
 <path id="m" d="M0 0"/></defs>
 <g clip-path="url(#p1)"><use xlink:href="#m" style="fill: #1D2733; stroke: #2a7fbf"/>
 <rect fill="#fdfdfc"/></g></svg>"""


@pytest.mark.parametrize("module", [figures, ledger, references, site])
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_an_inlined_figure_keeps_its_references_and_shares_no_id():
    root = ElementTree.fromstring(figures.inline(SVG, "page-1"))
    text = ElementTree.tostring(root, encoding="unicode")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert ids == ["page-1", "page-1-p1", "page-1-m"]
    assert 'clip-path="url(#page-1-p1)"' in text
    assert 'href="#page-1-m"' in text
    assert "noise" not in text


def test_an_inlined_figure_is_named_and_sized():
    root = ElementTree.fromstring(figures.inline(SVG, "page-1", alt="not needed"))
    assert root.get("role") == "img"
    assert root.get("aria-label") == "A line"
    assert root.get("viewBox") == "0 0 96 48"
    assert root.get("width") is None
    assert "--figure-width: 96px" in root.get("style")
    untitled = SVG.replace("<title>A line</title>", "")
    assert ElementTree.fromstring(figures.inline(untitled, "p", alt="A dot")).get("aria-label") == (
        "A dot"
    )


def test_ink_and_paper_become_variables_and_data_colours_stay():
    text = figures.inline(SVG, "page-1")
    assert "fill: var(--figure-ink, #1d2733); stroke: #2a7fbf" in text
    assert 'style="fill: var(--figure-paper, #fdfdfc)"' in text
    assert "#page-1 *{stroke-linecap: butt}" in text


def test_the_colours_are_those_of_the_library_and_of_the_style_sheet():
    from mmlib import plotting

    css = (ROOT / "book" / "assets" / "static" / "book.css").read_text("utf8")
    light = css.split('html[data-theme="dark"] {')[0]
    assert set(figures.COLOURS) == {
        plotting.INK, plotting.INK_SOFT, plotting.GRID, plotting.PAPER
    }  # fmt: skip
    for colour, variable in figures.COLOURS.items():
        assert f"{variable}: {colour};" in light
        assert css.count(f"{variable}: #") == 2, "one value for light and one for dark"


@pytest.mark.parametrize("text", ["", "<svg", "<p>not a drawing</p>", "<svg></svg>"])
def test_something_else_than_a_drawing_is_refused(text):
    with pytest.raises(ValueError, match="not an SVG document"):
        figures.inline(text, "page-1")


def test_the_ledger_reads_chapters_in_order_and_skips_empty_ones(tmp_path):
    (tmp_path / "02.json").write_text(json.dumps([{"id": "02.b"}, {"id": "02.a"}]))
    (tmp_path / "01.json").write_text(json.dumps([{"id": "01.a"}]))
    (tmp_path / "03.json").write_text("[]")
    rows = ledger.read(tmp_path)
    assert list(rows) == ["01", "02"]
    assert [row["id"] for row in rows["02"]] == ["02.a", "02.b"]
    assert ledger.read(tmp_path / "missing") == {}


def test_the_run_of_a_row_says_what_it_was_measured_with():
    row = {
        "origin": "train",
        "machine": "2 cores",
        "versions": {"python": "3.11.7", "torch": "2.6"},
        "date": "2026-11-22T01:02:03+00:00",
    }
    assert ledger.run_of(row) == "make train; 2 cores; python 3.11.7; torch 2.6; 2026-11-22"


def test_an_address_that_is_no_repository_is_refused():
    with pytest.raises(site.ExtensionError, match="owner/name"):
        site.pages_address("https://example.org")


def test_a_picture_that_is_drawn_twice_has_its_id_once():
    image = '<image id="image12" width="1" height="1" href="data:,"/>'
    drawn = figures.inline(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1">{image}{image}</svg>',
        "fig-1",
        "The same picture twice.",
    )
    assert drawn.count("<image") == 2
    assert drawn.count('id="fig-1-image12"') == 1

"""The built book: every page is there, is complete in itself, and can be found and read."""

import os
import pkgutil
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from common import ROOT, toc_files

import mmlib

sys.path.append(str(ROOT / "book" / "extension"))

from mmbook import references  # noqa: E402

# Attributes through which a page loads something, by element. A plain link loads nothing.
LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "input": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
# Links of a page's head that only name another page.
NAMES_ONLY = {"canonical", "next", "prev", "search", "index", "author", "copyright", "license"}
EXTERNAL = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
CSS_LOAD = re.compile(
    r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^"')\s]+)""", re.IGNORECASE
)


class Page(HTMLParser):
    """What one page loads, links to, and shows."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str]] = []
        self.drawings: list[dict[str, str]] = []
        self.css: list[str] = []
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sort one element by what it does."""
        found = {name: value or "" for name, value in attrs}
        self.loads += [found[name] for name in LOADS.get(tag, ()) if found.get(name)]
        if tag == "link" and not NAMES_ONLY & set(found.get("rel", "").split()):
            self.loads.append(found.get("href", ""))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "img":
            self.images.append(found)
        if tag == "svg":
            self.drawings.append(found)
        if "id" in found:
            self.ids.append(found["id"])
        self.css.append(found.get("style", ""))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        """Keep what stands in a style sheet."""
        if self._style:
            self.css.append(data)

    def external(self) -> list[str]:
        """Every address outside the book that the page would load by itself."""
        loaded = [address for address in self.loads if EXTERNAL.match(address)]
        return loaded + [found for css in self.css for found in CSS_LOAD.findall(css)]


@pytest.fixture(scope="session")
def pages(book_html: Path) -> dict[str, Page]:
    """Every HTML file of the book, read."""
    found = sorted(book_html.rglob("*.html"))
    inside = [path for path in found if "_static" not in path.parts]
    return {str(p.relative_to(book_html)): Page(p.read_text("utf8")) for p in inside}


# ---- What is there ----------------------------------------------------------------------


@pytest.mark.parametrize("name", toc_files())
def test_every_entry_of_the_contents_has_its_page(book_html: Path, name: str):
    page = book_html / f"{name}.html"
    assert page.is_file()
    assert '<article class="bd-article"' in page.read_text("utf8")


def test_every_module_has_a_reference_page():
    text = "\n".join(path.read_text("utf8") for path in (ROOT / "book" / "api").glob("*.md"))
    documented = set(re.findall(r"^\.\. automodule:: (\S+)", text, re.MULTILINE))
    for package in references.LIBRARY.findall(text):
        documented |= set(references.modules(package))
    modules = {
        module.name
        for module in pkgutil.walk_packages(mmlib.__path__, "mmlib.")
        if not module.name.endswith("__main__")
    }
    missing = sorted(modules - documented)
    assert not missing, f"add these modules to a page in book/api: {missing}"
    assert not documented - modules - {"mmlib"}


def test_every_reference_page_is_in_the_contents():
    pages = {f"book/api/{path.stem}" for path in (ROOT / "book" / "api").glob("*.md")}
    assert pages <= set(toc_files())


def test_the_front_page_is_at_the_top(book_html: Path):
    assert "url=book/index.html" in (book_html / "index.html").read_text("utf8")


def test_the_sitemap_names_every_page(book_html: Path):
    tree = ElementTree.parse(book_html / "sitemap.xml")
    urls = [element.text or "" for element in tree.iter() if element.tag.endswith("}loc")]
    base = {url.split("/multimodal-llm-from-scratch/")[0] for url in urls if "multimodal" in url}
    assert len(base) == 1, "one address of the book, from _config.yml"
    for name in toc_files():
        assert any(url.endswith(f"/{name}.html") for url in urls), name


def test_llms_txt_names_every_page(book_html: Path):
    text = (book_html / "llms.txt").read_text("utf8")
    assert text.startswith("# Multimodal Large Language Models from Scratch")
    for name in toc_files():
        assert name in text
    assert (book_html / "llms-full.txt").stat().st_size > 10_000


def test_the_404_page_works_from_any_path(pages: dict[str, Page]):
    page = pages["404.html"]
    styles = [load for load in page.loads if "book.css" in load]
    assert styles and all(load.startswith("/multimodal-llm-from-scratch/") for load in styles)


def test_every_page_has_a_social_card(book_html: Path):
    for name in toc_files():
        text = (book_html / f"{name}.html").read_text("utf8")
        card = re.search(r'<meta property="og:image" content="[^"]*/(_images/[^"]+\.png)"', text)
        assert card, name
        assert (book_html / card[1]).is_file()


# ---- Nothing from elsewhere ---------------------------------------------------------------


def test_no_page_loads_anything_from_elsewhere(pages: dict[str, Page]):
    found = {name: page.external() for name, page in pages.items() if page.external()}
    assert not found


def test_no_style_sheet_loads_anything_from_elsewhere(book_html: Path):
    found = {
        str(path.relative_to(book_html)): CSS_LOAD.findall(path.read_text("utf8"))
        for path in book_html.rglob("*.css")
    }
    assert {name for name, urls in found.items() if urls} == set()


def test_a_page_that_loads_from_elsewhere_would_be_seen():
    text = """<link rel="stylesheet" href="//cdn/x.css"><script src="https://cdn/x.js"></script>
      <img srcset="https://cdn/x.png 2x"><p style="background: url('http://cdn/p.png')">
      <style>@import "https://cdn/y.css";</style>
      <a href="https://fine.example">fine</a><link rel="canonical" href="https://fine.example">"""
    assert len(Page(text).external()) == 5


def test_every_file_that_a_page_loads_is_there(book_html: Path, pages: dict[str, Page]):
    missing = []
    for name, page in pages.items():
        for load in page.loads:
            path = unquote(urlsplit(load).path)
            if not path or load.startswith("data:"):
                continue
            if path.startswith("/"):
                target = book_html / path.removeprefix("/multimodal-llm-from-scratch/")
            else:
                target = book_html / Path(name).parent / path
            if not target.exists():
                missing.append(f"{name}: {load}")
    assert not missing


def test_every_link_inside_the_book_leads_somewhere(book_html: Path, pages: dict[str, Page]):
    ids = {name: set(page.ids) for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        if name == "404.html":
            continue  # its links start at the root of the site
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            relative = Path(os.path.normpath(Path(name).parent / unquote(parts.path)))
            target = name if not parts.path else str(relative)
            if target not in ids:
                if not (book_html / target).exists():
                    broken.append(f"{name}: {link}")
            elif parts.fragment and unquote(parts.fragment) not in ids[target]:
                broken.append(f"{name}: {link}")
    assert not broken


# ---- Readable -------------------------------------------------------------------------------


def test_every_image_has_a_text_alternative(pages: dict[str, Page]):
    """Sphinx puts the name of the file where an author gave none: that is none."""
    bad = []
    for name, page in pages.items():
        for image in page.images:
            alt = image.get("alt")
            if alt is None or re.search(r"\.(png|svg|jpe?g|gif|webp)$", alt):
                bad.append(f"{name}: {image.get('src')}")
    assert not bad


def test_every_figure_is_inlined_with_a_name(pages: dict[str, Page]):
    """Figures follow dark mode only inside the page; ids must not meet there."""
    for name, page in pages.items():
        figures = [drawing for drawing in page.drawings if drawing.get("role") == "img"]
        for figure in figures:
            assert len(figure.get("aria-label", "")) >= 10, (name, figure.get("id"))
        doubled = {one for one in page.ids if page.ids.count(one) > 1 and "-1-" in one}
        assert not doubled, name
    chapters = [name for name in pages if name.startswith("chapters/")]
    for name in chapters:
        text = [image.get("src", "") for image in pages[name].images]
        assert not [source for source in text if source.endswith(".svg") and "_images" in source]


def test_no_inline_script_is_written_twice(book_html: Path):
    for name in toc_files():
        text = (book_html / f"{name}.html").read_text("utf8")
        scripts = re.findall(r"<script>(.+?)</script>", text, re.DOTALL)
        assert len(scripts) == len(set(scripts)), name
        assert "thebe" not in text.lower().split("</head>")[0]


# ---- The other forms ------------------------------------------------------------------------


def build(*arguments: str) -> str:
    """Run the build script and return what it prints last."""
    command = [sys.executable, str(ROOT / "book" / "scripts" / "build.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.skipif("MMLIB_BOOK_HTML" in os.environ, reason="the book was built elsewhere")
def test_the_offline_zip_holds_the_book(book_html: Path):
    build("offline")
    with zipfile.ZipFile(ROOT / "_build" / "book-offline.zip") as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
    top = "multimodal-llm-from-scratch"
    for name in ("index", "search", *toc_files()):
        assert f"{top}/{name}.html" in names
    assert f"{top}/searchindex.js" in names
    assert f"{top}/_static/mathjax/tex-chtml.js" in names


def test_an_unknown_form_is_refused():
    command = [sys.executable, str(ROOT / "book" / "scripts" / "build.py"), "epub"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'epub'" in done.stderr

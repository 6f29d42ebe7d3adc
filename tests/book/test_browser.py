"""The book in a real browser: every page, in light and in dark, on a desk and on a phone.

The pages are opened one after the other in one window, and everything is looked at on the way;
the tests then ask what was seen. That keeps a book of forty pages within a few minutes.
``NO_BROWSER=1`` leaves these tests out.
"""

import functools
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from common import ROOT, toc_files

if os.environ.get("NO_BROWSER", "") not in ("", "0"):
    pytest.skip("NO_BROWSER is set", allow_module_level=True)

PAGES = toc_files()
# Elements that reach past the window, though none of their ancestors scrolls or cuts them off.
OVERFLOWING = """() => {
  const width = document.documentElement.clientWidth, found = [];
  for (const element of document.querySelectorAll(".bd-article *, .bd-header-article *")) {
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.right <= width + 1) continue;
    let held = false;
    for (let parent = element.parentElement; parent; parent = parent.parentElement) {
      if (getComputedStyle(parent).overflowX !== "visible" &&
          parent.getBoundingClientRect().right <= width + 1) { held = true; break; }
    }
    if (!held) found.push(element.tagName + "." + element.getAttribute("class") + ": " +
                          element.textContent.trim().slice(0, 40));
  }
  if (document.documentElement.scrollWidth > width) found.push("the page itself");
  return found.slice(0, 5);
}"""
# TeX that MathJax left as it was, outside code.
RAW_MATHS = """() => [...document.querySelectorAll(".bd-article .math")]
  .filter(one => !one.querySelector("mjx-container") || one.querySelector("mjx-merror"))
  .map(one => one.textContent.trim().slice(0, 60))"""
# axe's serious findings. Without preload, which loads style sheets a second time and from wrong
# addresses. Colours in code are the same on every page and take most of the time: they are
# looked at once, in a test of their own. So is what figures and formulas hold inside.
FINDINGS = """async ({leaveOut, rules}) => {
  const options = {resultTypes: ["violations"], preload: false};
  if (rules) options.runOnly = rules;
  const found = await axe.run({include: ["html"], exclude: leaveOut}, options);
  return found.violations
    .filter(one => ["serious", "critical"].includes(one.impact))
    .map(one => one.id + ": " + one.nodes.slice(0, 3)
      .map(node => node.html.slice(0, 120) + " | " + node.failureSummary.slice(0, 240))
      .join(" ;; "));
}"""
LEAVE_OUT = [".highlight pre *", ".drawing svg *", "mjx-container *"]
# The same parts taken out of the page, which leaves a chapter a tenth of its elements: axe's time
# grows with their square. A figure keeps its title, and code its text.
TAKE_OUT = """() => {
  for (const drawing of document.querySelectorAll(".drawing svg, mjx-container"))
    for (const part of [...drawing.children]) if (part.tagName !== "title") part.remove();
  for (const code of document.querySelectorAll(".highlight pre"))
    code.textContent = code.textContent;
}"""
# A theme changes colours and nothing else: the second look needs only this rule.
THEMES = {"light": None, "dark": ["color-contrast"]}


@dataclass
class Seen:
    """What was seen of one page."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    maths: int = 0
    raw_maths: list[str] = field(default_factory=list)
    overflow: list[str] = field(default_factory=list)
    axe: dict[str, list[str]] = field(default_factory=dict)


@functools.cache
def axe_source() -> str:
    """axe-core's script, out of the package that ships it."""
    import axe_playwright_python

    folder = Path(axe_playwright_python.__file__).parent
    return next(folder.rglob("axe.min.js")).read_text("utf8")


@pytest.fixture(scope="module")
def page(browser, book_url: str) -> Iterator:
    """One window. Requests that leave the local server are noted and refused."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900},
        color_scheme="light",
        reduced_motion="reduce",
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    context.close()


def open_page(page, url: str) -> None:
    """Open a page and wait until its fonts and its mathematics stand."""
    page.goto(url)
    page.wait_for_selector("html[data-ready]", state="attached")


def set_theme(page, theme: str) -> None:
    """What the theme's own button does, without walking through its three states."""
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")


class Looks(dict):
    """What was seen of each page; a page is looked at when it is first asked for."""

    def __init__(self, look: Callable[[str], Seen]) -> None:
        super().__init__()
        self.look = look

    def __missing__(self, name: str) -> Seen:
        self[name] = self.look(name)
        return self[name]


@pytest.fixture(scope="module")
def seen(page, book_url: str) -> Looks:
    """The pages of the contents, each looked at once."""

    def guard(route) -> None:
        inside = route.request.url.startswith((book_url, "data:", "blob:"))
        route.continue_() if inside else route.abort()

    def look(name: str) -> Seen:
        current = Seen()

        def note(message) -> None:
            if message.type == "error":
                current.errors.append(f"{message.text} {message.location.get('url', '')}")

        listeners = {
            "console": note,
            "pageerror": lambda error: current.errors.append(str(error)),
            "request": lambda request: current.requests.append(request.url),
        }
        for event, listener in listeners.items():
            page.on(event, listener)
        page.route("**/*", guard)
        page.set_viewport_size({"width": 1280, "height": 900})
        open_page(page, f"{book_url}{name}.html")
        current.maths = page.locator(".bd-article mjx-container").count()
        current.raw_maths = page.evaluate(RAW_MATHS)
        page.set_viewport_size({"width": 390, "height": 844})
        current.overflow = page.evaluate(OVERFLOWING)
        page.set_viewport_size({"width": 1280, "height": 900})
        page.evaluate(TAKE_OUT)
        page.evaluate(axe_source())
        for theme, rules in THEMES.items():
            set_theme(page, theme)
            current.axe[theme] = page.evaluate(FINDINGS, {"leaveOut": LEAVE_OUT, "rules": rules})
        page.unroute("**/*")
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        return current

    return Looks(look)


# ---- Every page -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_mathematics_is_rendered(seen: Looks, book_html: Path, name: str):
    html = (book_html / f"{name}.html").read_text("utf8")
    formulas = len(re.findall(r'class="math notranslate', html))
    assert seen[name].raw_maths == []
    assert seen[name].maths >= formulas


@pytest.mark.parametrize("name", PAGES)
def test_the_console_is_quiet(seen: Looks, name: str):
    assert seen[name].errors == []


@pytest.mark.parametrize("name", PAGES)
def test_no_request_leaves_the_server(seen: Looks, book_url: str, name: str):
    assert seen[name].requests, "nothing was recorded"
    outside = [u for u in seen[name].requests if not u.startswith((book_url, "data:", "blob:"))]
    assert outside == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_overflows_on_a_phone(seen: Looks, name: str):
    assert seen[name].overflow == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(seen: Looks, name: str, theme: str):
    assert seen[name].axe[theme] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_code_is_readable(page, book_url: str, theme: str):
    """One block with each kind of token that the chapter has, in its real colours."""
    open_page(page, f"{book_url}chapters/01_attention.html")
    page.evaluate(axe_source())
    set_theme(page, theme)
    kinds = page.evaluate("""() => {
      const kinds = new Set();
      for (const token of document.querySelectorAll(".cell_input pre span[class]")) {
        if (kinds.has(token.className)) token.remove(); else kinds.add(token.className);
      }
      return kinds.size;
    }""")
    assert kinds > 10
    leave_out = [".drawing svg *", "mjx-container *"]
    assert page.evaluate(FINDINGS, {"leaveOut": leave_out, "rules": ["color-contrast"]}) == []


def test_the_looks_would_see_a_fault(page, book_url: str):
    """A page with every fault on purpose: each look must find its own."""
    open_page(page, f"{book_url}{PAGES[0]}.html")
    page.evaluate(axe_source())
    page.evaluate("""() => {
      const fault = document.createElement("div");
      fault.innerHTML = '<div style="width: 3000px">wide</div>' +
        '<span class="math">\\\\(x\\\\)</span>' +
        '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw="><p style="color: #ccc">pale</p>';
      document.querySelector(".bd-article").append(fault);
    }""")
    assert page.evaluate(RAW_MATHS) == ["\\(x\\)"]
    assert any("wide" in one for one in page.evaluate(OVERFLOWING))
    page.evaluate(TAKE_OUT)
    found = " ".join(page.evaluate(FINDINGS, {"leaveOut": LEAVE_OUT, "rules": None}))
    assert "image-alt" in found
    assert "color-contrast" in found


# ---- What a reader does -----------------------------------------------------------------------


def search(page, word: str) -> list[str]:
    """The titles that the search page finds for a word."""
    page.wait_for_selector("#search-results ul.search li a")
    page.wait_for_function("!document.querySelector('#search-progress')?.textContent.includes('…')")
    return page.locator("#search-results ul.search li > a").all_inner_texts()


def test_search_finds_a_word_in_its_chapter(page, book_url: str):
    page.goto(f"{book_url}search.html?q=softmax")
    assert any("attention" in title.lower() for title in search(page, "softmax"))


def test_the_search_box_opens_by_keyboard(page, book_url: str):
    open_page(page, f"{book_url}{PAGES[0]}.html")
    page.keyboard.press("Control+k")
    box = page.locator("dialog[open] input[type=search], #pst-search-dialog input").first
    box.fill("softmax")
    box.press("Enter")
    page.wait_for_url("**/search.html?q=softmax*")


def test_dark_mode_toggles_and_figures_follow(page, book_url: str):
    open_page(page, f"{book_url}chapters/01_attention.html")
    ink = """() => {
      const text = document.querySelector('.drawing svg [style*="--figure-ink"]');
      return text && getComputedStyle(text).fill + getComputedStyle(text).stroke;
    }"""
    paper = "() => getComputedStyle(document.body).backgroundColor"
    states = set()
    for _ in range(3):  # auto, light, dark
        page.locator(".theme-switch-button:visible").first.click()
        theme = page.evaluate("document.documentElement.dataset.theme")
        states.add((theme, page.evaluate(ink), page.evaluate(paper)))
    themes = {theme for theme, *_ in states}
    assert themes == {"light", "dark"}
    assert len(states) == 2, "one look for each theme"
    (_, light_ink, light_paper), (_, dark_ink, dark_paper) = sorted(states, reverse=True)
    assert light_ink is not None
    assert light_ink != dark_ink
    assert light_paper != dark_paper


def test_the_copy_button_copies_the_code(page, book_url: str):
    open_page(page, f"{book_url}chapters/01_attention.html")
    cell = page.locator("div.cell_input div.highlight").first
    cell.hover()
    cell.locator("button.copybtn").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == cell.locator("pre").inner_text().strip()


def test_a_chapter_opens_in_colab_and_downloads(page, book_url: str):
    open_page(page, f"{book_url}chapters/01_attention.html")
    hrefs = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
    colab = [href for href in hrefs if href.startswith("https://colab.research.google.com/")]
    assert colab
    assert colab[0].endswith("/blob/main/chapters/01_attention.ipynb")
    notebook = next(href for href in hrefs if href.endswith(".ipynb") and "_sources" in href)
    response = page.request.get(notebook)
    assert response.ok
    assert json.loads(response.text())["nbformat"] == 4


def test_chapters_lead_to_each_other(page, book_url: str):
    open_page(page, f"{book_url}chapters/01_attention.html")
    page.locator("a.right-next").click()
    page.wait_for_url("**/chapters/02_transformer.html")
    page.locator("a.left-prev").click()
    page.wait_for_url("**/chapters/01_attention.html")


def test_solutions_are_folded_and_unfold(page, book_url: str):
    open_page(page, f"{book_url}chapters/01_attention.html")
    solutions = page.locator(".tag_exercise-solution details")
    assert solutions.count() >= 4
    assert page.locator(".tag_exercise-solution details[open]").count() == 0
    assert "@title" not in page.locator(".bd-article").inner_text()
    solutions.first.locator("summary").click()
    assert solutions.first.locator("pre").is_visible()


def test_a_missing_page_gives_the_books_own(page, book_url: str):
    response = page.goto(f"{book_url}chapters/no/such/page.html")
    assert response.status == 404
    assert "not found" in page.locator(".bd-article h1").inner_text().lower()
    home = page.locator(".navbar-brand").get_attribute("href")
    assert page.request.get(page.evaluate(f"new URL('{home}', location).href")).ok
    loaded = "[...document.styleSheets].some(sheet => sheet.href?.includes('book.css'))"
    assert page.evaluate(loaded)


@pytest.mark.skipif("MMLIB_BOOK_HTML" in os.environ, reason="the book was built elsewhere")
def test_the_offline_book_works_from_a_disk(browser, book_html: Path, tmp_path: Path):
    command = [sys.executable, str(ROOT / "book" / "scripts" / "build.py"), "offline"]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(ROOT / "_build" / "book-offline.zip") as archive:
        archive.extractall(tmp_path)
    top = tmp_path / "multimodal-llm-from-scratch"
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((top / "index.html").as_uri())
    page.wait_for_url("**/book/index.html")
    open_page(page, (top / "chapters" / "01_attention.html").as_uri())
    assert page.locator("mjx-container").count() > 0
    page.goto((top / "search.html").as_uri() + "?q=softmax")
    assert any("attention" in title.lower() for title in search(page, "softmax"))
    assert errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    context.close()


def test_the_tests_look_at_the_book_of_this_repository():
    assert (ROOT / "_toc.yml").is_file()
    assert "chapters/01_attention" in PAGES

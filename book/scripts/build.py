"""Build the book: ``python book/scripts/build.py html|offline|pdf|gettext``.

- ``html``     the site, warnings are errors: ``_build/html/index.html``
- ``offline``  the site as one zip file that works without a server: ``_build/book-offline.zip``
- ``pdf``      the whole book as one printable file: ``_build/book.pdf``
- ``gettext``  the message catalogue for the Chinese edition: ``book/locale/zh_CN``

Nothing runs a notebook and nothing is fetched: stored outputs are rendered.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

from chromium import chromium_options
from common import ROOT

BUILD = ROOT / "_build"
PROBLEM = r"\b(WARNING|ERROR|CRITICAL|\w*Error:)"


def sphinx(builder: str) -> Path:
    """Build with warnings as errors and say where the result is.

    After a failure the cache is dropped: Sphinx warns about a page only when it reads it, so a
    second run on the same cache would pass without the page having been mended.
    """
    # Each builder has its own folder: in one cache they would upset each other.
    output = ROOT if builder == "html" else BUILD / builder
    jupyter_book = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", jupyter_book, "build", str(ROOT)]
    command += ["--path-output", str(output), "-W", "--keep-going", "-n"]
    if builder != "html":
        command += ["--builder", "custom", "--custom-builder", builder]
    # Importing mmlib for the reference pages must neither use many cores nor open a window.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        shutil.rmtree(output / "_build" / ".doctrees", ignore_errors=True)
        log = re.sub(r"\x1b\[[\d;]*m", "", result.stdout)  # Jupyter Book colours it regardless
        problems = dict.fromkeys(line for line in log.splitlines() if re.search(PROBLEM, line))
        summary = "\n".join(problems)
        sys.exit(f"{log}\n\n{summary}\n\nThe book was not built: mend what is listed above.")
    return output / "_build" / builder


def html() -> Path:
    """The site. When nothing has changed since it was built, nothing is done."""
    index = BUILD / "html" / "index.html"
    stamp = BUILD / "html.stamp"
    names, state = fingerprint()
    last = stamp.read_text().split() if stamp.is_file() and index.is_file() else ["", ""]
    if last == [names, state]:
        return index
    stamp.unlink(missing_ok=True)
    if last[0] != names:  # what was built of a file that is gone must go too
        shutil.rmtree(BUILD / "html", ignore_errors=True)
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
    sphinx("html")
    stamp.write_text(f"{names} {state}")  # of before: an edit made meanwhile is built next time
    return index


def fingerprint() -> tuple[str, str]:
    """Two hashes of what the site is made of: of the names, and of the sizes and times."""
    inputs = [ROOT / "_config.yml", ROOT / "_toc.yml"]
    for folder in ("book", "chapters", "mmlib"):
        inputs += (path for path in (ROOT / folder).rglob("*") if path.is_file())
    names, states = [sys.version], []
    for path in sorted(inputs):
        if not {"__pycache__", ".ipynb_checkpoints", "locale"} & set(path.parts):
            stat = path.stat()
            names.append(str(path.relative_to(ROOT)))
            states.append(f"{stat.st_size} {stat.st_mtime_ns}")
    first, second = (hashlib.sha256("\n".join(lines).encode()) for lines in (names, states))
    return first.hexdigest(), second.hexdigest()


def offline() -> Path:
    """The site in one zip file, with a start page at its top."""
    site = html().parent
    target = BUILD / "book-offline.zip"
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for path in sorted(site.rglob("*")):
            inside = path.relative_to(site)
            # Social cards and the map of the published site mean nothing on a disk.
            if path.is_dir() or "social_previews" in inside.parts or inside.name == ".buildinfo":
                continue
            if inside.name in ("sitemap.xml", "404.html", "objects.inv"):
                continue
            archive.write(path, Path("multimodal-llm-from-scratch") / inside)
    partial.replace(target)
    return target


def pdf() -> Path:
    """The whole book on one page, printed by headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("make pdf prints with a browser: pip install playwright")

    site = sphinx("singlehtml")
    # Sphinx writes the page where the book's root document is, with links that start at the top.
    (site / "book" / "index.html").replace(site / "index.html")
    target = BUILD / "book.pdf"
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(**chromium_options())
            page = browser.new_page()
            page.set_default_timeout(300_000)
            page.emulate_media(media="print", color_scheme="light")
            page.goto(f"http://127.0.0.1:{server.server_port}/index.html", wait_until="load")
            page.wait_for_selector("html[data-ready]", state="attached")
            page.evaluate(PREPARE_PRINT)
            page.pdf(
                path=str(target), prefer_css_page_size=True, print_background=True,
                tagged=True, outline=True, display_header_footer=True,
                header_template="<span></span>", footer_template=FOOTER,
            )  # fmt: skip
            browser.close()
        server.shutdown()
    return target


# On paper nothing unfolds, and every page of the site starts a new one.
PREPARE_PRINT = """() => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  for (const start of document.querySelectorAll(".bd-article span[id^='document-']")) {
    start.nextElementSibling?.classList.add("print-page");
  }
  for (const title of document.querySelectorAll("#jb-print-docs-body h2")) {
    title.textContent = "Contents";
  }
}"""

FOOTER = (
    '<div style="width:100%;font:9px system-ui;color:#5b6875;text-align:center">'
    '<span class="pageNumber"></span></div>'
)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without writing a line for each."""

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def gettext() -> Path:
    """Extract every message, and bring the Chinese catalogue up to date with them."""
    templates = sphinx("gettext")
    locale = ROOT / "book" / "locale"
    sphinx_intl = "from sphinx_intl.commands import main; main()"
    command = [sys.executable, "-c", sphinx_intl, "update", "-w", "0", "-l", "zh_CN"]
    command += ["-p", str(templates), "-d", str(locale)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    # The date of extraction would change every file at every run.
    for path in locale.rglob("*.po"):
        text = path.read_text("utf8")
        path.write_text(re.sub(r'^"POT-Creation-Date:.*\n', "", text, flags=re.M), "utf8")
    return locale / "zh_CN"


COMMANDS = {"html": html, "offline": offline, "pdf": pdf, "gettext": gettext}


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Build the book.")
    parser.add_argument("what", choices=COMMANDS, help="what to build")
    result = COMMANDS[parser.parse_args().what]()
    if result.is_file():
        print(f"{result} ({result.stat().st_size / 1e6:.1f} MB)")
    else:
        print(result)


if __name__ == "__main__":
    main()

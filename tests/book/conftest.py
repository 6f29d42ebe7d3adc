"""The built book, its server, and a browser: built, started and opened once for all tests."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import ROOT
from filelock import FileLock

# GitHub Pages serves the book under the name of the repository; the 404 page relies on it.
PREFIX = "/multimodal-llm-from-scratch/"


@pytest.fixture(scope="session")
def book_html() -> Path:
    """The folder of the built book; ``MMLIB_BOOK_HTML`` names one that is built already.

    The script does nothing when nothing has changed, so each worker may call it; the lock
    keeps two of them from building at the same time.
    """
    if given := os.environ.get("MMLIB_BOOK_HTML"):
        return Path(given)
    (ROOT / "_build").mkdir(exist_ok=True)
    with FileLock(ROOT / "_build" / "html.lock"):
        command = [sys.executable, str(ROOT / "book" / "scripts" / "build.py"), "html"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"the book does not build without warnings:\n{done.stderr[-6000:]}")
    return ROOT / "_build" / "html"


class BookHandler(http.server.SimpleHTTPRequestHandler):
    """Serves the book as GitHub Pages does: under its prefix, with its own 404 page."""

    protocol_version = "HTTP/1.1"

    def translate_path(self, path: str) -> str:
        """The file behind an address; nothing outside the prefix exists."""
        if not path.startswith(PREFIX):
            return str(Path(self.directory) / "outside-the-book")
        return super().translate_path("/" + path.removeprefix(PREFIX))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a missing page with the book's own."""
        page = Path(self.directory, "404.html").read_bytes() if code == 404 else b""
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def book_url(book_html: Path) -> Iterator[str]:
    """The address of the book on a server of its own, ending in a slash."""
    handler = functools.partial(BookHandler, directory=str(book_html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, else Playwright's own; a failure says what to install."""
    from chromium import chromium_options
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        options = chromium_options()
        if "executable_path" not in options:
            own = playwright.chromium.executable_path
            if not (own and shutil.which(own)):
                pytest.fail(
                    "no browser: install Chromium (Debian, Ubuntu: apt-get install chromium; "
                    "elsewhere: python -m playwright install chromium), "
                    "or leave these tests out with NO_BROWSER=1"
                )
        try:
            browser = playwright.chromium.launch(**options)
        except Error as error:
            pytest.fail(f"the browser does not start: {error}")
        yield browser
        browser.close()

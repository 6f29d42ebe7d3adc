"""How to start a browser: for the PDF of the book and for the tests of its pages."""

from __future__ import annotations

import os
import shutil


def chromium_options() -> dict[str, object]:
    """How to start a browser: the system's Chromium, else the one that Playwright brings."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    arguments = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-quic",
        "--no-first-run",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium's sandbox refuses to run as root
    options: dict[str, object] = {"args": arguments}
    if path:
        options["executable_path"] = path
    return options

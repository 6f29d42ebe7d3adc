"""Addresses, MathJax and scripts of the built site."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

# What the pages can ask for: the TeX input with CHTML output, its fonts, the TeX extensions
# that load on demand, and the hidden MathML that screen readers read. The package holds
# 24 MB in all; these are a tenth of it.
MATHJAX_PARTS = (
    "tex-chtml.js",
    "output/chtml/fonts",
    "input/tex/extensions",
    "a11y/assistive-mml.js",
)


def pages_address(repository: str) -> str:
    """Where GitHub Pages publishes the book of a repository.

    >>> pages_address("https://github.com/someone/book")
    'https://someone.github.io/book/'
    """
    parts = urlsplit(repository.rstrip("/")).path.strip("/").split("/")
    if len(parts) != 2:
        raise ExtensionError(f"repository.url must be https://host/owner/name: got {repository}")
    owner, name = parts
    return f"https://{owner.lower()}.github.io/{name.removesuffix('.git')}/"


def set_addresses(app: Sphinx, config: Config) -> None:
    """Derive every public address from ``repository.url``, unless ``html.baseurl`` is set."""
    if not config.html_baseurl:
        config.html_baseurl = pages_address(config.html_theme_options["repository_url"])
    config.ogp_site_url = config.html_baseurl
    # The 404 page is served under any path, so its links start at the root of the site.
    config.notfound_urls_prefix = urlsplit(config.html_baseurl).path
    config.mathjax_path = "mathjax/tex-chtml.js"


def clean_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Keep one of each script and leave out Thebe.

    Sphinx 7.4 writes inline scripts twice, and the second ``const`` is an error in the
    console. Thebe, which Jupyter Book always adds, would load itself from a public server.
    """
    seen: set[tuple[object, ...]] = set()
    kept = []
    for script in context.get("script_files", []):
        name = str(getattr(script, "filename", None) or "")
        body = getattr(script, "attributes", {}).get("body") or ""
        if "thebe" in name or "THEBE_JS_URL" in body:
            continue
        # A few scripts are plain strings without a name: those are compared as they are.
        key = (name, body) if name or body else (script,)
        if key not in seen:
            seen.add(key)
            kept.append(script)
    context["script_files"] = kept
    context["css_files"] = [
        sheet for sheet in context.get("css_files", []) if "thebe" not in str(sheet.filename)
    ]


# Sphinx sets long signatures as description lists without a term, docutils gives a list of
# citations a role that its children lack: screen readers announce both wrongly.
SIGNATURE = re.compile(r"<dl>\n((?:<dd>(?:(?!</?d[ld]>).)*</dd>\n)+)</dl>", re.DOTALL)


def mend_structure(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object
) -> None:
    """Mend what Sphinx and docutils write in a form that screen readers stumble over."""
    body = context.get("body") or ""

    def lines(match: re.Match[str]) -> str:
        inside = match[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
        return f'<span class="sig-lines">\n{inside}</span>'

    body = SIGNATURE.sub(lines, body)
    context["body"] = body.replace(
        '<div role="list" class="citation-list">', '<div class="citation-list">'
    )


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the used part of MathJax beside the pages, once."""
    if exception is not None or app.builder.format != "html":
        return
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise ExtensionError("MathJax is missing: pip install sphinx-mathjax-offline")
    source = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        if (source / part).is_dir():
            if not (target / part).exists():
                shutil.copytree(source / part, target / part)
        elif not (target / part).exists():
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / part, target / part)


def register(app: Sphinx) -> None:
    """Connect the handlers; the addresses go first because other extensions read them."""
    app.connect("config-inited", set_addresses, priority=100)
    app.connect("html-page-context", clean_scripts, priority=900)
    app.connect("html-page-context", mend_structure, priority=900)
    app.connect("build-finished", copy_mathjax)

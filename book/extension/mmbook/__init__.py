"""The book's own Sphinx extension.

It does five things, one a file, that configuration alone cannot do:

- ``site``: take every published address from the one in ``_config.yml``, serve MathJax from
  the book itself, and keep inline scripts from being written twice;
- ``figures``: put SVG figures into the page, where they follow dark mode;
- ``cells``: give exercise cells and their solutions a form of their own;
- ``references``: find the library's names in docstrings, whatever module they stand in;
- ``ledger``: the ``{ledger}`` directive, which prints every measured number.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from mmbook import cells, figures, ledger, references, site

__version__ = "1.0"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register every part with Sphinx."""
    for part in (site, figures, cells, references, ledger):
        part.register(app)
    return {"version": __version__, "parallel_read_safe": True, "parallel_write_safe": True}

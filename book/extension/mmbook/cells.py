"""Exercise cells: the reader's stub is marked, the solution is folded under its own name."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

# Colab reads this comment and folds the cell; on a page it would only be noise.
COLAB_TITLE = re.compile(r"\A#\s*@title[^\n]*\n+")


class ExerciseCells(SphinxPostTransform):
    """Name the fold of solution cells and take Colab's form comments out of shown code."""

    default_priority = 150  # before myst-nb builds the folds (199)

    def run(self, **kwargs: object) -> None:
        """Go through the code cells of one page."""
        for cell in self.document.findall(nodes.container):
            if cell.get("nb_element") != "cell_code":
                continue
            if "tag_exercise-solution" in cell["classes"]:
                cell["prompt_show"] = "Show the solution"
                cell["prompt_hide"] = "Hide the solution"
            for code in cell.findall(nodes.literal_block):
                text = COLAB_TITLE.sub("", code.astext())
                if text != code.astext():
                    code.rawsource = text
                    code[:] = [nodes.Text(text)]


def register(app: Sphinx) -> None:
    """Add the transform."""
    app.add_post_transform(ExerciseCells)

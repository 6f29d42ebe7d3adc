"""Repeat the second experiment of chapter 01 with five seeds.

The code is the chapter's own: the cells tagged ``long-run`` of the notebook are executed here, so
that what the reader sees is what is repeated.
"""

import functools
import statistics
from pathlib import Path

import nbformat

from mmlib import results

MINUTES = 4
SEEDS = range(5)

NOTEBOOK = Path(__file__).parents[2] / "chapters" / "01_attention.ipynb"


def notebook_cells(path: Path = NOTEBOOK) -> str:
    """The source of the cells that a long run shares with the chapter."""
    notebook = nbformat.read(path, as_version=4)
    return "\n".join(
        cell.source for cell in notebook.cells if "long-run" in cell.metadata.get("tags", [])
    )


def main() -> None:
    """Train both variants with every seed and record means and extremes."""
    chapter: dict = {}
    exec(compile(notebook_cells(), str(NOTEBOOK.name), "exec"), chapter)
    scores = {}
    for name in ("attention", "attention, values see silhouettes"):
        scores[name] = []
        for seed in SEEDS:
            model, history = chapter["train_picture_model"](chapter["variants"][name], seed)
            seen, new, pointing = chapter["evaluate"](model)
            print(
                f"{name}, seed {seed}: seen {seen:.3f}, new {new:.3f}, points {pointing:.3f}, "
                f"{history.seconds:.0f} s",
                flush=True,
            )
            scores[name].append((seen, new))
    record = functools.partial(results.record, tolerance=0.05, baseline=1 / 8)
    seen, new = zip(*scores["attention"], strict=True)
    record("01.seen_worst", min(seen), metric="seen combinations, worst of 5 seeds")
    record("01.new_mean", statistics.mean(new), metric="new combinations, mean of 5 seeds")
    record("01.new_worst", min(new), metric="new combinations, worst of 5 seeds")
    record("01.new_best", max(new), metric="new combinations, best of 5 seeds")
    _, new = zip(*scores["attention, values see silhouettes"], strict=True)
    record("01.silhouette_new_mean", statistics.mean(new), metric="silhouettes, mean of 5 seeds")
    record("01.silhouette_new_worst", min(new), metric="silhouettes, worst of 5 seeds")

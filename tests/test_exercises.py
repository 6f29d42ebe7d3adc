"""The checkers of every chapter: answers pass, stubs and typical mistakes are told what is wrong.

The answers are in ``exercises/chNN.py``: ``SOLUTIONS`` (checker: an answer that is right) and
``WRONG`` (checker, an answer that is wrong, words of the message). They reach the result in other
ways than the checkers' own; the book's solutions run through the checkers with the notebooks.
"""

import inspect
import runpy
from pathlib import Path

import pytest

from mmlib import exercises

FILES = sorted((Path(__file__).parent / "exercises").glob("ch*.py"))
ANSWERS = {path.stem: runpy.run_path(str(path)) for path in FILES}
SOLUTIONS = [(ch, name) for ch, given in ANSWERS.items() for name in given["SOLUTIONS"]]
WRONG = [(ch, *given) for ch in ANSWERS for given in ANSWERS[ch]["WRONG"]]


def checkers(chapter):
    """The checkers that a chapter's module defines itself."""
    module = getattr(exercises, chapter)
    return {
        name
        for name, value in inspect.getmembers(module, callable)
        if name.startswith("check_") and value.__module__ == module.__name__
    }


def test_every_chapter_with_exercises_has_answers():
    written = Path(exercises.__file__).parent.glob("ch*.py")
    assert [path.name for path in FILES] == sorted(path.name for path in written)


@pytest.mark.parametrize("chapter", ANSWERS)
def test_every_checker_has_a_solution_and_a_typical_mistake(chapter):
    assert set(ANSWERS[chapter]["SOLUTIONS"]) == checkers(chapter)
    assert {name for name, _, _ in ANSWERS[chapter]["WRONG"]} == checkers(chapter)


@pytest.mark.parametrize("chapter, name", SOLUTIONS)
def test_a_solution_passes(chapter, name):
    report = getattr(getattr(exercises, chapter), name)(ANSWERS[chapter]["SOLUTIONS"][name])
    assert report, report.message
    assert report.message


@pytest.mark.parametrize("chapter, name", SOLUTIONS)
def test_the_unchanged_stub_is_not_solved(chapter, name):
    def stub(*args): ...

    report = getattr(getattr(exercises, chapter), name)(stub)
    assert not report
    assert "not solved yet" in report.message


@pytest.mark.parametrize(
    "chapter, name, answer, words",
    WRONG,
    ids=[f"{ch}-{name}-{said}" for ch, name, _, said in WRONG],
)
def test_a_typical_mistake_is_named(chapter, name, answer, words):
    report = getattr(getattr(exercises, chapter), name)(answer)
    assert not report
    assert words in report.message

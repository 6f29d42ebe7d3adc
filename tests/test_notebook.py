"""The helpers that chapters' notebooks use."""

import ast

import pytest

import mmlib
from mmlib import attention, notebook


def sample(x):
    """Double it.

    With an example.
    """
    # A comment that must stay.
    return 2 * x


class Sample:
    """A class."""

    def method(self):
        """Say one."""
        return 1

    def empty(self):
        """Only words."""


def test_source_has_the_comments_but_not_the_docstrings():
    source = notebook.source_of(sample)
    assert source == "def sample(x):\n    # A comment that must stay.\n    return 2 * x"
    assert "With an example" in notebook.source_of(sample, docstring=True)


def test_source_of_a_class_still_parses_when_a_body_is_a_docstring_alone():
    source = notebook.source_of(Sample)
    assert "Say one" not in source and "Only words" in source
    ast.parse(source)


def test_source_is_what_runs():
    """Attention's printed source, executed, computes attention."""
    import torch

    source = notebook.source_of(attention.attention)
    assert '"""' not in source and "softmax" in source
    space = dict(vars(attention))
    exec(compile(source, "shown", "exec"), space)
    q, k, v = torch.randn(3, 2, 5, 4)
    assert torch.equal(space["attention"](q, k, v)[0], attention.attention(q, k, v)[0])


@pytest.mark.parametrize("thing", [3, len, None])
def test_things_without_source_are_named(thing):
    with pytest.raises(TypeError, match="obj must be a function, class or module"):
        notebook.source_of(thing)


def test_show_displays_highlighted_markdown(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    mmlib.show(sample)
    assert shown[0].data.startswith("```python\ndef sample(x):")


@pytest.mark.parametrize("version", ["0.0", "0.1", "0.1.0"])
def test_require_accepts_what_is_there(version):
    mmlib.require(version)


@pytest.mark.parametrize("version", ["9.0", f"{mmlib.__version__.rpartition('.')[0]}.9999"])
def test_require_stops_when_too_old(version):
    with pytest.raises(ImportError, match=f"needs mmlib {version} or newer"):
        mmlib.require(version)


@pytest.mark.parametrize("version", ["", "one", "1.x"])
def test_require_names_a_bad_version(version):
    with pytest.raises(ValueError, match="must look like '0.1'"):
        mmlib.require(version)

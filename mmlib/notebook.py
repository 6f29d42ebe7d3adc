"""What the chapters' notebooks need besides the models: a version check and a source viewer."""

import ast
import inspect
import textwrap

__all__ = ["require", "show"]


def require(version: str) -> None:
    """Stop with a clear message unless mmlib is at least this version.

    The setup cell of every chapter calls this, because ``%pip install`` does not stop a notebook
    when it fails, and an older mmlib of an earlier session would be used without a word.

    Args:
        version: Wanted version, such as ``"0.1"``.

    Raises:
        ImportError: the installed version is older.
        ValueError: ``version`` is no dotted list of numbers.

    >>> require("0.1")
    """
    import mmlib

    if _numbers(mmlib.__version__) < _numbers(version):
        raise ImportError(
            f"this chapter needs mmlib {version} or newer: {mmlib.__version__} is installed. "
            "Run the setup cell again after restarting the session."
        )


def show(obj: object, docstring: bool = False) -> None:
    """Display the source of a function, method or class of the library, highlighted.

    What the reader sees is what runs: chapters never paste library code.

    Args:
        obj: Function, method, class or module.
        docstring: Whether to print the docstrings too; the prose around has usually said it.

    Raises:
        TypeError: ``obj`` has no Python source, as a number or a built-in.
    """
    from IPython.display import Markdown, display

    display(Markdown(f"```python\n{source_of(obj, docstring)}\n```"))


def source_of(obj: object, docstring: bool = False) -> str:
    """Source of ``obj`` as text, without its docstrings by default.

    Raises:
        TypeError: ``obj`` has no Python source.
    """
    target = inspect.unwrap(obj) if callable(obj) else obj
    try:
        source = textwrap.dedent(inspect.getsource(target)).strip("\n")
    except (TypeError, OSError) as error:
        raise TypeError(
            f"obj must be a function, class or module with Python source: got {obj!r}"
        ) from error
    return source if docstring else _without_docstrings(source)


def _without_docstrings(source: str) -> str:
    """Cut the docstrings out by line number, so that comments and layout stay as they are."""
    lines = source.split("\n")
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    cut = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            first = node.body[0]
            if len(node.body) > 1:  # a body of nothing but a docstring would not parse
                cut.update(range(first.lineno, first.end_lineno + 1))
                if lines[first.end_lineno : first.end_lineno + 1] == [""]:
                    cut.add(first.end_lineno + 1)
    return "\n".join(line for number, line in enumerate(lines, 1) if number not in cut)


def _numbers(version: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version.split("."))
    except ValueError:
        raise ValueError(f"version must look like '0.1': got {version!r}") from None

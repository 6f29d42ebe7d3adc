"""Hashes of source code that change when the program changes, and only then.

A row of the results ledger keeps the hash of every source it came from. An edit of a comment,
a docstring or the layout leaves the hash alone; an edit of a statement changes it. The hash is
taken over the syntax tree, written in a form that is the same in every supported Python.
"""

import ast
import functools
import hashlib
import json
import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent

# Modules that cannot change a measured number: the ledger itself, drawing, the helpers of the
# notebooks' own cells, and the exercises.
EXCLUDED = re.compile(
    r"mmlib\.(results|fingerprint|machine|plotting|notebook|sound|exercises(\..*)?)$"
)

_MAGIC = re.compile(r"^(\s*)([%!].*)$")
_DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def hash_code(source: str) -> str:
    r"""Hash Python source without comments, docstrings and layout.

    Lines of IPython (``%pip install x``, ``!ls``) count as code. Text that is no Python even
    then, such as a ``%%bash`` cell, is hashed as it stands.

    Args:
        source: Python source, or the source of a notebook's code cell.

    Returns:
        The first 12 hexadecimal digits of a SHA-256.

    >>> hash_code("x = 1  # one") == hash_code("x  =  1")
    True
    >>> hash_code("x = 1") == hash_code("x = 2")
    False
    """
    if not isinstance(source, str):
        raise TypeError(f"source must be a str: got {type(source).__name__}")
    return _digest(_canonical_source(source))


def hash_module(path: Path | str) -> str:
    """Hash one Python file with :func:`hash_code`.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return _hash_file(*_key(path))


def hash_notebook(path: Path | str) -> str:
    """Hash a notebook's code cells, in order, without outputs, Markdown, comments and docstrings.

    The setup cell (the one that calls ``mmlib.require``) is left out: it only installs and
    imports, and it holds the book's public address, which says nothing about a number.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a notebook.
    """
    return _hash_file(*_key(path))


def source_path(name: str, chapters: Path, training: Path) -> Path:
    """Where the source that a ledger row calls ``name`` lies.

    Args:
        name: ``"01_attention.ipynb"``, ``"ch01.py"`` or a module such as ``"mmlib.attention"``.
        chapters: The folder of the notebooks.
        training: The folder of the scripts of the long runs.
    """
    if name.endswith(".ipynb"):
        return chapters / name
    if name.endswith(".py"):
        return training / name
    base = PACKAGE.joinpath(*name.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def loaded_sources(script: Path | str) -> dict[str, str]:
    """Hashes of a notebook or script and of the ``mmlib`` modules that are loaded now.

    Args:
        script: The notebook (``.ipynb``) or Python file that is running.

    Returns:
        ``{name: hash}``: the script first, then the modules in alphabetical order.
    """
    script = Path(script)
    hashes = {script.name: hash_notebook(script)}
    for name in sorted(sys.modules):
        file = getattr(sys.modules[name], "__file__", None)
        counts = name.startswith("mmlib.") and not EXCLUDED.match(name)
        if counts and file and file.endswith(".py"):
            hashes[name] = hash_module(file)
    return hashes


def _key(path: Path | str) -> tuple[str, int, int]:
    path = Path(path)
    status = path.stat()
    return str(path), status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=1024)
def _hash_file(path: str, modified: int, size: int) -> str:
    # The time and size of the file are part of the cache's key only.
    text = Path(path).read_text(encoding="utf-8")
    if not path.endswith(".ipynb"):
        return hash_code(text)
    try:
        cells = json.loads(text)["cells"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{Path(path).name} is not a notebook: {error}") from error
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return _digest("\n".join(_canonical_source(c) for c in code if "mmlib.require(" not in c))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical_source(source: str) -> str:
    # A line that begins with % may be Python (a continued expression), so plain Python comes first.
    for text in (source, _without_magics(source)):
        try:
            return _canonical(ast.parse(text))
        except (SyntaxError, ValueError):
            continue
    return source.strip()


def _without_magics(source: str) -> str:
    def call(line: str) -> str:
        found = _MAGIC.match(line)
        return f"{found[1]}__magic__({found[2].rstrip()!r})" if found else line

    return "\n".join(call(line) for line in source.splitlines())


def _canonical(node: object) -> str:
    """The tree as text. ``ast.dump`` will not do: what it writes differs by Python version.

    Empty fields are left out, because new versions add fields that older code leaves empty.
    """
    if isinstance(node, ast.AST):
        fields = []
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(node, _DOCUMENTED):
                value = _without_docstring(value)
            if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts in f-strings
                value = [v for v in value if getattr(v, "value", None) != ""]
            if name not in ("ctx", "kind", "type_comment") and value is not None and value != []:
                fields.append(f"{name}={_canonical(value)}")
        return f"{type(node).__name__}({','.join(sorted(fields))})"
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    return f"{type(node).__name__}:{node!r}"


def _without_docstring(body: list) -> list:
    first = body[0] if body else None
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if is_text and isinstance(first.value.value, str) else body

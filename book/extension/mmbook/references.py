"""The reference pages: which modules they list, and how names in docstrings become links.

A page says ```` ```{library} mmlib.training ```` and gets one section for each module of that
package, so that no module is forgotten.

A docstring says ``:func:`sample``` although ``sample`` lives in another module of the package,
and a type hint names a class by the module that defines it. Sphinx finds neither. Both are
found here when exactly one documented object of the library has that name.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

LONGEST_VALUE = 200  # characters
LIBRARY = re.compile(r"^```\{library\} (\S+)\n```$", re.MULTILINE)


def modules(package: str) -> list[str]:
    """A package and every module in it, in the order of their names.

    >>> modules("email.mime")[:3]
    ['email.mime', 'email.mime.application', 'email.mime.audio']
    """
    path = importlib.import_module(package).__path__
    found = pkgutil.walk_packages(path, f"{package}.")
    return [package, *sorted(module.name for module in found)]


def list_modules(app: Sphinx, docname: str, source: list[str]) -> None:
    """Write out the modules where a page asks for those of a package."""

    def write(match: re.Match[str]) -> str:
        parts = []
        for name in modules(match[1]):
            module = importlib.import_module(name)
            # The folder too: a module that is added later must show.
            app.env.note_dependency(str(Path(module.__file__ or "").parent))
            # What a package only passes on is documented where it is defined.
            option = "   :no-members:\n" if hasattr(module, "__path__") else ""
            parts.append(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{option}```\n")
        return "\n".join(parts)

    source[0] = LIBRARY.sub(write, source[0])


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.Element
) -> nodes.Node | None:
    """Find the object that a name means; None where Sphinx should warn."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip(".")
    package, _, name = target.rpartition(".")
    objects = env.domains["py"].objects
    found = [
        full
        for full, entry in objects.items()
        if full.rpartition(".")[2] == name
        and full.startswith("mmlib.")
        and entry.objtype != "module"
        # `mmlib.data.scenes.sample` is `mmlib.data.scenes.sampling.sample`; of `Scene.name`
        # only the end is known.
        and (not package or full.startswith(f"{package}.") or full.endswith(f".{target}"))
    ]
    if len(found) > 1:  # the one of the same package
        here = str(node.get("py:module") or "").rpartition(".")[0]
        found = [full for full in found if full.startswith(f"{here}.")]
    if len(found) == 1:
        entry = objects[found[0]]
        return make_refnode(
            app.builder, node["refdoc"], entry.docname, entry.node_id, shown, found[0]
        )
    # A constant, field or type variable that exists but has no entry: shown, not linked.
    module = package or str(node.get("py:module") or "")
    scopes = (module, module.rpartition(".")[0])
    return shown if any(exists(scope, node.get("py:class"), name) for scope in scopes) else None


def exists(module: str, owner: str | None, name: str) -> bool:
    """Whether a module of the library, or a class in it, has this attribute."""
    if not module.startswith("mmlib"):
        return False
    try:
        scope = importlib.import_module(module)
    except ImportError:
        return False
    cls = getattr(scope, owner or "", None)
    return hasattr(scope, name) or hasattr(cls, name) or name in getattr(cls, "__annotations__", {})


def skip_passed_on(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Document a function or class where it is defined, not where ``__all__`` passes it on.

    Two entries would make viewcode link the source of the one to the page of the other.
    """
    defined = getattr(obj, "__module__", None) or ""
    here = app.env.temp_data.get("autodoc:module")
    passed_on = what == "module" and defined.startswith("mmlib") and defined != here
    return True if passed_on and callable(obj) else None


def keep_colons(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep the first line of a constant's comment whole.

    Napoleon takes what stands before its first colon for a type. An escaped line end prints
    nothing and has no colon.
    """
    if what in ("data", "attribute", "property") and lines and lines[0].strip():
        lines.insert(0, "\\")


def skip_aliases(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out the entries that Python makes for a named tuple's fields: they say nothing."""
    return True if (getattr(obj, "__doc__", "") or "").startswith("Alias for field") else None


def leave_out_long_values(app: Sphinx, doctree: nodes.document) -> None:
    """Print the value of a constant only where it fits on a line; the source has the others."""
    for annotation in list(doctree.findall(addnodes.desc_annotation)):
        text = annotation.astext()
        if text.lstrip().startswith("=") and len(text) > LONGEST_VALUE:
            annotation.parent.remove(annotation)


def leave_out(
    app: Sphinx, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave out what pydantic adds to a class; None lets Sphinx decide.

    Asked before others are, some of which ask the member for its text: where a class is imported
    for the first time with ``TYPE_CHECKING``, as Sphinx does, pydantic's parts refuse to answer.

    >>> leave_out(None, "class", "__pydantic_validator__", None, False, None)
    True
    """
    return True if name.startswith("__pydantic_") or name == "model_config" else None


def register(app: Sphinx) -> None:
    """Add the lists, the resolver, and what mends docstrings before Napoleon reads them."""
    app.connect("source-read", list_modules)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-skip-member", leave_out, priority=100)
    app.connect("autodoc-skip-member", skip_aliases)
    app.connect("autodoc-skip-member", skip_passed_on)
    app.connect("doctree-read", leave_out_long_values)
    app.connect("autodoc-process-docstring", keep_colons, priority=100)

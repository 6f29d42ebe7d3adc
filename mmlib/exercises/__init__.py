"""Checkers of the book's exercises: one module a chapter, ``exercises.ch01.check_…(answer)``.

The modules are imported when they are first used. How to write one: :mod:`mmlib.exercises.report`.
"""

import importlib
import re
from types import ModuleType

from mmlib.exercises.report import Report

__all__ = ["Report"]


def __getattr__(name: str) -> ModuleType:
    if re.fullmatch(r"ch\d\d", name):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

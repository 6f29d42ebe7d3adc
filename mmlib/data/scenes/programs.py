"""The small language in which questions are asked of a scene, and what runs it.

A program is a tuple whose first item is an operation and whose others are its arguments, programs
among them::

    ("query", "colour", ("unique", ("filter", "shape", "star", ("scene",))))

The operations follow CLEVR (Johnson et al. 2017, https://arxiv.org/abs/1612.06890):

===========================  ==================================================================
``("scene",)``               every object
``("filter", f, v, set)``    those of a set whose field ``f`` (size, colour, shape) is ``v``
``("related", r, one)``      those left, right, above or below of an object
``("unique", set)``          the only object of a set
``("exist", set)``           yes or no: is there any?
``("count", set)``           how many?
``("query", f, one)``        an object's size, colour or shape
``("relate", r, one, one)``  yes or no: does the relation hold between two objects?
``("more", set, set)``       yes or no: has the first more objects? Also ``fewer`` and ``equal``
===========================  ==================================================================
"""

from collections.abc import Callable

from mmlib.data.scenes.relations import holds
from mmlib.data.scenes.world import COLOURS, MAX_OBJECTS, SHAPES, SIZES, Object, Scene, choice

FIELDS = {"size": SIZES, "colour": COLOURS, "shape": SHAPES}
#: Every answer that a question about shapes, colours, numbers or facts can have.
ANSWERS = ("yes", "no", *map(str, range(MAX_OBJECTS + 1)), *COLOURS, *SHAPES)

Program = tuple


def execute(program: Program, scene: Scene) -> str:
    """Run a program on a scene.

    Args:
        program: A program whose first operation gives an answer, not objects.
        scene: The scene.

    Returns:
        ``"yes"`` or ``"no"``, a number in digits, or a word.

    Raises:
        ValueError: If the program is malformed, or ``unique`` meets none or several objects.

    >>> from mmlib.data.scenes import Object, Scene
    >>> scene = Scene((Object("star", "red", "small", 0.25, 0.5),))
    >>> execute(("query", "colour", ("unique", ("scene",))), scene)
    'red'
    """
    value = _run(program, scene)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return value
    raise ValueError(f"program must give an answer, not objects: got {program!r}")


def _run(program: object, scene: Scene) -> object:
    if not (isinstance(program, tuple) and program and program[0] in _OPERATIONS):
        raise ValueError(
            f"program must be a tuple that starts with one of {', '.join(_OPERATIONS)}: "
            f"got {program!r}"
        )
    kinds, operation = _OPERATIONS[program[0]]
    if len(program) - 1 != len(kinds):
        raise ValueError(
            f"program {program[0]!r} takes {len(kinds)} arguments: got {len(program) - 1} "
            f"in {program!r}"
        )
    values = []
    for kind, argument in zip(kinds, program[1:], strict=True):
        if kind is str:
            values.append(argument)
            continue
        value = _run(argument, scene)
        if not isinstance(value, kind):
            wanted = "a set of objects" if kind is tuple else "one object"
            raise ValueError(f"program {program[0]!r} needs {wanted}: got {argument!r}")
        values.append(value)
    return operation(scene, *values)


def _field(item: Object, field: str) -> str:
    choice("field", field, tuple(FIELDS))
    return getattr(item, field)


def _filter(scene: Scene, field: str, value: str, items: tuple) -> tuple:
    choice("field", field, tuple(FIELDS))
    choice(field, value, FIELDS[field])
    return tuple(item for item in items if _field(item, field) == value)


def _related(scene: Scene, relation: str, one: Object) -> tuple:
    return tuple(item for item in scene.objects if holds(relation, item, one))


def _relate(scene: Scene, relation: str, first: Object, second: Object) -> bool:
    return holds(relation, first, second)


def _unique(scene: Scene, items: tuple) -> Object:
    if len(items) != 1:
        raise ValueError(f"unique needs exactly one object: got {len(items)}")
    return items[0]


# Kinds of the arguments (str: a word as it stands; tuple: a set; Object: one), and what to do.
_OPERATIONS: dict[str, tuple[tuple[type, ...], Callable]] = {
    "scene": ((), lambda scene: scene.objects),
    "filter": ((str, str, tuple), _filter),
    "related": ((str, Object), _related),
    "unique": ((tuple,), _unique),
    "exist": ((tuple,), lambda scene, items: len(items) > 0),
    "count": ((tuple,), lambda scene, items: len(items)),
    "query": ((str, Object), lambda scene, field, one: _field(one, field)),
    "relate": (
        (str, Object, Object),
        _relate,
    ),
    "more": ((tuple, tuple), lambda scene, first, second: len(first) > len(second)),
    "fewer": ((tuple, tuple), lambda scene, first, second: len(first) < len(second)),
    "equal": ((tuple, tuple), lambda scene, first, second: len(first) == len(second)),
}

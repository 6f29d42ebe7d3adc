r"""What an exercise's checker says, and the parts a checker is made of.

A checker is a function of one answer. It is written as if it could simply stop at the first
thing that is wrong; the decorator :func:`checker` turns each way of stopping into a
:class:`Report`, so that a checker never raises::

    from mmlib.exercises.report import checker, check_function, call, compare, require

    @checker("Each row of weights is a softmax over the keys.")
    def check_weights(answer):
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(2, 3, 5, generator=generator)
        check_function(
            answer,
            reference=lambda scores: scores.softmax(-1),
            cases=[(scores,), (100 * scores,)],          # a tuple: positional, a dict: by name
            mistakes={
                "the softmax runs over the queries (`dim=-2`); a row of keys must sum to 1":
                    lambda scores: scores.softmax(-2),
            },
        )
        weights = call(answer, scores)                   # further checks, one by one
        require((weights >= 0).all(), "a weight is negative")
        compare(weights.sum(-1), torch.ones(2, 3), name="the sum of each row")

``check_weights(answer)`` then gives ``Report(passed=True, ...)`` or a report that says what is
wrong: the stub is unfinished, the answer raises (with the line), changes its input, has the
wrong shape or dtype, contains NaN, equals a known mistake, or differs (where, and by how much).
"""

import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmlib.exercises.difference import difference

Case = tuple | dict


@dataclass(frozen=True)
class Report:
    """The verdict on an answer. It is true exactly when the answer passed.

    Attributes:
        passed: Whether the answer is right.
        message: What is right, or what is wrong and how to go on; Markdown.

    >>> Report(True, "Well done.")
    ✓ Correct. Well done.
    >>> bool(Report(False, "the rows do not sum to 1"))
    False
    """

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return (
            f"✓ Correct. {self.message}".rstrip() if self.passed else f"✗ Not yet: {self.message}"
        )

    def _repr_markdown_(self) -> str:
        head = "✓ **Correct.**" if self.passed else "✗ **Not yet:**"
        return f"{head} {self.message}".rstrip()


class NotYet(Exception):
    """Raised inside a checker to say what is wrong; :func:`checker` turns it into a report."""


def checker(praise: str = "") -> Callable[[Callable[..., Any]], Callable[..., Report]]:
    """Make a checker of a function that raises :class:`NotYet` when the answer is wrong.

    The checker seeds torch's random numbers while it runs, so that it judges the same answer the
    same way every time, and puts their state back afterwards.

    Args:
        praise: What to say when the answer is right: one sentence on why it is.

    Returns:
        A decorator. The decorated function takes what the undecorated one takes, returns a
        :class:`Report` and raises nothing (but ``KeyboardInterrupt``).

    >>> @checker("7 is prime.")
    ... def check_prime(answer):
    ...     require(answer == 7, f"{answer} is not it")
    >>> check_prime(7)
    ✓ Correct. 7 is prime.
    >>> check_prime(8)
    ✗ Not yet: 8 is not it
    >>> check_prime(...)
    ✗ Not yet: not solved yet. Replace the `...` by your answer and run the cell again.
    """
    if not isinstance(praise, str):
        raise TypeError(f"praise must be a str: got {praise!r}; write @checker(), with brackets")

    def decorate(function: Callable[..., Any]) -> Callable[..., Report]:
        @functools.wraps(function)
        def check(*answers: Any, **named: Any) -> Report:
            try:
                if any(_is_blank(answer) for answer in (*answers, *named.values())):
                    raise NotYet(_STUB)
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(0)
                    function(*answers, **named)
            except NotYet as problem:
                return Report(False, str(problem))
            # The answer may have a form that nobody thought of, and raise anything.
            except (Exception, SystemExit) as error:  # noqa: BLE001
                where = _describe_error(error, None)
                return Report(False, f"your answer cannot be checked as it is: {where}")
            return Report(True, praise)

        return check

    return decorate


def require(condition: Any, message: str) -> None:
    """Stop with ``message`` unless ``condition`` is true.

    Raises:
        NotYet: The condition is false.
    """
    if not bool(condition):
        raise NotYet(message)


def call(answer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call the reader's function on copies of the arguments and return what it returns.

    Raises:
        NotYet: The answer is no function, is an unfinished stub (returns ``None`` or ``...``,
            or raises ``NotImplementedError``), raises, or changes an argument in place.
    """
    require(callable(answer), f"a function is wanted, but this is a `{type(answer).__name__}`")
    given, named = _copy(args), _copy(kwargs)
    try:
        result = answer(*given, **named)
    except NotImplementedError:
        raise NotYet(_STUB) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 (it is the reader's code)
        raise NotYet(f"your function raises {_describe_error(error, answer)}") from None
    require(not _is_blank(result), _STUB)
    names = [f"argument {i + 1}" for i in range(len(args))] + [f"`{key}`" for key in kwargs]
    before, after = (*args, *kwargs.values()), (*given, *named.values())
    for name, old, new in zip(names, before, after, strict=True):
        require(
            not isinstance(old, Tensor) or _same_tensor(old, new),
            f"your function changes {name} in place. Make a new tensor instead (`x = x + 1`, "
            "not `x += 1`)",
        )
    return result


def compare(
    got: Any,
    expected: Any,
    *,
    name: str = "the result",
    mistakes: Mapping[str, Any] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Compare a value with the right one and say what the first difference is.

    Args:
        got: The reader's value.
        expected: The right value: a tensor or array, number, string, or a tuple or list of these.
        name: What to call the value in the message.
        mistakes: Known mistakes: what is wrong, as a sentence, and the value one then gets (or a
            function of no argument that gives it).
        rtol: Relative tolerance of floating-point numbers.
        atol: Absolute tolerance of floating-point numbers.

    Raises:
        NotYet: The values differ.
    """
    problem = difference(got, expected, name, rtol, atol)
    if problem is None:
        return
    for sentence, wrong in (mistakes or {}).items():
        wrong = wrong() if callable(wrong) else wrong
        # A mistake that gives the right value here cannot be told from no mistake.
        tells = difference(wrong, expected, name, rtol, atol) is not None
        if tells and difference(got, wrong, name, rtol, atol) is None:
            raise NotYet(f"{sentence}.".replace("..", "."))
    raise NotYet(problem)


def check_function(
    answer: Callable[..., Any],
    reference: Callable[..., Any],
    cases: Iterable[Case],
    *,
    mistakes: Mapping[str, Callable[..., Any]] | None = None,
    name: str = "the result",
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Compare the reader's function with a reference on each case.

    Args:
        answer: The reader's function.
        reference: The right function.
        cases: The arguments of each call: a tuple (positional) or a dict (by name). Order them
            from simple to hard: the first failure is reported.
        mistakes: Known mistakes: what is wrong, as a sentence, and a function that makes it.
        name: What to call the result in a message.
        rtol: Relative tolerance of floating-point numbers.
        atol: Absolute tolerance of floating-point numbers.

    Raises:
        NotYet: A case differs.
    """
    for case in cases:
        args, kwargs = ((), case) if isinstance(case, dict) else (case, {})
        got = call(answer, *args, **kwargs)
        wrong = {
            sentence: functools.partial(_call_mistake, function, args, kwargs)
            for sentence, function in (mistakes or {}).items()
        }
        expected = reference(*_copy(args), **_copy(kwargs))
        compare(got, expected, name=name, mistakes=wrong, rtol=rtol, atol=atol)


_STUB = "not solved yet. Replace the `...` by your answer and run the cell again."


def _call_mistake(function: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    # A mistake may not apply to every case (a wrong axis only exists for enough axes).
    try:
        return function(*_copy(args), **_copy(kwargs))
    except Exception:  # noqa: BLE001
        return None


def _is_blank(value: Any) -> bool:
    return value is None or value is ...


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (tuple, list):
        return type(value)(_copy(item) for item in value)
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    return copy.deepcopy(value) if isinstance(value, np.ndarray) else value


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    # NaN equals NaN here: an untouched input may contain it.
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _describe_error(error: BaseException, answer: Any) -> str:
    """Type, message and, where it can be found, the line of the reader's own code."""
    text = str(error).strip().split("\n")[0]
    message = f"`{type(error).__name__}: {text}`" if text else f"`{type(error).__name__}`"
    function = inspect.unwrap(answer) if callable(answer) else None
    if isinstance(function, functools.partial):
        function = function.func
    if not inspect.isfunction(function) and answer is not None:
        function = getattr(answer, "forward", None) or getattr(answer, "__init__", None)
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    if not own:
        return message
    line = f": `{own[-1].line}`" if own[-1].line else ""
    return f"{message} in line {own[-1].lineno}{line}"

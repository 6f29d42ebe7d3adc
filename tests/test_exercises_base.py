"""The parts that checkers are made of: right answers pass, wrong ones are told why."""

import inspect
import math

import numpy as np
import pytest
import torch

import mmlib.exercises
from mmlib.exercises.difference import difference
from mmlib.exercises.report import NotYet, Report, call, check_function, checker, compare, require

SCORES = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))


@checker("Rows sum to 1.")
def check_softmax(answer):
    check_function(
        answer,
        reference=lambda scores: scores.softmax(-1),
        cases=[(SCORES,), {"scores": 100 * SCORES}],
        name="the weights",
        mistakes={
            "the softmax runs over the queries": lambda scores: scores.softmax(-2),
            "this mistake raises in every case": lambda scores: scores[7, 7, 7],
        },
    )


def test_a_right_answer_passes():
    report = check_softmax(lambda scores: torch.softmax(scores, dim=-1))
    assert report and report.passed
    assert repr(report) == "✓ Correct. Rows sum to 1."
    assert report._repr_markdown_() == "✓ **Correct.** Rows sum to 1."


def raises(scores):
    padded = scores + 1
    return padded @ torch.zeros(3, 3)


def in_place(scores):
    scores -= scores.max()
    return scores.softmax(-1)


def not_implemented(scores):
    raise NotImplementedError


def leaves(scores):
    raise SystemExit(1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda scores: ..., "not solved yet"),
        (lambda scores: None, "not solved yet"),
        (not_implemented, "not solved yet"),
        (..., "not solved yet"),
        (None, "not solved yet"),
        (3, "a function is wanted, but this is a `int`"),
        (raises, "`return padded @ torch.zeros(3, 3)`"),
        (raises, "RuntimeError"),
        (leaves, "SystemExit"),
        (lambda: 1, "TypeError"),
        (in_place, "changes argument 1 in place"),
        (lambda scores: scores.softmax(-2), "the softmax runs over the queries."),
        (lambda scores: scores.softmax(-1)[0], "shape (3, 5); it should be (2, 3, 5)"),
        (lambda scores: scores.softmax(-1) > 0.5, "dtype torch.bool"),
        (lambda scores: scores.softmax(-1) * math.nan, "the weights is NaN at index (0, 0, 0)"),
        (lambda scores: "weights", "must be a tensor of shape (2, 3, 5)"),
        # Right on the first case, wrong (overflow) on the second.
        (lambda scores: scores.exp() / scores.exp().sum(-1, keepdim=True), "NaN"),
    ],
)
def test_a_wrong_answer_is_told_why(answer, says):
    report = check_softmax(answer)
    assert isinstance(report, Report)
    assert not report
    assert says in report.message
    assert repr(report).startswith("✗ Not yet: ")
    assert "/" not in report.message.replace("scores.exp() /", "")  # no path of the machine


def test_the_message_counts_what_differs():
    wrong = torch.zeros(2, 2)
    wrong[1, 0] = 0.5
    problem = difference(wrong, torch.zeros(2, 2), "x", 1e-4, 1e-5)
    expected = "x is 0.5 at index (1, 0); it should be 0 (1 of 4 numbers differ, by at most 0.5)"
    assert problem == expected


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (1.0, 1, True),
        (torch.tensor(2.0), 2.0, True),
        (np.float32(0.5), 0.5, True),
        (torch.ones(2, dtype=torch.float64), torch.ones(2), True),
        (np.ones(2), torch.ones(2), True),
        (torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf]), True),
        (torch.tensor([-math.inf]), torch.tensor([math.inf]), False),
        (torch.ones(2), torch.ones(2, dtype=torch.int64), False),
        ((1, 2), [1, 2], True),
        ([1, 2], [1, 2, 3], False),
        ([1, 2], [1, 3], False),
        ("a", "a", True),
        ("a", "b", False),
        (True, True, True),
        (1, True, False),
        ({"a": 1}, {"a": 1}, True),
        (1.0, torch.ones(1), False),
        ("1", 1.0, False),
        (torch.tensor(1.0, requires_grad=True), 1.0, True),
    ],
)
def test_difference(got, expected, same):
    assert (difference(got, expected, "x", 1e-4, 1e-5) is None) == same


def test_a_mistake_that_cannot_be_told_from_the_answer_is_not_named():
    mistakes = {"never": torch.ones(2)}
    with pytest.raises(NotYet, match="should be 1"):
        compare(torch.zeros(2), torch.ones(2), mistakes=mistakes)
    compare(torch.ones(2), torch.ones(2), mistakes=mistakes)


def test_call_leaves_the_arguments_alone():
    x = torch.ones(2)
    nested = {"x": [x]}

    def answer(first, nested):
        nested["x"][0].zero_()
        return 1

    assert call(answer, x, nested=nested) == 1
    assert torch.equal(x, torch.ones(2))


def test_a_fault_of_the_checker_is_a_report_too():
    @checker()
    def check(answer):
        require(answer.missing, "")

    report = check(3)
    assert not report
    assert "cannot be checked as it is" in report.message and "AttributeError" in report.message


def test_random_answers_are_judged_alike_and_the_state_is_put_back():
    seen = []

    @checker()
    def check(answer):
        seen.append(answer())

    before = torch.random.get_rng_state()
    check(lambda: torch.rand(3))
    check(lambda: torch.rand(3))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_keyboard_interrupt_is_not_swallowed():
    def stop():
        raise KeyboardInterrupt

    @checker()
    def check(answer):
        call(answer)

    with pytest.raises(KeyboardInterrupt):
        check(stop)


def test_the_line_is_found_in_modules_too():
    class Net(torch.nn.Module):
        def forward(self, x):
            return x.no_such_thing

    @checker()
    def check(answer):
        call(answer, torch.ones(1))

    assert "`return x.no_such_thing`" in check(Net()).message


def test_checker_needs_its_brackets():
    with pytest.raises(TypeError, match="with brackets"):
        inspect.unwrap(checker)(lambda answer: None)


def test_unknown_chapters_are_attribute_errors():
    with pytest.raises(AttributeError, match="ch99"):
        mmlib.exercises.ch99  # noqa: B018
    with pytest.raises(AttributeError, match="nothing"):
        mmlib.exercises.nothing  # noqa: B018

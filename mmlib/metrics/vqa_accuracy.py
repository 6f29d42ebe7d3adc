r"""The accuracy of visual question answering, as its official evaluation computes it.

Ten people answered each question of VQAv2. A model's answer is compared with every nine of them,
and counts in full where at least three agree:

.. math::

    \text{acc}(a) = \frac{1}{N} \sum_{i=1}^{N}
    \min\Bigl(\tfrac13 \sum_{j \ne i} [a_j = a],\; 1\Bigr)

so that an answer that 1, 2, 3 or at least 4 of ten gave is worth 0.3, 0.6, 0.9 or 1. Answers are
compared after :func:`mmlib.data.answers.normalise_together`.

Reference:
    Antol et al., *VQA: Visual Question Answering*, ICCV 2015, and ``vqaEval.py`` at
    https://github.com/GT-Vision-Lab/VQA.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmlib.data.answers import normalise_together

__all__ = ["VQAScores", "vqa_accuracy", "vqa_scores"]


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """What one answer is worth, in [0, 1].

    Args:
        answer: The model's.
        people: The people's: ten in VQAv2, and at least two.

    Raises:
        TypeError: An answer is no string, or ``people`` is one.
        ValueError: There are fewer than two people, so that leaving one out leaves none.

    >>> vqa_accuracy("2", ["two"] * 3 + ["three"] * 7)
    0.9
    >>> vqa_accuracy("The dog.", ["dog"] * 4 + ["a cat"] * 6)
    1.0
    """
    if isinstance(people, str):
        raise TypeError(f"people must be a sequence of answers: got one string, {people!r}")
    if len(people) < 2:
        raise ValueError(f"people must be at least two: got {len(people)}")
    answer, people = normalise_together(answer, people)
    agree = sum(given == answer for given in people)
    # Without somebody who agrees one fewer is left, without anybody else as many.
    total = agree * min(agree - 1, 3) + (len(people) - agree) * min(agree, 3)
    return total / (3 * len(people))


class VQAScores(NamedTuple):
    """Mean accuracies, in [0, 1].

    Attributes:
        overall: Of all questions.
        by_type: Of the questions of each type, where types were given.
        questions: How many there were.
    """

    overall: float
    by_type: dict[str, float]
    questions: int


def vqa_scores(
    answers: Mapping[int, str],
    people: Mapping[int, Sequence[str]],
    types: Mapping[int, str] | None = None,
) -> VQAScores:
    """The mean accuracy of a model's answers, over all questions and of each type.

    Args:
        answers: The model's, by question id.
        people: The people's, for the same questions.
        types: Of each question: ``"yes/no"``, ``"number"`` or ``"other"`` in VQAv2.

    Raises:
        ValueError: There is no question, or the ids differ; a question that the model did not
            answer must count as wrong, and not be left out.

    >>> people = {1: ["yes"] * 10, 2: ["2"] * 2 + ["3"] * 8}
    >>> vqa_scores({1: "yes", 2: "2"}, people, {1: "yes/no", 2: "number"})
    VQAScores(overall=0.8, by_type={'number': 0.6, 'yes/no': 1.0}, questions=2)
    """
    if not people:
        raise ValueError("people must have answered at least one question: got none")
    for name, given in (("answers", answers), ("types", types)):
        if given is not None and given.keys() != people.keys():
            missing, extra = len(people.keys() - given.keys()), len(given.keys() - people.keys())
            raise ValueError(
                f"{name} must be of the people's questions: {missing} missing, {extra} unknown"
            )
    worth = {name: vqa_accuracy(answers[name], people[name]) for name in people}
    groups: dict[str, list[float]] = {}
    for name, score in worth.items():
        if types is not None:
            groups.setdefault(types[name], []).append(score)
    by_type = {kind: _mean(scores) for kind, scores in sorted(groups.items())}
    return VQAScores(_mean(list(worth.values())), by_type, len(worth))


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)

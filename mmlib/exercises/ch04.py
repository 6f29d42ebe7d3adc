"""Checkers of chapter 04, fusion."""

import torch

from mmlib.exercises.report import call, check_function, checker, compare, require
from mmlib.fusion import Bilinear


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _average(vectors, weights, keep):
    share = weights * keep
    share = share / share.sum(dim=1, keepdim=True)
    return sum(share[:, m, None] * vector for m, vector in enumerate(vectors))


@checker("The weights of a row are divided by the sum over the modalities that this row has.")
def check_average(answer):
    """Exercise 1: ``answer(vectors, weights, keep)`` averages the modalities that are there."""

    def unnormalised(vectors, weights, keep):
        return sum((weights * keep)[:, m, None] * v for m, v in enumerate(vectors))

    def all_weights(vectors, weights, keep):
        return unnormalised(vectors, weights / weights.sum(), keep)

    def ignores(vectors, weights, keep):
        return _average(vectors, weights, torch.ones_like(keep))

    vectors = [_draw(3, 4, seed=1), _draw(3, 4, seed=2)]
    keep = torch.tensor([[True, True], [True, False], [False, True]])
    check_function(
        answer,
        _average,
        [
            (vectors, torch.tensor([1.0, 3.0]), torch.ones(3, 2, dtype=torch.bool)),
            (vectors, torch.tensor([1.0, 3.0]), keep),
        ],
        mistakes={
            "the weights do not sum to one, so this is no average": unnormalised,
            "you divide by the sum of all weights; divide by those of the modalities that the row "
            "has": all_weights,
            "a missing modality still counts: use `keep`": ignores,
        },
        name="the average",
    )


@checker("Three of four is the most that any sum of two functions reaches: that is the XOR.")
def check_additive(answer):
    """Exercise 2: ``answer()`` gives f(-), f(+), g(-), g(+) with three of four cases right."""
    numbers = call(answer)
    require(
        isinstance(numbers, tuple | list) and len(numbers) == 4,
        "four numbers are wanted: f(-), f(+), g(-), g(+)",
    )
    f, g = [float(x) for x in numbers[:2]], [float(x) for x in numbers[2:]]
    right = []
    for i in range(2):
        for j in range(2):
            score = f[i] + g[j]
            require(score != 0, "a sum is exactly 0, which is no decision; move a number a little")
            right.append((score > 0) == (i != j))
    require(
        sum(right) == 3,
        f"{sum(right)} of the four cases are right; choose the case that you give up, and set the "
        "numbers so that the other three are right",
    )


@checker("The tensor is never formed, and the cost grows with the sum of the widths.")
def check_bilinear(answer):
    """Exercise 3: ``answer(x, y, a, b)`` is a bilinear map of low rank."""

    def reference(x, y, a, b):
        tensor = torch.einsum("rik,rjk->kij", a, b)
        return torch.einsum("bi,bj,kij->bk", x, y, tensor)

    def sums_first(x, y, a, b):
        return (x @ a.sum(dim=0)) * (y @ b.sum(dim=0))

    def adds(x, y, a, b):
        return (x @ a).sum(dim=0) + (y @ b).sum(dim=0)

    def mean(x, y, a, b):
        return reference(x, y, a, b) / len(a)

    cases = [
        (_draw(2, 3, seed=1), _draw(2, 4, seed=2), _draw(r, 3, 5, seed=3), _draw(r, 4, 5, seed=4))
        for r in (1, 3)
    ]
    check_function(
        answer,
        reference,
        cases,
        mistakes={
            "you sum over the rank before the product; the product of sums is not the sum of "
            "products": sums_first,
            "the two modalities are added; multiply them element by element": adds,
            "you take the mean over the rank; take the sum": mean,
        },
        name="the joined vector",
    )
    module = Bilinear([3, 4], 5, rank=2)
    x, y = _draw(6, 3, seed=5), _draw(6, 4, seed=6)
    ones = torch.ones(6, 1)
    a, b = (factor.detach() for factor in module.factors)
    got = call(answer, torch.cat([x, ones], 1), torch.cat([y, ones], 1), a, b)
    compare(got, module([x, y]).detach(), name="mmlib's Bilinear, from your function")


@checker("A row never loses its last modality.")
def check_dropout(answer):
    """Exercise 4: ``answer(drawn, probability)`` says which modalities stay."""

    def reference(drawn, probability):
        keep = drawn >= probability
        keep[~keep.any(dim=1), drawn[~keep.any(dim=1)].argmax(dim=1)] = True
        return keep

    def all_may_go(drawn, probability):
        return drawn >= probability

    def reversed_(drawn, probability):
        return ~reference(drawn, probability)

    drawn = torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.9, 0.3], [0.1, 0.3, 0.2], [0.5, 0.2, 0.49]])
    check_function(
        answer,
        reference,
        [(drawn[:2], 0.5), (drawn, 0.5), (drawn, 0.0), (drawn, 0.95)],
        mistakes={
            "a row lost all its modalities: keep the one with the largest number": all_may_go,
            "this says which modalities go; True means that it stays": reversed_,
        },
        name="the mask",
    )


@checker("Early fusion pays for every pair of tokens; a bottleneck for each token and each slot.")
def check_pairs(answer):
    """Exercise 5: ``answer(lengths, bottlenecks)`` counts scores of early fusion and bottleneck."""
    for lengths, slots in (((3, 4), 1), ((196, 77, 500), 4), ((10,), 2)):
        got = call(answer, lengths, slots)
        require(
            isinstance(got, tuple | list) and len(got) == 2,
            "two numbers are wanted: early fusion, bottleneck",
        )
        early = sum(lengths) ** 2
        compare(
            int(got[0]),
            early,
            name=f"early fusion for lengths {lengths}",
            mistakes={
                "each modality alone is counted; in early fusion every token also attends to the "
                "tokens of the others": sum(n * n for n in lengths)
            },
        )
        compare(
            int(got[1]),
            sum((n + slots) ** 2 for n in lengths),
            name=f"the bottleneck for lengths {lengths} and {slots} slots",
            mistakes={
                "the shared tokens are missing: they stand in every modality's sequence": sum(
                    n * n for n in lengths
                ),
                "the shared tokens attend and are attended to: they count in both directions": sum(
                    n * (n + slots) for n in lengths
                ),
            },
        )

"""Checkers of chapter 15, deployment."""

import math

import torch

from mmlib.exercises.report import check_function, checker


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@checker("No weight moves by more than half a step of its row.")
def check_int8(answer):
    """Exercise 1: ``answer(weight)`` is what is left of the weights after eight bits."""

    def rounded(weight, scale, operation=torch.round):
        return operation(weight / scale) * scale

    def rows(weight):
        return weight.abs().amax(1, keepdim=True)

    rise = torch.tensor([0.01, 1.0, 50.0])[:, None]
    cases = [(_draw(3, 6, seed=1) * rise,), (_draw(4, 5, seed=2) + 3.0,)]
    check_function(
        answer,
        lambda weight: rounded(weight, rows(weight) / 127),
        cases,
        mistakes={
            "one scale for the whole matrix; a row of small weights then has few steps": (
                lambda w: rounded(w, w.abs().max() / 127)
            ),
            "each column has its own scale; here it is each row, an output of the layer": (
                lambda w: rounded(w, w.abs().amax(0, keepdim=True) / 127)
            ),
            "the numbers are cut off towards zero; round them": (
                lambda w: rounded(w, rows(w) / 127, torch.trunc)
            ),
            "255 steps on each side: eight bits hold 127 on each side of zero": (
                lambda w: rounded(w, rows(w) / 255)
            ),
            "128 does not fit into eight bits with a sign; the largest is 127": (
                lambda w: rounded(w, rows(w) / 128)
            ),
            "the scale comes from the largest value; it must come from the largest size": (
                lambda w: rounded(w, w.amax(1, keepdim=True) / 127)
            ),
            "these are the whole numbers; multiply by the scale again": (
                lambda w: torch.round(w / rows(w) * 127)
            ),
        },
        name="the weights",
    )


@checker("One threshold for all: what has small weights loses more of them.")
def check_pruned(answer):
    """Exercise 2: ``answer(first, second, share)`` is both matrices, the smallest share zero."""

    def cut(weights, number, size=torch.abs):
        sizes = torch.cat([size(w).flatten() for w in weights])
        gone = torch.zeros(len(sizes), dtype=torch.bool)
        gone[sizes.argsort()[:number]] = True
        parts = gone.split([w.numel() for w in weights])
        return tuple(
            w.masked_fill(part.reshape(w.shape), 0.0)
            for w, part in zip(weights, parts, strict=True)
        )

    def count(share, *weights):
        return round(share * sum(w.numel() for w in weights))

    cases = [
        (_draw(4, 5, seed=1), 0.1 * _draw(5, 4, seed=2), 0.5),
        (_draw(3, 4, seed=3), 2.0 * _draw(4, 7, seed=4), 0.3),
    ]
    check_function(
        answer,
        lambda a, b, share: cut((a, b), count(share, a, b)),
        cases,
        mistakes={
            "each matrix loses the same share; the threshold is one for both": lambda a, b, s: (
                *cut((a,), count(s, a)),
                *cut((b,), count(s, b)),
            ),
            "the lowest values go, and with them large negative ones; sort by size": (
                lambda a, b, s: cut((a, b), count(s, a, b), lambda w: w)
            ),
            "the largest go; the smallest must": (
                lambda a, b, s: cut((a, b), count(s, a, b), lambda w: -w.abs())
            ),
            "`share` is what goes, not what stays": (
                lambda a, b, s: cut((a, b), count(1 - s, a, b))
            ),
        },
        name="the two matrices",
    )


@checker("The factor T² keeps the gradient's size whatever the temperature.")
def check_distillation(answer):
    """Exercise 3: ``answer(student, teacher, temperature)`` is the loss of Hinton et al."""

    def loss(s, t, heat, *, factor=2, swap=False, mean="rows"):
        p, q = (t / heat).softmax(1), (s / heat).softmax(1)
        if swap:
            p, q = q, p
        rows = (p * (p.log() - q.log())).sum(1)
        total = rows.mean() if mean == "rows" else rows.sum() / (1 if mean == "sum" else s.numel())
        return heat**factor * total

    check_function(
        answer,
        loss,
        [
            (_draw(5, 4, seed=1), _draw(5, 4, seed=2), 3.0),
            (_draw(3, 6, seed=3), 3 * _draw(3, 6, seed=4), 1.5),
        ],
        mistakes={
            "the factor T² is missing": lambda s, t, heat: loss(s, t, heat, factor=0),
            "the factor is T; it must be T²": lambda s, t, heat: loss(s, t, heat, factor=1),
            "the divergence is the wrong way round: the teacher's probabilities weigh it": (
                lambda s, t, heat: loss(s, t, heat, swap=True)
            ),
            "the mean over all entries; it is a sum over the classes, a mean over the rows": (
                lambda s, t, heat: loss(s, t, heat, mean="entries")
            ),
            "the sum over the rows; take their mean": (
                lambda s, t, heat: loss(s, t, heat, mean="sum")
            ),
            "logits are multiplied by the temperature; divide them": (
                lambda s, t, heat: heat**2 * loss(s, t, 1 / heat, factor=0)
            ),
            "this is the cross-entropy; the teacher's own entropy has to be taken off": (
                lambda s, t, heat: (
                    -(heat**2) * ((t / heat).softmax(1) * (s / heat).log_softmax(1)).sum(1).mean()
                )
            ),
        },
        name="the loss",
    )


@checker("That is the whole of a dynamic batcher but for its queue's bound.")
def check_batches(answer):
    """Exercise 4: ``answer(arrivals, size, wait, fixed, each)`` is when each is answered."""

    def times(arrivals, size, wait, fixed, each, *, late=False, stubborn=False, eager=False):
        ends, free, i = [], 0.0, 0
        while i < len(arrivals):
            taken = max(free, arrivals[i])
            deadline = (taken if late else arrivals[i]) + (0 if eager else wait)
            start, n = taken, 1
            while n < size and i + n < len(arrivals):
                if arrivals[i + n] > max(taken, deadline):
                    break
                start, n = max(start, arrivals[i + n]), n + 1
            if n < size or stubborn:
                start = max(start, deadline)
            free = start + fixed + each * n
            ends += [free] * n
            i += n
        return torch.tensor(ends, dtype=torch.float64)

    def as_tensor(*given):
        found = answer(*given)
        if isinstance(found, list | tuple):
            return torch.tensor(found, dtype=torch.float64)
        return found.double() if isinstance(found, torch.Tensor) else found

    cases = [
        ([0.0, 0.5, 0.7, 0.9, 3.2, 3.4, 9.0], 3, 1.0, 2.0, 0.5),
        ([0.0, 0.1, 0.2, 0.3, 0.4, 4.0], 2, 0.5, 1.0, 0.25),
        ([0.0, 1.5, 2.2], 8, 0.5, 1.0, 0.5),
    ]
    check_function(
        as_tensor,
        times,
        cases,
        mistakes={
            "the wait begins when the batch does; it begins when the first request arrives": (
                lambda *given: times(*given, late=True)
            ),
            "a full batch still waits; it can start at once": (
                lambda *given: times(*given, stubborn=True)
            ),
            "nobody waits for others": lambda *given: times(*given, eager=True),
            "a batch takes no more than `size`": lambda a, size, *rest: times(a, len(a), *rest),
            "each is answered alone": lambda a, size, *rest: times(a, 1, *rest),
            "the fixed part of the time is paid once a batch": (
                lambda a, size, wait, fixed, each: times(a, size, wait, 0.0, each)
            ),
        },
        name="the times",
    )


@checker("Rounded up, and with room: at full use a queue grows without end.")
def check_replicas(answer):
    """Exercise 5: ``answer(rate, capacity, use, spare)`` is how many replicas are needed."""

    def replicas(rate, capacity, use, spare):
        return math.ceil(round(rate / (capacity * use), 9)) + spare

    check_function(
        answer,
        replicas,
        [(1000.0, 150.0, 0.6, 2), (90.0, 100.0, 0.7, 1), (10.0, 100.0, 0.5, 0)],
        mistakes={
            "rounded down, which is too few": (lambda r, c, u, s: math.floor(r / (c * u)) + s),
            "at full use of each replica every burst waits: divide by `use`": (
                lambda r, c, u, s: math.ceil(r / c) + s
            ),
            "`use` makes a replica's share smaller, not the rate": (
                lambda r, c, u, s: math.ceil(r * u / c) + s
            ),
            "those that may fail are missing: add `spare`": (
                lambda r, c, u, s: math.ceil(r / (c * u))
            ),
        },
        name="the number of replicas",
    )

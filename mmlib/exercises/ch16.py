"""Checkers for the exercises of chapter 16, the full system."""

import torch

from mmlib.exercises.report import check_function, checker

__all__ = ["check_bytes", "check_mean", "check_neighbours", "check_tellers"]


@checker("Sums and counts are added up first, over all batches, and divided once.")
def check_mean(answer):
    """Exercise 1: ``answer(words, codes, weight)`` is the mean loss over several batches."""

    def total(parts):
        return sum(part.sum() for part in parts)

    def count(parts):
        return sum(len(part) for part in parts)

    def reference(words, codes, weight):
        told = total(words) + weight * total(codes)
        return told / (count(words) + weight * count(codes))

    def case(seed, sizes, weight):
        dice = torch.Generator().manual_seed(seed)
        return *([torch.rand(n, generator=dice) + kind for n in sizes[kind]] for kind in (0, 1)), (
            weight
        )

    def each(words, codes, weight):
        return sum(reference([w], [c], weight) for w, c in zip(words, codes, strict=True)) / len(
            words
        )

    check_function(
        answer,
        reference,
        [case(1, ((3, 9), (8, 4)), 0.2), case(2, ((2, 1, 5), (0, 16, 8)), 0.5)],
        mistakes={
            "this is a mean of the batches' means: a batch with few words counts as much as one "
            "with many": each,
            "the weight is missing from the count: the mean of ones would not be one": (
                lambda w, c, s: (total(w) + s * total(c)) / (count(w) + count(c))
            ),
            "codes count as much as words": lambda w, c, s: reference(w, c, 1.0),
            "this weighs the words, not the codes": (
                lambda w, c, s: (s * total(w) + total(c)) / (s * count(w) + count(c))
            ),
            "this is a sum, not a mean": lambda w, c, s: total(w) + s * total(c),
        },
        name="the mean",
    )


@checker("A token is told from the one before it, and never from another document's.")
def check_tellers(answer):
    """Exercise 2: ``answer(wanted)`` are the flat places from which wanted tokens are told."""

    def reference(wanted):
        return wanted.flatten().nonzero().flatten() - 1

    def case(seed, rows, length):
        dice = torch.Generator().manual_seed(seed)
        wanted = torch.rand(rows, length, generator=dice) < 0.4
        wanted[:, 0] = False
        wanted[:, -1] = True
        return (wanted,)

    check_function(
        answer,
        reference,
        [case(1, 3, 7), case(2, 2, 5)],
        mistakes={
            "a token is not told from itself, which would have seen it": (
                lambda w: w.flatten().nonzero().flatten()
            ),
            "these are the places after the wanted tokens": (
                lambda w: w.flatten().nonzero().flatten() + 1
            ),
            "these are places within rows; the heads read the flattened rows": (
                lambda w: w.nonzero()[:, 1] - 1
            ),
        },
        name="the places",
    )


@checker("Neither the future nor a neighbour is seen, and padding is seen by none.")
def check_neighbours(answer):
    """Exercise 3: ``answer(document)`` says which tokens of a packed row each token may see."""

    def same(document):
        return document[:, None] == document[None, :]

    def past(document):
        return torch.ones(len(document), len(document), dtype=torch.bool).tril()

    def reference(document):
        return same(document) & past(document) & (document >= 0)[None, :]

    check_function(
        answer,
        reference,
        [
            (torch.tensor([0, 0, 0, 1, 1, -1]),),
            (torch.tensor([4, 7, 7, 7, 2, 2, -1, -1]),),
        ],
        mistakes={
            "a document sees the one before it in its row": (lambda d: past(d) & (d >= 0)[None, :]),
            "tokens see those after them": lambda d: same(d) & (d >= 0)[None, :],
            "padding sees padding": lambda d: same(d) & past(d),
            "rows and columns are exchanged: row i says what token i sees": (
                lambda d: reference(d).T
            ),
        },
        name="the mask",
    )


@checker("Weights in half precision, their copies in full, two moments, and the gradient.")
def check_bytes(answer):
    """Exercise 4: ``answer(parameters, gpus)`` are bytes a GPU holds in mixed precision."""

    def reference(parameters, gpus):
        return parameters * (2 + 2 + 4 + 4 + 4) / gpus

    check_function(
        answer,
        reference,
        [(7e9, 8), (1.4e6, 1), (7e9, 64)],
        mistakes={
            "the optimiser's two moments are missing": lambda p, g: p * 8 / g,
            "the full-precision copy of the weights is missing": lambda p, g: p * 12 / g,
            "the gradient is missing": lambda p, g: p * 14 / g,
            "this is one moment; Adam keeps two": lambda p, g: p * 12.0 / g,
            "this is for all GPUs together; FSDP gives each its share": lambda p, g: p * 16,
        },
        name="the bytes",
        rtol=1e-6,
        atol=0.5,
    )

"""Answers to chapter 04's exercises: right ones, and typical mistakes with words of the message."""

import torch


def average(vectors, weights, keep):
    share = weights * keep
    share = share / share.sum(dim=1, keepdim=True)
    return sum(share[:, m, None] * vector for m, vector in enumerate(vectors))


def additive():
    return 1.0, -0.9, 1.0, -0.9


def bilinear(x, y, a, b):
    return ((x @ a) * (y @ b)).sum(dim=0)


def dropout(drawn, probability):
    return (drawn >= probability) | (drawn == drawn.max(dim=1, keepdim=True).values)


def pairs(lengths, bottlenecks):
    return sum(lengths) ** 2, sum((n + bottlenecks) ** 2 for n in lengths)


SOLUTIONS = {
    "check_average": average,
    "check_additive": additive,
    "check_bilinear": bilinear,
    "check_dropout": dropout,
    "check_pairs": pairs,
}


WRONG = [
    (
        "check_average",
        lambda v, w, k: sum((w * k)[:, m, None] * x for m, x in enumerate(v)),
        "no average",
    ),
    (
        "check_average",
        lambda v, w, k: sum((w / w.sum() * k)[:, m, None] * x for m, x in enumerate(v)),
        "that the row has",
    ),
    ("check_average", lambda v, w, k: average(v, w, torch.ones_like(k)), "use `keep`"),
    ("check_additive", lambda: (1.0, 2.0), "four numbers"),
    ("check_additive", lambda: (1.0, -1.0, 1.0, -1.0), "exactly 0"),
    ("check_additive", lambda: (1.0, 1.1, 1.2, 1.3), "2 of the four"),
    ("check_bilinear", lambda x, y, a, b: (x @ a.sum(0)) * (y @ b.sum(0)), "product of sums"),
    ("check_bilinear", lambda x, y, a, b: (x @ a + y @ b).sum(0), "added"),
    ("check_bilinear", lambda x, y, a, b: bilinear(x, y, a, b) / len(a), "mean over the rank"),
    ("check_dropout", lambda drawn, p: drawn >= p, "lost all"),
    ("check_dropout", lambda drawn, p: ~dropout(drawn, p), "True means that it stays"),
    ("check_pairs", lambda n, k: 7, "two numbers"),
    ("check_pairs", lambda n, k: (sum(x * x for x in n), 0), "tokens of the others"),
    ("check_pairs", lambda n, k: (sum(n) ** 2, sum(x * x for x in n)), "shared tokens are"),
    ("check_pairs", lambda n, k: (sum(n) ** 2, sum(x * (x + k) for x in n)), "both directions"),
]

"""Chapter 07's checkers: solutions pass, stubs and typical mistakes are told what is wrong."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from mmlib.cross_encoder import rerank
from mmlib.exercises import ch07

CHECKERS = {name: value for name, value in inspect.getmembers(ch07) if name.startswith("check_")}
CHECKERS.pop("check_function")


def bilinear(image, text, weight):
    return torch.einsum("id,de,je->ij", image, weight, text)


def right(scores, owners):
    return owners[None] == torch.arange(len(scores))[:, None]


def hit_rate(scores, owners, k):
    own = scores.masked_fill(~right(scores, owners), -torch.inf).amax(1, keepdim=True)
    return ((scores > own).sum(1) < k).float().mean()


def class_words(logits, prior, names, temperature):
    shares = torch.softmax((logits - prior) / temperature, dim=1)
    return F.normalize(torch.einsum("bc,cd->bd", shares, names), dim=1)


def order(quick, careful, top):
    return rerank(quick[None], lambda queries, items: careful[items], top)[0].argsort(
        descending=True
    )


def work(pictures, queries, tower, cross, top):
    return tower * (pictures + queries) + queries * top * cross, pictures * queries * cross


SOLUTIONS = {
    "check_bilinear": bilinear,
    "check_class_words": class_words,
    "check_hit_rate": hit_rate,
    "check_rerank": order,
    "check_work": work,
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_passes(name):
    report = CHECKERS[name](SOLUTIONS[name])
    assert report, report.message
    assert report.message


def test_every_checker_has_a_solution():
    assert set(SOLUTIONS) == set(CHECKERS)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_unchanged_stub_is_not_solved(name):
    def stub(*args): ...

    report = CHECKERS[name](stub)
    assert not report
    assert "not solved yet" in report.message


def found(s, o, k):
    return right(s, o).gather(1, s.topk(k, dim=1).indices)


def mixed(z, n):
    return z.softmax(1) @ n


def in_place(quick, careful, top):
    careful.zero_()
    return order(quick, careful, top)


WRONG = {
    "dot": ("check_bilinear", lambda i, t, w: i @ t.T, "left out"),
    "transposed": ("check_bilinear", lambda i, t, w: i @ w.T @ t.T, "wrong way round"),
    "own": (
        "check_bilinear",
        lambda i, t, w: (i[:2] @ w * t[:2]).sum(1),
        "shape",
    ),
    "columns": ("check_bilinear", lambda i, t, w: t @ w.T @ i.T, "rows must be pictures"),
    "cosine": (
        "check_bilinear",
        lambda i, t, w: F.normalize(i, dim=1) @ w @ F.normalize(t, dim=1).T,
        "as they are",
    ),
    "recall": (
        "check_hit_rate",
        lambda s, o, k: (found(s, o, k).sum(1) / right(s, o).sum(1)).mean(),
        "this is recall",
    ),
    "precision": ("check_hit_rate", lambda s, o, k: found(s, o, k).float().mean(), "precision"),
    "off by one": ("check_hit_rate", lambda s, o, k: hit_rate(s, o, k - 1), "one place too few"),
    "direction": (
        "check_hit_rate",
        lambda s, o, k: (s.T.topk(min(k, len(s)), 1).indices == o[:, None]).any(1).float().mean(),
        "other direction",
    ),
    "prior": ("check_class_words", lambda z, p, n, t: class_words(z, 0 * p, n, t), "every picture"),
    "times": ("check_class_words", lambda z, p, n, t: class_words(z, p, n, 1 / t), "divides"),
    "early": (
        "check_class_words",
        lambda z, p, n, t: F.normalize(mixed(z / t - p, n), dim=1),
        "before the prior",
    ),
    "length": ("check_class_words", lambda z, p, n, t: mixed((z - p) / t, n), "by its length"),
    "likeliest": (
        "check_class_words",
        lambda z, p, n, t: F.normalize(n[(z - p).argmax(1)], dim=1),
        "likeliest class alone",
    ),
    "axis": (
        "check_class_words",
        lambda z, p, n, t: F.normalize(((z - p) / t).softmax(0) @ n, dim=1),
        "over the classes",
    ),
    "everything": ("check_rerank", lambda q, c, t: c.argsort(descending=True), "all items"),
    "nothing": ("check_rerank", lambda q, c, t: q.argsort(descending=True), "nothing has changed"),
    "worst": ("check_rerank", lambda q, c, t: order(q, -c, t), "worst first"),
    "cut": ("check_rerank", lambda q, c, t: order(q, c, t)[:t], "missing"),
    "in place": ("check_rerank", in_place, "in place"),
    "queries": ("check_work", lambda p, q, t, c, k: (t * p + q * k * c, p * q * c), "queries, too"),
    "search only": ("check_work", lambda p, q, t, c, k: (t * (p + q), p * q * c), "is missing"),
    "once": (
        "check_work",
        lambda p, q, t, c, k: (t * (p + q) + k * c, p * q * c),
        "for every query",
    ),
    "again": (
        "check_work",
        lambda p, q, t, c, k: (t * p * q + q * k * c, p * q * c),
        "once a query",
    ),
    "top only": (
        "check_work",
        lambda p, q, t, c, k: (t * (p + q) + q * k * c, q * k * c),
        "reads every pair",
    ),
}


@pytest.mark.parametrize("name, answer, words", WRONG.values(), ids=WRONG)
def test_typical_mistake_is_named(name, answer, words):
    report = CHECKERS[name](answer)
    assert not report
    assert words in report.message


def test_every_checker_has_a_typical_mistake():
    assert {name for name, _, _ in WRONG.values()} == set(CHECKERS)

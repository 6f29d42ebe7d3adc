"""Answers to chapter 07's exercises: right ones, and typical mistakes with words of the message."""

import torch
import torch.nn.functional as F

from mmlib.cross_encoder import rerank


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


def found(s, o, k):
    return right(s, o).gather(1, s.topk(k, dim=1).indices)


def mixed(z, n):
    return z.softmax(1) @ n


def in_place(quick, careful, top):
    careful.zero_()
    return order(quick, careful, top)


WRONG = [
    ("check_bilinear", lambda i, t, w: i @ t.T, "left out"),
    ("check_bilinear", lambda i, t, w: i @ w.T @ t.T, "wrong way round"),
    (
        "check_bilinear",
        lambda i, t, w: (i[:2] @ w * t[:2]).sum(1),
        "shape",
    ),
    ("check_bilinear", lambda i, t, w: t @ w.T @ i.T, "rows must be pictures"),
    (
        "check_bilinear",
        lambda i, t, w: F.normalize(i, dim=1) @ w @ F.normalize(t, dim=1).T,
        "as they are",
    ),
    (
        "check_hit_rate",
        lambda s, o, k: (found(s, o, k).sum(1) / right(s, o).sum(1)).mean(),
        "this is recall",
    ),
    ("check_hit_rate", lambda s, o, k: found(s, o, k).float().mean(), "precision"),
    ("check_hit_rate", lambda s, o, k: hit_rate(s, o, k - 1), "one place too few"),
    (
        "check_hit_rate",
        lambda s, o, k: (s.T.topk(min(k, len(s)), 1).indices == o[:, None]).any(1).float().mean(),
        "other direction",
    ),
    ("check_class_words", lambda z, p, n, t: class_words(z, 0 * p, n, t), "every picture"),
    ("check_class_words", lambda z, p, n, t: class_words(z, p, n, 1 / t), "divides"),
    (
        "check_class_words",
        lambda z, p, n, t: F.normalize(mixed(z / t - p, n), dim=1),
        "before the prior",
    ),
    ("check_class_words", lambda z, p, n, t: mixed((z - p) / t, n), "by its length"),
    (
        "check_class_words",
        lambda z, p, n, t: F.normalize(n[(z - p).argmax(1)], dim=1),
        "likeliest class alone",
    ),
    (
        "check_class_words",
        lambda z, p, n, t: F.normalize(((z - p) / t).softmax(0) @ n, dim=1),
        "over the classes",
    ),
    ("check_rerank", lambda q, c, t: c.argsort(descending=True), "all items"),
    ("check_rerank", lambda q, c, t: q.argsort(descending=True), "nothing has changed"),
    ("check_rerank", lambda q, c, t: order(q, -c, t), "worst first"),
    ("check_rerank", lambda q, c, t: order(q, c, t)[:t], "missing"),
    ("check_rerank", in_place, "in place"),
    ("check_work", lambda p, q, t, c, k: (t * p + q * k * c, p * q * c), "queries, too"),
    ("check_work", lambda p, q, t, c, k: (t * (p + q), p * q * c), "is missing"),
    (
        "check_work",
        lambda p, q, t, c, k: (t * (p + q) + k * c, p * q * c),
        "for every query",
    ),
    (
        "check_work",
        lambda p, q, t, c, k: (t * p * q + q * k * c, p * q * c),
        "once a query",
    ),
    (
        "check_work",
        lambda p, q, t, c, k: (t * (p + q) + q * k * c, q * k * c),
        "reads every pair",
    ),
]

"""Answers to chapter 03's exercises: right ones, and typical mistakes with words of the message."""

import torch
import torch.nn.functional as F


def disguise(ids, chosen, kind, random, mask_id):
    disguised = ids.masked_fill(chosen & (kind < 0.8), mask_id)
    disguised = torch.where(chosen & (kind >= 0.9), random, disguised)
    return disguised, ids.masked_fill(~chosen, -100)


def loss(logits, targets):
    total, count = 0.0, 0
    for scores, wanted in zip(logits, targets, strict=True):
        total = total + F.cross_entropy(
            scores.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum"
        )
        count += int((wanted != -100).sum())
    return total / max(count, 1)


def block(h, attention, norm1, feed_forward, norm2, linear):
    h = norm1(h + attention(h))
    h = norm2(h + feed_forward(h))
    return F.softmax(linear(h), dim=-1)


def perplexity(log_probs, keep):
    return torch.exp(-(log_probs * keep).sum() / keep.sum())


def zero_shot(texts, descriptions):
    centres = F.normalize(descriptions, dim=-1).mean(1)
    return (F.normalize(texts, dim=-1) @ F.normalize(centres, dim=-1).T).argmax(-1)


SOLUTIONS = {
    "check_disguise": disguise,
    "check_loss": loss,
    "check_block": block,
    "check_perplexity": perplexity,
    "check_zero_shot": zero_shot,
}


def nan_when_empty(logits, targets):
    flat = torch.cat([x.flatten(0, 1) for x in logits])
    return F.cross_entropy(flat, torch.cat([x.flatten() for x in targets]))


def mean_of_means(logits, targets):
    return sum(
        F.cross_entropy(a.flatten(0, 1), b.flatten()) for a, b in zip(logits, targets, strict=True)
    ) / len(logits)


WRONG = [
    (
        "check_disguise",
        lambda i, c, k, r, m: (
            torch.where(k >= 0.9, r, torch.where(c & (k < 0.8), m, i)),
            i.masked_fill(~c, -100),
        ),
        "outside the choice",
    ),
    (
        "check_disguise",
        lambda i, c, k, r, m: (i.masked_fill(c, m), i.masked_fill(~c, -100)),
        "every chosen token became the mask",
    ),
    (
        "check_disguise",
        lambda i, c, k, r, m: (
            disguise(i, c, k, r, m)[0],
            i.masked_fill(disguise(i, c, k, r, m)[0] == i, -100),
        ),
        "has no target",
    ),
    ("check_disguise", lambda i, c, k, r, m: (disguise(i, c, k, r, m)[0], i), "-100"),
    ("check_loss", mean_of_means, "mean of the batches' means"),
    ("check_loss", nan_when_empty, "NaN"),
    (
        "check_block",
        lambda h, a, n1, f, n2, linear: linear(n2(f(a(h))).softmax(-1)),
        "the document's formula",
    ),
    (
        "check_block",
        lambda h, a, n1, f, n2, linear: linear(n2(f(n1(a(h))))).softmax(-1),
        "residual",
    ),
    (
        "check_block",
        lambda h, a, n1, f, n2, linear: linear(n2(h + a(h) + f(h + a(h)))).softmax(-1),
        "two in a block",
    ),
    (
        "check_block",
        lambda h, a, n1, f, n2, linear: linear(n2(n1(h + a(h)) + f(n1(h + a(h))))),
        "logits",
    ),
    ("check_perplexity", lambda p, keep: torch.exp(-p.mean()), "padding counts"),
    ("check_perplexity", lambda p, keep: torch.exp(-p[keep]).mean(), "outside"),
    ("check_perplexity", lambda p, keep: 2 ** -p[keep].mean(), "not 2"),
    ("check_zero_shot", lambda t, d: (t @ d.mean(1).T).argmax(-1), "dot product"),
    (
        "check_zero_shot",
        lambda t, d: (F.normalize(t, dim=-1) @ F.normalize(d[:, 0], dim=-1).T).argmax(-1),
        "only the first",
    ),
]

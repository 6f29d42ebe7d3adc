"""Answers to chapter 08's exercises: right ones, and typical mistakes with words of the message."""

from collections import Counter

import torch

from mmlib.captioning_attention import doubly_stochastic


def look(scores, regions, keep):
    weights = scores.masked_fill(~keep, -torch.inf).softmax(-1)
    return (weights[..., None] * regions).sum(1), weights


def next_input(given, logits, draws, share):
    return torch.where(draws < share, logits.argmax(-1), given)


def best(log_probs, lengths, alpha):
    return int((log_probs / ((5 + lengths) / 6) ** alpha).argmax())


def grams(words, n):
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def matches(candidate, references, n):
    allowed = Counter()
    for words in references:
        allowed |= grams(words, n)
    return (grams(candidate, n) & allowed).total(), grams(candidate, n).total()


SOLUTIONS = {
    "check_look": look,
    "check_unseen": doubly_stochastic,
    "check_next_input": next_input,
    "check_best": best,
    "check_matches": matches,
}


def seen(weights, regions):
    return (weights[..., None] * regions).sum(1), weights


def hidden(scores, keep):
    return scores.masked_fill(~keep, -torch.inf)


def summed(weights, keep):
    return 1 - (weights * keep[..., None]).sum(1)


def penalised(log_probs, lengths, alpha):
    return log_probs / ((5 + lengths) / 6) ** alpha


def added(candidate, references, n):
    allowed = sum((grams(words, n) for words in references), Counter())
    return (grams(candidate, n) & allowed).total(), grams(candidate, n).total()


def unclipped(candidate, references, n):
    known = set().union(*(grams(words, n) for words in references))
    own = grams(candidate, n)
    return sum(count for gram, count in own.items() if gram in known), own.total()


def ratio(candidate, references, n):
    right, total = matches(candidate, references, n)
    return right / total if total else float("nan")


WRONG = [
    ("check_look", lambda s, r, k: seen(hidden(s, k).softmax(0), r), "over the batch"),
    ("check_look", lambda s, r, k: seen(s.softmax(-1), r), "get a share"),
    ("check_look", lambda s, r, k: seen(s.softmax(-1) * k, r), "do not sum to 1"),
    (
        "check_look",
        lambda s, r, k: seen(s.masked_fill(~k, 0.0).softmax(-1), r),
        "minus infinity",
    ),
    ("check_look", lambda s, r, k: look(s, r, k)[0], ""),
    ("check_unseen", lambda w, k: (1 - w.sum(2)).square().sum(), "over the words"),
    ("check_unseen", lambda w, k: (1 - w.sum(1)).square().sum(), "padding"),
    (
        "check_unseen",
        lambda w, k: ((1 - w).square() * k[..., None]).sum(),
        "first sum over",
    ),
    ("check_unseen", lambda w, k: summed(w, k).square().mean(), "the sum is asked"),
    ("check_unseen", lambda w, k: summed(w, k).abs().sum(), "not squared"),
    (
        "check_next_input",
        lambda g, z, d, s: torch.where(d < s, g, z.argmax(-1)),
        "wrong way round",
    ),
    ("check_next_input", lambda g, z, d, s: z.argmax(-1), "own words everywhere"),
    ("check_next_input", lambda g, z, d, s: g, "given words everywhere"),
    (
        "check_best",
        lambda p, n, a: int((p * ((5 + n) / 6) ** a).argmax()),
        "multiplied",
    ),
    ("check_best", lambda p, n, a: int(p.argmax()), "no effect"),
    ("check_best", lambda p, n, a: int((p / n).argmax()), "the length itself"),
    ("check_best", lambda p, n, a: int(penalised(p, n, a).argmin()), "the smallest"),
    ("check_best", lambda p, n, a: penalised(p, n, a).argmax(), "int"),
    ("check_matches", unclipped, "no more than"),
    ("check_matches", added, "are added"),
    ("check_matches", lambda c, r, n: matches(c, r[:1], n), "first reference"),
    ("check_matches", lambda c, r, n: matches(c, r, 1), "whatever `n`"),
    ("check_matches", ratio, "two counts"),
]

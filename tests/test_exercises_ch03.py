"""Chapter 03's checkers: solutions pass, stubs and typical mistakes are told what is wrong."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from mmlib.exercises import ch03

CHECKERS = {name: value for name, value in inspect.getmembers(ch03) if name.startswith("check_")}
CHECKERS.pop("check_function")


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


def test_every_checker_has_a_solution():
    assert set(SOLUTIONS) == set(CHECKERS)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solution_passes(name):
    report = CHECKERS[name](SOLUTIONS[name])
    assert report, report.message
    assert report.message


@pytest.mark.parametrize("name", SOLUTIONS)
def test_unchanged_stub_is_not_solved(name):
    def stub(*args): ...

    report = CHECKERS[name](stub)
    assert not report
    assert "not solved yet" in report.message


def nan_when_empty(logits, targets):
    flat = torch.cat([x.flatten(0, 1) for x in logits])
    return F.cross_entropy(flat, torch.cat([x.flatten() for x in targets]))


def mean_of_means(logits, targets):
    return sum(
        F.cross_entropy(a.flatten(0, 1), b.flatten()) for a, b in zip(logits, targets, strict=True)
    ) / len(logits)


WRONG = {
    "outside": (
        "check_disguise",
        lambda i, c, k, r, m: (
            torch.where(k >= 0.9, r, torch.where(c & (k < 0.8), m, i)),
            i.masked_fill(~c, -100),
        ),
        "outside the choice",
    ),
    "always": (
        "check_disguise",
        lambda i, c, k, r, m: (i.masked_fill(c, m), i.masked_fill(~c, -100)),
        "every chosen token became the mask",
    ),
    "unchanged": (
        "check_disguise",
        lambda i, c, k, r, m: (
            disguise(i, c, k, r, m)[0],
            i.masked_fill(disguise(i, c, k, r, m)[0] == i, -100),
        ),
        "has no target",
    ),
    "all": ("check_disguise", lambda i, c, k, r, m: (disguise(i, c, k, r, m)[0], i), "-100"),
    "means": ("check_loss", mean_of_means, "mean of the batches' means"),
    "nan": ("check_loss", nan_when_empty, "NaN"),
    "document": (
        "check_block",
        lambda h, a, n1, f, n2, linear: linear(n2(f(a(h))).softmax(-1)),
        "the document's formula",
    ),
    "no residual": (
        "check_block",
        lambda h, a, n1, f, n2, linear: linear(n2(f(n1(a(h))))).softmax(-1),
        "residual",
    ),
    "one norm": (
        "check_block",
        lambda h, a, n1, f, n2, linear: linear(n2(h + a(h) + f(h + a(h)))).softmax(-1),
        "two in a block",
    ),
    "logits": (
        "check_block",
        lambda h, a, n1, f, n2, linear: linear(n2(n1(h + a(h)) + f(n1(h + a(h))))),
        "logits",
    ),
    "padding": ("check_perplexity", lambda p, keep: torch.exp(-p.mean()), "padding counts"),
    "outer mean": ("check_perplexity", lambda p, keep: torch.exp(-p[keep]).mean(), "outside"),
    "base": ("check_perplexity", lambda p, keep: 2 ** -p[keep].mean(), "not 2"),
    "dot": ("check_zero_shot", lambda t, d: (t @ d.mean(1).T).argmax(-1), "dot product"),
    "first": (
        "check_zero_shot",
        lambda t, d: (F.normalize(t, dim=-1) @ F.normalize(d[:, 0], dim=-1).T).argmax(-1),
        "only the first",
    ),
}


@pytest.mark.parametrize("name, answer, words", WRONG.values(), ids=WRONG)
def test_typical_mistake_is_named(name, answer, words):
    report = CHECKERS[name](answer)
    assert not report
    assert words in report.message


def test_every_checker_has_a_typical_mistake():
    assert {name for name, _, _ in WRONG.values()} == set(CHECKERS)

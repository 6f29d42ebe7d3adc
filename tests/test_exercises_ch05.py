"""Chapter 05's checkers: solutions pass, stubs and typical mistakes are told what is wrong."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from mmlib import contrastive
from mmlib.exercises import ch05

CHECKERS = {name: value for name, value in inspect.getmembers(ch05) if name.startswith("check_")}
CHECKERS.pop("check_function")


def info_nce(queries, keys, temperature):
    return contrastive.info_nce(queries, keys, 1 / temperature)


def targets(groups):
    same = (groups[:, None] == groups).float()
    return same / same.sum(1, keepdim=True)


def column_sums(chunks):
    total = chunks[0].logsumexp(0)
    for chunk in chunks[1:]:
        total = torch.logaddexp(total, chunk.logsumexp(0))
    return total


def hardest(similar, groups):
    return similar.masked_fill(groups[:, None] == groups, -torch.inf).argmax(1)


def cost(batch, ranks, dim):
    return 4 * batch * batch * ranks, 2 * 2 * (ranks - 1) * batch * dim


SOLUTIONS = {
    "check_info_nce": info_nce,
    "check_targets": targets,
    "check_column_sums": column_sums,
    "check_hardest": hardest,
    "check_cost": cost,
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


def unit(x):
    return F.normalize(x, dim=1)


def nll(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)))


def same(groups):
    return (groups[:, None] == groups).float()


def others(similar):
    return similar.masked_fill(torch.eye(len(similar)).bool(), -torch.inf)


def in_place(similar, groups):
    similar[groups[:, None] == groups] = -torch.inf
    return similar.argmax(1)


WRONG = {
    "lengths": ("check_info_nce", lambda q, k, t: nll(q @ k.T / t), "no cosine"),
    "times": ("check_info_nce", lambda q, k, t: nll(unit(q) @ unit(k).T * t), "multiplied"),
    "direction": ("check_info_nce", lambda q, k, t: nll(unit(k) @ unit(q).T / t), "other dir"),
    "both": ("check_info_nce", lambda q, k, t: contrastive.clip_loss(q, k, 1 / t), "mean of both"),
    "sum": ("check_info_nce", lambda q, k, t: info_nce(q, k, t) * len(q), "the sum over"),
    "sign": ("check_info_nce", lambda q, k, t: -info_nce(q, k, t), "sign"),
    "ones": ("check_targets", same, "divide by their number"),
    "identity": ("check_targets", lambda g: torch.eye(len(g)), "one positive each"),
    "not self": (
        "check_targets",
        lambda g: (same(g) - torch.eye(len(g))) / (same(g).sum(1, True) - 1).clamp(min=1),
        "own partner",
    ),
    "whole matrix": ("check_targets", lambda g: same(g) / same(g).sum(), "in each row"),
    "added": ("check_column_sums", lambda c: sum(x.logsumexp(0) for x in c), "multiplies"),
    "overflow": ("check_column_sums", lambda c: sum(x.exp().sum(0) for x in c).log(), "overflow"),
    "maximum": (
        "check_column_sums",
        lambda c: torch.stack([x.logsumexp(0) for x in c]).amax(0),
        "maximum",
    ),
    "last": ("check_column_sums", lambda c: c[-1].logsumexp(0), "last chunk"),
    "rows": ("check_column_sums", lambda c: torch.cat(list(c)).logsumexp(1), "shape"),
    "self": ("check_hardest", lambda s, g: s.argmax(1), "own partner"),
    "twin": ("check_hardest", lambda s, g: others(s).argmax(1), "a twin"),
    "easiest": (
        "check_hardest",
        lambda s, g: s.masked_fill(same(g).bool(), torch.inf).argmin(1),
        "easiest",
    ),
    "zero": (
        "check_hardest",
        lambda s, g: s.masked_fill(same(g).bool(), 0.0).argmax(1),
        "-torch.inf",
    ),
    "in place": ("check_hardest", in_place, "in place"),
    "one side": ("check_cost", lambda b, r, d: (4 * b * b * r, 2 * (r - 1) * b * d), "both pic"),
    "own": ("check_cost", lambda b, r, d: (4 * b * b * r, 4 * r * b * d), "its own"),
    "square": ("check_cost", lambda b, r, d: (4 * (b * r) ** 2, 4 * (r - 1) * b * d), "rows of"),
    "bf16": ("check_cost", lambda b, r, d: (2 * b * b * r, 4 * (r - 1) * b * d), "fp32"),
    "columns": ("check_cost", lambda b, r, d: (4 * b * b, 4 * (r - 1) * b * d), "all ranks"),
}


@pytest.mark.parametrize("name, answer, words", WRONG.values(), ids=WRONG)
def test_typical_mistake_is_named(name, answer, words):
    report = CHECKERS[name](answer)
    assert not report
    assert words in report.message


def test_every_checker_has_a_typical_mistake():
    assert {name for name, _, _ in WRONG.values()} == set(CHECKERS)

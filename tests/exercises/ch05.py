"""Answers to chapter 05's exercises: right ones, and typical mistakes with words of the message."""

import torch
import torch.nn.functional as F

from mmlib import contrastive


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


WRONG = [
    ("check_info_nce", lambda q, k, t: nll(q @ k.T / t), "no cosine"),
    ("check_info_nce", lambda q, k, t: nll(unit(q) @ unit(k).T * t), "multiplied"),
    ("check_info_nce", lambda q, k, t: nll(unit(k) @ unit(q).T / t), "other dir"),
    ("check_info_nce", lambda q, k, t: contrastive.clip_loss(q, k, 1 / t), "mean of both"),
    ("check_info_nce", lambda q, k, t: info_nce(q, k, t) * len(q), "the sum over"),
    ("check_info_nce", lambda q, k, t: -info_nce(q, k, t), "sign"),
    ("check_targets", same, "divide by their number"),
    ("check_targets", lambda g: torch.eye(len(g)), "one positive each"),
    (
        "check_targets",
        lambda g: (same(g) - torch.eye(len(g))) / (same(g).sum(1, True) - 1).clamp(min=1),
        "own partner",
    ),
    ("check_targets", lambda g: same(g) / same(g).sum(), "in each row"),
    ("check_column_sums", lambda c: sum(x.logsumexp(0) for x in c), "multiplies"),
    ("check_column_sums", lambda c: sum(x.exp().sum(0) for x in c).log(), "overflow"),
    (
        "check_column_sums",
        lambda c: torch.stack([x.logsumexp(0) for x in c]).amax(0),
        "maximum",
    ),
    ("check_column_sums", lambda c: c[-1].logsumexp(0), "last chunk"),
    ("check_column_sums", lambda c: torch.cat(list(c)).logsumexp(1), "shape"),
    ("check_hardest", lambda s, g: s.argmax(1), "own partner"),
    ("check_hardest", lambda s, g: others(s).argmax(1), "a twin"),
    (
        "check_hardest",
        lambda s, g: s.masked_fill(same(g).bool(), torch.inf).argmin(1),
        "easiest",
    ),
    (
        "check_hardest",
        lambda s, g: s.masked_fill(same(g).bool(), 0.0).argmax(1),
        "-torch.inf",
    ),
    ("check_hardest", in_place, "in place"),
    ("check_cost", lambda b, r, d: (4 * b * b * r, 2 * (r - 1) * b * d), "both pic"),
    ("check_cost", lambda b, r, d: (4 * b * b * r, 4 * r * b * d), "its own"),
    ("check_cost", lambda b, r, d: (4 * (b * r) ** 2, 4 * (r - 1) * b * d), "rows of"),
    ("check_cost", lambda b, r, d: (2 * b * b * r, 4 * (r - 1) * b * d), "fp32"),
    ("check_cost", lambda b, r, d: (4 * b * b, 4 * (r - 1) * b * d), "all ranks"),
]

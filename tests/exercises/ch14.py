"""Answers to chapter 14's exercises: right ones, and typical mistakes with words of the message."""

import torch

from mmlib.applications.monitor import Cusum
from mmlib.metrics.ranking import macro_f1, ndcg
from mmlib.metrics.rouge import rouge_l, rouge_n


def at(confidence, correct, threshold):
    given = confidence >= threshold
    return given.double().mean().item(), correct[given].double().mean().item()


def cusum(x, gain):
    counter = Cusum(0.2, 0.5)
    counter.gain = gain
    return counter(x[None])[0]


SOLUTIONS = {
    "check_accuracy_at": at,
    "check_cusum": cusum,
    "check_macro_f1": macro_f1,
    "check_ndcg": ndcg,
    "check_rouge_l": lambda a, b: rouge_l(a, b).f,
}


def f1s(p, y, n):
    found = []
    for c in range(n):
        right = ((p == c) & (y == c)).sum().double()
        found.append([right / max(1, int((p == c).sum())), right / max(1, int((y == c).sum()))])
    return torch.tensor(found, dtype=torch.float64)


def unbounded(x, gain):
    return (gain * x - 1).cumsum(0)


def f_of_means(p, y, n):
    precision, recall = f1s(p, y, n).mean(0)
    return float(2 * precision * recall / (precision + recall))


def weighted(p, y, n):
    precision, recall = f1s(p, y, n).unbind(1)
    f = torch.where(recall > 0, 2 * precision * recall / (precision + recall), 0.0)
    return float((f * torch.bincount(y, minlength=n)).sum() / len(y))


WRONG = [
    ("check_accuracy_at", lambda c, r, t: at(c, r, t + 1e-6), "equal to the threshold"),
    (
        "check_accuracy_at",
        lambda c, r, t: (at(c, r, t)[0], ((c >= t) & r).double().mean().item()),
        "not among all",
    ),
    (
        "check_accuracy_at",
        lambda c, r, t: ((c < t).double().mean().item(), r[c < t].double().mean().item()),
        "were not answered",
    ),
    (
        "check_accuracy_at",
        lambda c, r, t: (at(c, r, t)[0], ((c >= t) == r).double().mean().item()),
        "silence was counted",
    ),
    ("check_accuracy_at", lambda c, r, t: at(c, r, t)[::-1], "wrong order"),
    ("check_cusum", unbounded, "below 0"),
    ("check_cusum", lambda x, g: cusum(x, g + 1), "takes one away, too"),
    ("check_cusum", lambda x, g: (g * x).cumsum(0), "takes one away"),
    ("check_cusum", lambda x, g: cusum(x, g).cummax(0).values, "largest value"),
    ("check_ndcg", lambda r, k: ndcg(r, k - 1), "inside"),
    ("check_ndcg", lambda r, k: (r <= k).double().mean().item(), "hit rate"),
    ("check_ndcg", lambda r, k: ((r <= k) / r).double().mean().item(), "reciprocal"),
    ("check_ndcg", lambda r, k: ndcg(r, k) / 0.6931471805599453, "base 2"),
    ("check_ndcg", lambda r, k: ndcg(r, 10**6), "below k"),
    ("check_ndcg", lambda r, k: ndcg(r[r <= k], k), "all queries"),
    ("check_macro_f1", lambda p, y, n: (p == y).double().mean().item(), "accuracy"),
    ("check_macro_f1", f_of_means, "F1 of the mean"),
    ("check_macro_f1", weighted, "same weight"),
    ("check_macro_f1", lambda p, y, n: f1s(p, y, n)[:, 1].mean().item(), "mean recall"),
    ("check_rouge_l", lambda a, b: rouge_n(a, b, 1).f, "ROUGE-1"),
    ("check_rouge_l", lambda a, b: rouge_l(a, b).recall, "recall"),
    ("check_rouge_l", lambda a, b: rouge_l(a, b).precision, "precision"),
    ("check_rouge_l", lambda a, b: rouge_l(a, b).precision * len(a), "not a share"),
]


def together(a, b):
    """Half of the words of both that the longest run in common has."""
    runs = [
        n
        for i in range(len(a))
        for n in range(1, len(a) - i + 1)
        if any(a[i : i + n] == b[j : j + n] for j in range(len(b)))
    ]
    return 2 * max(runs, default=0) / (len(a) + len(b))


WRONG.append(("check_rouge_l", together, "stand together"))

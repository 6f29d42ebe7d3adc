"""Checkers for the exercises of chapter 14, applications."""

import torch

from mmlib.exercises.report import check_function, checker

__all__ = [
    "check_accuracy_at",
    "check_cusum",
    "check_macro_f1",
    "check_ndcg",
    "check_rouge_l",
]


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@checker("A question that is not answered is neither right nor wrong.")
def check_accuracy_at(answer):
    """Exercise 1: ``answer(confidence, correct, threshold)`` is (coverage, accuracy)."""

    def shares(given, correct):
        return given.double().mean().item(), correct[given].double().mean().item()

    def reference(confidence, correct, threshold):
        return shares(confidence >= threshold, correct)

    confidence = torch.tensor([0.9, 0.2, 0.7, 0.7, 0.4, 0.1])
    correct = torch.tensor([True, False, True, False, True, True])
    check_function(
        answer,
        reference,
        [(confidence, correct, 0.7), (_draw(50, seed=1), _draw(50, seed=2) < 0.6, 0.3)],
        mistakes={
            "a confidence equal to the threshold is answered, too": (
                lambda c, r, t: shares(c > t, r)
            ),
            "the accuracy is among the answered questions, not among all": (
                lambda c, r, t: (
                    (c >= t).double().mean().item(),
                    ((c >= t) & r).double().mean().item(),
                )
            ),
            "these are the questions that were not answered": lambda c, r, t: shares(c < t, r),
            "silence was counted as right when the answer would have been wrong": (
                lambda c, r, t: (
                    (c >= t).double().mean().item(),
                    ((c >= t) == r).double().mean().item(),
                )
            ),
            "the two numbers are in the wrong order": (lambda c, r, t: reference(c, r, t)[::-1]),
        },
        name="(coverage, accuracy)",
    )


@checker("It forgets good times: that is why it is quick.")
def check_cusum(answer):
    """Exercise 2: ``answer(x, gain)`` is the statistic after each post of one stream."""

    def run(x, gain, floor=True, up=None):
        total, path = 0, []
        for value in x.tolist():
            total += (gain if up is None else up) * value - 1
            total = max(0, total) if floor else total
            path.append(total)
        return torch.tensor(path)

    def reference(x, gain):
        return run(x, gain)

    x = torch.tensor([0, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1])
    check_function(
        answer,
        reference,
        [(x, 3), ((_draw(60, seed=3) < 0.3).long(), 4)],
        mistakes={
            "the sum falls below 0; it must not": lambda x, g: run(x, g, floor=False),
            "a complaint takes one away, too: it adds gain - 1": (lambda x, g: run(x, g, up=g + 1)),
            "a post that is no complaint takes one away": lambda x, g: (g * x).cumsum(0),
            "the largest value so far was given, not the statistic": (
                lambda x, g: run(x, g).cummax(0).values
            ),
        },
        name="the statistic",
    )


@checker("With one right item, the ideal gain is 1, and nothing is left to normalise by.")
def check_ndcg(answer):
    """Exercise 3: ``answer(ranks, k)`` is the mean NDCG@k of queries with one right item."""

    def mean(ranks, k, gain, strict=False):
        inside = ranks < k if strict else ranks <= k
        return (gain(ranks.double()) * inside).mean().item()

    def reference(ranks, k):
        return mean(ranks, k, lambda r: 1 / torch.log2(r + 1))

    ranks = torch.tensor([1, 2, 3, 10, 11, 500])
    check_function(
        answer,
        reference,
        [(ranks, 10), (torch.randint(1, 30, (40,), generator=torch.Generator().manual_seed(4)), 5)],
        mistakes={
            "rank k itself is inside": lambda r, k: mean(
                r, k, lambda x: 1 / torch.log2(x + 1), strict=True
            ),
            "this is the hit rate: every hit counts 1": (lambda r, k: mean(r, k, torch.ones_like)),
            "this is the reciprocal rank; the discount is logarithmic": (
                lambda r, k: mean(r, k, torch.reciprocal)
            ),
            "the logarithm is to base 2": lambda r, k: mean(r, k, lambda x: 1 / torch.log(x + 1)),
            "items below k count nothing": (
                lambda r, k: (1 / torch.log2(r.double() + 1)).mean().item()
            ),
            "the mean is over all queries, also those without a hit": (
                lambda r, k: (1 / torch.log2(r[r <= k].double() + 1)).mean().item()
            ),
        },
        name="NDCG@k",
    )


@checker("A small class counts as much as a large one.")
def check_macro_f1(answer):
    """Exercise 4: ``answer(predicted, labels, classes)`` is the macro-averaged F1."""

    def parts(p, y, n):
        table = torch.zeros(n, n, dtype=torch.float64)
        for a, b in zip(p.tolist(), y.tolist(), strict=True):
            table[b, a] += 1
        right = table.diagonal()
        return right, table.sum(0), table.sum(1)

    def reference(p, y, n):
        right, said, there = parts(p, y, n)
        return (2 * right / (said + there).clamp(min=1)).mean().item()

    def of_means(p, y, n):
        right, said, there = parts(p, y, n)
        precision = (right / said.clamp(min=1)).mean()
        recall = (right / there.clamp(min=1)).mean()
        return (2 * precision * recall / (precision + recall)).item()

    def weighted(p, y, n):
        right, said, there = parts(p, y, n)
        f1 = 2 * right / (said + there).clamp(min=1)
        return (f1 * there).sum().item() / len(y)

    predicted = torch.tensor([0, 0, 0, 1, 2, 2, 0, 0])
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 0, 1])
    many = (_draw(80, seed=5) * _draw(80, seed=6) * 4).long()
    guess = torch.where(_draw(80, seed=7) < 0.6, many, many.flip(0))
    check_function(
        answer,
        reference,
        [(predicted, labels, 3), (guess, many, 4)],
        mistakes={
            "this is the accuracy (or the micro average, which is the same)": (
                lambda p, y, n: (p == y).double().mean().item()
            ),
            "F1 of each class first, then the mean; not F1 of the mean precision and recall": (
                of_means
            ),
            "every class has the same weight, however many items it has": weighted,
            "this is the mean recall": (
                lambda p, y, n: (parts(p, y, n)[0] / parts(p, y, n)[2].clamp(min=1)).mean().item()
            ),
        },
        name="macro F1",
    )


@checker("The words need not stand together, only in the same order.")
def check_rouge_l(answer):
    """Exercise 5: ``answer(candidate, reference)`` is ROUGE-L's F, from two lists of words."""

    def subsequence(a, b):
        row = [0] * (len(b) + 1)
        for x in a:
            before, row = row, [0]
            for j, y in enumerate(b):
                row.append(before[j] + 1 if x == y else max(before[j + 1], row[j]))
        return row[-1]

    def together(a, b):
        row, best = [0] * (len(b) + 1), 0
        for x in a:
            before, row = row, [0]
            for j, y in enumerate(b):
                row.append(before[j] + 1 if x == y else 0)
            best = max(best, *row)
        return best

    def f(common, a, b):
        return 2 * common / (len(a) + len(b))

    def reference(a, b):
        return f(subsequence(a, b), a, b)

    one = ["the", "red", "apple", "was", "found", "by", "two", "children", "in", "oslo"]
    two = ["two", "children", "found", "the", "red", "apple", "in", "oslo"]
    check_function(
        answer,
        reference,
        [
            (one, two),
            (["a", "b", "c", "d", "e", "f"], ["a", "x", "b", "x", "c", "f"]),
            (["a"], ["b"]),
        ],
        mistakes={
            "the common words need not stand together": lambda a, b: f(together(a, b), a, b),
            "the order of the words counts: this is ROUGE-1": (
                lambda a, b: f(sum(min(a.count(w), b.count(w)) for w in set(a)), a, b)
            ),
            "this is the recall, F has the precision, too": (
                lambda a, b: subsequence(a, b) / len(b)
            ),
            "this is the precision, F has the recall, too": (
                lambda a, b: subsequence(a, b) / len(a)
            ),
            "this is the length of the common words, not a share": (
                lambda a, b: float(subsequence(a, b))
            ),
        },
        name="ROUGE-L",
    )

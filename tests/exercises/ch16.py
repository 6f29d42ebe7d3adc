"""Answers to chapter 16's exercises: right ones, and typical mistakes with words of the message."""

import torch


def mean(words, codes, weight):
    losses = torch.cat([*words, *codes])
    counts = torch.cat(
        [*map(torch.ones_like, words), *(torch.full_like(part, weight) for part in codes)]
    )
    return (losses * counts).sum() / counts.sum()


def tellers(wanted):
    length = wanted.shape[1]
    rows, places = wanted.nonzero(as_tuple=True)
    return rows * length + places - 1


def neighbours(document):
    found = torch.zeros(len(document), len(document), dtype=torch.bool)
    for i, mine in enumerate(document.tolist()):
        for j, other in enumerate(document.tolist()[: i + 1]):
            found[i, j] = mine == other != -1
    return found


def bytes_of(parameters, gpus):
    return 16 * parameters / gpus


SOLUTIONS = {
    "check_bytes": bytes_of,
    "check_mean": mean,
    "check_neighbours": neighbours,
    "check_tellers": tellers,
}


def mean_of_means(words, codes, weight):
    means = [mean([w], [c], weight) for w, c in zip(words, codes, strict=True)]
    return torch.stack(means).mean()


def unweighted(words, codes, weight):
    return mean(words, codes, 1.0)


WRONG = [
    ("check_mean", mean_of_means, "mean of the batches' means"),
    ("check_mean", unweighted, "codes count as much"),
    ("check_tellers", lambda w: tellers(w) + 1, "not told from itself"),
    ("check_tellers", lambda w: w.nonzero()[:, 1] - 1, "within rows"),
    ("check_neighbours", lambda d: neighbours(torch.zeros_like(d)) & (d >= 0), "before it"),
    ("check_neighbours", lambda d: d[:, None] == d, ""),
    ("check_neighbours", lambda d: (d[:, None] == d) & (d >= 0), "after them"),
    ("check_bytes", lambda p, g: 8 * p / g, "moments are missing"),
    ("check_bytes", lambda p, g: 16 * p, "all GPUs together"),
]

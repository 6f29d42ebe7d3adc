"""Answers to chapter 06's exercises: right ones, and typical mistakes with words of the message."""

import math

import torch


def distance(cost, ways=((0, 0), (0, 1), (1, 0))):
    rows, columns = cost.shape
    table = torch.full((rows + 1, columns + 1), math.inf)
    table[0, 0] = 0.0
    for i in range(rows):
        for j in range(columns):
            table[i + 1, j + 1] = cost[i, j] + min(table[i + a, j + b] for a, b in ways)
    return table[-1, -1]


def softmin(values, gamma):
    return -gamma * torch.logsumexp(-values / gamma, dim=0)


def band(cost, width, outside=math.inf):
    rows, columns = cost.shape
    centre = torch.arange(rows)[:, None] * (columns - 1) / (rows - 1)
    return cost.masked_fill((torch.arange(columns) - centre).abs() > width, outside)


def score(words, regions, sharpness, axis=1, normal=True):
    if normal:
        words = words / words.norm(dim=1, keepdim=True)
        regions = regions / regions.norm(dim=1, keepdim=True)
    similarity = words @ regions.T
    return ((sharpness * similarity).softmax(axis) * similarity).sum(1).mean()


def messages(h, edges, weights):
    return sum(edge @ (h @ weight.T) for edge, weight in zip(edges, weights, strict=True))


SOLUTIONS = {
    "check_distance": distance,
    "check_softmin": softmin,
    "check_band": band,
    "check_word_attention": score,
    "check_messages": messages,
}


def greedy(cost):
    i = j = 0
    total = cost[0, 0].clone()
    while (i + 1, j + 1) != cost.shape:
        cells = [(i + 1, j + 1), (i + 1, j), (i, j + 1)]
        cells = [(a, b) for a, b in cells if a < len(cost) and b < cost.shape[1]]
        i, j = min(cells, key=lambda cell: cost[cell])
        total = total + cost[i, j]
    return total


def band_of_square(cost, width):
    i, j = torch.arange(len(cost))[:, None], torch.arange(cost.shape[1])
    return cost.masked_fill((j - i).abs() > width, math.inf)


def in_place(cost, width):
    cost[band(cost, width).isinf()] = math.inf
    return cost


WRONG = [
    ("check_distance", lambda c: distance(c, ((0, 1), (1, 0))), "diagonal steps are missing"),
    ("check_distance", greedy, "greedy"),
    ("check_distance", lambda c: c.min(dim=1).values.sum(), "cheapest cell of each row"),
    ("check_softmin", lambda v, g: g * torch.logsumexp(v / g, 0), "softened maximum"),
    ("check_softmin", lambda v, g: -torch.logsumexp(-v * g, 0) / g, "it must divide"),
    ("check_softmin", lambda v, g: -torch.logsumexp(-v / g, 0), "in front of the logarithm"),
    ("check_softmin", lambda v, g: -g * torch.log(torch.exp(-v / g).sum()), "underflow"),
    ("check_band", band_of_square, "corner to corner"),
    ("check_band", lambda c, w: band(c, w, 0.0), "cheapest of all"),
    ("check_band", in_place, "changes argument 1 in place"),
    ("check_word_attention", lambda w, r, s: score(w, r, s, axis=0), "runs over the words"),
    ("check_word_attention", lambda w, r, s: score(w, r, s, normal=False), "dot products"),
    ("check_word_attention", lambda w, r, s: score(w, r, 0.0), "count the same"),
    ("check_messages", lambda h, e, w: messages(h, e.mT, w), "the wrong way"),
    ("check_messages", lambda h, e, w: messages(h, e, w.mT), "transposed"),
    ("check_messages", lambda h, e, w: messages(h, e, w[:1].expand(3, 4, 4)), "the same matrix"),
]

"""Checkers of chapter 06, alignment."""

import math

import torch
import torch.nn.functional as F

from mmlib.alignment import dtw
from mmlib.exercises.report import check_function, checker


def _draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@checker(
    "Each cell adds its own cost to the cheapest of the three ways in, so the corner holds the "
    "cheapest path."
)
def check_distance(answer):
    """Exercise 1: ``answer(cost)`` is the distance of dynamic time warping, one table."""

    def table(cost, ways):
        rows, columns = cost.shape
        total = torch.full((rows + 1, columns + 1), math.inf)
        total[0, 0] = 0.0
        for i in range(rows):
            for j in range(columns):
                options = [total[i + 1 - a, j + 1 - b] for a, b in ways]
                total[i + 1, j + 1] = cost[i, j] + min(options)
        return total[-1, -1]

    check_function(
        answer,
        lambda cost: dtw(cost[None]).distance[0],
        [
            (torch.tensor([[2.0]]),),
            (torch.tensor([[1.0, 5.0], [1.0, 1.0]]),),
            (_draw(4, 7, seed=1),),
            (_draw(6, 3, seed=2),),
        ],
        mistakes={
            "diagonal steps are missing: both sequences may move at once": (
                lambda cost: table(cost, [(1, 0), (0, 1)])
            ),
            "this only follows the diagonal steps; one sequence may wait for the other": (
                lambda cost: table(cost, [(1, 1)])
            ),
            "this is the greedy path: it takes the cheapest next cell and cannot go back on it": (
                _greedy
            ),
            "this takes the cheapest cell of each row, and the path may jump": (
                lambda cost: cost.min(dim=1).values.sum()
            ),
        },
        name="the distance",
    )


def _greedy(cost):
    i = j = 0
    total = cost[0, 0].clone()
    while (i, j) != (cost.shape[0] - 1, cost.shape[1] - 1):
        cells = [(i + 1, j + 1), (i + 1, j), (i, j + 1)]
        cells = [(a, b) for a, b in cells if a < cost.shape[0] and b < cost.shape[1]]
        i, j = min(cells, key=lambda cell: cost[cell])
        total = total + cost[i, j]
    return total


@checker("Far from 0 the largest term decides: softmin lies below the minimum by at most γ log n.")
def check_softmin(answer):
    """Exercise 2: ``answer(values, gamma)`` is the softened minimum of a vector, stably."""

    def reference(values, gamma):
        return -gamma * torch.logsumexp(-values / gamma, dim=0)

    check_function(
        answer,
        reference,
        [
            (torch.tensor([1.0, 2.0, 3.0]), 1.0),
            (torch.tensor([0.3, 0.1]), 0.05),
            (torch.tensor([1000.0, 1001.0]), 0.5),
            (torch.tensor([2.0, math.inf]), 1.0),
        ],
        mistakes={
            "this is the softened maximum: both signs are missing": (
                lambda values, gamma: gamma * torch.logsumexp(values / gamma, dim=0)
            ),
            "gamma multiplies inside; it must divide, so that a small one is sharp": (
                lambda values, gamma: -torch.logsumexp(-values * gamma, dim=0) / gamma
            ),
            "the gamma in front of the logarithm is missing": (
                lambda values, gamma: -torch.logsumexp(-values / gamma, dim=0)
            ),
            "this is the mean weighted by softmax; softmin is the logarithm of the sum": (
                lambda values, gamma: ((-values / gamma).softmax(0) * values.clamp(max=1e30)).sum()
            ),
            "the exponentials underflow to 0 for large values. Subtract the minimum first, or use "
            "`torch.logsumexp`": (
                lambda values, gamma: -gamma * torch.log(torch.exp(-values / gamma).sum())
            ),
        },
        name="the softened minimum",
    )


@checker("Outside the band a cost is infinite, and no cheapest path goes there.")
def check_band(answer):
    """Exercise 3: ``answer(cost, width)`` forbids what is far from the stretched diagonal."""

    def band(cost, width, stretch=True, keep_inside=True):
        rows, columns = cost.shape
        i, j = torch.arange(rows)[:, None], torch.arange(columns)[None]
        centre = i * (columns - 1) / (rows - 1) if stretch else i
        far = (j - centre).abs() > width
        return cost.masked_fill(far if keep_inside else ~far, math.inf)

    check_function(
        answer,
        band,
        [(_draw(5, 5, seed=3), 1), (_draw(5, 9, seed=4), 2), (_draw(9, 5, seed=5), 1)],
        mistakes={
            "the band follows i = j; with other lengths it must run from corner to corner": (
                lambda cost, width: band(cost, width, stretch=False)
            ),
            "the inside of the band was forbidden, not the outside": (
                lambda cost, width: band(cost, width, keep_inside=False)
            ),
            "outside the band stands 0, which is the cheapest of all; it must be infinite": (
                lambda cost, width: cost.where(band(cost, width).isfinite(), 0.0)
            ),
        },
        name="the banded cost",
    )


@checker("The word's weights sum to one over the regions, so a larger picture gives no bonus.")
def check_word_attention(answer):
    """Exercise 4: ``answer(words, regions, sharpness)`` is the score of one picture and caption."""

    def score(words, regions, sharpness, axis=1, normal=True):
        if normal:
            words, regions = F.normalize(words, dim=1), F.normalize(regions, dim=1)
        similar = words @ regions.T
        return ((sharpness * similar).softmax(axis) * similar).sum(1).mean()

    check_function(
        answer,
        score,
        [
            (_draw(2, 4, seed=6) - 0.5, _draw(3, 4, seed=7) - 0.5, 5.0),
            (_draw(5, 8, seed=8) - 0.5, _draw(9, 8, seed=9) - 0.5, 1.0),
        ],
        mistakes={
            "the softmax runs over the words; each word chooses among the regions": (
                lambda words, regions, sharpness: score(words, regions, sharpness, axis=0)
            ),
            "these are dot products; divide by the lengths first": (
                lambda words, regions, sharpness: score(words, regions, sharpness, normal=False)
            ),
            "all regions count the same; the softmax must weigh them": (
                lambda words, regions, sharpness: score(words, regions, 0.0)
            ),
        },
        name="the score",
    )


@checker("One product for each kind of edge, summed over the neighbours that have it.")
def check_messages(answer):
    """Exercise 5: ``answer(h, edges, weights)`` sums the messages that reach each node."""

    def reference(h, edges, weights):
        return torch.einsum("rij,jd,red->ie", edges, h, weights)

    edges = (_draw(3, 5, 5, seed=10) > 0.6).float()
    check_function(
        answer,
        reference,
        [(_draw(5, 4, seed=11), edges, _draw(3, 4, 4, seed=12))],
        mistakes={
            "messages run the wrong way: `edges[r, i, j]` says that node i hears from node j": (
                lambda h, edges, weights: torch.einsum("rji,jd,red->ie", edges, h, weights)
            ),
            "the matrix is transposed: the message of node j is `weights[r] @ h[j]`": (
                lambda h, edges, weights: torch.einsum("rij,jd,rde->ie", edges, h, weights)
            ),
            "every kind of edge uses the same matrix": (
                lambda h, edges, weights: edges.sum(0) @ h @ weights[0].T
            ),
            "each node hears from itself; only its neighbours send": (
                lambda h, edges, weights: torch.einsum("rij,id,red->ie", edges, h, weights)
            ),
        },
        name="the sums of messages",
    )

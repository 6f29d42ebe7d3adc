"""Ranks and what is made of them: by hand, ties, several answers a query, bad input."""

import math

import pytest
import torch

from mmlib.metrics.retrieval import hit_rate, mean_reciprocal_rank, median_rank, ranks, recall

SCORES = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.4, 0.3, 0.2, 0.1], [0.0, 0.2, 0.6, 0.8]])
RELEVANT = torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]]).bool()


def by_sorting(scores, relevant):
    """Ranks as one would write them down: irrelevant items first where scores tie."""
    found = []
    for row, wanted in zip(scores.tolist(), relevant.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], wanted[i]))
        found.append(1 + next(n for n, i in enumerate(order) if wanted[i]))
    return torch.tensor(found)


def test_ranks_by_hand():
    assert ranks(SCORES, RELEVANT).tolist() == [3, 1, 2]
    # Each column's best: 1 of column 0 among rows 0 and 1, ...
    assert ranks(SCORES.T, RELEVANT.T).tolist() == [1, 3, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ranks_are_those_of_a_sorted_list_with_many_ties(dtype):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 6, (60, 25), generator=generator).to(dtype)
    relevant = torch.rand(60, 25, generator=generator) < 0.15
    relevant[:, 0] |= ~relevant.any(1)
    assert torch.equal(ranks(scores, relevant), by_sorting(scores, relevant))


def test_a_model_that_says_nothing_is_last():
    one = torch.zeros(5, 5)
    assert ranks(one, torch.eye(5).bool()).tolist() == [5] * 5
    assert recall(one, torch.eye(5).bool(), 4) == 0.0
    assert recall(one, torch.eye(5).bool(), 5) == 1.0
    # Relevant items do not stand in each other's way.
    assert ranks(one, torch.ones(5, 5).bool()).tolist() == [1] * 5
    lowest = torch.full((1, 3), -math.inf)
    assert ranks(lowest, torch.tensor([[False, True, False]])).tolist() == [3]


def test_hit_rate_median_and_reciprocal_rank_by_hand():
    found = torch.tensor([1, 3, 12, 2, 1])
    assert [hit_rate(found, k) for k in (1, 2, 3, 11, 12, 50)] == [0.4, 0.6, 0.8, 0.8, 1.0, 1.0]
    assert median_rank(found) == 2.0
    assert median_rank(found[:4]) == 2.5
    assert mean_reciprocal_rank(found) == pytest.approx((1 + 1 / 3 + 1 / 12 + 1 / 2 + 1) / 5)


def test_recall_is_not_the_hit_rate():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    relevant = torch.tensor([[True, False, True, True, True, True]])
    assert hit_rate(ranks(scores, relevant), 1) == 1.0
    assert [recall(scores, relevant, k) for k in (1, 2, 3, 6, 9)] == [0.2, 0.2, 0.4, 1.0, 1.0]


def test_with_one_answer_each_recall_is_the_hit_rate():
    scores = torch.randn(30, 30, generator=torch.Generator().manual_seed(2))
    own = torch.eye(30).bool()
    for k in (1, 5, 10):
        assert recall(scores, own, k) == pytest.approx(hit_rate(ranks(scores, own), k))


def test_inputs_are_unchanged():
    scores, relevant = SCORES.clone(), RELEVANT.clone()
    recall(scores, relevant, 2)
    ranks(scores, relevant)
    assert torch.equal(scores, SCORES)
    assert torch.equal(relevant, RELEVANT)


GOOD = torch.tensor([1, 2])
BAD = {
    "integer scores": (ranks, (SCORES.int(), RELEVANT), TypeError, "scores must hold floating"),
    "relevant of ones": (ranks, (SCORES, RELEVANT.int()), TypeError, "relevant must be boolean"),
    "one axis": (ranks, (SCORES[0], RELEVANT[0]), ValueError, "scores must have shape"),
    "empty": (ranks, (SCORES[:, :0], RELEVANT[:, :0]), ValueError, "not empty: got (3, 0)"),
    "transposed": (ranks, (SCORES, RELEVANT.T), ValueError, "the shape of scores, (3, 4): got"),
    "NaN": (ranks, (SCORES / 0 * 0, RELEVANT), ValueError, "got NaN in 12 places"),
    "no answer": (
        ranks,
        (SCORES, RELEVANT & torch.tensor([[1], [0], [1]]).bool()),
        ValueError,
        "query 1 has none",
    ),
    "recall, NaN": (recall, (SCORES / 0 * 0, RELEVANT, 1), ValueError, "got NaN"),
    "recall, k": (recall, (SCORES, RELEVANT, 0), ValueError, "k must be at least 1: got 0"),
    "k is 0": (hit_rate, (GOOD, 0), ValueError, "k must be at least 1: got 0"),
    "k is 1.0": (hit_rate, (GOOD, 1.0), TypeError, "k must be a whole number: got 1.0"),
    "k is True": (hit_rate, (GOOD, True), TypeError, "k must be a whole number: got True"),
    "float ranks": (hit_rate, (GOOD.float(), 1), TypeError, "ranks must be whole numbers"),
    "rank 0": (hit_rate, (GOOD - 1, 1), ValueError, "ranks are counted from 1: got 0"),
    "no ranks": (median_rank, (GOOD[:0],), ValueError, "not empty: got (0,)"),
    "hits": (mean_reciprocal_rank, (GOOD == 1,), TypeError, "whole numbers: got torch.bool"),
    "two axes": (mean_reciprocal_rank, (GOOD[None],), ValueError, "got (1, 2)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, unchecked):
    function, args, error, message = BAD[case]
    with pytest.raises(error) as caught:
        unchecked(function)(*args)
    assert message in str(caught.value)

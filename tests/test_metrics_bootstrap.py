"""The bootstrap against closed forms, by hand, and on bad input (scipy: tests/reference)."""

import math

import numpy as np
import pytest
import torch

from mmlib.metrics.bootstrap import _median, interval


def normal(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("level", "z"), [(0.5, 0.674490), (0.95, 1.959964), (0.99, 2.575829)])
def test_the_mean_of_many_is_normal(level, z):
    values = 3 + 2 * normal(1000)
    error = values.std(correction=0).item() / math.sqrt(1000)
    low, high = interval(values, level=level, samples=10_000)
    assert low == pytest.approx(values.mean().item() - z * error, abs=0.04 * z * error)
    assert high == pytest.approx(values.mean().item() + z * error, abs=0.04 * z * error)


def test_the_median_of_many_is_normal():
    # The error of a median is sqrt(pi / 2) that of a mean.
    low, high = interval(normal(4000), statistic="median", samples=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(math.pi / 2 / 4000), rel=0.15)


def test_groups_of_copies_are_one_item_each():
    values = normal(200)
    copies = values.repeat_interleave(5)
    groups = torch.arange(200).repeat_interleave(5)
    low, high = interval(values, samples=10_000)
    assert interval(copies, groups, samples=10_000) == pytest.approx((low, high), abs=0.003)
    # Drawn one by one they would seem to be five times the evidence.
    narrow = interval(copies, samples=10_000)
    assert (high - low) / (narrow[1] - narrow[0]) == pytest.approx(math.sqrt(5), rel=0.03)


def test_groups_of_several_sizes_against_the_error_of_a_ratio():
    groups = torch.cat([torch.full((1 + g % 4,), g) for g in range(400)])
    values = normal(400)[groups] + 0.3 * normal(len(groups), seed=1)
    sizes = torch.bincount(groups).double()
    sums = torch.zeros(400).double().scatter_add(0, groups, values)
    mean = sums.sum() / sizes.sum()
    error = ((sums - mean * sizes).square().mean() * 400).sqrt() / sizes.sum()
    low, high = interval(values, groups, samples=10_000)
    assert low == pytest.approx((mean - 1.96 * error).item(), abs=0.1 * error.item())
    assert high == pytest.approx((mean + 1.96 * error).item(), abs=0.1 * error.item())


def test_two_values_by_hand():
    # The mean is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4.
    assert interval([0.0, 1.0], level=0.9) == (0.0, 1.0)
    assert interval([0.0, 1.0], level=0.4) == (0.5, 0.5)
    assert interval([0.0, 1.0, 0.0, 1.0], ["a", "b", "a", "b"], level=0.9) == (0.0, 1.0)
    # As one group they are drawn together.
    assert interval([0.0, 1.0], ["a", "a"]) == (0.5, 0.5)


def test_the_median_of_repeated_values_is_that_of_the_list():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(9, generator=generator).double().sort().values
    times = torch.randint(0, 4, (300, 9), generator=generator).double()
    times[:, 4] += (times.sum(1) == 0).double()
    expected = [np.median(values.repeat_interleave(row.long()).numpy()) for row in times.unbind()]
    np.testing.assert_allclose(_median(values, times).numpy(), expected)


def test_order_and_names_of_groups_do_not_matter():
    values, names = [1.0, 5.0, 2.0, 9.0, 4.0], ["b", "a", "b", "c", "a"]
    expected = interval(values, names, samples=300)
    assert interval(np.array(values), np.array([7, 3, 7, 5, 3]), samples=300) == expected
    assert interval(torch.tensor(values), torch.tensor([0, 1, 0, 2, 1]), samples=300) == expected


def test_the_same_seed_gives_the_same_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    values = normal(50).tolist()
    assert interval(values, seed=3) == interval(values, seed=3) != interval(values, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_many_values_in_chunks_are_as_wide_as_few(monkeypatch):
    values = normal(500)
    whole = interval(values, samples=4000)
    monkeypatch.setattr("mmlib.metrics.bootstrap._HELD", 500 * 7)  # 7 samples at a time
    assert interval(values, samples=4000) == pytest.approx(whole, abs=0.01)


def test_hits_may_be_boolean_and_values_integers():
    assert interval(torch.tensor([True] * 9)) == (1.0, 1.0)
    assert interval([3, 3, 3], statistic="median") == (3.0, 3.0)


BAD = {
    "no values": (([],), {}, ValueError, "values must have one axis, not empty"),
    "table": ((torch.ones(2, 2),), {}, ValueError, "values must have one axis"),
    "NaN": (([1.0, math.nan],), {}, ValueError, "values must be finite"),
    "groups": (([1.0, 2.0], ["a"]), {}, ValueError, "one for each value: got 1 for 2"),
    "statistic": (([1.0],), {"statistic": "mode"}, ValueError, "one of mean, median: got 'mode'"),
    "level": (([1.0],), {"level": 95}, ValueError, "level must be between 0 and 1: got 95"),
    "one sample": (([1.0],), {"samples": 1}, ValueError, "samples must be at least 2: got 1"),
    "samples": (([1.0],), {"samples": 1e3}, TypeError, "samples must be a whole number: got 1000"),
    "seed": (([1.0],), {"seed": -1}, ValueError, "seed must be between 0 and 2**63 - 1: got -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, unchecked):
    args, options, error, message = BAD[case]
    with pytest.raises(error) as caught:
        unchecked(interval)(*args, **options)
    assert message in str(caught.value)

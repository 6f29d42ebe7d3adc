"""Alignment and uniformity at their ends, against plain sums, and on bad input."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmlib.hypersphere import alignment, uniformity


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGE, TEXT = draw(7, 5, seed=1), draw(7, 5, seed=2)


def test_alignment_and_uniformity_at_the_ends():
    points = F.normalize(draw(4000, 256, seed=1), dim=1)
    collapsed = torch.ones(10, 4).double()
    assert alignment(points, points).item() == 0.0
    assert uniformity(collapsed).item() == pytest.approx(0.0, abs=1e-12)
    assert alignment(points, points[torch.randperm(4000)]).item() == pytest.approx(2.0, abs=0.02)
    # In many dimensions random directions are nearly orthogonal: squared distances near 2.
    assert uniformity(points).item() == pytest.approx(-4.0, abs=0.05)


def test_alignment_and_uniformity_against_plain_sums():
    x, y = F.normalize(IMAGE, dim=1), F.normalize(TEXT, dim=1)
    powers = [float((a - b).norm()) ** 1.5 for a, b in zip(x, y, strict=True)]
    assert alignment(IMAGE, TEXT, power=1.5).item() == pytest.approx(sum(powers) / 7)
    terms = [
        math.exp(-3 * float((x[i] - x[j]).square().sum()))
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    expected = math.log(sum(terms) / len(terms))
    assert uniformity(IMAGE, temperature=3.0).item() == pytest.approx(expected)


GOOD = torch.zeros(3, 2)
BAD = {
    "power": (alignment, (GOOD, GOOD, 0.0), {}, ValueError, "power must be above 0: got 0.0"),
    "uniformity": (uniformity, (GOOD, -1.0), {}, ValueError, "temperature must be above 0"),
    "one point": (uniformity, (GOOD[:1],), {}, ValueError, "at least two points: got 1"),
    "y": (alignment, (GOOD, GOOD[:2]), {}, ValueError, "x and y must have one shape"),
    "ids": (alignment, (GOOD.long(), GOOD), {}, TypeError, "x must hold floating-point"),
}


@pytest.mark.parametrize("function, args, options, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(function, args, options, error, message, unchecked):
    with pytest.raises(error) as caught:
        unchecked(function)(*args, **options)
    assert message in str(caught.value)

"""PSNR against torchmetrics, bits per dimension by hand, bad input."""

import math

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio

from mmlib.metrics.pictures import bits_per_dimension, psnr


def pictures(seed, batch=5):
    return torch.rand(batch, 3, 7, 9, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_torchmetrics_pooled_over_batches():
    first, second = pictures(0), pictures(1)
    second[0] = first[0] + 0.001 * (second[0] - first[0])  # one picture that is nearly perfect
    reference = PeakSignalNoiseRatio(data_range=1.0)
    for part in ([0, 1], [2, 3, 4]):
        reference.update(second[part], first[part])
    assert psnr(second, first) == pytest.approx(reference.compute().item(), abs=1e-4)


def test_psnr_pools_errors_and_not_decibels():
    first, second = pictures(0), pictures(1)
    second[0] = first[0] + 0.001 * (second[0] - first[0])
    each = [psnr(b[None], a[None]) for a, b in zip(first, second, strict=True)]
    assert psnr(second, first) < sum(each) / len(each) - 5


def test_psnr_of_equal_pictures_is_infinite():
    assert psnr(pictures(0), pictures(0)) == math.inf


def test_psnr_loses_nothing_in_half_precision():
    first = torch.zeros(1, 1, 40, 40, dtype=torch.bfloat16)
    second = first.clone()
    second[..., ::2] = 0.5
    assert psnr(second, first) == pytest.approx(-10 * math.log10(0.125), abs=1e-9)


def test_bits_per_dimension():
    nats = torch.tensor([0.0, -math.log(2) * 3, -3072 * math.log(256)], dtype=torch.float64)
    torch.testing.assert_close(
        bits_per_dimension(nats, 3072), torch.tensor([0, 3 / 3072, 8]).double()
    )


BAD = {
    "shapes": (psnr, (torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8)), "one shape"),
    "no picture": (psnr, (torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8)), "at least one"),
    "0 to 255": (psnr, (torch.full((1, 3, 8, 8), 255.0), torch.zeros(1, 3, 8, 8)), "pictures must"),
    "negative": (psnr, (torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), -0.1)), "originals must"),
    "nan": (psnr, (torch.full((1, 1, 2, 2), math.nan), torch.zeros(1, 1, 2, 2)), "pictures must"),
    "dimensions": (bits_per_dimension, (torch.zeros(1), 0), "dimensions must be at least 1: got 0"),
    "density": (bits_per_dimension, (torch.ones(1), 4), "must not be above 0.*got 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, unchecked):
    function, arguments, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        unchecked(function)(*arguments)

"""Thumbnail, mean, spread and coarse layout of a map, beside numpy on the same numbers."""

import inspect

import numpy as np
import pytest
import torch

from mmlib.picture_details import PictureDetails


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 8, 8, generator=generator), torch.randn(6, 5, 6, 6, generator=generator)


def by_hand(images, maps):
    images, maps = images.double().numpy(), maps.double().numpy()
    thumbnail = images.reshape(len(images), 3, 2, 4, 2, 4).mean((3, 5))
    pooled = maps.reshape(len(maps), 5, 3, 2, 3, 2).mean((3, 5))
    parts = thumbnail, maps.mean((2, 3)), maps.std((2, 3), ddof=1), pooled
    return np.concatenate([part.reshape(len(images), -1) for part in parts], axis=1)


def test_numbers_are_those_of_numpy(pictures):
    details = PictureDetails(5, thumbnail=2, grid=3)
    measured = details.measure(*pictures)
    assert measured.shape == (6, details.dim)
    np.testing.assert_allclose(measured, by_hand(*pictures), rtol=1e-5, atol=1e-6)


def test_every_number_has_mean_zero_and_unit_spread_on_what_was_shown(pictures):
    details = PictureDetails(5, thumbnail=2, grid=3)
    measured = details.measure(*pictures)
    found = details.adapt(measured)(measured)
    raw = by_hand(*pictures)
    spread = np.sqrt(raw.var(0, ddof=1) + 1e-5)  # the batch norm's, which a constant survives
    wanted = ((raw - raw.mean(0)) / spread).clip(-4, 4)
    wanted[:, :12] /= 2
    wanted[:, 22:] /= 2
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_adapting_again_forgets_the_first_time(pictures):
    measured = PictureDetails(5, 2).measure(*pictures)
    twice = PictureDetails(5, 2).adapt(7 * measured + 3).adapt(measured)
    torch.testing.assert_close(twice(measured), PictureDetails(5, 2).adapt(measured)(measured))


def test_outliers_are_cut_and_training_changes_nothing(pictures):
    measured = PictureDetails(5, 2).measure(*pictures)
    details = PictureDetails(5, 2).adapt(measured).train()
    far = details(measured + 1000)
    assert far.max() == 4 and far[:, 0].max() == 2
    torch.testing.assert_close(details(measured[:1]), details(measured)[:1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"channels": 0}, "channels must be at least 1: got 0"),
        ({"channels": 5, "thumbnail": 0}, "thumbnail must be at least 1: got 0"),
        ({"channels": 5, "grid": -1}, "grid must be at least 1: got -1"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        PictureDetails(**arguments)


@pytest.mark.parametrize(
    "images, maps, message",
    [
        ((2, 1, 8, 8), (2, 5, 4, 4), r"images must have shape \(batch, 3, .*got \(2, 1, 8, 8\)"),
        ((2, 3, 8, 1), (2, 5, 4, 4), r"at least 2 pixels high and wide: got \(2, 3, 8, 1\)"),
        ((2, 3, 8, 8), (2, 4, 4, 4), r"maps must have shape \(batch, 5, .*got \(2, 4, 4, 4\)"),
        ((2, 3, 8, 8), (2, 5, 2, 4), r"at least 3 rows and columns: got \(2, 5, 2, 4\)"),
        ((2, 3, 8, 8), (3, 5, 4, 4), "one map a picture: got 3 maps, 2 images"),
    ],
)
def test_bad_pictures(images, maps, message):
    measure = inspect.unwrap(PictureDetails.measure)
    with pytest.raises(ValueError, match=message):
        measure(PictureDetails(5, 2), torch.zeros(images), torch.zeros(maps))


def test_one_picture_has_no_spread():
    details = PictureDetails(5, 2)
    with pytest.raises(ValueError, match="at least two pictures: got 1"):
        details.adapt(torch.zeros(1, details.dim))

"""Robust statistics of pixels, against numpy's plain ones."""

import numpy as np
import pytest

from zemosaic_background import box_medians, fast_median, mad, sky_and_noise


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 64, 1089, 4096])
def test_the_fast_median_is_numpys_to_the_bit(n, dtype):
    rng = np.random.default_rng(n)
    for values in (rng.normal(900, 30, (5, n)), rng.integers(0, 4, (5, n)), np.full((5, n), -0.1)):
        values = values.astype(dtype)
        before = values.copy()
        found = fast_median(values)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.median(values, axis=-1))
        np.testing.assert_array_equal(values, before)
        middle = np.median(values[0])
        assert mad(values[0]) == np.median(np.abs(values[0] - middle))


def test_sky_and_noise_ignore_stars_gradients_and_holes():
    rng = np.random.default_rng(4)
    plane = rng.normal(900, 25, (600, 800)).astype(np.float32)
    plane += np.linspace(0, 20, 800, dtype=np.float32)
    plane[rng.random(plane.shape) < 0.005] += 3000
    plane[100:200, 100:300] = np.nan
    sky, noise = sky_and_noise(plane)
    assert sky == pytest.approx(910, abs=3)
    assert noise == pytest.approx(25, rel=0.04)


def test_coarsely_quantised_noise_is_not_taken_for_a_constant():
    plane = np.rint(np.random.default_rng(6).normal(100, 0.4, (300, 300))).astype(np.float32)
    assert sky_and_noise(plane)[1] == pytest.approx(plane.std(), rel=0.3)


def test_sky_and_noise_of_nothing_are_nan_and_of_a_constant_zero():
    assert np.isnan(sky_and_noise(np.full((5, 5), np.nan, np.float32))).all()
    assert sky_and_noise(np.full((5, 5), 3.0, np.float32)) == (3.0, 0.0)


def test_box_medians_bear_some_missing_pixels_and_no_edge():
    plane = np.random.default_rng(5).normal(size=(60, 80)).astype(np.float32)
    plane[40, 50] = np.nan  # a bad pixel
    plane[20:27, 40:44] = np.nan  # a patch: 28 of 81 pixels of the box around it
    x = np.array([10.2, 50.0, 2.0, 79.0, np.nan, 30.6, 41.0])
    y = np.array([10.0, 38.0, 20.0, 30.0, 5.0, 55.0, 23.0])
    found = box_medians(plane, x, y, 4)
    assert found[0] == np.median(plane[6:15, 6:15])
    assert found[1] == np.nanmedian(plane[34:43, 46:55])
    assert found[5] == np.median(plane[51:60, 27:36])
    assert np.isnan(found[[2, 3, 4, 6]]).all()


def test_a_plane_smaller_than_a_box_has_no_median():
    assert np.isnan(box_medians(np.zeros((5, 5), np.float32), np.array([2.0]), np.array([2.0]), 4)).all()

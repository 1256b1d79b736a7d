"""Sky, noise, isolated pixels and demosaicing."""

import numpy as np
import pytest

import references
from zemosaic_preprocess import (
    ISOLATED_SIGMA,
    SUPPORT_PX,
    bayer_colours,
    binned,
    demosaic,
    half_planes,
    replace_isolated,
)

PATTERNS = ["GRBG", "RGGB", "BGGR", "GBRG"]
SKY = np.array([900.0, 1000.0, 850.0])
NOISE = np.array([30.0, 32.0, 28.0])


def noisy_bayer(shape, bayer="GRBG", seed=0):
    rng = np.random.default_rng(seed)
    colours = bayer_colours(bayer)
    grid = np.indices(shape)
    colour = colours[grid[0] % 2, grid[1] % 2]
    return rng.normal(SKY[colour], NOISE[colour]).astype(np.float32)


@pytest.mark.parametrize("bayer", PATTERNS)
@pytest.mark.parametrize("shape", [(12, 14), (13, 11)])
def test_demosaicing_agrees_with_the_published_filters(bayer, shape):
    raw = noisy_bayer(shape, bayer)
    result = demosaic(raw, bayer_colours(bayer))
    np.testing.assert_allclose(result, references.malvar(raw, bayer), rtol=2e-6)


@pytest.mark.parametrize("bayer", PATTERNS)
def test_demosaicing_keeps_planes_that_are_linear_in_position(bayer):
    y, x = np.mgrid[0:20, 0:24].astype(np.float32)
    raw = 100 + 3 * y + 2 * x
    result = demosaic(raw, bayer_colours(bayer))[:, 2:-2, 2:-2]
    np.testing.assert_allclose(result, np.broadcast_to(raw[2:-2, 2:-2], result.shape), rtol=1e-6)


def test_demosaicing_and_cleaning_a_section_give_the_same_as_the_whole_frame():
    raw = noisy_bayer((40, 60))
    raw[11, 20] = 9000
    raw[19, 31] = 0
    colours = bayer_colours("GRBG")
    whole = demosaic(replace_isolated(raw, colours, SKY, NOISE, ISOLATED_SIGMA), colours)
    part = np.ascontiguousarray(raw[8:32, 10:50])
    piece = demosaic(replace_isolated(part, colours, SKY, NOISE, ISOLATED_SIGMA), colours)
    inner = slice(SUPPORT_PX, -SUPPORT_PX)
    np.testing.assert_array_equal(piece[:, inner, inner], whole[:, 8:32, 10:50][:, inner, inner])


def test_missing_pixels_spread_no_further_than_the_filters_reach():
    raw = noisy_bayer((20, 20))
    raw[10, 10] = np.nan
    missing = np.isnan(demosaic(raw, bayer_colours("GRBG"))).any(axis=0)
    y, x = np.nonzero(missing)
    assert missing[10, 10]
    assert max(abs(y - 10).max(), abs(x - 10).max()) <= 2


def test_hot_dead_and_hit_pixels_are_replaced_by_their_own_colour():
    raw = noisy_bayer((30, 30))
    spoiled = raw.copy()
    spoiled[7, 8], spoiled[14, 21], spoiled[0, 0] = 60000, 0, 30000
    clean = replace_isolated(spoiled, bayer_colours("GRBG"), SKY, NOISE, ISOLATED_SIGMA)
    changed = clean != spoiled
    assert set(zip(*np.nonzero(changed), strict=True)) == {(7, 8), (14, 21), (0, 0)}
    colours = bayer_colours("GRBG")
    for y, x in ((7, 8), (14, 21), (0, 0)):
        colour = colours[y % 2, x % 2]
        assert abs(clean[y, x] - SKY[colour]) < 5 * NOISE[colour]


@pytest.mark.parametrize("fwhm", [2.0, 2.6, 4.0])
@pytest.mark.parametrize("peak_sigma", [10, 100, 1000])
def test_stars_are_not_taken_for_defects(fwhm, peak_sigma):
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:200, 0:200]
    stars = np.zeros((200, 200))
    for cy in range(10, 195, 15):
        for cx in range(10, 195, 15):
            dy, dx = rng.uniform(-0.5, 0.5, 2)
            stars += np.exp(-4 * np.log(2) * ((y - cy - dy) ** 2 + (x - cx - dx) ** 2) / fwhm**2)
    clean = noisy_bayer((200, 200)) + (peak_sigma * 30 * stars).astype(np.float32)
    result = replace_isolated(clean, bayer_colours("GRBG"), SKY, NOISE, ISOLATED_SIGMA)
    assert (result != clean).sum() == 0


def test_missing_pixels_are_left_alone_by_the_cleaning():
    raw = noisy_bayer((10, 10))
    raw[3:5, 3:5] = np.nan
    clean = replace_isolated(raw, bayer_colours("GRBG"), SKY, NOISE, ISOLATED_SIGMA)
    np.testing.assert_array_equal(clean, raw)


@pytest.mark.parametrize("bayer", PATTERNS)
def test_half_planes_average_the_greens_and_keep_the_others(bayer):
    raw = np.arange(35, dtype=np.uint16).reshape(5, 7)
    cells = {letter: [] for letter in "RGB"}
    for k, letter in enumerate(bayer):
        cells[letter].append(raw[k // 2 : 4 : 2, k % 2 : 6 : 2])
    planes = half_planes(raw, bayer)
    assert planes.dtype == np.float32
    for plane, letter in zip(planes, "RGB", strict=True):
        np.testing.assert_array_equal(plane, np.mean(cells[letter], axis=0))


def test_means_of_two_by_two_pixels_and_their_peaks():
    planes = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    planes[1, 3, 5] = np.nan
    means, peaks = binned(planes)
    assert means.shape == peaks.shape == (2, 2, 3)
    for c, j, i in np.ndindex(2, 2, 3):
        block = planes[c, 2 * j : 2 * j + 2, 2 * i : 2 * i + 2]
        np.testing.assert_equal(means[c, j, i], block.mean())
        np.testing.assert_equal(peaks[c, j, i], block.max())
    assert np.isnan(means[1, 1, 2])

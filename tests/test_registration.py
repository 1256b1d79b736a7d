"""Star lists from simulated planes."""

import numpy as np
import pytest
import sep

import zemosaic_registration
from zemosaic_registration import APERTURE_FWHM, aperture_fluxes, find_stars, ring_sums, subtract_background

SHAPE = (400, 500)
NOISE = 10.0


def star_field(fwhm, seed=0, spacing=50, flux=20000.0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    sigma = fwhm / 2.3548
    plane = rng.normal(1000.0, NOISE, SHAPE) + 0.1 * x
    centres = []
    for cy in range(30, SHAPE[0] - 20, spacing):
        for cx in range(30, SHAPE[1] - 20, spacing):
            dx, dy = cx + rng.uniform(-0.5, 0.5), cy + rng.uniform(-0.5, 0.5)
            centres.append((dx, dy))
            plane += flux / (2 * np.pi * sigma**2) * np.exp(-((x - dx) ** 2 + (y - dy) ** 2) / (2 * sigma**2))
    return plane.astype(np.float32), np.array(centres)


def nearest(found_x, found_y, centres):
    distance = np.hypot(found_x[:, None] - centres[:, 0], found_y[:, None] - centres[:, 1])
    return distance.argmin(axis=1), distance.min(axis=1)


@pytest.mark.parametrize("fwhm", [2.2, 3.0, 4.5])
def test_all_stars_are_found_where_they_are_and_as_sharp_as_they_are(fwhm):
    plane, centres = star_field(fwhm)
    residual, mask = subtract_background(plane)
    stars = find_stars(residual, mask, NOISE)
    which, distance = nearest(stars.x, stars.y, centres)
    assert len(set(which.tolist())) == len(centres)
    assert np.median(distance) < 0.1
    assert stars.fwhm_px == pytest.approx(fwhm, rel=0.12)
    assert stars.elongation < 1.2


@pytest.mark.parametrize("fwhm", [2.6, 3.6])
def test_aperture_fluxes_hold_one_share_of_the_light_whatever_the_seeing(fwhm):
    plane, centres = star_field(fwhm)
    residual, mask = subtract_background(plane)
    stars = find_stars(residual, mask, NOISE)
    x, y = centres.T
    flux, error = aperture_fluxes(residual, mask, x, y, APERTURE_FWHM * stars.fwhm_px, NOISE)
    assert np.median(flux) == pytest.approx(20000.0, rel=0.01)
    assert np.std(flux) == pytest.approx(np.median(error), rel=0.4)


def test_rings_hold_what_sextractor_counts_in_them():
    rng = np.random.default_rng(3)
    plane = rng.normal(0.0, NOISE, SHAPE).astype(np.float32)
    mask = rng.random(SHAPE) < 0.02
    x, y = rng.uniform(-4, SHAPE[1] + 3, 300), rng.uniform(-4, SHAPE[0] + 3, 300)
    total, area = ring_sums(plane, mask, x, y, (4.7, 9.3), 2.0 * NOISE)
    held = np.clip(plane, -2.0 * NOISE, 2.0 * NOISE)
    held[mask] = 0.0
    expected, count = (
        sep.sum_circann(values, x, y, 4.7, 9.3, subpix=1)[0] for values in (held, (~mask).astype(np.float32))
    )
    np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(area, count)
    assert (area < 0.5 * area.max()).any()


def test_stars_at_the_edge_beside_holes_and_saturated_ones_are_left_out():
    plane, centres = star_field(3.0)
    plane[int(centres[0, 1]) - 8 : int(centres[0, 1]) + 8, int(centres[0, 0]) - 8 : int(centres[0, 0]) + 8] = (
        np.nan
    )
    residual, mask = subtract_background(plane)
    assert mask.sum() == 256
    assert np.isfinite(residual).all()
    saturated = np.zeros(SHAPE, dtype=bool)
    x, y = np.rint(centres[5]).astype(int)
    saturated[y - 2 : y + 3, x - 2 : x + 3] = True
    stars = find_stars(residual, mask, NOISE, exclude=saturated)
    which, distance = nearest(stars.x, stars.y, centres)
    close = set(which[distance < 2].tolist())
    assert 0 not in close
    assert 5 not in close
    assert len(close) == len(centres) - 2
    flux, _ = aperture_fluxes(residual, mask, np.array([2.0]), np.array([2.0]), 6.0, NOISE)
    assert np.isnan(flux[0])


def test_empty_sky_has_no_stars_and_no_sharpness():
    plane = np.random.default_rng(1).normal(500, NOISE, (100, 120)).astype(np.float32)
    residual, mask = subtract_background(plane)
    stars = find_stars(residual, mask, 10 * NOISE)
    assert stars.x.size == 0
    assert np.isnan(stars.fwhm_px)


def test_a_field_too_crowded_for_the_detection_costs_its_stars_only(monkeypatch, caplog):
    monkeypatch.setattr(zemosaic_registration, "_SUB_OBJECTS", 20)
    plane, _ = star_field(3.0, spacing=9)
    residual, mask = subtract_background(plane)
    stars = find_stars(residual + 400.0, mask, NOISE)
    assert stars.x.size == 0
    assert "too crowded" in caplog.text


def test_a_plane_smaller_than_the_mesh_works():
    plane = np.random.default_rng(2).normal(500, NOISE, (20, 31)).astype(np.float32)
    residual, mask = subtract_background(plane)
    assert residual.shape == plane.shape
    assert not mask.any()

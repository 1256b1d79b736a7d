"""Places on the sky as vectors: where right ascensions begin anew, and at the poles."""

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from zemosaic_sphere import chord_angle_deg, mean_place, north_east, places_deg, unit_vectors


@pytest.fixture
def sky():
    rng = np.random.default_rng(6)
    return np.column_stack([rng.uniform(0.0, 360.0, 200), np.rad2deg(np.arcsin(rng.uniform(-1.0, 1.0, 200)))])


def test_places_come_back_from_vectors_of_any_length(sky):
    vectors = unit_vectors(sky) * np.linspace(0.1, 9.0, len(sky))[:, None]
    np.testing.assert_allclose(places_deg(vectors), sky, rtol=0, atol=1e-12)


def test_a_right_ascension_is_never_360():
    ra = places_deg(np.array([[1.0, -1e-18, 0.0], [1.0, 0.0, 0.0]]))[:, 0]
    assert ra.tolist() == [0.0, 0.0]


def test_the_mean_of_places_around_0_h_and_around_a_pole_lies_among_them():
    assert mean_place(np.array([[359.0, 10.0], [1.0, 10.0]])) == pytest.approx((0.0, 10.0), abs=0.01)
    assert mean_place(np.array([[0.0, 89.0], [120.0, 89.0], [240.0, 89.0]]))[1] == pytest.approx(90.0)


def test_angles_are_those_of_the_sphere(sky):
    chord = np.linalg.norm(unit_vectors(sky[:100]) - unit_vectors(sky[100:]), axis=1)
    expected = SkyCoord(sky[:100] * u.deg).separation(SkyCoord(sky[100:] * u.deg)).deg
    np.testing.assert_allclose(chord_angle_deg(chord), expected, rtol=0, atol=1e-10)


def test_north_and_east_are_where_places_move_to(sky):
    sky = sky[np.abs(sky[:, 1]) < 89.0]
    north, east = north_east(sky)
    step = 1e-6
    up = unit_vectors(sky + np.array([0.0, step])) - unit_vectors(sky)
    left = unit_vectors(sky + np.array([step, 0.0])) - unit_vectors(sky)
    np.testing.assert_allclose(np.rad2deg(up) / step, north, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.rad2deg(left) / step / np.cos(np.deg2rad(sky[:, 1:])), east, rtol=0, atol=1e-6)

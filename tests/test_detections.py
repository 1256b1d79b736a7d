"""Detections of all frames in one table, and which of them are one star."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from zemosaic_detection_kernels import identify as compiled
from zemosaic_detections import MATCH_RADIUS_PX, Detections, catalogue_stars, cluster_stars


def by_density(places, frame):
    return cluster_stars(places, frame, MATCH_RADIUS_PX)


BOTH_WAYS = pytest.mark.parametrize("identify", [by_density, catalogue_stars])


def seen_by_all(stars, n_frames, noise=0.0, seed=0):
    """Places and frames of detections: every frame shows every star, in an order of its own."""
    rng = np.random.default_rng(seed)
    number = np.concatenate([rng.permutation(len(stars)) for _ in range(n_frames)])
    places = np.asarray(stars, dtype=float)[number] + rng.normal(0.0, noise, (number.size, 2))
    return places, np.repeat(np.arange(n_frames), len(stars)), number


@BOTH_WAYS
def test_every_star_of_a_loose_field_has_one_number_in_all_frames(identify):
    grid = np.stack(np.meshgrid(np.arange(10.0, 400.0, 13.0), np.arange(5.0, 300.0, 11.0)), axis=-1).reshape(-1, 2)
    places, frame, truth = seen_by_all(grid, 7, noise=0.2)
    star = identify(places, frame)
    assert star.min() == 0
    for number in range(len(grid)):
        assert np.unique(star[truth == number]).size == 1
    assert np.unique(star).size == len(grid)


@BOTH_WAYS
def test_stars_of_one_frame_are_never_one_star(identify):
    places = np.array([[10.0, 10.0], [50.0, 50.0], [9.8, 10.0], [50.3, 50.1], [10.4, 10.0], [90.0, 9.0]])
    star = identify(places, np.array([0, 0, 1, 1, 1, 1]))
    assert star[1] == star[3] >= 0
    assert star[2] == star[4] == -1


@BOTH_WAYS
def test_without_detections_there_are_no_stars(identify):
    assert identify(np.empty((0, 2)), np.empty(0, dtype=np.int64)).size == 0


def test_two_detections_of_one_frame_that_are_near_each_other_are_no_star_where_positions_are_uncertain():
    places = np.array([[10.0, 10.0], [11.0, 10.0], [50.0, 50.0], [10.4, 10.0], [50.3, 50.1], [90.0, 9.0]])
    star = by_density(places, np.array([0, 0, 0, 1, 1, 1]))
    assert star[2] == star[4] >= 0
    assert star[[0, 1, 3, 5]].tolist() == [-1, -1, -1, -1]


def test_a_catalogue_tells_stars_apart_that_are_closer_than_its_radius_and_density_does_not():
    pairs = np.array([[40.0 * k + side, 20.0] for k in range(10) for side in (0.0, 1.8)])
    places, frame, truth = seen_by_all(pairs, 5, noise=0.05)
    star = catalogue_stars(places, frame)
    for number in range(len(pairs)):
        assert np.unique(star[truth == number]).size == 1
    assert np.unique(star).size == len(pairs)
    assert (by_density(places, frame) == -1).mean() > 0.9


def test_density_keeps_a_star_whole_whose_positions_scatter_and_a_catalogue_does_not():
    stars = np.array([[30.0 * k, 30.0 * row] for k in range(1, 11) for row in range(1, 11)])
    places, frame, truth = seen_by_all(stars, 12, noise=0.9)
    whole = by_density(places, frame)
    parts = catalogue_stars(places, frame)
    assert np.unique(whole[whole >= 0]).size == len(stars)
    for number in range(len(stars)):
        assert np.unique(whole[(truth == number) & (whole >= 0)]).size == 1
    assert np.unique(parts[parts >= 0]).size > 1.1 * len(stars)


def test_the_order_of_the_frames_does_not_matter_to_density():
    rng = np.random.default_rng(4)
    places, frame, _ = seen_by_all(rng.uniform(0.0, 200.0, (80, 2)), 6, noise=0.6)
    star = by_density(places, frame)
    order = np.argsort((frame + 3) % 6, kind="stable")
    assert (by_density(places[order], ((frame + 3) % 6)[order]) == star[order]).all()


def measure_of(rng, n_stars, channels=3):
    x, y = rng.uniform(0.0, 100.0, (2, n_stars))
    flux = rng.uniform(1e3, 1e5, (n_stars, channels)).astype(np.float32)
    places = {"star_x": x, "star_y": y, "frame_x": np.float32(x - 7), "frame_y": np.float32(y + 3)}
    return SimpleNamespace(**places, flux=flux, flux_error=np.sqrt(flux))


def test_the_table_holds_the_frames_stars_in_frame_order():
    rng = np.random.default_rng(1)
    measures = [measure_of(rng, n) for n in (5, 0, 3)]
    stars = Detections.of(measures)
    assert stars.frame.tolist() == [0] * 5 + [2] * 3
    assert (stars.star == -1).all()
    np.testing.assert_array_equal(stars.places[5:], np.column_stack([measures[2].star_x, measures[2].star_y]))
    np.testing.assert_array_equal(stars.flux, np.concatenate([m.flux for m in measures]))
    first = Detections.of(measures, 2)
    assert first.frame.tolist() == [0, 0, 2, 2]
    np.testing.assert_array_equal(first.frame_x, stars.chosen(np.array([0, 1, 5, 6])).frame_x)


def test_the_light_of_colours_is_summed_in_double_precision():
    stars = Detections.of([measure_of(np.random.default_rng(2), 40)])
    flux, error = stars.light([0, 2])
    assert flux.dtype == error.dtype == np.float64
    np.testing.assert_array_equal(flux, stars.flux[:, 0].astype(float) + stars.flux[:, 2].astype(float))
    np.testing.assert_allclose(error**2, (stars.error[:, [0, 2]].astype(float) ** 2).sum(axis=1), rtol=1e-14)
    np.testing.assert_allclose(stars.light()[0], stars.flux.astype(float).sum(axis=1), rtol=1e-15)


def slow(places, start, n_founding, radius):
    """What the compiled loop does, place by place against all stars."""
    stars, number = np.empty((0, 2)), []
    for f, (a, b) in enumerate(pairwise(start)):
        own = []
        for place in places[a:b]:
            away = np.hypot(*(stars - place).T) if len(stars) else np.full(1, np.inf)
            own.append(int(away.argmin()) if away.min() < radius else -1)
        for k in range(b - a):
            if own[k] < 0 and f < n_founding:
                own[k], stars = len(stars), np.vstack([stars, places[a + k]])
        number += own
    return number


@pytest.mark.parametrize("n_founding", [1, 6], ids=["the first frame founds", "all found"])
def test_the_compiled_loop_finds_what_a_slow_one_does(n_founding):
    rng = np.random.default_rng(8)
    places = rng.uniform(-40.0, 40.0, (400, 2))
    start = np.array([0, 150, 150, 220, 300, 301, 400])
    number = np.empty(400, dtype=np.int64)
    compiled(places, start, n_founding, 3.0, number)
    assert number.tolist() == slow(places, start, n_founding, 3.0)
    assert (number >= 150).any() == (n_founding > 1)
    assert (number < 0).any() == (n_founding == 1)

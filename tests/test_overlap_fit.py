"""The overlap fit against dense least squares, and what it owes its users: determinism, robustness, rank."""

import tracemalloc

import numpy as np
import pytest

from zemosaic_overlap_fit import Sightings, fit_overlaps
from zemosaic_overlap_kernels import residuals


def strip(n_frames=8, side=12, step=7, *, seed=0, noise=0.5, slope=0.3):
    """Square frames in a row, `step` apart, that see points of a lattice; return sightings, values and truth."""
    rng = np.random.default_rng(seed)
    width = (n_frames - 1) * step + side
    truth = rng.uniform(-20, 20, (side, width))
    place = np.column_stack([np.tile(np.arange(width), side), np.repeat(np.arange(side), width)]).astype(float)
    rows, columns = np.mgrid[0:side, 0:side]
    points = [(rows * width + columns + k * step).ravel() for k in range(n_frames)]
    centre = np.array([(k * step + (side - 1) / 2, (side - 1) / 2) for k in range(n_frames)])
    models = np.column_stack([rng.uniform(-100, 100, n_frames), *rng.normal(0, slope, (2, n_frames))])
    start = np.arange(n_frames + 1) * side**2
    value = []
    for k, point in enumerate(points):
        offset = place[point] - centre[k]
        value.append(truth.ravel()[point] - models[k, 0] - offset @ models[k, 1:])
    value = np.concatenate(value) + rng.normal(0, noise, n_frames * side**2)
    return Sightings(start, np.concatenate(points), place, centre), value, models


def dense(sightings, value, sigma, ridge):
    """Solve for models and truths at once: constants with mean 0, slopes held by `ridge`, no robust weights."""
    n, k, m = sightings.n_frames, len(sightings.place), value.size
    design = np.zeros((m + 2 * n + 1, 3 * n + k))
    right = np.zeros(m + 2 * n + 1)
    for row, (frame, point) in enumerate(zip(sightings.frame, sightings.point, strict=True)):
        offset = sightings.place[point] - sightings.centre[frame]
        design[row, 3 * frame : 3 * frame + 3] = np.array([1.0, *offset]) / sigma[row]
        design[row, 3 * n + point] = -1.0 / sigma[row]
        right[row] = -value[row] / sigma[row]
    for frame in range(n):
        for axis in (0, 1):
            design[m + 2 * frame + axis, 3 * frame + 1 + axis] = ridge
    design[-1, 0 : 3 * n : 3] = 1.0
    return np.linalg.lstsq(design, right, rcond=None)[0][: 3 * n].reshape(n, 3)


def curvature(coefficients, sightings):
    """Return coefficients without what overlaps cannot show: a constant and a plane that all frames share."""
    design = np.column_stack([np.ones(len(coefficients)), sightings.centre])
    plane = np.linalg.lstsq(design, coefficients[:, 0], rcond=None)[0]
    flat = coefficients.copy()
    flat[:, 0] -= design @ plane
    flat[:, 1:] -= coefficients[:, 1:].mean(axis=0)
    return flat


def test_the_fit_is_that_of_dense_least_squares():
    sightings, value, _ = strip()
    sigma = np.random.default_rng(1).uniform(0.8, 3.0, value.size)
    fit = fit_overlaps(sightings, value, sigma, planes=True)
    weighed = 1.0 / np.sqrt(np.maximum(fit.weight, 1e-12))
    expected = dense(sightings, value, weighed, 1.0 / fit.spread)
    np.testing.assert_allclose(fit.coefficients, expected, atol=2e-3)
    assert fit.spread == pytest.approx(1.48 * np.median(np.abs(fit.coefficients[:, 1:])), rel=0.1)


def test_constants_alone_are_those_of_dense_least_squares():
    sightings, value, models = strip(slope=0.0)
    fit = fit_overlaps(sightings, value, np.ones(value.size), planes=False)
    np.testing.assert_allclose(fit.coefficients[:, 0], models[:, 0] - models[:, 0].mean(), atol=0.5)
    assert fit.coefficients.shape == (8, 1)


def test_models_are_recovered_but_for_a_common_plane():
    sightings, value, models = strip(n_frames=20, side=16, step=8, noise=0.1)
    fit = fit_overlaps(sightings, value, np.full(value.size, 0.1), planes=True)
    found, planted = curvature(fit.coefficients, sightings), curvature(models, sightings)
    np.testing.assert_allclose(found[:, 1:], planted[:, 1:], atol=0.02)
    np.testing.assert_allclose(found[:, 0], planted[:, 0], atol=0.6)


def test_outliers_do_not_pull():
    sightings, value, _ = strip(n_frames=10, noise=0.1)
    spoilt = value.copy()
    hit = np.random.default_rng(3).random(value.size) < 0.1
    spoilt[hit] += 400.0
    sigma = np.full(value.size, 0.1)
    clean = curvature(fit_overlaps(sightings, value, sigma, planes=True).coefficients, sightings)
    fit = fit_overlaps(sightings, spoilt, sigma, planes=True)
    np.testing.assert_allclose(curvature(fit.coefficients, sightings), clean, atol=0.15)
    shared = np.isfinite(fit.residual)
    assert (fit.weight[hit & shared] < 1e-6).mean() > 0.8


def test_residuals_and_truths_belong_together():
    sightings, value, _ = strip()
    fit = fit_overlaps(sightings, value, np.ones(value.size), planes=True)
    offset = sightings.place[sightings.point] - sightings.centre[sightings.frame]
    model = fit.coefficients[sightings.frame, 0]
    model = model + np.sum(offset * fit.coefficients[sightings.frame, 1:], axis=1)
    seen = np.bincount(sightings.point)[sightings.point]
    np.testing.assert_allclose(fit.residual[seen > 1], (value + model - fit.truth[sightings.point])[seen > 1])
    assert np.isnan(fit.residual[seen == 1]).all()


def test_pulls_are_residuals_in_units_of_their_errors_where_others_see_the_point():
    rng = np.random.default_rng(9)
    point = np.array([0, 1, 2, 0, 1, 3, 0, 3])
    weight, sigma = np.array([1.0, 2.0, 1.0, 3.0, 0.0, 1e-12, 2.0, 4.0]), rng.uniform(0.5, 2.0, 8)
    seen, truth = rng.normal(size=8), rng.normal(size=4)
    weights = np.bincount(point, weight)
    residual, pull = np.empty(8), np.empty(8)
    residuals(point, weight, weights, seen, truth, sigma, 1e-9, residual, pull)
    # Point 1 has one sighting with a weight, point 2 one at all; what weighs next to nothing leaves 3 to itself.
    shared = np.array([True, False, False, True, False, True, True, False])
    expected = np.where(shared, seen - truth[point], np.nan)
    np.testing.assert_array_equal(residual, expected)
    share = np.where(shared, 1.0 - weight / weights[point], 1.0)
    np.testing.assert_allclose(pull, expected / sigma / np.sqrt(share), rtol=1e-14)


def test_the_order_of_frames_leaves_no_trace():
    sightings, value, _ = strip()
    order = np.random.default_rng(2).permutation(8)
    index = np.concatenate([np.arange(sightings.start[k], sightings.start[k + 1]) for k in order])
    moved = Sightings(sightings.start, sightings.point[index], sightings.place, sightings.centre[order])
    first = fit_overlaps(sightings, value, np.ones(value.size), planes=True).coefficients
    second = fit_overlaps(moved, value[index], np.ones(value.size), planes=True).coefficients
    np.testing.assert_allclose(second, first[order], atol=1e-4)


def test_the_same_input_gives_the_same_bits():
    sightings, value, _ = strip()
    first, second = (fit_overlaps(sightings, value, np.ones(value.size), planes=True) for _ in range(2))
    assert first.coefficients.tobytes() == second.coefficients.tobytes()


def test_a_frame_that_shares_nothing_has_no_model():
    sightings, value, _ = strip(n_frames=3, side=6, step=10)
    fit = fit_overlaps(sightings, value, np.ones(value.size), planes=True)
    assert fit.coefficients.tolist() == [[0.0] * 3] * 3
    assert np.isnan(fit.residual).all()
    assert sightings.groups(np.ones(value.size, dtype=bool)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("shared", [1, 2, 3])
def test_a_frame_that_shares_too_few_points_for_a_plane_gets_no_wild_slope(shared):
    sightings, value, _ = strip(n_frames=8, noise=0.1)
    last = np.arange(sightings.start[7], sightings.start[8])
    others = np.isin(sightings.point[last], sightings.point[: sightings.start[7]])
    sigma = np.full(value.size, 0.1)
    sigma[last[others][shared:]] = np.nan
    fit = fit_overlaps(sightings, value, sigma, planes=True)
    assert np.abs(fit.coefficients[7, 1:]).max() < 1.5
    assert np.isfinite(fit.coefficients).all()


def test_values_that_are_not_known_take_no_part():
    sightings, value, _ = strip()
    holes = np.random.default_rng(5).random(value.size) < 0.2
    sigma = np.where(holes, np.nan, 1.0)
    junk = np.where(holes, 1e6, value)
    fit = fit_overlaps(sightings, junk, sigma, planes=True)
    assert np.abs(fit.coefficients[:, 0]).max() < 250
    assert (fit.weight[holes] == 0).all()
    assert np.isnan(fit.residual[holes]).all()


def test_a_long_chain_of_frames_converges(caplog):
    sightings, value, models = strip(n_frames=300, side=8, step=5, noise=0.05)
    fit = fit_overlaps(sightings, value, np.full(value.size, 0.05), planes=True)
    assert not caplog.records
    residual = fit.residual[np.isfinite(fit.residual)]
    assert np.sqrt(np.mean(residual**2)) < 0.06
    found, planted = curvature(fit.coefficients, sightings), curvature(models, sightings)
    assert np.abs(np.diff(found[:, 0] - planted[:, 0])).max() < 1.0


@pytest.mark.parametrize("planes", [False, True])
def test_many_frames_of_few_points_converge(planes, caplog):
    """Their sum of weights is large beside what their common constant, which nothing determines, may be."""
    rng = np.random.default_rng(8)
    place = rng.uniform(0.0, 1000.0, (30, 2))
    start = np.arange(18) * 30
    centre = np.full((17, 2), 500.0) + rng.normal(0.0, 3.0, (17, 2))
    value = np.tile(rng.normal(9.0, 1.5, 30), 17) + np.repeat(rng.normal(0.0, 0.2, 17), 30)
    sigma = rng.uniform(0.01, 0.3, value.size)
    outliers = rng.random(value.size) < 0.2
    value += rng.normal(0.0, sigma) + outliers * rng.normal(0.0, 1.0, value.size)
    fit = fit_overlaps(Sightings(start, np.tile(np.arange(30), 17), place, centre), value, sigma, planes=planes)
    assert not caplog.records
    assert fit.coefficients[:, 0].mean() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("n_frames", [2, 3, 6])
@pytest.mark.parametrize("seed", range(10))
def test_frames_of_one_and_the_same_pointing_are_solved(planes, n_frames, seed, caplog):
    """All constants are then one for the smooth surfaces, which have nothing left to solve."""
    rng = np.random.default_rng(seed)
    place, planted = rng.uniform(0.0, 1000.0, (30, 2)), rng.normal(0.0, 0.2, n_frames)
    value = np.tile(rng.normal(9.0, 1.5, 30), n_frames) - np.repeat(planted, 30)
    sigma = rng.uniform(0.005, 0.02, value.size)
    value += rng.normal(0.0, sigma)
    points, centre = np.tile(np.arange(30), n_frames), np.full((n_frames, 2), 500.0)
    fit = fit_overlaps(Sightings(np.arange(n_frames + 1) * 30, points, place, centre), value, sigma, planes=planes)
    np.testing.assert_allclose(fit.coefficients[:, 0], planted - planted.mean(), atol=0.02)
    assert not caplog.records


@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("n_points", [0, 1, 9])
def test_frames_that_share_nothing_cost_nothing_however_far_apart(planes, n_points):
    n_frames = 50
    centre = np.random.default_rng(3).uniform(0.0, 1e6, (n_frames, 2))
    place = np.repeat(centre, n_points, axis=0) + np.tile(np.arange(n_points), n_frames)[:, None]
    sightings = Sightings(np.arange(n_frames + 1) * n_points, np.arange(len(place)), place, centre)
    value = np.arange(float(len(place)))
    tracemalloc.start()
    fit = fit_overlaps(sightings, value, np.ones(value.size), planes=planes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not fit.coefficients.any()
    assert np.isnan(fit.residual).all()
    np.testing.assert_array_equal(fit.truth, value)
    assert peak < 5e6

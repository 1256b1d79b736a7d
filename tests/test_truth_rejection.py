"""What is known of rejections: mosaics made by hand, whose outliers and lost samples are known."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from astropy.wcs import WCS
from scipy.ndimage import binary_erosion, maximum_filter, minimum_filter

from zemosaic_reproject import lattice, optimal_canvas, place, resample
from zemosaic_synthetic import (
    Survey,
    frame_wcs,
    plan_survey,
    render_frame,
    render_planes,
    small_spec,
    star_positions,
)
from zemosaic_truth import format_score, score_mosaic
from zemosaic_truth_ideal import ideal_noise, ideal_stars, spoiled
from zemosaic_truth_rejection import GAUSSIAN_LOSS
from zemosaic_types import Rect

SIX = small_spec(
    seed=4,
    panels=(1, 1),
    frames_per_panel=6,
    frame_shape=(300, 360),
    star_density=600.0,
    star_flux=(8000.0, 2e5),
    hot_pixels=40.0,
    trail_fraction=0.4,
)
#: Six frames of one pointing: their depth is six wherever there is one.
SAME = replace(SIX, dither_px=0.0, rotation_deg=0.0)
CLEAN = dict(hot_pixels=0.0, cosmic_rays=0, trail_fraction=0.0)


@dataclass(frozen=True)
class Ideal:
    """A survey's ideal mosaic with its noise, on a canvas of its own; do not write into the arrays."""

    survey: Survey
    wcs: WCS
    image: np.ndarray
    depth: np.ndarray
    stars: np.ndarray
    sigma: np.ndarray

    def score(self, image=None, coverage=None):
        image = self.image if image is None else image
        return score_mosaic(image, self.depth if coverage is None else coverage, self.wcs, self.survey)


def canvas_of(survey):
    return optimal_canvas([(survey.spec.frame_shape, frame_wcs(frame)) for frame in survey.frames])


def ideal(spec, seed=1):
    survey = plan_survey(spec)
    canvas = canvas_of(survey)
    wcs, shape = canvas.wcs(), canvas.shape
    stars, sigma = ideal_stars(survey, wcs, shape, nebula=np.zeros((spec.n_channels, *shape)))
    depth = ideal_noise(survey, wcs, shape)[1]
    noise = np.random.default_rng(seed).standard_normal(stars.shape) * np.where(depth > 0, sigma, 0.0)
    return Ideal(survey, wcs, np.where(depth > 0, stars + 900.0 + noise, np.nan), depth, stars, sigma)


@pytest.fixture(scope="module")
def six():
    return ideal(SIX)


@pytest.fixture(scope="module")
def same():
    return ideal(SAME)


def some_sky(mosaic, count, seed=3):
    """Rows and columns of deep pixels without starlight."""
    rows, cols = np.nonzero((mosaic.depth >= 5) & (mosaic.stars.max(axis=0) < 0.1))
    chosen = np.random.default_rng(seed).choice(rows.size, count, replace=False)
    return rows[chosen], cols[chosen]


def step_around(plane):
    """The difference of the largest and the smallest of each pixel and its eight neighbours."""
    return maximum_filter(plane, 3) - minimum_filter(plane, 3)


def resampled(survey, index, planes):
    """A frame's planes on the survey's canvas by the resampling of the program itself: samples, and where."""
    canvas, shape = canvas_of(survey), survey.spec.frame_shape
    wcs = frame_wcs(survey.frames[index])
    placement = place(wcs, shape, canvas)
    part = placement.bounds.intersect(canvas.rect)
    grid = lattice(wcs, canvas, placement.bounds, placement.step)
    light = np.ascontiguousarray(planes, dtype=np.float32)
    return resample(light, Rect(0, shape[0], 0, shape[1]), shape, grid, part), part


def test_an_ideal_mosaic_has_no_outliers_and_lost_nothing(six):
    score = six.score()
    assert score.n_outlier_pixels[0] > 80_000
    assert score.outlier_ppm == (0.0,)
    assert score.n_clean_samples[0] > 6 * 70_000
    assert score.false_rejections == pytest.approx((-GAUSSIAN_LOSS,), abs=1e-12)


def test_planted_outliers_are_counted(six):
    dirty, (rows, cols) = six.image.copy(), some_sky(six, 50)
    signs = np.where(np.arange(50) % 2, 1.0, -1.0)
    dirty[0, rows, cols] = 900.0 + 7.0 * signs * six.sigma[0, rows, cols]
    score = six.score(dirty)
    assert score.outlier_ppm[0] * score.n_outlier_pixels[0] == pytest.approx(50e6)
    dirty[0, rows, cols] = 900.0 + 5.0 * signs * six.sigma[0, rows, cols]
    assert six.score(dirty).outlier_ppm == (0.0,)


def test_a_cosmic_ray_left_on_the_flank_of_a_star_is_an_outlier(six):
    """A flank is forgiven a twentieth of its step, and not a half."""
    _, x, y = star_positions(six.survey, six.wcs, six.depth.shape, margin_px=-40.0)
    rows, cols = np.rint(y).astype(int), np.rint(x).astype(int) + 1
    step = np.abs(six.stars[0, rows, cols] - six.stars[0, rows, cols + 1])
    bright = step > 30.0 * six.sigma[0, rows, cols]
    assert bright.sum() > 3
    rows, cols, step = rows[bright], cols[bright], step[bright]
    for share, expected in ((0.05, 0), (0.5, bright.sum())):
        dirty = six.image.copy()
        dirty[0, rows, cols] = 900.0 + six.stars[0, rows, cols] + share * step
        score = six.score(dirty)
        assert round(score.outlier_ppm[0] * score.n_outlier_pixels[0] / 1e6) == expected


def test_levels_and_gradients_are_no_outliers(six):
    ny, nx = six.depth.shape
    ramp = 400.0 * np.linspace(-0.5, 0.5, nx) - 200.0 * np.linspace(-0.5, 0.5, ny)[:, None]
    assert six.score(3.0 * (six.image + ramp - 5000.0)).outlier_ppm == (0.0,)


def test_outliers_are_looked_for_where_five_frames_overlap_only(six):
    edge = (six.depth > 0) & (six.depth < 5)
    assert edge.sum() > 500
    dirty = six.image.copy()
    dirty[0][edge] += 1e4
    assert six.score(dirty).outlier_ppm == (0.0,)


def test_a_saturated_star_is_not_judged():
    mosaic = ideal(replace(SIX, star_flux=(8000.0, 3e6), star_density=800.0))
    ids, x, y = star_positions(mosaic.survey, mosaic.wcs, mosaic.depth.shape, margin_px=-40.0)
    flux = mosaic.survey.stars.flux_adu[ids, 0]
    brightest = int(np.argmax(flux))
    assert flux[brightest] > 1.5e6
    dirty = mosaic.image.copy()
    dirty[0, round(y[brightest]), round(x[brightest])] = 40000.0
    lost = mosaic.depth.copy()
    lost[round(y[brightest]), round(x[brightest])] = 1
    assert dirty[0, round(y[brightest]), round(x[brightest])] < 0.8 * np.nanmax(mosaic.image)
    assert mosaic.score(dirty, lost).outlier_ppm == (0.0,)
    assert mosaic.score(dirty, lost).false_rejections == pytest.approx((-GAUSSIAN_LOSS,), abs=1e-12)


def test_a_known_share_of_lost_samples_is_found(same):
    """One sample of six is missing in every third row, without regard to stars."""
    lost = same.depth.copy()
    lost[::3] -= same.depth[::3] > 0
    score = same.score(coverage=lost)
    assert set(np.unique(same.depth)) == {0, 6}
    for share in (score.false_rejections, score.false_rejections_sky, score.false_rejections_steep):
        assert share[0] + GAUSSIAN_LOSS == pytest.approx(1.0 / 18.0, rel=0.05)


def test_samples_lost_on_stars_are_told_from_those_lost_on_the_sky(same):
    steep = step_around(same.stars[0]) > 30.0
    lost = same.depth - 2 * (steep & (same.depth > 0))
    score = same.score(coverage=lost)
    assert score.n_steep_samples[0] > 5000
    assert score.false_rejections_steep[0] > 0.25
    assert score.false_rejections_sky[0] == pytest.approx(-GAUSSIAN_LOSS, abs=1e-4)


def test_samples_lost_at_the_peaks_of_stars_are_found_there(same):
    _, x, y = star_positions(same.survey, same.wcs, same.depth.shape)
    lost = same.depth.copy()
    lost[np.rint(y).astype(int), np.rint(x).astype(int)] -= 2
    score = same.score(coverage=np.maximum(lost, 0))
    assert score.n_peak_samples[0] > 200
    assert score.false_rejections_peaks[0] + GAUSSIAN_LOSS == pytest.approx(1.0 / 3.0, abs=0.02)
    assert score.false_rejections[0] < 0.001


def test_samples_lost_to_trails_cosmic_rays_and_hot_pixels_are_no_false_rejections(six):
    lost = six.depth.copy()
    removed = 0
    for frame in six.survey.frames:
        parts = render_frame(six.survey, frame.index)
        light, part = resampled(six.survey, frame.index, [parts.trail + parts.cosmic + parts.hot])
        hit = np.abs(np.nan_to_num(light[0])) > frame.noise_adu[0]
        lost[part.slices] -= hit
        removed += hit.sum()
    assert removed > 3000
    assert six.score(coverage=lost).false_rejections == pytest.approx((-GAUSSIAN_LOSS,), abs=1e-12)


@pytest.mark.parametrize("rotation", [5.0, 50.0])
def test_every_pixel_that_a_defect_reaches_is_known(rotation):
    survey = plan_survey(replace(SIX, rotation_deg=rotation))
    canvas = canvas_of(survey)
    defects, saturated = spoiled(survey, canvas.wcs(), canvas.shape)
    assert not saturated.any()
    assert 0.02 < defects.mean() < 0.4
    for frame in survey.frames:
        parts = render_frame(survey, frame.index)
        light, part = resampled(survey, frame.index, [parts.trail + parts.cosmic + parts.hot])
        touched = np.abs(np.nan_to_num(light[0])) > 0.2 * frame.noise_adu[0]
        assert not (touched & ~defects[part.slices]).any()


def test_a_coverage_in_weights_says_nothing_about_samples(six):
    score = six.score(coverage=six.depth.astype(np.float32))
    places = ("", "_sky", "_steep", "_peaks")
    assert np.isnan([getattr(score, f"false_rejections{place}") for place in places]).all()
    assert score.outlier_ppm == (0.0,)
    assert "false rejections  not measured" in format_score(score)


def test_without_a_deep_place_nothing_is_judged():
    score = ideal(replace(SIX, frames_per_panel=4)).score()
    assert np.isnan([score.outlier_ppm, score.false_rejections]).all()
    assert score.n_outlier_pixels == score.n_clean_samples == (0,)


def test_the_ideal_stars_are_the_weighted_mean_of_the_frames():
    """Noiseless frames of very different seeing, resampled: off by no more than the share of a step forgiven and
    half a sigma.
    """
    spec = replace(SIX, fwhm_px=(2.8, 4.0), gradient_adu=0.0, **CLEAN)
    survey = plan_survey(spec)
    canvas = canvas_of(survey)
    stars, sigma = ideal_stars(survey, canvas.wcs(), canvas.shape, nebula=np.zeros((1, *canvas.shape)))
    total, weights = np.zeros(canvas.shape), np.zeros(canvas.shape)
    for frame in survey.frames:
        light = render_planes(survey, frame.index) - spec.pedestal_adu - frame.sky_adu[0]
        samples, part = resampled(survey, frame.index, light)
        weight = frame.transparency**2 / frame.noise_adu[0] ** 2
        total[part.slices] += weight * np.nan_to_num(samples[0]) / frame.transparency
        weights[part.slices] += weight * np.isfinite(samples[0])
    seen = binary_erosion(weights == weights.max(), iterations=4)  # off the edges, where kernels are cut
    assert seen.sum() > 60_000
    off = np.abs(total[seen] / weights[seen] - stars[0][seen])
    step = step_around(stars[0])[seen]
    assert step.max() > 3000.0
    assert (off - 0.02 * step).max() < 0.5 * sigma.min()


@pytest.mark.parametrize("color", [False, True])
def test_the_noise_of_the_ideal_stars_is_that_of_sky_and_starlight(color):
    spec = replace(SIX, frames_per_panel=1, color=color)
    survey = plan_survey(spec)
    frame, canvas = survey.frames[0], canvas_of(survey)
    nebula = np.full((spec.n_channels, *canvas.shape), 50.0)
    stars, sigma = ideal_stars(survey, canvas.wcs(), canvas.shape, nebula=nebula)
    for c, noise in enumerate(frame.noise_adu):
        light = frame.transparency * (stars[c] + 50.0) / spec.electrons_per_adu
        seen = np.isfinite(sigma[c])
        assert sigma[c][seen] == pytest.approx((np.sqrt(noise**2 + light) / frame.transparency)[seen], rel=1e-4)
        assert seen.mean() > 0.8


def test_bright_against_faint_is_unbiased_in_shallow_stacks_and_its_error_is_known():
    """Ideal mosaics of seven frames, each with its own noise."""
    spec = replace(SIX, frames_per_panel=7, star_density=1200.0, star_flux=(5000.0, 3e5))
    scores = [ideal(spec, seed).score() for seed in range(10)]
    bias = np.array([score.flux_bias[0] for score in scores])
    error = scores[0].flux_bias_error[0]
    assert 0.001 < error < 0.01
    assert 0.5 * error < bias.std() < 1.8 * error
    assert abs(bias.mean()) < 3.0 * error / np.sqrt(len(bias))

"""What the measure says of frames, large ones on means of 2 x 2 pixels included, against their truth."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import zemosaic_measure
from surveys import survey_in
from zemosaic_fits_io import frame_wcs
from zemosaic_match import _photon_variance
from zemosaic_measure import measure_frame
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_reproject import optimal_canvas
from zemosaic_synthetic import SurveySpec

LARGE = SurveySpec(
    seed=91,
    panels=(1, 1),
    frames_per_panel=2,
    frame_shape=(1010, 1000),
    fwhm_px=(2.6, 3.4),
    star_density=400.0,
    star_flux=(3000.0, 900000.0),
)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two frames of over a million pixels: their truth, and how to measure them."""
    folder = tmp_path_factory.mktemp("large")
    survey = survey_in(folder, LARGE)
    records, _ = load_frames(plan_from_folder(folder)[0], folder)
    canvas = optimal_canvas([(r.header.shape, frame_wcs(r.header)) for r in records])
    truth = {Path(frame.path).name: frame for frame in survey.frames}
    return [(r, truth[Path(r.path).name]) for r in records], lambda record: measure_frame(record, canvas, 64, 1)


def test_a_large_frame_measures_the_same_on_means_as_on_its_pixels(large, monkeypatch):
    frames, measure = large
    for record, truth in frames:
        on_means = measure(record).measure
        monkeypatch.setattr(zemosaic_measure, "_LARGE_FRAME_PX", 10**9)
        on_pixels = measure(record).measure
        monkeypatch.undo()
        assert on_means.fwhm_px == pytest.approx(on_pixels.fwhm_px, rel=0.05)
        assert on_means.fwhm_px == pytest.approx(truth.fwhm_px, rel=0.12)
        assert (on_means.sky, on_means.noise) == (on_pixels.sky, on_pixels.noise)
        _, a, b = np.intersect1d(on_means.cell, on_pixels.cell, return_indices=True)
        assert a.size > 100
        difference = on_means.level[a] - on_pixels.level[b]
        assert np.abs(difference).max() < 0.2 * on_means.noise[0]
        away = np.hypot(on_means.star_x[:, None] - on_pixels.star_x, on_means.star_y[:, None] - on_pixels.star_y)
        nearest = away.argmin(axis=1)
        same = np.flatnonzero((away.min(axis=1) < 0.5) & (on_means.flux[:, 0] > 100 * on_means.flux_error[:, 0]))
        assert same.size > 30
        ratio = on_means.flux[same, 0] / on_pixels.flux[nearest[same], 0]
        assert np.median(ratio) == pytest.approx(1.0, abs=0.01)
        assert np.median(np.abs(ratio - np.median(ratio))) < 0.01


def test_a_saturated_pixel_excludes_its_star_although_the_mean_around_it_is_lower(large):
    frames, measure = large
    record, _ = frames[0]
    free = measure(record).measure
    brightest = np.nanmax(free.flux)
    limit = 0.25 * 65535.0
    strict = measure(replace(record, header=replace(record.header, saturation=limit))).measure
    assert np.nanmax(strict.flux) < brightest
    # The peak of a round star of this width is about its flux over 1.13 FWHM squared.
    peak = np.nanmax(strict.flux) / (1.13 * strict.fwhm_px**2)
    assert peak < 0.9 * limit


BELIEVED = [(0.5, True), (2.0, True), (1e-4, False), (-1.0, False), (None, False)]


@pytest.mark.parametrize(("electrons", "believed"), BELIEVED)
def test_a_gain_is_believed_only_where_an_electron_is_not_more_than_the_noise(large, electrons, believed):
    frames, measure = large
    measured = measure(frames[0][0])
    header = replace(measured.record.header, electrons_per_adu=electrons)
    variance = _photon_variance(replace(measured, record=replace(measured.record, header=header)))
    if believed:
        assert variance == pytest.approx([1.0 / electrons])
    else:
        assert variance == pytest.approx(measured.measure.noise**2 / measured.measure.sky)

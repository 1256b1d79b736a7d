"""Mosaics of simulated surveys against their truth: the figures that ZeMosaic promises."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_align_stack import StackOptions
from zemosaic_fits_io import frame_wcs
from zemosaic_frame_source import FrameSource, StackFrame
from zemosaic_noise_model import NoiseModel
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_reproject import optimal_canvas, place, resample, sample_noise
from zemosaic_stack_core import rejection_bounds
from zemosaic_synthetic import SurveySpec, render_frame
from zemosaic_types import FrameSolution, Rect

MONO = SurveySpec(
    seed=11,
    panels=(2, 2),
    frames_per_panel=7,
    frame_shape=(420, 560),
    overlap_fraction=0.2,
    rotation_deg=15.0,
    dither_px=8.0,
    fwhm_px=(3.0, 3.6),
    transparency=(0.7, 1.0),
    gradient_adu=15.0,
    star_density=1500.0,
    star_flux=(4000.0, 300000.0),
)


@pytest.fixture(scope="module")
def mono(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mono")
    survey = survey_in(folder / "frames", MONO)
    run = Run(folder / "frames", folder / "out", replace(TWO_WORKERS, size_factor=1.5))
    return survey, run, run.score(survey)


def test_stars_are_where_they_should_be(mono):
    score = mono[2]
    assert score.n_position_stars > 40
    assert score.position_rms_px < 0.02
    assert np.abs(score.position_offset_px).max() < 0.005


def test_star_fluxes_scatter_little_beyond_photon_noise(mono):
    score = mono[2]
    assert score.n_flux_stars[0] > 50
    assert score.flux_excess[0] < 0.015
    assert abs(score.flux_bias[0]) < 0.01


def test_the_background_noise_is_that_of_the_ideal_mean(mono):
    ratio = mono[2].noise_ratio[0]
    assert 0.93 < ratio < 1.05


def test_trails_leave_next_to_nothing(mono):
    score = mono[2]
    assert score.n_trail_points > 800
    assert score.trail_residue < 0.1


def test_the_coverage_is_exact(mono):
    assert mono[2].coverage_error == 0.0


def test_nothing_in_the_mosaic_follows_a_tile_edge(mono):
    """Steps across tile edges are those of any other row or column (the run has 3 x 3 tiles)."""
    _, run, _ = mono
    image, tiles = np.nan_to_num(run.mosaic), sorted(run.paths.tiles.glob("tile_*.fits"))
    assert len(tiles) >= 9
    from zemosaic_fits_products import read_image

    edges = {read_image(path, 0)[0]["CX0"] for path in tiles} - {0}
    jumps = np.median(np.abs(np.diff(image, axis=1)), axis=0)
    ordinary = np.delete(jumps, [edge - 1 for edge in edges])
    for edge in edges:
        assert abs(jumps[edge - 1] - np.median(ordinary)) < 5 * np.std(ordinary)


def test_known_transparencies_are_recovered_within_one_percent(mono):
    survey, run, _ = mono
    gain = {Path(row["path"]).name: float(row["gain"]) for row in run.ledger}
    product = np.array([gain[Path(f.path).name] * f.transparency for f in survey.frames])
    assert len(product) == MONO.count
    assert np.abs(product / product.mean() - 1).max() < 0.01


def test_panels_come_out_level(mono):
    score = mono[2]
    assert score.level_rms[0] < 0.35


def test_the_sky_mean_levels_panels_without_touching_fluxes(mono, tmp_path):
    survey, _, _ = mono
    levelled = Run(
        Path(survey.frames[0].path).parent, tmp_path / "out", replace(TWO_WORKERS, normalise="sky_mean")
    )
    assert all(float(row["gain"]) == pytest.approx(1.0, rel=1e-3) for row in levelled.ledger)
    assert levelled.score(survey).level_rms[0] < 0.5


DEEP = SurveySpec(
    seed=21,
    panels=(1, 1),
    frames_per_panel=16,
    frame_shape=(300, 400),
    rotation_deg=10.0,
    gradient_adu=0.0,
    trail_fraction=0.4,
    trail_adu=(120.0, 1500.0),
)


def truth_frames(survey, folder, options):
    """Frames with the coefficients of the truth, so that only resampling and rejection are at work."""
    records, left_out = load_frames(plan_from_folder(folder)[0], folder)
    assert not left_out
    canvas = optimal_canvas([(r.header.shape, frame_wcs(r.header)) for r in records])
    truth = {Path(frame.path).name: frame for frame in survey.frames}
    frames = []
    for record in records:
        t = truth[Path(record.path).name]
        gain = 1.0 / t.transparency
        noise = gain * t.noise_adu[0] * float(sample_noise(options.kernel, False, 1)[0])
        offset = -gain * (t.sky_adu[0] + survey.spec.pedestal_adu)
        photon = gain / survey.spec.electrons_per_adu
        solution = FrameSolution((gain,), (offset,), (noise,), (1.0 / noise**2,), (photon,), (0.0,), (0.0,))
        placement = place(frame_wcs(record.header), record.header.shape, canvas)
        frames.append((StackFrame(record, placement, solution, t.sky_adu, t.noise_adu), t))
    return frames, canvas


def test_where_fifteen_frames_overlap_trails_are_removed(tmp_path):
    """At least 99 % of the trail samples over 5 sigma of their frame's noise are rejected."""
    survey = survey_in(tmp_path / "frames", DEEP)
    options = StackOptions(n_channels=1)
    frames, canvas = truth_frames(survey, tmp_path / "frames", options)
    data = np.full((len(frames), 1, *canvas.shape), np.nan, dtype=np.float32)
    trail = np.zeros_like(data)
    whole = Rect(0, DEEP.frame_shape[0], 0, DEEP.frame_shape[1])
    for k, (frame, t) in enumerate(frames):
        source = FrameSource(frame, canvas, options.kernel)
        part = source.part_of(canvas.rect)
        source.fill(part, data[(k, slice(None), *part.slices)])
        light = render_frame(survey, t.index).trail.reshape(1, *DEEP.frame_shape).astype(np.float32)
        found = resample(light, whole, DEEP.frame_shape, source.grid, part, kernel="bilinear")
        trail[(k, slice(None), *part.slices)] = np.nan_to_num(found) / t.noise_adu[0]
    solutions = [frame.solution for frame, _ in frames]
    noise = NoiseModel(
        *(np.array([getattr(s, name) for s in solutions]) for name in ("noise", "photon", "level", "blur"))
    )
    low, high, _ = rejection_bounds(data, noise, options.params)  # all frames have one blur
    deep = np.isfinite(data).sum(axis=0) >= 15
    bright = (trail > 5.0) & deep & np.isfinite(data)
    removed = (data < low) | (data > high)
    assert bright.sum() > 3000
    assert removed[bright].mean() >= 0.99
    clean = (trail < 0.01) & deep & np.isfinite(data)
    assert removed[clean].mean() < 0.0027 + 0.005

"""From measures to frames of the stack: what a frame weighs, and what a run takes from the frames it used."""

from dataclasses import replace

import numpy as np
import pytest

from surveys import survey_in
from zemosaic_fits_io import frame_wcs
from zemosaic_flat_frames import flatten_frames
from zemosaic_match import MatchOptions, match_frames
from zemosaic_measure import cell_size_px, measure_frames
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_reproject import optimal_canvas
from zemosaic_synthetic import small_spec


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("match")
    survey_in(folder, small_spec(frames_per_panel=4, star_density=2000.0))
    records, _ = load_frames(plan_from_folder(folder)[0], folder)
    canvas = optimal_canvas([(record.header.shape, frame_wcs(record.header)) for record in records])
    return measure_frames(records, canvas, cell_size_px([(160, 200)]), 1), canvas


def test_the_width_of_stars_counts_on_the_sky_and_not_in_pixels(measured):
    """A frame of pixels twice as coarse shows the same stars half as wide, which makes it no sharper."""
    frames, canvas = measured
    coarse = replace(
        frames[0],
        measure=replace(frames[0].measure, fwhm_px=frames[0].measure.fwhm_px / 2.0),
        placement=replace(frames[0].placement, area_ratio=frames[0].placement.area_ratio / 4.0),
    )
    plain, sharp = MatchOptions("none", "noise_variance"), MatchOptions("none", "noise_fwhm")

    def gain_of_width(some):
        by_noise, by_width = (match_frames(some, canvas, options).frames for options in (plain, sharp))
        return np.array(
            [w.solution.weight[0] / n.solution.weight[0] for w, n in zip(by_width, by_noise, strict=True)]
        )

    before, after = gain_of_width(frames), gain_of_width([coarse, *frames[1:]])
    np.testing.assert_allclose(after, before, rtol=1e-9)


def test_a_camera_behind_another_telescope_has_a_flat_of_its_own(measured):
    frames, _ = measured
    other = [
        replace(m, record=replace(m.record, header=replace(m.record.header, telescope="another")))
        for m in frames[4:]
    ]
    assert len(flatten_frames(frames, "auto")[1]) == 1
    assert len(flatten_frames([*frames[:4], *other], "auto")[1]) == 2

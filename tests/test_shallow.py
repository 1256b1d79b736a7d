"""What Grid mode promises of shallow stacks: six or seven frames deep, with all that spoils a frame in them.

Every survey has 21 frames of 720 x 480 px in three panels of seven, seeing from frame to frame between 2.7 and
3.7 px, and over 900 000 pixels where at least five frames overlap: 20 in a million are 18 pixels.
"""

import pytest

from surveys import Run, survey_in
from zemosaic_synthetic import SurveySpec

SHALLOW = dict(
    panels=(1, 3),
    frames_per_panel=7,
    frame_shape=(480, 720),
    overlap_fraction=0.1,
    rotation_deg=10.0,
    dither_px=8.0,
    fwhm_px=(2.7, 3.7),
    transparency=(0.7, 1.0),
    gradient_adu=20.0,
    star_density=1200.0,
    star_flux=(5000.0, 300000.0),
    cosmic_rays=12,
    trail_fraction=0.4,
)


@pytest.fixture(scope="module", params=[32, 35], ids="survey {}".format)
def score(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shallow")
    survey = survey_in(folder / "frames", SurveySpec(seed=request.param, **SHALLOW))
    return Run(folder / "frames", folder / "out").score(survey)


def test_trails_leave_less_than_a_tenth_of_a_sigma(score):
    assert score.n_trail_points > 2000
    assert abs(score.trail_residue) <= 0.1


def test_at_most_twenty_pixels_in_a_million_are_outliers(score):
    assert score.n_outlier_pixels[0] > 900_000
    assert score.outlier_ppm[0] <= 20.0


def test_bright_and_faint_stars_keep_the_same_share_of_their_light(score):
    assert score.flux_bias_error[0] < 0.002
    assert abs(score.flux_bias[0]) <= 0.005


def test_good_samples_are_not_rejected_beyond_what_noise_explains(score):
    assert score.n_clean_samples[0] > 5_000_000
    assert score.false_rejections[0] <= 0.005


def test_nor_are_they_on_the_flanks_of_stars_or_on_the_sky(score):
    assert score.n_steep_samples[0] > 200_000
    assert score.n_sky_samples[0] > 3_000_000
    assert score.false_rejections_steep[0] <= 0.005
    assert score.false_rejections_sky[0] <= 0.005


def test_nor_on_the_peaks_of_stars_where_the_sharpest_frame_stands_out(score):
    assert score.n_peak_samples[0] > 4000
    assert score.false_rejections_peaks[0] <= 0.005

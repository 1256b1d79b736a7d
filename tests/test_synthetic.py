"""The simulated surveys hold the truth they state, and the score of a mosaic reacts to what is wrong with it."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import sep
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning
from scipy.ndimage import map_coordinates

from zemosaic_synthetic import (
    SKY_COLOUR,
    StarTable,
    SurveySpec,
    demo_spec,
    expose_frame,
    frame_wcs,
    make_survey,
    plan_survey,
    render_frame,
    render_nebula,
    render_planes,
    render_sky,
    sample_bayer,
    small_spec,
    star_positions,
    swarp_spec,
    world_to_pixel,
)
from zemosaic_truth import format_score, score_mosaic
from zemosaic_truth_ideal import footprint, ideal_noise
from zemosaic_types import ConfigError, OutputError, ZeMosaicError

CLEAN = dict(trail_fraction=0.0, cosmic_rays=0, hot_pixels=0.0)
OFFSET, SCALE = 900.0, 1.7


def canvas(spec, *, angle=0.3, scale=1.0, margin=12.0):
    """A TAN grid turned by `angle` radians that holds the whole survey."""
    step = np.array(spec.frame_shape) * (1.0 - spec.overlap_fraction)
    half = (np.array(spec.panels) - 1) / 2 * step + np.array(spec.frame_shape) / 2 + margin
    cos, sin = np.cos(angle), np.sin(angle)
    shape = tuple(int(2 * n / scale) for n in (half[0] * cos + half[1] * sin, half[1] * cos + half[0] * sin))
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = spec.center_deg
    wcs.wcs.crpix = (shape[1] + 1) / 2, (shape[0] + 1) / 2
    wcs.wcs.cd = spec.pixel_scale_arcsec / 3600.0 * scale * np.array([[-cos, sin], [sin, cos]])
    return wcs, shape


def inside_frame(frame, spec, sky):
    x, y = world_to_pixel(frame_wcs(frame), *sky)
    ny, nx = spec.frame_shape
    return (x >= -0.5) & (x < nx - 0.5) & (y >= -0.5) & (y < ny - 0.5), x, y


def perfect_mosaic(survey, wcs, shape, *, seed=7):
    """The truth on a canvas with the noise of the ideal weighted mean, pixel by pixel: image and depth."""
    spec = survey.spec
    area = abs(np.linalg.det(wcs.wcs.cd)) / (spec.pixel_scale_arcsec / 3600.0) ** 2
    nebula = render_nebula(survey, wcs, shape)
    stars = render_sky(survey, wcs, shape, fwhm_px=3.1 / np.sqrt(area)) - nebula
    image = stars / area + nebula
    sky = wcs.all_pix2world(*np.indices(shape)[::-1], 0)
    weights, variance, depth = np.zeros_like(image), np.zeros_like(image), np.zeros(shape, dtype=int)
    fractions = (0.25, 0.5, 0.25) if spec.color else (1.0,)
    for frame in survey.frames:
        inside = inside_frame(frame, spec, sky)[0]
        depth += inside
        t = frame.transparency
        for c, (noise, fraction) in enumerate(zip(frame.noise_adu, fractions, strict=True)):
            weight = inside * t**2 / noise**2
            sample = (noise**2 + t * image[c] / spec.electrons_per_adu) / t**2 / (fraction * area)
            weights[c] += weight
            variance[c] += weight**2 * sample
    sigma = np.sqrt(variance) / np.where(depth > 0, weights, 1.0)
    image = image + np.random.default_rng(seed).standard_normal(image.shape) * sigma
    return np.where(depth > 0, SCALE * (image + OFFSET), np.nan), depth


@pytest.fixture(scope="module")
def rich():
    """A survey with enough stars to score: (survey, wcs, mosaic, depth); do not write into the arrays."""
    spec = small_spec(
        panels=(2, 2),
        frames_per_panel=5,
        frame_shape=(300, 360),
        star_density=1000.0,
        star_flux=(4000.0, 3e5),
        trail_fraction=0.4,
    )
    survey = plan_survey(spec)
    wcs, shape = canvas(spec)
    return survey, wcs, *perfect_mosaic(survey, wcs, shape)


@pytest.fixture(scope="module")
def rich_score(rich):
    survey, wcs, mosaic, depth = rich
    return score_mosaic(mosaic, depth, wcs, survey)


def isolated(x, y, reach):
    distance = np.hypot(x[:, None] - x, y[:, None] - y) + np.diag(np.full(x.size, np.inf))
    return distance.min(axis=1) > reach


# The frames


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    spec = small_spec(color=True, sip=True, nebula_adu=100.0)
    first, second = make_survey(tmp_path / "a", spec), make_survey(tmp_path / "b", spec)
    other = make_survey(tmp_path / "c", dataclasses.replace(spec, seed=2))
    assert [p.name for p in sorted((tmp_path / "a").iterdir())] == sorted(f.name for f in first.frames)
    for a, b, c in zip(first.frames, second.frames, other.frames, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()
        assert a.path.read_bytes() != c.path.read_bytes()


def test_a_frame_does_not_depend_on_how_many_frames_there_are():
    few, many = small_spec(frames_per_panel=2), small_spec(frames_per_panel=5)
    cut = small_spec(frames_per_panel=5, n_frames=4)
    for index in (0, 3):
        assert np.array_equal(expose_frame(few, index), expose_frame(many, index))
        assert np.array_equal(expose_frame(few, index), expose_frame(cut, index))
    assert plan_survey(cut).spec.count == 4 == len(plan_survey(cut).frames)


def test_frames_take_turns_at_the_panels_and_differ():
    frames = plan_survey(small_spec(frames_per_panel=3)).frames
    assert [(f.panel, f.number) for f in frames] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert len({f.transparency for f in frames}) == len({f.wcs_text for f in frames}) == 6


@pytest.mark.parametrize("sip", [False, True])
@pytest.mark.parametrize("color", [False, True])
def test_stars_have_their_flux_and_their_place_in_a_noiseless_frame(color, sip):
    spec = small_spec(color=color, sip=sip, star_density=300.0, frame_shape=(300, 400), gradient_adu=0.0)
    survey = plan_survey(spec)
    checked = 0
    for frame in survey.frames[:3]:
        planes = render_planes(survey, frame.index)
        ids, x, y = star_positions(survey, frame_wcs(frame), spec.frame_shape, margin_px=20)
        keep = isolated(x, y, 20.0) & (x > 12) & (x < 387) & (y > 12) & (y < 287)
        for plane, sky, flux in zip(planes, frame.sky_adu, survey.stars.flux_adu[ids].T, strict=True):
            data = plane - sky - spec.pedestal_adu
            found = sep.sum_circle(data, x[keep], y[keep], 9.0, subpix=0)[0]
            assert found == pytest.approx(flux[keep] * frame.transparency, rel=1e-3)
            cx, cy, _ = sep.winpos(data, x[keep], y[keep], 1.4, subpix=0)
            assert np.abs(cx - x[keep]).max() < 0.005
            assert np.abs(cy - y[keep]).max() < 0.005
        checked += np.count_nonzero(keep)
    assert checked > 20


def test_the_seeing_is_the_stated_width():
    spec = small_spec(star_density=300.0, frame_shape=(300, 400), gradient_adu=0.0, fwhm_px=(3.5, 3.5))
    survey = plan_survey(spec)
    data = render_planes(survey, 0)[0] - survey.frames[0].sky_adu[0] - spec.pedestal_adu
    _, x, y = star_positions(survey, frame_wcs(survey.frames[0]), spec.frame_shape, margin_px=20)
    keep = isolated(x, y, 20.0) & (x > 12) & (x < 387) & (y > 12) & (y < 287)
    rows, cols = np.indices(data.shape)
    for star_x, star_y in zip(x[keep], y[keep], strict=True):
        square = (rows - star_y) ** 2 + (cols - star_x) ** 2
        light = np.where(square < 100.0, data, 0.0)
        # A pixel adds its own second moment, 1/12 along each axis.
        spread = np.sum(square * light) / np.sum(light) / 2.0 - 1.0 / 12.0
        assert np.sqrt(spread * 8.0 * np.log(2.0)) == pytest.approx(3.5, rel=2e-3)
    assert keep.sum() > 5


def test_sip_is_felt_at_the_corners_and_both_directions_agree():
    survey = plan_survey(swarp_spec(n_frames=1, sip=True))
    wcs = frame_wcs(survey.frames[0])
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-0.5, 1919.5, 300), rng.uniform(-0.5, 1079.5, 300)
    sky = wcs.all_pix2world(x, y, 0)
    back = world_to_pixel(wcs, *sky)
    assert np.abs(np.array(back) - (x, y)).max() < 1e-6
    plain = np.stack(wcs.wcs_world2pix(*sky, 1), axis=1)
    assert np.hypot(*(plain - 1 - np.stack([x, y], axis=1)).T).max() == pytest.approx(3.0, abs=1.5)
    inverse = wcs.sip_foc2pix(plain - wcs.wcs.crpix, 1)
    assert np.abs(inverse - 1 - np.stack([x, y], axis=1)).max() < 0.01


def test_a_bayer_frame_holds_the_planes_of_its_cell():
    spec = small_spec(color=True, nebula_adu=200.0)
    planes = render_planes(spec, 1)
    scene = render_frame(spec, 1).scene
    red, green, blue = planes
    assert np.array_equal(scene[0::2, 0::2], green[0::2, 0::2])
    assert np.array_equal(scene[0::2, 1::2], red[0::2, 1::2])
    assert np.array_equal(scene[1::2, 0::2], blue[1::2, 0::2])
    assert np.array_equal(scene[1::2, 1::2], green[1::2, 1::2])
    assert np.array_equal(sample_bayer(planes), scene)
    assert not np.array_equal(red, green)


@pytest.mark.parametrize("color", [False, True])
def test_the_noise_of_a_frame_is_the_stated_sigma(color):
    spec = small_spec(color=color, star_density=0.0, gradient_adu=0.0, frame_shape=(400, 500), **CLEAN)
    survey = plan_survey(spec)
    noise = expose_frame(survey, 1) - render_frame(survey, 1).scene
    cells = [noise[0::2, 1::2], noise[0::2, 0::2], noise[1::2, 0::2]] if color else [noise]
    for values, sigma in zip(cells, survey.frames[1].noise_adu, strict=True):
        assert values.std() == pytest.approx(sigma, rel=4.0 / np.sqrt(2.0 * values.size))
        assert abs(values.mean()) < 4.0 * sigma / np.sqrt(values.size)


def test_sky_gradient_and_pedestal_are_as_stated():
    spec = small_spec(color=True, star_density=0.0, gradient_adu=40.0)
    survey = plan_survey(spec)
    for frame in survey.frames:
        planes = render_planes(survey, frame.index)
        centre = planes.mean(axis=(1, 2)) - spec.pedestal_adu
        assert centre == pytest.approx(np.array(frame.sky_adu), abs=1e-9)
        assert np.ptp(planes, axis=(1, 2)) == pytest.approx(40.0 * np.array(SKY_COLOUR))
        assert spec.sky_adu[0] <= frame.sky_adu[1] <= spec.sky_adu[1]


def test_a_trail_is_a_line_of_the_stated_peak_and_width():
    survey = plan_survey(small_spec(trail_fraction=1.0))
    trail = survey.frames[2].trail
    image = render_frame(survey, 2).trail
    y, x = np.indices(image.shape)
    across = (x - trail.x0) * np.sin(trail.angle_rad) - (y - trail.y0) * np.cos(trail.angle_rad)
    assert image[np.abs(across) < 0.05] == pytest.approx(trail.peak_adu, rel=2e-3)
    near = np.abs(np.abs(across) - trail.sigma_px) < 0.05
    assert image[near] == pytest.approx(trail.peak_adu * np.exp(-0.5), rel=0.05)
    assert image[np.abs(across) > 6 * trail.sigma_px].max() < 1e-6 * trail.peak_adu


def test_the_stated_fraction_of_frames_has_a_trail():
    share = [f.trail is not None for f in plan_survey(small_spec(frames_per_panel=200, trail_fraction=0.3)).frames]
    assert np.mean(share) == pytest.approx(0.3, abs=0.09)
    untouched = plan_survey(small_spec(trail_fraction=0.0))
    assert not render_frame(untouched, 0).trail.any()


def test_hot_pixels_stay_and_cosmic_rays_move():
    spec = small_spec(hot_pixels=500.0, cosmic_rays=8)
    first, second = render_frame(spec, 0), render_frame(spec, 1)
    assert np.array_equal(first.hot, second.hot)
    assert np.count_nonzero(first.hot) == round(500.0 * first.hot.size / 1e6)
    assert 4 <= np.count_nonzero(first.cosmic) <= 40
    assert not np.array_equal(first.cosmic, second.cosmic)
    exposed = expose_frame(spec, 0).astype(float)
    bright = (first.hot > 2000) | (first.cosmic > 2000)
    assert exposed[bright] == pytest.approx(np.minimum(first.total[bright], 65535), rel=0.2)


def test_light_above_the_range_of_the_camera_is_clipped():
    image = expose_frame(small_spec(star_flux=(2e6, 3e6), star_density=2000.0), 0)
    assert image.dtype == np.uint16
    assert image.max() == 65535


@pytest.mark.parametrize("color", [False, True])
def test_headers_read_like_a_seestar_and_carry_the_exact_wcs(tmp_path, color):
    survey = make_survey(tmp_path, small_spec(color=color, sip=color))
    dates = []
    for frame in survey.frames:
        data, header = fits.getdata(frame.path, header=True)
        assert data.dtype.kind == "u"
        assert np.array_equal(data, expose_frame(survey, frame.index))
        assert header.get("BAYERPAT") == ("GRBG" if color else None)
        assert header["CTYPE1"] == ("RA---TAN-SIP" if color else "RA---TAN")
        assert header["INSTRUME"] == "Synthetic S50"
        assert (header["FILTER"], header["EXPTIME"]) == ("IRCUT", 10.0)
        assert {"FOCALLEN", "XPIXSZ", "OBJECT", "RA", "DEC", "CD1_1", "CD2_2"} <= set(header)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            wcs = WCS(header)
        assert np.array_equal(
            wcs.all_pix2world([[3.0, 140.0]], 0), frame_wcs(frame).all_pix2world([[3.0, 140.0]], 0)
        )
        dates.append(header["DATE-OBS"])
    assert sorted(set(dates)) == dates


@pytest.mark.parametrize("mirrored", [False, True])
def test_parity_is_as_asked(mirrored):
    wcs = frame_wcs(plan_survey(small_spec(mirrored=mirrored)).frames[0])
    assert (np.linalg.det(wcs.pixel_scale_matrix) > 0) is np.bool_(mirrored)


@pytest.mark.parametrize("center", [(0.02, -30.0), (123.0, 89.95)])
def test_panels_meet_across_zero_hours_and_at_the_pole(center):
    spec = small_spec(panels=(2, 2), center_deg=center, rotation_deg=0.0, dither_px=0.0, frames_per_panel=1)
    survey = plan_survey(spec)
    wcs, shape = canvas(spec, angle=0.0, margin=0.0)
    _, depth = ideal_noise(survey, wcs, shape)
    assert depth[3:-3, 3:-3].min() == 1
    middle = depth[shape[0] // 2 - 15 : shape[0] // 2 + 15, shape[1] // 2 - 15 : shape[1] // 2 + 15]
    assert np.all(middle == 4)


def test_the_nebula_in_a_frame_is_the_model():
    survey = plan_survey(demo_spec())
    wcs = frame_wcs(survey.frames[4])
    y, x = np.mgrid[0:480:3, 0:640:3]
    exact = survey.nebula(*wcs.all_pix2world(x, y, 0))
    assert exact.max() > 100.0
    drawn = render_nebula(survey, wcs, survey.spec.frame_shape)
    assert drawn[:, ::3, ::3] == pytest.approx(exact, abs=0.5)


def test_the_named_surveys_are_what_they_say():
    demo, bench = demo_spec(), swarp_spec()
    assert (demo.n_panels, demo.color, demo.count) == (6, True, 42)
    assert demo.nebula_adu > 0
    assert (bench.n_panels, bench.color, bench.count, bench.frame_shape) == (9, False, 60, (1080, 1920))
    survey = plan_survey(bench)
    wcs, shape = canvas(bench, angle=0.0, scale=8.0, margin=500.0)
    _, depth = ideal_noise(survey, wcs, shape)
    assert depth[depth > 0].mean() == pytest.approx(6.7, abs=0.4)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (dict(panels=(0, 2)), "panel"),
        (dict(n_frames=0), "frame"),
        (dict(frame_shape=(8, 200)), "frame_shape"),
        (dict(frame_shape=(161, 200), color=True), "even"),
        (dict(overlap_fraction=1.0), "overlap_fraction"),
        (dict(fwhm_px=(3.0, 2.0)), "fwhm_px"),
        (dict(transparency=(0.0, 1.0)), "transparency"),
    ],
)
def test_numbers_that_make_no_survey_are_named(values, word):
    with pytest.raises(ConfigError, match=word):
        SurveySpec(**values)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError, match="taken"):
        make_survey(tmp_path / "taken", small_spec())


# The score


def test_a_perfect_mosaic_scores_as_perfect(rich_score):
    score = rich_score
    assert score.channels == ("L",)
    assert score.noise_ratio[0] == pytest.approx(1.0, abs=0.03)
    assert score.position_rms_px < 0.008
    assert np.abs(score.position_offset_px).max() < 0.003
    assert score.flux_ratio[0] == pytest.approx(SCALE, rel=0.003)
    assert score.flux_excess[0] < 0.005
    assert score.flux_scatter[0] == pytest.approx(score.flux_photon[0], rel=0.35)
    assert abs(score.flux_bias[0]) < 0.01
    assert abs(score.trail_residue) < 0.1
    assert score.level_rms[0] < 0.06
    assert score.level_max[0] < 0.3
    assert score.coverage_error == 0.0
    assert score.n_position_stars >= 10
    assert score.n_flux_stars[0] >= 25
    assert score.n_trail_points > 300


def test_a_perfect_colour_mosaic_on_a_coarser_mirrored_grid_scores_as_perfect():
    spec = small_spec(
        color=True,
        sip=True,
        mirrored=True,
        frame_shape=(480, 560),
        center_deg=(0.1, -55.0),
        star_density=900.0,
        star_flux=(25000.0, 3e5),
        nebula_adu=300.0,
    )
    survey = plan_survey(spec)
    wcs, shape = canvas(spec, scale=1.15)
    score = score_mosaic(*perfect_mosaic(survey, wcs, shape), wcs, survey)
    assert score.channels == ("R", "G", "B")
    assert score.noise_ratio == pytest.approx((1.0, 1.0, 1.0), abs=0.03)
    assert score.position_rms_px < 0.008
    assert score.flux_ratio == pytest.approx((SCALE,) * 3, rel=0.004)
    assert max(score.flux_excess) < 0.005
    assert max(score.level_rms) < 0.06
    assert score.coverage_error == 0.0


def test_a_mosaic_made_of_the_exposed_frames_reaches_the_ideal():
    """The noise, fluxes and places of the frames as written are those the ideal is computed from."""
    spec = small_spec(frame_shape=(300, 360), star_density=1000.0, star_flux=(4000.0, 3e5), sip=True, **CLEAN)
    spec = dataclasses.replace(spec, frames_per_panel=5, gradient_adu=0.0)
    survey = plan_survey(spec)
    wcs, shape = canvas(spec)
    sky = wcs.all_pix2world(*np.indices(shape)[::-1], 0)
    total, weights, depth = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=int)
    for frame in survey.frames:
        inside, x, y = inside_frame(frame, spec, sky)
        light = (expose_frame(survey, frame.index) - spec.pedestal_adu - frame.sky_adu[0]) / frame.transparency
        weight = frame.transparency**2 / frame.noise_adu[0] ** 2
        total[inside] += weight * map_coordinates(light, [y[inside], x[inside]], order=3, mode="mirror")
        weights += weight * inside
        depth += inside
    mosaic = np.where(depth > 0, total / np.where(depth > 0, weights, 1.0), np.nan)
    score = score_mosaic(mosaic, depth, wcs, survey)
    assert score.noise_ratio[0] == pytest.approx(1.0, abs=0.04)
    assert score.position_rms_px < 0.01
    assert score.flux_ratio[0] == pytest.approx(1.0, abs=0.005)
    assert score.flux_excess[0] < 0.006
    assert score.level_rms[0] < 0.08
    assert np.isnan(score.trail_residue)
    assert score.n_trail_points == 0


def test_a_shifted_mosaic_is_seen(rich):
    survey, wcs, mosaic, depth = rich
    moved = wcs.deepcopy()
    moved.wcs.crpix = wcs.wcs.crpix + np.array([0.1, -0.05])
    score = score_mosaic(mosaic, depth, moved, survey)
    assert score.position_offset_px == pytest.approx((-0.1, 0.05), abs=0.004)
    assert score.position_rms_px == pytest.approx(np.hypot(0.1, 0.05) / np.sqrt(2.0), abs=0.005)
    assert score.coverage_error > 0.0


def test_stars_out_of_place_are_seen_without_a_mean_offset(rich):
    survey, wcs, mosaic, depth = rich
    stars = survey.stars
    north = np.random.default_rng(5).choice([-1.0, 1.0], stars.ra_deg.size) * 0.1 * 2.4 / 3600.0
    wrong = StarTable(stars.ra_deg, stars.dec_deg + north, stars.flux_adu)
    score = score_mosaic(mosaic, depth, wcs, dataclasses.replace(survey, stars=wrong))
    assert score.position_rms_px == pytest.approx(0.1 / np.sqrt(2.0), abs=0.01)


def test_a_half_with_wrong_star_fluxes_is_seen(rich, rich_score):
    survey, wcs, mosaic, depth = rich
    light = render_sky(survey, wcs, depth.shape, fwhm_px=3.1)[0] * SCALE
    light[:, depth.shape[1] // 2 :] = 0.0
    score = score_mosaic(mosaic + 0.06 * light, depth, wcs, survey)
    assert 0.02 < score.flux_excess[0] < 0.08
    scaled = rich_score.noise_ratio[0] * rich_score.flux_ratio[0] / score.flux_ratio[0]
    assert score.noise_ratio[0] == pytest.approx(scaled, abs=0.003)


def test_bright_stars_that_lost_light_are_seen(rich, rich_score):
    survey, wcs, mosaic, depth = rich
    flux = survey.stars.flux_adu
    lost = np.where(flux > 15000.0, 0.05 * flux, 0.0)
    thieves = dataclasses.replace(survey, stars=dataclasses.replace(survey.stars, flux_adu=lost))
    light = render_sky(thieves, wcs, depth.shape, fwhm_px=3.1) * SCALE
    score = score_mosaic(mosaic - light, depth, wcs, survey)
    assert score.flux_bias[0] - rich_score.flux_bias[0] == pytest.approx(-0.05, abs=0.012)


def test_the_scale_and_zero_point_of_a_mosaic_do_not_matter(rich, rich_score):
    survey, wcs, mosaic, depth = rich
    score = score_mosaic(0.01 * mosaic + 5.0, depth, wcs, survey)
    assert score.flux_ratio[0] == pytest.approx(0.01 * SCALE, rel=0.003)
    for name in ("noise_ratio", "flux_scatter", "level_rms", "position_rms_px", "trail_residue"):
        assert getattr(score, name) == pytest.approx(getattr(rich_score, name), rel=0.01, abs=1e-4)


def test_added_noise_is_seen(rich):
    survey, wcs, mosaic, depth = rich
    sigma, _ = ideal_noise(survey, wcs, depth.shape)
    extra = SCALE * np.where(depth > 0, sigma, 0.0) * np.random.default_rng(9).standard_normal(mosaic.shape)
    score = score_mosaic(mosaic + 0.6 * extra, depth, wcs, survey)
    assert score.noise_ratio[0] == pytest.approx(np.hypot(1.0, 0.6), abs=0.04)


def test_a_trail_left_in_the_mosaic_is_seen(rich):
    survey, wcs, mosaic, depth = rich
    sigma, _ = ideal_noise(survey, wcs, depth.shape)
    sky = wcs.all_pix2world(*np.indices(depth.shape)[::-1], 0)
    dirty = mosaic.copy()
    for frame in survey.frames:
        if frame.trail is not None:
            inside, x, y = inside_frame(frame, survey.spec, sky)
            profile = render_frame(survey, frame.index).trail / frame.trail.peak_adu
            planted = map_coordinates(profile, [y[inside], x[inside]], order=1, mode="nearest")
            dirty[0][inside] += 2.0 * SCALE * sigma[0][inside] * planted
    score = score_mosaic(dirty, depth, wcs, survey)
    # The middle three pixels of a profile of sigma 1.3 px are at 0.83 of the peak.
    assert score.trail_residue == pytest.approx(2.0 * 0.83, abs=0.2)


def test_a_step_in_the_level_is_seen(rich):
    survey, wcs, mosaic, depth = rich
    sigma, _ = ideal_noise(survey, wcs, depth.shape)
    right = np.arange(depth.shape[1]) >= depth.shape[1] // 2
    score = score_mosaic(mosaic + right * SCALE * np.median(sigma[0][depth > 0]), depth, wcs, survey)
    assert 0.4 < score.level_rms[0] < 1.2
    assert 0.7 < score.level_max[0] < 3.0


def test_a_gradient_is_seen_in_the_level_and_does_not_count_as_noise(rich, rich_score):
    survey, wcs, mosaic, depth = rich
    ramp = 80.0 * np.linspace(-0.5, 0.5, depth.shape[1])
    score = score_mosaic(mosaic + ramp, depth, wcs, survey)
    assert score.level_rms[0] > 0.5
    assert score.noise_ratio[0] == pytest.approx(rich_score.noise_ratio[0], abs=0.005)
    assert score.flux_scatter[0] == pytest.approx(rich_score.flux_scatter[0], abs=5e-4)


def test_missing_and_invented_coverage_is_counted(rich):
    survey, wcs, mosaic, depth = rich
    middle = depth.shape[0] // 2, depth.shape[1] // 2
    holed = depth.copy()
    holed[middle[0] : middle[0] + 20, middle[1] : middle[1] + 30] = 0
    total = np.count_nonzero(depth)
    assert score_mosaic(mosaic, holed, wcs, survey).coverage_error == pytest.approx(600 / total)
    rows, cols = np.nonzero(depth == 0)
    holed[rows[:50], cols[:50]] = 1
    assert score_mosaic(mosaic, holed[None], wcs, survey).coverage_error == pytest.approx(650 / total)


@pytest.mark.parametrize("sip", [False, True])
def test_footprints_and_the_ideal_noise_equal_a_count_of_all_pixels(sip):
    spec = small_spec(sip=sip, rotation_deg=40.0)
    survey = plan_survey(spec)
    wcs, shape = canvas(spec, scale=0.9)
    sky = wcs.all_pix2world(*np.indices(shape)[::-1], 0)
    depth, information = np.zeros(shape, dtype=int), np.zeros(shape)
    for frame in survey.frames:
        expected = inside_frame(frame, spec, sky)[0]
        rect, inside = footprint(frame, spec.frame_shape, wcs, shape)
        found = np.zeros(shape, dtype=bool)
        found[rect.slices] = inside
        assert np.array_equal(found, expected)
        depth += expected
        information += expected * (0.9 * frame.transparency / frame.noise_adu[0]) ** 2
    sigma, n = ideal_noise(survey, wcs, shape)
    assert np.array_equal(n, depth)
    assert sigma[0][depth > 0] == pytest.approx(1.0 / np.sqrt(information[depth > 0]), rel=1e-5)
    assert np.all(np.isinf(sigma[0][depth == 0]))


def test_what_cannot_be_measured_is_said_and_is_not_a_number(tmp_path):
    survey = plan_survey(small_spec(star_density=0.0))
    wcs, shape = canvas(survey.spec)
    score = score_mosaic(*perfect_mosaic(survey, wcs, shape), wcs, survey)
    assert np.isnan(score.position_rms_px)
    assert np.isnan(score.flux_excess[0])
    assert score.n_flux_stars == (0,)
    assert score.coverage_error == 0.0
    assert "not measured" in format_score(score)


def test_the_lines_for_the_user_carry_the_numbers(rich_score):
    text = format_score(rich_score)
    assert f"{rich_score.position_rms_px:.4f} px rms" in text
    assert f"{rich_score.noise_ratio[0]:.3f} x the ideal" in text
    assert "0.00e+00 of the covered pixels wrong" in text
    assert "not measured" not in text


def test_arrays_that_do_not_belong_together_are_refused(rich):
    survey, wcs, mosaic, depth = rich
    with pytest.raises(ZeMosaicError, match="1 channels"):
        score_mosaic(np.repeat(mosaic, 3, axis=0), depth, wcs, survey)
    with pytest.raises(ZeMosaicError, match="coverage"):
        score_mosaic(mosaic, depth[:-1], wcs, survey)


@pytest.mark.parametrize("center", [(12.0, 80.0), (12.72, -41.12)])
def test_a_mosaic_of_another_place_is_refused(rich, center):
    survey, wcs, mosaic, depth = rich
    elsewhere = wcs.deepcopy()
    elsewhere.wcs.crval = center
    with pytest.raises(ZeMosaicError, match="none of the survey's frames"):
        score_mosaic(mosaic, depth, elsewhere, survey)

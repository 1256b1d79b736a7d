"""A level sky: the match in whole runs, on surveys with gradients, nebulae and frames that would spoil it."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter

from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_fits_products import read_image, read_product_wcs
from zemosaic_synthetic import SurveySpec, plan_survey, render_nebula, swarp_spec
from zemosaic_types import StackParams

# The survey of the benchmarks: 60 frames of 1920 x 1080 in nine panels, gradients, transparencies, rotation.
NINE_PANELS = swarp_spec()
TWO_PANELS = SurveySpec(
    seed=3,
    panels=(1, 2),
    frames_per_panel=6,
    frame_shape=(300, 400),
    overlap_fraction=0.3,
    rotation_deg=10.0,
    star_density=1500.0,
    transparency=(0.7, 1.0),
    trail_fraction=0.0,
)


@pytest.fixture(scope="module")
def nine_panels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nine")
    survey = survey_in(folder / "frames", NINE_PANELS)
    return Run(folder / "frames", folder / "out").score(survey)


def test_the_background_is_level_within_the_noise_of_a_perfect_mosaic(nine_panels):
    assert nine_panels.level_rms[0] < 0.08
    assert nine_panels.level_max[0] < 0.7
    assert nine_panels.level_step[0] < 0.07


def test_star_fluxes_are_alike_over_the_whole_field(nine_panels):
    assert nine_panels.flux_scatter[0] < 0.009
    assert nine_panels.flux_slow[0] < 0.004


def test_levelling_costs_no_depth_no_position_and_no_rejection(nine_panels):
    assert nine_panels.noise_ratio[0] < 1.03
    assert nine_panels.position_rms_px < 0.010
    assert abs(nine_panels.trail_residue) < 0.05


@pytest.fixture(scope="module")
def in_colour(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colour")
    survey = survey_in(folder / "frames", replace(NINE_PANELS, color=True))
    return Run(folder / "frames", folder / "out").score(survey)


def test_colours_differ_between_neighbouring_boxes_as_noise_makes_them_differ(in_colour):
    assert max(in_colour.level_rms) < 0.08
    assert max(in_colour.level_step) < 0.07
    assert max(in_colour.colour_step) < 0.07


def medians_of_boxes(plane, side=8):
    """Medians of square boxes, NaN where half of a box is missing."""
    rows, columns = (n // side for n in plane.shape)
    boxes = plane[: rows * side, : columns * side].reshape(rows, side, columns, side)
    boxes = boxes.swapaxes(1, 2).reshape(rows, columns, -1)
    full = np.isfinite(boxes).sum(axis=2) > side**2 // 2
    medians = np.full(full.shape, np.nan)
    medians[full] = np.nanmedian(boxes[full], axis=1)
    return medians


@pytest.mark.parametrize(("panels", "seed"), [((1, 2), 3), ((3, 3), 4), ((3, 3), 5)])
def test_a_smooth_nebula_keeps_its_light(tmp_path, panels, seed):
    """The same survey with and without it. In two panels it fills the field: none can tell its slope from sky."""
    spec = replace(TWO_PANELS, panels=panels, seed=seed)
    with_it, without = replace(spec, nebula_adu=150.0), replace(spec, nebula_adu=0.0)
    runs, scales = {}, {}
    for name, one in (("nebula", with_it), ("bare", without)):
        survey = survey_in(tmp_path / name, one)
        runs[name] = Run(tmp_path / name, tmp_path / f"out_{name}")
        scales[name] = runs[name].score(survey).flux_ratio[0]
    added = runs["nebula"].mosaic / scales["nebula"] - runs["bare"].mosaic / scales["bare"]
    wcs = read_product_wcs(runs["nebula"].paths.mosaic)
    truth = np.where(np.isfinite(added), render_nebula(plan_survey(with_it), wcs, added.shape)[0], np.nan)
    seen, true = medians_of_boxes(added), medians_of_boxes(truth)
    y, x = np.nonzero(np.isfinite(seen))
    columns = [true[y, x], np.ones(y.size)] + ([x, y] if panels == (1, 2) else [])
    kept = np.linalg.lstsq(np.column_stack(columns), seen[y, x], rcond=None)[0][0]
    assert 0.99 < kept < 1.01


def moonlit(pixels, _rng):
    """A steep gradient that is no plane."""
    y, x = np.indices(pixels.shape) / np.array(pixels.shape)[:, None, None]
    return pixels + 400.0 * np.exp(-3.0 * np.hypot(x - 1.1, y + 0.1))


def clouded(pixels, rng):
    """A cloud over half of the frame: brighter sky, fainter stars, lumps."""
    x = np.arange(pixels.shape[1])[None, :] / pixels.shape[1]
    cover = 1.0 / (1.0 + np.exp((x - 0.5) * 30.0))
    lumps = gaussian_filter(rng.normal(0.0, 1.0, pixels.shape), 25.0)
    thickness = cover * (1.0 + 0.3 * lumps / lumps.std())
    return (pixels - 1000.0) * (1.0 - 0.5 * cover) + 1000.0 + 150.0 * thickness


def blurred(pixels, rng):
    """Out of focus; noise of the camera comes after the optics."""
    soft = gaussian_filter(pixels, 3.0)
    return soft + rng.normal(0.0, 30.0, pixels.shape)


SPOILERS = {"moonlight": moonlit, "cloud": clouded, "focus": blurred}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    survey = survey_in(folder / "frames", TWO_PANELS)
    run = Run(folder / "frames", folder / "out")
    return survey, folder / "frames", run, run.score(survey)


@pytest.fixture(scope="module", params=SPOILERS)
def spoilt(request, clean, tmp_path_factory):
    """A run in which one frame of each panel is spoilt in one way."""
    survey, frames, _, _ = clean
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "frames").mkdir()
    victims = {survey.frames[2].name, survey.frames[7].name}
    for path in frames.iterdir():
        with fits.open(path) as hdus:
            pixels, header = hdus[0].data.astype(np.float64), hdus[0].header
        if path.name in victims:
            rng = np.random.default_rng(len(path.name))
            pixels = SPOILERS[request.param](pixels, rng)
        fits.writeto(folder / "frames" / path.name, np.clip(np.rint(pixels), 0, 65535).astype(np.uint16), header)
    run = Run(folder / "frames", folder / "out")
    return request.param, run, run.score(survey), victims


def test_a_spoilt_frame_hardly_shows_in_the_sky(spoilt, clean):
    """Where other frames lie; at the rim of the mosaic a spoilt frame may be all there is."""
    kind, run, score, _ = spoilt
    _, _, reference, before = clean
    ratio = score.flux_ratio[0] / before.flux_ratio[0]
    difference = medians_of_boxes(
        np.where(reference.coverage >= 4, run.mosaic / ratio - reference.mosaic, np.nan), 32
    )
    difference -= np.nanmedian(difference)
    noise = np.median([float(row["gain"]) * float(row["noise"]) for row in reference.ledger]) / np.sqrt(6.0)
    assert np.isfinite(difference).sum() > 150
    assert np.nanstd(difference) < 0.08 * noise
    assert np.nanmax(np.abs(difference)) < 0.3 * noise
    # Of stars out of focus a part lies outside the apertures that suit the others.
    assert score.flux_scatter[0] < before.flux_scatter[0] + (0.012 if kind == "focus" else 0.004)


def test_the_ledger_names_the_spoilt_frames(spoilt):
    kind, run, _, victims = spoilt
    rows = {row["path"].rsplit("/", 1)[-1]: row for row in run.ledger}
    column = {"moonlight": "match_residual", "cloud": "match_residual", "focus": "fwhm_px"}[kind]
    found = {name: float(row[column]) if row["used"] == "yes" else np.inf for name, row in rows.items()}
    worst = sorted(found, key=found.get)[-2:]
    assert set(worst) == victims
    others = max(value for name, value in found.items() if name not in victims)
    assert min(found[name] for name in victims) > 2.0 * others


# A blurred sky is as level as any.
@pytest.mark.parametrize("spoilt", ["moonlight", "cloud"], indirect=True)
def test_frames_that_do_not_agree_weigh_little(spoilt):
    _, run, _, victims = spoilt
    weight = {row["path"].rsplit("/", 1)[-1]: float(row["weight"] or 0.0) for row in run.ledger}
    usual = np.median([value for name, value in weight.items() if name not in victims])
    assert max(weight[name] for name in victims) < 0.5 * usual


def test_panels_that_do_not_touch_are_levelled_each_and_tied_by_their_sky(tmp_path):
    spec = replace(TWO_PANELS, overlap_fraction=0.0, rotation_deg=0.0, dither_px=1.0, frames_per_panel=4)
    survey = survey_in(tmp_path / "frames", replace(spec, frame_shape=(280, 300)))
    apart = tmp_path / "apart"
    apart.mkdir()
    for frame in survey.frames:
        with fits.open(frame.path) as hdus:
            header = hdus[0].header
            if frame.panel == 1:  # a frame and a half further away
                header["CRVAL1"] -= 450 * spec.pixel_scale_arcsec / 3600 / np.cos(np.radians(header["CRVAL2"]))
            fits.writeto(apart / frame.name, hdus[0].data, header)
    run = Run(apart, tmp_path / "out")
    assert "2 groups that share no sky" in run.log
    levels = []
    for group in ("0", "1"):
        rows = [row for row in run.ledger if row["group"] == group]
        assert len(rows) == 4
        levels.append(np.mean([float(r["gain"]) * float(r["sky"]) + float(r["offset"]) for r in rows]))
    assert levels[0] == pytest.approx(levels[1], abs=0.1)


@pytest.mark.parametrize("spoilt", ["moonlight", "cloud"], indirect=True)
def test_the_map_of_what_is_left_shows_where_frames_disagree(spoilt, clean):
    _, run, _, _ = spoilt
    assert all(row["used"] == "yes" for row in run.ledger)
    (header, left), (_, before) = read_image(run.paths.residual, 0), read_image(clean[2].paths.residual, 0)
    assert header["BUNIT"] == "sigma"
    assert np.nanmax(left) > 3.0 * np.nanmax(before)
    wcs, mosaic = read_product_wcs(run.paths.residual), read_product_wcs(run.paths.mosaic)
    x, y = mosaic.world_to_pixel(wcs.pixel_to_world([0, left.shape[1] - 1], [0, left.shape[0] - 1]))
    ny, nx = run.mosaic.shape
    assert (np.array(x) > -40).all()
    assert (np.array(x) < nx + 40).all()
    assert (np.array(y) > -40).all()
    assert (np.array(y) < ny + 40).all()


@pytest.mark.parametrize("method", ["none", "sky_mean", "linear_fit"])
def test_the_other_methods_take_no_gradient_off(clean, tmp_path, method):
    _, frames, _, score = clean
    run = Run(frames, tmp_path / "out", replace(TWO_WORKERS, normalise=method, params=StackParams()))
    assert {row["gradient_x"] for row in run.ledger} == {"0"}
    assert run.score(clean[0]).level_rms[0] > 2.0 * score.level_rms[0]


@pytest.mark.parametrize("n_frames", [2, 3, 6])
@pytest.mark.parametrize("method", ["linear_fit", "global"])
def test_frames_of_one_and_the_same_pointing_make_a_mosaic(tmp_path, n_frames, method):
    """Undithered stacks, and frames that were registered before."""
    spec = replace(TWO_PANELS, panels=(1, 1), frames_per_panel=n_frames, dither_px=0.0, rotation_deg=0.0)
    survey_in(tmp_path / "frames", spec)
    run = Run(tmp_path / "frames", tmp_path / "out", replace(TWO_WORKERS, normalise=method))
    assert run.result.complete
    assert run.result.n_used == n_frames
    assert "has not converged" not in run.log


@pytest.mark.parametrize("method", ["none", "sky_mean", "linear_fit"])
def test_a_gradient_costs_no_frame_where_none_is_taken_off(tmp_path, method):
    survey_in(tmp_path / "frames", replace(TWO_PANELS, gradient_adu=500.0, frames_per_panel=4))
    run = Run(tmp_path / "frames", tmp_path / "out", replace(TWO_WORKERS, normalise=method))
    assert run.result.complete
    assert run.result.n_used == 8


def test_scattered_bad_pixels_cost_the_match_nothing(clean, tmp_path):
    """A bad-pixel mask leaves NaN in nearly every box of the sky."""
    survey, frames, _, before = clean
    (tmp_path / "frames").mkdir()
    rng = np.random.default_rng(0)
    for path in sorted(frames.iterdir()):
        with fits.open(path) as hdus:
            pixels, header = hdus[0].data.astype(np.float32), hdus[0].header.copy()
        for key in ("BZERO", "BSCALE"):
            header.remove(key, ignore_missing=True)
        pixels[rng.random(pixels.shape) < 0.01] = np.nan
        fits.writeto(tmp_path / "frames" / path.name, pixels, header)
    run = Run(tmp_path / "frames", tmp_path / "out")
    assert "share no sky" not in run.log
    assert run.score(survey).level_rms[0] < before.level_rms[0] + 0.01

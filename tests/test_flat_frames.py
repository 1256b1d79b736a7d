"""Flats of measured frames: who shares one, when there is none and why, and whole runs with and without one."""

import json
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

from surveys import TWO_WORKERS, Run, shuffled_copy, survey_in
from test_device_stacking import equivalent, on_stand_in, scene_in
from zemosaic_fits_io import frame_wcs
from zemosaic_flat import basis, correction_at, flat_model
from zemosaic_flat_frames import MIN_FRAMES, flatten_frames, flattened_frame
from zemosaic_measure import cell_size_px, measure_frames
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_reproject import optimal_canvas
from zemosaic_synthetic import SurveySpec, plan_survey, render_frame, vignette
from zemosaic_types import Rect

# Without gradients of their own: what planes do to those is the match's affair.
ROTATED = SurveySpec(
    seed=11,
    panels=(1, 2),
    frames_per_panel=8,
    frame_shape=(320, 400),
    rotation_deg=40.0,
    dither_px=15.0,
    star_density=900.0,
    overlap_fraction=0.35,
    trail_fraction=0.0,
    gradient_adu=0.1,
    vignetting=0.1,
)


def measured_in(folder):
    records, left_out = load_frames(plan_from_folder(folder)[0], folder)
    assert not left_out
    canvas = optimal_canvas([(record.header.shape, frame_wcs(record.header)) for record in records])
    n_channels = max(record.header.n_channels for record in records)
    return measure_frames(records, canvas, cell_size_px([r.header.shape for r in records]), n_channels)


def made(tmp_path_factory, name, spec):
    folder = tmp_path_factory.mktemp(name) / "frames"
    return survey_in(folder, spec), folder


@pytest.fixture(scope="module")
def vignetted(tmp_path_factory):
    """A vignetted survey of rotated mono frames, its folder, and its frames' measures."""
    survey, folder = made(tmp_path_factory, "vignetted", ROTATED)
    return survey, folder, measured_in(folder)


@pytest.fixture(scope="module")
def runs(vignetted, tmp_path_factory):
    """Its mosaics with and without the flat, and that of the same survey without vignetting."""
    survey, folder, _ = vignetted
    clear_survey, clear = made(tmp_path_factory, "clear", replace(ROTATED, vignetting=0.0))
    out = tmp_path_factory.mktemp("out")
    off = replace(TWO_WORKERS, flat_from_frames="off")
    return {
        "auto": (survey, Run(folder, out / "auto")),
        "off": (survey, Run(folder, out / "off", off)),
        "clear": (clear_survey, Run(clear, out / "clear")),
        "clear off": (clear_survey, Run(clear, out / "clear_off", off)),
    }


def truth_of(spec):
    """The share of light that reaches each pixel, its mean 1, (c, ny, nx)."""
    share = vignette(spec)
    return share / share.mean(axis=(1, 2), keepdims=True)


def whole(flat):
    """Q at every pixel, (c, ny, nx)."""
    y, x = (p.ravel() for p in np.indices(flat.shape))
    return correction_at(flat, x, y).T.reshape(-1, *flat.shape)


def test_the_vignetting_of_rotated_frames_is_found_with_its_pedestal(vignetted):
    _, _, measured = vignetted
    out, (found,) = flatten_frames(measured, "auto")
    assert found.sky_agrees
    assert found.significance > 30
    assert found.corners[0] == pytest.approx(-0.1, abs=0.012)
    residue = whole(found.flat) * truth_of(ROTATED) - 1.0
    assert residue.std() < 0.004
    assert found.flat.pedestal == pytest.approx(ROTATED.pedestal_adu, abs=90.0)
    assert {m.flat for m in out} == {found.flat}
    assert found.sentence.startswith("flat of Synthetic S50 (400 x 320 px, IRCUT) from 16 frames: -10")


def test_a_sky_of_900_on_a_pedestal_of_300_comes_out_level_with_it(vignetted):
    """10 % at the corners bend such a sky by 90; what the flat leaves, a pedestal included, is under 5."""
    _, _, measured = vignetted
    flat = flatten_frames(measured, "auto")[1][0].flat
    light = 900.0 * vignette(ROTATED)
    sky = flat.pedestal + (ROTATED.pedestal_adu + light - flat.pedestal) * whole(flat)
    y, x = (p.ravel() for p in np.indices(flat.shape))
    plane = np.column_stack([np.ones(x.size), x, y])

    def bent(image):
        flattest = plane @ np.linalg.lstsq(plane, image.ravel(), rcond=None)[0]
        return np.ptp(image.ravel() - flattest)

    assert bent(light) > 80
    assert bent(sky) < 6


def test_measures_are_those_of_frames_that_were_flattened_before(tmp_path):
    spec = replace(ROTATED, panels=(1, 1), frames_per_panel=1, color=True, hot_pixels=0.0, cosmic_rays=0)
    survey_in(tmp_path / "raw", spec)
    (m,) = measured_in(tmp_path / "raw")
    logs = np.log(truth_of(spec))
    y, x = (p.ravel() for p in np.indices(spec.frame_shape))
    shapes = basis(x, y, spec.frame_shape)
    terms = np.stack([np.linalg.lstsq(shapes, plane.ravel(), rcond=None)[0] for plane in logs])
    flat = flat_model(terms, spec.pedestal_adu, spec.frame_shape)
    flattened = flattened_frame(m, flat)
    path = next((tmp_path / "raw").glob("*.fit"))
    data, header = fits.getdata(path).astype(float), fits.getheader(path)
    factor = whole(flat)
    for colour, (dy, dx) in ((1, (0, 0)), (0, (0, 1)), (2, (1, 0)), (1, (1, 1))):
        cell = data[dy::2, dx::2]
        data[dy::2, dx::2] = 300.0 + (cell - 300.0) * factor[colour, dy::2, dx::2]
    (tmp_path / "flat").mkdir()
    fits.PrimaryHDU(data.astype(np.float32), header).writeto(tmp_path / "flat" / path.name)
    (expected,) = measured_in(tmp_path / "flat")
    np.testing.assert_allclose(flattened.measure.sky, expected.measure.sky, rtol=0.01)
    np.testing.assert_allclose(flattened.measure.noise, expected.measure.noise, rtol=0.04)
    np.testing.assert_array_equal(flattened.measure.cell, expected.measure.cell)
    difference = flattened.measure.level - expected.measure.level
    assert np.isfinite(difference).mean() > 0.9
    assert np.nanmax(np.abs(difference)) < 0.25 * expected.measure.noise.min()
    away = np.hypot(
        flattened.measure.frame_x[:, None] - expected.measure.frame_x,
        flattened.measure.frame_y[:, None] - expected.measure.frame_y,
    )
    a, b = np.nonzero(away < 0.3)
    bright = flattened.measure.flux[a, 1] > 30 * flattened.measure.flux_error[a, 1]
    assert bright.sum() > 10
    ratio = flattened.measure.flux[a[bright], 1] / expected.measure.flux[b[bright], 1]
    assert np.abs(np.median(ratio) - 1.0) < 0.002
    assert np.abs(ratio - 1.0).max() < 0.05


def test_off_hands_the_frames_back(vignetted):
    measured = vignetted[2]
    out, flats = flatten_frames(measured, "off")
    assert out is measured
    assert flats == []
    with pytest.raises(ValueError, match="auto, on, off"):
        flatten_frames(measured, "maybe")


def test_few_frames_are_refused_by_auto_and_taken_by_on(vignetted):
    measured = vignetted[2][: MIN_FRAMES - 1]
    out, (found,) = flatten_frames(measured, "auto")
    assert (out, found.flat) == (measured, None)
    assert f"fewer than {MIN_FRAMES} frames" in found.sentence
    assert flatten_frames(measured, "on")[1][0].flat is not None


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_frames_of_one_place_and_angle_have_no_flat_and_it_is_said_why(tmp_path, mode):
    still = replace(ROTATED, panels=(1, 1), frames_per_panel=9, rotation_deg=0.0, dither_px=0.02)
    survey_in(tmp_path, still)
    measured = measured_in(tmp_path)
    out, (found,) = flatten_frames(measured, mode)
    assert (out, found.flat) == (measured, None)
    assert "same places of the detector" in found.sentence


def test_two_instruments_are_solved_each_by_itself(vignetted, tmp_path):
    for k, path in enumerate(sorted(vignetted[1].glob("*.fit"))):
        header = fits.getheader(path)
        if k % 2:
            header["INSTRUME"] = "Other"
        fits.PrimaryHDU(fits.getdata(path), header).writeto(tmp_path / path.name)
    out, flats = flatten_frames(measured_in(tmp_path), "on")
    assert [flat.instrument.split(" (")[0] for flat in flats] == ["Synthetic S50", "Other"]
    assert [flat.n_frames for flat in flats] == [8, 8]
    assert flats[0].flat != flats[1].flat
    for m in out:
        assert m.flat == flats[m.record.header.instrument == "Other"].flat


def test_a_nebula_that_fills_the_frames_does_not_leak_into_the_flat(tmp_path):
    spec = replace(ROTATED, nebula_adu=500.0, frame_shape=(400, 520), star_density=700.0, seed=4)
    survey_in(tmp_path / "with", spec)
    (found,) = flatten_frames(measured_in(tmp_path / "with"), "auto")[1]
    assert (whole(found.flat) * truth_of(spec) - 1.0).std() < 0.006
    survey_in(tmp_path / "clear", replace(spec, vignetting=0.0))
    (nothing,) = flatten_frames(measured_in(tmp_path / "clear"), "auto")[1]
    assert nothing.flat is None
    assert "the stars show none" in nothing.sentence


def test_the_mosaic_is_nearly_as_level_and_as_even_as_without_vignetting(runs):
    auto, off, clear = (run.score(survey) for survey, run in (runs[k] for k in ("auto", "off", "clear")))
    assert off.level_rms[0] > 1.0
    assert auto.level_rms[0] < 0.1
    assert auto.level_max[0] < 0.3
    assert clear.level_rms[0] < 0.06
    assert off.flux_scatter[0] > 0.02
    assert auto.flux_scatter[0] < clear.flux_scatter[0] + 0.002
    assert auto.noise_ratio[0] < 1.05


def test_a_survey_without_vignetting_comes_out_bit_for_bit_as_with_the_flat_off(runs):
    (_, auto), (_, off) = runs["clear"], runs["clear off"]
    np.testing.assert_array_equal(auto.mosaic, off.mosaic)
    np.testing.assert_array_equal(auto.weight, off.weight)
    assert "no flat of Synthetic S50" in auto.log
    assert json.loads(auto.paths.report.read_text(encoding="utf-8"))["flats"][0]["flat"] is None
    assert json.loads(off.paths.report.read_text(encoding="utf-8"))["flats"] == []


def test_the_report_and_the_log_tell_the_flat(runs):
    _, run = runs["auto"]
    (flat,) = json.loads(run.paths.report.read_text(encoding="utf-8"))["flats"]
    assert flat["n_frames"] == 16
    assert flat["corners"][0] == pytest.approx(-0.1, abs=0.012)
    assert np.shape(flat["flat"]["coefficients"]) == (1, 7, 7)
    assert "[GRID] flat of Synthetic S50 (400 x 320 px, IRCUT) from 16 frames: -10" in run.log


@pytest.mark.parametrize("change", [{"size_factor": 2.5}, {"workers": 1, "chunk_ram_mb": 2}], ids=str)
def test_tiles_workers_and_memory_leave_no_trace_in_a_flattened_mosaic(runs, vignetted, tmp_path, change):
    run = Run(vignetted[1], tmp_path / "out", replace(TWO_WORKERS, **change))
    np.testing.assert_array_equal(run.mosaic, runs["auto"][1].mosaic)


def test_the_order_of_the_plan_leaves_no_trace_in_a_flattened_mosaic(runs, vignetted, tmp_path):
    run = Run(shuffled_copy(vignetted[1], tmp_path / "frames"), tmp_path / "out")
    np.testing.assert_array_equal(run.mosaic, runs["auto"][1].mosaic)


def box_colours(run):
    """Differences of blue and red against green of boxes of 32 px, less their means, in ADU."""
    image = run.mosaic
    ny, nx = (size // 32 * 32 for size in image.shape[1:])
    boxes = image[:, :ny, :nx].reshape(3, ny // 32, 32, nx // 32, 32).swapaxes(2, 3).reshape(3, -1, 1024)
    full = boxes[:, np.isfinite(boxes).all(axis=(0, 2))]
    level = np.median(full, axis=2)
    difference = level[[0, 2]] - level[1]
    return difference - difference.mean(axis=1, keepdims=True)


def test_there_are_no_coloured_fans(tmp_path):
    """What is left above the noise are slopes, which planes of a match would take."""
    spec = replace(ROTATED, color=True, frame_shape=(400, 520), star_density=700.0)
    survey_in(tmp_path / "frames", spec)
    auto = Run(tmp_path / "frames", tmp_path / "auto")
    off = Run(tmp_path / "frames", tmp_path / "off", replace(TWO_WORKERS, flat_from_frames="off"))
    survey_in(tmp_path / "clear", replace(spec, vignetting=0.0))
    clear = Run(tmp_path / "clear", tmp_path / "none")
    fans, without, floor = (box_colours(run).std(axis=1) for run in (auto, off, clear))
    assert (without > 3.0 * floor).all()
    assert (fans < 1.8 * floor).all()
    assert (np.sqrt(fans**2 - floor**2) < 0.25 * np.sqrt(without**2 - floor**2)).all()


@pytest.mark.parametrize("kind", ["mono", "GRBG", "cube", "mixture"])
def test_flattened_frames_give_the_same_on_a_device(tmp_path, kind):
    scene = scene_in(tmp_path, kind)
    shape = scene.frames[0].record.header.shape
    terms = np.zeros(14)
    terms[[0, 2, 4]] = 0.05, -0.2, -0.3
    flats = {n: flat_model(np.stack([terms * (1 + 0.1 * c) for c in range(n)]), 280.0, shape) for n in (1, 3)}
    frames = [replace(f, flat=flats[f.record.header.n_channels]) for f in scene.frames]
    flattened = replace(scene, frames=frames)
    host = flattened.stack()
    equivalent(on_stand_in(flattened), host, scene)
    plain = scene.stack()
    assert np.nanmax(np.abs(host.result.image - plain.result.image)) > 5 * scene.noise
    part = Rect(10, 60, 20, 90)
    again = flattened.stack(rect=part, mem_limit_bytes=100_000)
    np.testing.assert_array_equal(again.result.image, host.result.image[(slice(None), *part.slices)])


def test_frames_of_a_vignetted_survey_hold_light_times_the_share_and_the_whole_pedestal():
    clear = plan_survey(replace(ROTATED, vignetting=0.0, color=True, nebula_adu=300.0))
    dark = plan_survey(replace(clear.spec, vignetting=0.3))
    share = vignette(dark.spec)
    mosaic = np.where(np.indices(share.shape[1:]).sum(axis=0) % 2 == 0, share[1], share[0])
    mosaic[1::2, 0::2] = share[2, 1::2, 0::2]
    np.testing.assert_allclose(
        render_frame(dark, 3).scene - 300.0, (render_frame(clear, 3).scene - 300.0) * mosaic, rtol=1e-9
    )
    corners = share[1][[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() == pytest.approx(0.7, abs=0.01)
    assert np.ptp(corners) > 0.02
    assert share[2].mean() < share[1].mean() < share[0].mean()


@pytest.mark.real
def test_real_frames_of_m94_show_no_vignetting(real_data):
    """17 frames with few stars tell five shapes or fewer to half a percent, and none of them is there."""
    out, (found,) = flatten_frames(measured_in(real_data / "m94"), "auto")
    assert found.flat is None
    assert all(m.flat is None for m in out)
    assert not found.significance > 3

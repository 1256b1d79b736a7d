"""Refined WCS: real frames, simulated frames whose WCS is wrong by a little or by much, and what a run says."""

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter

from parallel_utils import TaskPool
from surveys import TWO_WORKERS, Run, survey_in
from zemosaic_background import sky_and_noise
from zemosaic_events import CancelToken
from zemosaic_fits_io import frame_wcs
from zemosaic_measure import cell_size_px, measure_frames
from zemosaic_plan import load_frames, plan_from_folder
from zemosaic_refine import refine_frames
from zemosaic_registration import find_stars, subtract_background
from zemosaic_reproject import frame_to_canvas, optimal_canvas, place
from zemosaic_synthetic import SurveySpec, small_spec
from zemosaic_types import FrameError
from zemosaic_wcs_correction import corrected_header

SHARP = SurveySpec(
    seed=11,
    panels=(1, 2),
    frames_per_panel=4,
    frame_shape=(420, 560),
    overlap_fraction=0.2,
    rotation_deg=15.0,
    fwhm_px=(3.0, 3.3),
    star_density=1200.0,
    star_flux=(4000.0, 300000.0),
)
SMALL = small_spec(seed=3, frame_shape=(200, 260), star_density=1200.0)


def measured_in(folder, n_channels=1):
    """The canvas of a folder's frames, and the frames as the measuring pass gives them."""
    records, _ = load_frames(plan_from_folder(folder)[0], folder)
    canvas = optimal_canvas([(r.header.shape, frame_wcs(r.header)) for r in records])
    cell_px = cell_size_px([r.header.shape for r in records])
    return canvas, measure_frames(records, canvas, cell_px, n_channels)


def spoil_wcs(path, dx=0.0, dy=0.0, turn_deg=0.0):
    """Write a WCS that is off by a shift (px) and a rotation into a frame."""
    with fits.open(path, mode="update") as hdus:
        header = hdus[0].header
        header["CRPIX1"] += dx
        header["CRPIX2"] += dy
        cos, sin = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
        cd = np.array([[header[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)]) @ [[cos, -sin], [sin, cos]]
        for i in (1, 2):
            for j in (1, 2):
                header[f"CD{i}_{j}"] = cd[i - 1, j - 1]


def names(items):
    return [Path(item.path).name for item in items]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two panels of three frames; nobody spoils its files."""
    folder = tmp_path_factory.mktemp("small") / "frames"
    survey_in(folder, SMALL)
    return folder


def spoilt_copy(frames, folder, name, **how):
    shutil.copytree(frames, folder)
    spoil_wcs(folder / name, **how)
    return folder


# ---- real frames -----------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(("name", "most_before", "most_after"), [("m94", 0.36, 0.19), ("panels_m94", 0.54, 0.24)])
def test_stars_of_real_frames_coincide_better_after_refining(real_data, name, most_before, most_after):
    """Solved by astrometry.net, frames differ by 0.14 to 0.5 px; what is left is the noise of faint stars."""
    canvas, measured = measured_in(real_data / name, 3)
    off = refine_frames(measured, canvas, method="off")
    assert off.n_moved == 0
    assert off.measured == measured
    assert 0.2 < off.before_px < 0.3
    assert 0.14 < min(off.residual_px) < max(off.residual_px) < most_before
    refined = refine_frames(measured, canvas, method="auto")
    assert refined.n_moved == len(measured)
    assert refined.left_out == []
    assert refined.warnings == []
    assert refined.after_px < 0.7 * refined.before_px
    assert max(refined.residual_px) < most_after
    again = refine_frames(refined.measured, canvas, method="off")
    assert again.before_px == pytest.approx(refined.after_px, rel=0.02)


def width(run, channel=0):
    """Median FWHM of the stars of a mosaic, px."""
    plane = run.mosaic[channel] if run.mosaic.ndim == 3 else run.mosaic
    residual, mask = subtract_background(plane)
    return find_stars(residual, mask, sky_and_noise(plane)[1]).fwhm_px


# ---- in the workers --------------------------------------------------------------------------------------


def test_frames_that_workers_move_are_those_that_are_moved_here(small):
    canvas, measured = measured_in(small)
    here = refine_frames(measured, canvas, method="on")
    with TaskPool(2, CancelToken()) as pool:
        there = refine_frames(measured, canvas, method="on", each=partial(pool.map, batch=2))
    assert there.n_moved == here.n_moved == 6
    for a, b in zip(there.measured, here.measured, strict=True):
        assert (a.record, a.placement) == (b.record, b.placement)
        np.testing.assert_array_equal(a.measure.star_x, b.measure.star_x)
        np.testing.assert_array_equal(a.measure.star_y, b.measure.star_y)
    assert there.residual_px == here.residual_px


def test_a_frame_that_cannot_be_moved_stays_and_is_named(small, monkeypatch):
    canvas, measured = measured_in(small)
    lost = measured[2].record

    def refused(header, *how):
        if header == lost.header:
            raise FrameError("its WCS cannot be corrected: it ends at the frame's edge")
        return corrected_header(header, *how)

    monkeypatch.setattr("zemosaic_refine.corrected_header", refused)
    refined = refine_frames(measured, canvas, method="on")
    assert refined.n_moved == 5
    assert refined.measured[2] is measured[2]
    assert refined.warnings == [f"{lost.path}: its WCS cannot be corrected: it ends at the frame's edge"]


# ---- small errors ----------------------------------------------------------------------------------------


def test_frames_of_exact_wcs_are_left_as_they_are(small):
    canvas, measured = measured_in(small)
    refined = refine_frames(measured, canvas, method="auto")
    assert refined.n_moved == 0
    assert all(a is b for a, b in zip(refined.measured, measured, strict=True))
    assert max(refined.residual_px) < 0.12
    forced = refine_frames(measured, canvas, method="on")
    assert forced.n_moved == 6
    shift = [np.hypot(a.measure.star_x - b.measure.star_x, a.measure.star_y - b.measure.star_y)
             for a, b in zip(forced.measured, measured, strict=True)]  # fmt: skip
    shift = np.concatenate(shift)
    assert 0.0 < np.sqrt(np.mean(shift**2)) < 0.08
    assert shift.max() < 0.2


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """A survey, its mosaic, and mosaics of the same frames with a spoilt WCS, not refined and refined."""
    folder = tmp_path_factory.mktemp("sharp")
    survey = survey_in(folder / "frames", SHARP)
    shutil.copytree(folder / "frames", folder / "spoilt")
    # In opposite pairs, since what all frames have in common nobody can know.
    for k, path in enumerate(sorted((folder / "spoilt").glob("*.fit"))):
        sign, angle = 1 - 2 * (k % 2), 0.9 * (k // 2)
        spoil_wcs(path, sign * 0.5 * np.cos(angle), sign * 0.5 * np.sin(angle), sign * 0.02)
    runs = {
        "exact": Run(folder / "frames", folder / "exact", TWO_WORKERS),
        "off": Run(folder / "spoilt", folder / "off", replace(TWO_WORKERS, refine_wcs="off")),
        "auto": Run(folder / "spoilt", folder / "auto", TWO_WORKERS),
    }
    return survey, runs


def test_a_survey_of_exact_wcs_comes_out_untouched(sharp):
    survey, runs = sharp
    assert runs["exact"].score(survey).position_rms_px < 0.010
    assert "their WCS are taken as they are" in runs["exact"].log


def test_a_spoilt_survey_comes_back_as_sharp_and_as_straight_as_it_was(sharp):
    survey, runs = sharp
    score = {name: run.score(survey) for name, run in runs.items()}
    assert width(runs["auto"]) == pytest.approx(width(runs["exact"]), rel=0.003)
    assert width(runs["off"]) > 1.01 * width(runs["exact"])

    def straightness(s):
        return np.sqrt(max(0.0, s.position_rms_px**2 - np.mean(np.square(s.position_offset_px))))

    assert straightness(score["auto"]) < 0.02
    assert np.abs(score["auto"].position_offset_px).max() < 0.1
    assert score["auto"].flux_excess[0] < score["exact"].flux_excess[0] + 0.002


def test_the_run_says_what_refining_brought_and_the_ledger_how_frames_fit(sharp):
    _, runs = sharp
    said = re.search(r"stars: frames agree to (.*) px, after refining to (.*) px \((.*) frames corrected\)",
                     runs["auto"].log)  # fmt: skip
    assert 0.5 < float(said[1]) < 0.8
    assert float(said[2]) < 0.08
    assert said[3] == "8"
    for name, low, high in (("exact", 0.01, 0.12), ("off", 0.3, 0.9), ("auto", 0.01, 0.12)):
        assert all(low < float(row["align_residual_px"]) < high for row in runs[name].ledger), name


def test_what_follows_from_the_wcs_follows_the_corrected_one(sharp, tmp_path):
    folder = tmp_path / "frames"
    shutil.copytree(Path(sharp[0].frames[0].path).parent, folder)
    for k, path in enumerate(sorted(folder.glob("*.fit"))):
        spoil_wcs(path, dx=0.6 * (-1) ** k)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    canvas, measured = measured_in(folder)
    refined = refine_frames(measured, canvas, method="auto")
    assert refined.n_moved == 8
    for old, new in zip(measured, refined.measured, strict=True):
        wcs = frame_wcs(new.record.header)
        assert new.placement == place(wcs, new.record.header.shape, canvas)
        assert new.placement != old.placement
        x, y = frame_to_canvas(wcs, new.measure.frame_x.astype(float), new.measure.frame_y.astype(float), canvas)
        np.testing.assert_allclose([new.measure.star_x, new.measure.star_y], [x, y], rtol=0, atol=1e-9)
        assert 0.4 < np.hypot(x - old.measure.star_x, y - old.measure.star_y).mean() < 0.8
        assert new.measure.level is old.measure.level
        assert replace(new.record, header=old.record.header) == old.record
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_one_frame_off_by_a_little_among_exact_ones_is_corrected_alone(small):
    canvas, measured = measured_in(small)
    copies = [replace(m, record=replace(m.record, frame_id=f"{m.record.frame_id}{k}")) for m in measured
              for k in range(60)]  # fmt: skip
    odd = copies[100].measure
    copies[100] = replace(copies[100], measure=replace(odd, star_x=odd.star_x + 0.8))
    refined = refine_frames(copies, canvas, method="auto")
    moved = [k for k, (a, b) in enumerate(zip(refined.measured, copies, strict=True)) if a is not b]
    assert moved == [100]


# ---- frames that are far off -----------------------------------------------------------------------------


@pytest.mark.parametrize("refine", ["auto", "off"])
@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_a_frame_20_px_off_is_left_out_and_named_and_no_other(small, tmp_path, number, refine):
    name = sorted(path.name for path in small.iterdir())[number]
    canvas, measured = measured_in(spoilt_copy(small, tmp_path / "frames", name, dx=-12.0, dy=16.0))
    refined = refine_frames(measured, canvas, method=refine)
    assert names(refined.left_out) == [name]
    reason = refined.left_out[0].reason
    assert reason.startswith("its WCS is ")
    assert float(reason.split()[3]) == pytest.approx(20.0, abs=0.3)
    assert "px off (its stars lie that far from the same stars of " in reason
    assert int(reason.split()[-2]) >= 2
    assert refined.warnings == []
    assert len(refined.measured) == 5
    assert max(refined.residual_px) < 0.15


def test_a_run_leaves_a_frame_20_px_off_out_and_ends_as_without_it(small, tmp_path):
    folder = spoilt_copy(small, tmp_path / "frames", "Light_00_0002.fit", dx=20.0)
    fits.setval(folder / "Light_00_0002.fit", "SATURATE", value=50000.0)
    run = Run(folder, tmp_path / "out")
    assert names(run.result.left_out) == ["Light_00_0002.fit"]
    (row,) = [row for row in run.ledger if row["used"] == "no"]
    assert Path(row["path"]).name == "Light_00_0002.fit"
    assert "its WCS is 20." in row["reason"] or "its WCS is 19.9" in row["reason"]
    (folder / "Light_00_0002.fit").unlink()
    without = Run(folder, tmp_path / "without")
    np.testing.assert_array_equal(run.mosaic, without.mosaic)
    np.testing.assert_array_equal(run.coverage, without.coverage)
    for key in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "SATURATE"):
        assert run.header[key] == without.header[key]


@pytest.mark.parametrize("refine", ["auto", "on", "off"])
def test_of_two_frames_nobody_can_tell_which_is_wrong(small, tmp_path, refine):
    folder = spoilt_copy(small, tmp_path / "frames", "Light_00_0001.fit", dx=20.0)
    for path in folder.glob("*.fit"):
        if path.name not in ("Light_00_0001.fit", "Light_00_0002.fit"):
            path.unlink()
    canvas, measured = measured_in(folder)
    refined = refine_frames(measured, canvas, method=refine)
    assert refined.left_out == []
    assert refined.measured == measured
    assert refined.residual_px == [None, None]
    (warning,) = refined.warnings
    assert "Light_00_0001.fit and Light_00_0002.fit lie 20.0 px apart" in warning.replace("19.9", "20.0")


def test_the_warning_reaches_the_user(small, tmp_path):
    folder = spoilt_copy(small, tmp_path / "frames", "Light_00_0001.fit", dx=20.0)
    for path in folder.glob("*.fit"):
        if path.name not in ("Light_00_0001.fit", "Light_00_0002.fit"):
            path.unlink()
    run = Run(folder, tmp_path / "out")
    assert run.result.complete
    assert [e for e in run.events if getattr(e, "level", "") == "WARNING" and "no majority tells" in e.text]


def test_a_frame_a_few_pixels_off_is_corrected_not_left_out(small, tmp_path):
    folder = spoilt_copy(small, tmp_path / "frames", "Light_01_0001.fit", dx=2.5, dy=-2.5)
    canvas, measured = measured_in(folder)
    refined = refine_frames(measured, canvas, method="auto")
    assert refined.left_out == []
    assert refined.before_px > 1.0
    assert max(refined.residual_px) < 0.15


# ---- frames that must not disturb ------------------------------------------------------------------------


def test_a_frame_out_of_focus_does_not_disturb(small, tmp_path):
    folder = tmp_path / "frames"
    shutil.copytree(small, folder)
    with fits.open(folder / "Light_00_0002.fit", mode="update") as hdus:
        blurred = gaussian_filter(hdus[0].data.astype(float), 3.5)
        hdus[0].data = np.rint(blurred + np.random.default_rng(0).normal(0.0, 20.0, blurred.shape)).astype(
            np.uint16
        )
    canvas, measured = measured_in(folder)
    refined = refine_frames(measured, canvas, method="on")
    _, others = measured_in(small)
    reference = refine_frames(others, canvas, method="on")
    assert refined.left_out == []
    for k in (0, 2, 3, 4, 5):
        a, b = (np.array(frames[k].placement.polygon) for frames in (refined.measured, reference.measured))
        assert np.hypot(*(a - b).T).mean() < 0.15
        assert refined.residual_px[k] < 0.15
    assert refine_frames(measured, canvas, method="auto").n_moved == 0


def test_a_frame_with_three_stars_does_not_disturb(small):
    canvas, measured = measured_in(small)
    odd = measured[1].measure
    few = {
        name: getattr(odd, name)[:3] for name in ("star_x", "star_y", "frame_x", "frame_y", "flux", "flux_error")
    }
    for away in (0.0, 3.0, 20.0):
        moved = few | {"star_x": few["star_x"] + away}
        frames = [*measured[:1], replace(measured[1], measure=replace(odd, **moved)), *measured[2:]]
        refined = refine_frames(frames, canvas, method="auto")
        assert refined.left_out == []
        assert refined.warnings == []
        assert all(refined.measured[k] is measured[k] for k in (0, 2, 3, 4, 5)), away


def test_an_unknown_method_is_refused(small):
    canvas, measured = measured_in(small)
    with pytest.raises(ValueError, match="known: auto, on, off"):
        refine_frames(measured, canvas, method="perhaps")


@pytest.mark.parametrize("workers", [1, 2])
def test_refining_is_the_same_whatever_the_division_of_labour(sharp, tmp_path, workers):
    _, runs = sharp
    folder = runs["auto"].paths.folder.parent / "spoilt"
    run = Run(folder, tmp_path / "out", replace(TWO_WORKERS, workers=workers, size_factor=1.0 + workers))
    np.testing.assert_array_equal(run.mosaic, runs["auto"].mosaic)

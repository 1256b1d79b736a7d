"""Classic end to end: close to Grid mode and to the truth, whatever the groups and the division of labour."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

import strict_device
from solvers import need_real_solver
from surveys import CLASSIC, TWO_WORKERS, ClassicRun, Run, shuffled_copy, survey_in
from zemosaic_astrometry import SolveOptions
from zemosaic_coadd import METHODS
from zemosaic_config import resolve
from zemosaic_events import (
    FinishReason,
    PhaseProgress,
    RunFinished,
    TileDone,
    TileFailed,
    TilesPlanned,
    TileStarted,
)
from zemosaic_fits_products import read_image, read_product_wcs
from zemosaic_groups import GROUPS_NAME, NOT_IN_FILE, GroupSettings
from zemosaic_registration import APERTURE_FWHM, aperture_fluxes, find_stars, subtract_background
from zemosaic_report import write_page
from zemosaic_stack_pool import DeviceAccess
from zemosaic_synthetic import small_spec
from zemosaic_types import PlanError, ProductExistsError, RunCancelled
from zemosaic_worker import RunRequest, start_run

PANELS = small_spec(panels=(3, 2), frames_per_panel=6, frame_shape=(320, 400), star_density=1500.0, seed=7)
COLOUR = small_spec(
    color=True, sip=True, rotation_deg=20.0, frames_per_panel=4, frame_shape=(240, 320), star_density=900.0, seed=5
)
INCREMENTAL = replace(CLASSIC, final_assembly_method="incremental")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def parts_in(folder):
    return [path.name for path in folder.rglob("*.part")]


def only(run, kind):
    return [event for event in run.events if isinstance(event, kind)]


def groups_of(run):
    return json.loads(run.paths.groups.read_text(encoding="utf-8"))


def same_mosaic(run, other):
    np.testing.assert_array_equal(run.mosaic, other.mosaic)
    np.testing.assert_array_equal(run.coverage, other.coverage)
    np.testing.assert_array_equal(run.weight, other.weight)


# ---- against Grid mode -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def panels(tmp_path_factory):
    """Six panels of six mono frames and their mosaics by Classic and by Grid mode."""
    folder = tmp_path_factory.mktemp("panels")
    survey = survey_in(folder / "frames", PANELS)
    return survey, ClassicRun(folder / "frames", folder / "classic"), Run(folder / "frames", folder / "grid")


@pytest.fixture(scope="module")
def classic(panels):
    return panels[1]


@pytest.fixture(scope="module")
def frames(panels):
    return panels[0].frames[0].path.parent


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """Two panels of four turned colour frames, and their mosaic by one worker."""
    folder = tmp_path_factory.mktemp("colour")
    survey_in(folder / "frames", COLOUR)
    return folder / "frames", ClassicRun(folder / "frames", folder / "out", replace(CLASSIC, workers=1))


def flux_ratios(mosaic, other):
    """Fluxes of the bright stars of a mosaic over those at the same places of another."""
    planes = [subtract_background(np.ascontiguousarray(m, dtype=np.float32)) for m in (mosaic, other)]
    noise = 1.4826 * np.nanmedian(np.abs(other - np.nanmedian(other)))
    stars = find_stars(*planes[1], noise)
    given = stars.x, stars.y, APERTURE_FWHM * stars.fwhm_px, noise
    (flux, _), (reference, error) = (aperture_fluxes(*plane, *given) for plane in planes)
    good = np.isfinite(flux) & np.isfinite(reference) & (reference > 60.0 * error)
    return flux[good] / reference[good]


def test_classic_and_grid_mode_agree(panels):
    survey, classic, grid = panels
    assert classic.result.complete
    assert classic.mosaic.shape == grid.mosaic.shape
    np.testing.assert_allclose(classic.header["CRVAL1"], grid.header["CRVAL1"], atol=1e-12)
    ratio = flux_ratios(classic.mosaic, grid.mosaic)
    assert ratio.size > 100
    assert np.sqrt(np.mean(np.square(ratio - 1.0))) < 0.005
    scores = [run.score(survey) for run in (classic, grid)]
    assert scores[0].position_rms_px < 0.02
    assert scores[0].position_rms_px < scores[1].position_rms_px + 0.005
    assert scores[0].noise_ratio[0] == pytest.approx(scores[1].noise_ratio[0], rel=0.06)
    assert scores[0].level_rms[0] < scores[1].level_rms[0] + 0.02
    assert scores[0].coverage_error < 0.005


def test_colours_of_classic_and_grid_mode_agree(colour, tmp_path):
    frames, classic = colour
    grid = Run(frames, tmp_path / "grid")
    for plane, other in zip(classic.mosaic, grid.mosaic, strict=True):
        ratio = flux_ratios(plane, other)
        assert ratio.size > 15
        assert np.sqrt(np.mean(np.square(ratio - 1.0))) < 0.005
    both = (classic.coverage > 0) & (grid.coverage > 0)
    assert both.sum() > 0.99 * (grid.coverage > 0).sum()
    assert np.median(classic.weight[both] / grid.weight[both]) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("material", ["panels", "colour"])
def test_one_tile_after_the_other_gives_the_same_mosaic(material, request, tmp_path):
    given = request.getfixturevalue(material)
    run, frames = (given[1], given[0].frames[0].path.parent) if material == "panels" else (given[1], given[0])
    other = ClassicRun(frames, tmp_path / "out", INCREMENTAL)
    same_mosaic(other, run)
    assert parts_in(tmp_path) == []
    assert "add" in {event.phase for event in only(other, PhaseProgress)}


def test_products_agree_with_each_other_and_verify(classic):
    mosaic, coverage, weight = classic.mosaic, classic.coverage, classic.weight
    np.testing.assert_array_equal(np.isfinite(mosaic), coverage > 0)
    np.testing.assert_array_equal(weight > 0, coverage > 0)
    assert coverage.max() > PANELS.frames_per_panel  # frames are counted, not master tiles
    assert coverage.max() <= PANELS.count
    for path in (classic.paths.mosaic, classic.paths.coverage, classic.paths.weight, *classic.tiles):
        with fits.open(path, checksum=True) as hdus:  # a wrong checksum warns, and warnings are errors
            assert all("CHECKSUM" in hdu.header and "DATASUM" in hdu.header for hdu in hdus)
            hdus.verify("exception")


def test_the_coverage_is_that_of_grid_mode_but_for_rejections_and_edges(panels):
    _, classic, grid = panels
    difference = classic.coverage.astype(int) - grid.coverage
    assert abs(difference.mean()) < 0.02
    assert np.mean(difference != 0) < 0.1


def test_classic_leaves_the_products_of_a_run_and_nothing_else(classic):
    assert names_in(classic.paths.folder) == [
        "groups.json",
        "ledger.csv",
        "master_tiles",
        "mosaic_classic.fits",
        "mosaic_classic_coverage.fits",
        "mosaic_classic_preview.png",
        "mosaic_classic_residual.fits",
        "mosaic_classic_weight.fits",
        "report.json",
        "stack_plan.csv",
        "zemosaic.log",
    ]
    assert names_in(classic.paths.master_tiles) == [f"master_tile_{k:03d}.fits" for k in range(1, 7)]


def test_the_ledger_the_report_and_the_groups_account_for_every_frame(classic, tmp_path):
    rows = classic.ledger
    assert [row["used"] for row in rows] == ["yes"] * PANELS.count
    assert {row["n_tiles"] for row in rows} == {"1"}
    assert all(0 <= float(row["rejected_fraction"]) < 0.1 for row in rows)
    report = json.loads(classic.paths.report.read_text(encoding="utf-8"))
    assert report["pipeline"] == "classic"
    assert report["tiles"] == {"total": 6, "failed": []}
    assert {"group", "stack", "coadd", "assemble"} <= set(report["seconds"])
    groups = groups_of(classic)["groups"]
    assert [group["frames"] for group in report["groups"]] == [len(group["frames"]) for group in groups] == [6] * 6
    assert sorted(name for g in groups for name in g["frames"]) == sorted(row["frame_id"] for row in rows)
    folder = shutil.copytree(classic.paths.folder, tmp_path / "copy")
    lines = write_page(folder)
    assert (folder / "report.html").is_file()
    assert not any("zemosaic grid" in line for line in lines)


def test_lines_of_the_log_name_the_pipeline(panels):
    _, classic, grid = panels
    assert "[CLASSIC] workers=2\n" in classic.log
    assert "[GRID]" not in classic.log
    assert "[GRID] workers=2\n" in grid.log


def test_tiles_are_announced_before_they_start_and_end_once(classic):
    for_tiles, for_cells = only(classic, TilesPlanned)
    numbers = [tile.tile for plan in (for_tiles, for_cells) for tile in plan.tiles]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(for_tiles.tiles) == 6
    assert (for_tiles.kind, for_cells.kind) == ("master tile", "tile")
    assert for_tiles.shape == for_cells.shape == classic.mosaic.shape
    assert [event.tile for event in only(classic, TileStarted)] == numbers
    assert sorted(event.tile for event in only(classic, TileDone)) == numbers
    assert [event.reason for event in only(classic, RunFinished)] == [FinishReason.COMPLETE]
    assert isinstance(classic.events[-1], RunFinished)
    wcs = read_product_wcs(classic.paths.mosaic)
    for tile in for_tiles.tiles:
        x, y = wcs.world_to_pixel_values(*zip(*tile.corners_deg, strict=True))
        assert abs(x.mean() - 0.5 * (tile.rect.x0 + tile.rect.x1)) < 4
        assert abs(y.mean() - 0.5 * (tile.rect.y0 + tile.rect.y1)) < 4


# ---- master tiles ----------------------------------------------------------------------------------------


def test_headers_of_master_tiles_lead_to_the_same_sky_as_the_mosaic(panels):
    """The bright stars of a tile are in the mosaic, where both headers say."""
    _, classic, _ = panels
    whole = WCS(classic.header, naxis=2)
    noise = 1.4826 * np.nanmedian(np.abs(classic.mosaic - np.nanmedian(classic.mosaic)))
    known = find_stars(*subtract_background(np.ascontiguousarray(classic.mosaic)), noise)
    for path in classic.tiles:
        header, image = read_image(path, 0)
        flat = subtract_background(image)
        stars = find_stars(*flat, noise)
        flux, error = aperture_fluxes(*flat, stars.x, stars.y, APERTURE_FWHM * stars.fwhm_px, noise)
        bright = flux > 60.0 * error
        x, y = whole.world_to_pixel(WCS(header, naxis=2).pixel_to_world(stars.x[bright], stars.y[bright]))
        away = np.stack([known.x - x[:, None], known.y - y[:, None]])
        nearest = np.hypot(*away).argmin(axis=1)
        away = away[:, np.arange(x.size), nearest]
        found = np.hypot(*away) < 1.0
        assert found.sum() > 30
        assert found.mean() > 0.95
        assert np.abs(away[:, found].mean(axis=1)).max() < 0.02


def test_a_master_tile_says_what_it_is_made_of(classic):
    groups = groups_of(classic)["groups"]
    for number, path in enumerate(classic.tiles, start=1):
        with fits.open(path) as hdus:
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "WEIGHT", "COVERAGE", "INPUTS"]
            header, table = hdus[0].header, hdus["INPUTS"].data
            image, weight, coverage = (hdus[k].data for k in range(3))
        assert (header["TILE"], header["IMAGETYP"], header["NCOMBINE"]) == (number, "MASTER TILE", 6)
        assert header["GROUP"] == groups[number - 1]["name"]
        assert [header["CRVAL1"], header["CRVAL2"]] == pytest.approx(groups[number - 1]["centre_deg"], abs=1e-6)
        assert header["AREARATI"] == pytest.approx(1.0, abs=1e-3)
        assert sorted(table["FRAME_ID"]) == groups[number - 1]["frames"]
        np.testing.assert_array_equal(np.isfinite(image), coverage > 0)
        np.testing.assert_array_equal(weight > 0, coverage > 0)
        assert coverage.max() == 6
        assert abs(header["CDELT2"]) == pytest.approx(classic.header["CDELT2"], rel=1e-12)


def test_master_tiles_of_an_earlier_run_are_gone(frames, classic, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(classic.paths.master_tiles, out / "master_tiles")
    shutil.copy(classic.tiles[0], out / "master_tiles" / "master_tile_044.fits")
    (out / "master_tiles" / "notes.txt").write_text("mine")
    run = ClassicRun(frames, out, replace(CLASSIC, groups=GroupSettings(target_groups=2)))
    assert names_in(run.paths.master_tiles) == ["master_tile_001.fits", "master_tile_002.fits", "notes.txt"]
    with pytest.raises(ProductExistsError, match="--overwrite"):
        ClassicRun(frames, out, replace(CLASSIC, overwrite=False))


# ---- the division of labour ------------------------------------------------------------------------------

DIVISIONS = {
    "two workers": {"workers": 2},
    "small blocks": {"chunk_ram_mb": 1},
    "small cells": {"size_factor": 3.0, "workers": 2},
    "small cells, one tile after the other": {"size_factor": 3.0, "final_assembly_method": "incremental"},
}


@pytest.mark.parametrize("division", DIVISIONS)
def test_the_mosaic_is_the_same_bit_for_bit(colour, division, tmp_path):
    frames, reference = colour
    run = ClassicRun(frames, tmp_path / "out", replace(reference_settings(), **DIVISIONS[division]))
    assert run.mosaic.shape[0] == 3
    same_mosaic(run, reference)
    for path, other in zip(run.tiles, reference.tiles, strict=True):
        for hdu in range(3):
            np.testing.assert_array_equal(read_image(path, hdu)[1], read_image(other, hdu)[1])


def reference_settings():
    return replace(CLASSIC, workers=1)


def test_the_order_of_the_plan_leaves_no_trace(colour, tmp_path):
    frames, reference = colour
    same_mosaic(ClassicRun(shuffled_copy(frames, tmp_path / "frames"), tmp_path / "out"), reference)


@pytest.mark.parametrize("how", METHODS)
def test_a_gpu_gives_the_mosaic_of_the_processor(colour, tmp_path, how):
    frames, reference = colour
    access = DeviceAccess(strict_device.find_stand_ins, strict_device.open_stand_in)
    settings = replace(CLASSIC, use_gpu=True, final_assembly_method=how)
    run = ClassicRun(frames, tmp_path / "out", settings, access=access)
    assert "[CLASSIC] GPU=ON (strict stand-in" in run.log
    np.testing.assert_array_equal(run.coverage, reference.coverage)
    np.testing.assert_allclose(run.mosaic, reference.mosaic, rtol=1e-5, equal_nan=True)


def test_the_16_bit_version_and_other_choices_of_grid_mode_are_known_to_classic(colour, tmp_path):
    frames, _ = colour
    changed = replace(CLASSIC, save_uint16=True, kernel="bilinear", normalise="sky_mean", weight="none")
    run = ClassicRun(frames, tmp_path / "out", changed)
    assert run.result.complete
    assert read_image(run.paths.viewer, 0)[1].dtype == np.uint16
    inside = run.coverage > 0
    assert np.median(run.weight[inside] / run.coverage[inside]) == pytest.approx(1.0, abs=0.05)


# ---- groups ----------------------------------------------------------------------------------------------


def copy_with_groups(frames, folder, groups, **more):
    shutil.copytree(frames, folder)
    content = {"version": 1, "groups": [{"name": n, "frames": f} for n, f in groups.items()], **more}
    (folder / GROUPS_NAME).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_groups_of_the_user_are_obeyed(colour, tmp_path):
    frames, reference = colour
    ids = [row["frame_id"] for row in reference.ledger]
    mine = {"odd": ids[1::2], "even": ids[0:6:2]}
    run = ClassicRun(copy_with_groups(frames, tmp_path / "frames", mine), tmp_path / "out")
    assert [(g["name"], g["frames"]) for g in groups_of(run)["groups"]] == list(mine.items())
    assert [read_image(path, 0)[0]["GROUP"] for path in run.tiles] == ["odd", "even"]
    (row,) = [row for row in run.ledger if row["used"] == "no"]
    assert (row["frame_id"], row["reason"]) == (ids[6], NOT_IN_FILE)
    assert run.result.complete  # nothing is missing that the user wanted
    others = shutil.copytree(frames, tmp_path / "others", ignore=shutil.ignore_patterns(ids[6]))
    grid = Run(others, tmp_path / "grid")
    assert grid.mosaic.shape == run.mosaic.shape  # the frame left no trace in the canvas


def test_a_reason_of_several_lines_reaches_the_master_tile_as_one(colour, tmp_path):
    frames, reference = colour
    folder = copy_with_groups(frames, tmp_path / "frames", {"all": [row["frame_id"] for row in reference.ledger]})
    groups = json.loads((folder / GROUPS_NAME).read_text(encoding="utf-8"))
    groups["groups"][0]["reason"] = "two\tnights,\nEté"
    (folder / GROUPS_NAME).write_text(json.dumps(groups), encoding="utf-8")
    run = ClassicRun(folder, tmp_path / "out")
    assert run.result.complete
    assert read_image(run.tiles[0], 0)[0]["GROUPWHY"] == "two nights, Et?"


def test_a_group_file_may_name_frames_that_are_lost_and_no_others(colour, tmp_path):
    frames, reference = colour
    ids = [row["frame_id"] for row in reference.ledger]
    folder = copy_with_groups(frames, tmp_path / "frames", {"all": ids[:-1], "last": ids[-1:]})
    (folder / ids[0]).write_bytes(b"SIMPLE  =")
    run = ClassicRun(folder, tmp_path / "out", replace(CLASSIC, excluded=(ids[-1],)))
    assert [len(g["frames"]) for g in groups_of(run)["groups"]] == [len(ids) - 2]
    assert {row["frame_id"] or Path(row["path"]).name for row in run.ledger if row["used"] == "no"} == {
        ids[0],
        ids[-1],
    }
    copy_with_groups(frames, tmp_path / "wrong", {"all": [*ids, "nowhere.fit"]})
    with pytest.raises(PlanError, match=r"the run has no frame .nowhere\.fit."):
        ClassicRun(tmp_path / "wrong", tmp_path / "out")


def test_one_group_is_one_master_tile_and_nearly_the_mosaic_of_grid_mode(panels, frames, tmp_path):
    run = ClassicRun(frames, tmp_path / "out", replace(CLASSIC, groups=GroupSettings(target_groups=1)))
    assert len(run.tiles) == 1
    ratio = flux_ratios(run.mosaic, panels[2].mosaic)
    assert np.sqrt(np.mean(np.square(ratio - 1.0))) < 0.003


def test_far_from_the_centre_of_a_wide_mosaic_fluxes_are_those_of_grid_mode(tmp_path):
    """A pixel of the mosaic covers less sky than one of a tile there, by several percent."""
    wide = small_spec(panels=(1, 5), frames_per_panel=3, frame_shape=(240, 320), star_density=1500.0, seed=9)
    clean = {"nebula_adu": 0.0, "trail_fraction": 0.0, "cosmic_rays": 0}  # groups of three reject less
    survey_in(tmp_path / "frames", replace(wide, pixel_scale_arcsec=60.0, **clean))
    run, grid = ClassicRun(tmp_path / "frames", tmp_path / "out"), Run(tmp_path / "frames", tmp_path / "grid")
    ratios = [read_image(path, 0)[0]["AREARATI"] for path in run.tiles]
    assert max(ratios) - min(ratios) > 0.02
    ratio = flux_ratios(run.mosaic, grid.mosaic)
    assert ratio.size > 50
    assert np.sqrt(np.mean(np.square(ratio - 1.0))) < 0.005
    level = np.nanmedian(run.mosaic - grid.mosaic)
    assert abs(level) < 0.02 * 1.4826 * np.nanmedian(np.abs(grid.mosaic - np.nanmedian(grid.mosaic)))


def test_one_frame_alone_is_a_mosaic(frames, tmp_path):
    first = sorted(frames.glob("*.fit"))[0]
    folder = tmp_path / "frames"
    folder.mkdir()
    shutil.copy(first, folder)
    run = ClassicRun(folder, tmp_path / "out")
    grid = Run(folder, tmp_path / "grid")
    assert run.result.complete
    assert run.coverage.max() == 1
    assert np.median(flux_ratios(run.mosaic, grid.mosaic)) == pytest.approx(1.0, abs=0.002)
    same_mosaic(ClassicRun(folder, tmp_path / "other", INCREMENTAL), run)


# ---- what goes wrong -------------------------------------------------------------------------------------


def test_a_frame_of_a_group_that_is_20_px_off_is_left_out_and_named(frames, tmp_path):
    folder = shutil.copytree(frames, tmp_path / "frames")
    bad = sorted(folder.glob("*.fit"))[2]
    with fits.open(bad, mode="update") as hdus:
        hdus[0].header["CRPIX1"] += 12.0
        hdus[0].header["CRPIX2"] -= 16.0
    run = ClassicRun(folder, tmp_path / "out")
    (row,) = [row for row in run.ledger if row["used"] == "no"]
    assert Path(row["path"]).name == bad.name
    assert "px off" in row["reason"]
    assert only(run, RunFinished)[0].reason is FinishReason.WITH_FAILURES
    assert bad.name not in [name for group in groups_of(run)["groups"] for name in group["frames"]]


def test_frames_of_two_cameras_are_kept_apart_if_asked_and_make_one_mosaic(frames, classic, tmp_path):
    """Every second frame is from a camera of another format."""
    folder = shutil.copytree(frames, tmp_path / "frames")
    for path in sorted(folder.glob("*.fit"))[::2]:
        with fits.open(path) as hdus:
            header, data = hdus[0].header, hdus[0].data[20:300, 30:390].copy()
        header["CRPIX1"] -= 30
        header["CRPIX2"] -= 20
        header["INSTRUME"] = "Other"
        fits.writeto(path, data, header, overwrite=True)
    apart = replace(CLASSIC, groups=GroupSettings(by_instrument=True))
    run = ClassicRun(folder, tmp_path / "out", apart)
    assert run.result.complete
    assert len(run.tiles) == 12
    ratio = flux_ratios(run.mosaic, ClassicRun(folder, tmp_path / "together").mosaic)
    assert np.sqrt(np.mean(np.square(ratio - 1.0))) < 0.01


def test_a_frame_that_cannot_be_read_costs_itself_only(frames, tmp_path):
    folder = shutil.copytree(frames, tmp_path / "frames")
    bad = sorted(folder.glob("*.fit"))[4]
    bad.write_bytes(bad.read_bytes()[:9000])
    run = ClassicRun(folder, tmp_path / "out")
    assert only(run, RunFinished)[0].reason is FinishReason.WITH_FAILURES
    assert [Path(item.path).name for item in run.result.left_out] == [bad.name]
    others = shutil.copytree(frames, tmp_path / "others", ignore=shutil.ignore_patterns(bad.name))
    same_mosaic(ClassicRun(others, tmp_path / "reference"), run)


@pytest.mark.parametrize("settings", [CLASSIC, INCREMENTAL], ids=lambda s: s.final_assembly_method)
def test_a_master_tile_that_fails_leaves_a_hole_and_the_others_go_on(frames, classic, tmp_path, settings):
    (tmp_path / "out" / "master_tiles" / "master_tile_002.fits").mkdir(parents=True)
    run = ClassicRun(frames, tmp_path / "out", settings)
    assert [event.reason for event in only(run, RunFinished)] == [FinishReason.WITH_FAILURES]
    assert [failure.tile for failure in run.result.failed_tiles] == [2]
    assert [event.tile for event in only(run, TileFailed)] == [2]
    lost = {row["frame_id"] for row in run.ledger if row["used"] == "no"}
    assert sorted(lost) == groups_of(classic)["groups"][1]["frames"]
    hole = (run.coverage == 0) & (classic.coverage > 0)
    assert hole.any()
    alone = (classic.coverage > 0) & (run.coverage == classic.coverage)
    np.testing.assert_array_equal(run.mosaic[alone & ~near(hole)], classic.mosaic[alone & ~near(hole)])
    assert parts_in(tmp_path) == []


def near(mask, px=2):
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, iterations=px)


def test_a_run_that_can_make_no_master_tile_is_an_error_and_keeps_the_earlier_mosaic(frames, tmp_path):
    from zemosaic_types import OutputError

    out = tmp_path / "out"
    for number in range(1, 7):
        (out / "master_tiles" / f"master_tile_{number:03d}.fits").mkdir(parents=True)
    (out / "mosaic_classic.fits").write_bytes(b"earlier")
    with pytest.raises(OutputError, match="no master tile could be made"):
        ClassicRun(frames, out)
    assert (out / "mosaic_classic.fits").read_bytes() == b"earlier"


@pytest.mark.parametrize(
    ("method", "phase"), [("reproject_coadd", "stack"), ("reproject_coadd", "coadd"), ("incremental", "add")]
)
def test_a_cancelled_run_leaves_nothing_running_and_nothing_half_written(frames, tmp_path, method, phase):
    values = {"grid_workers": 2, "final_assembly_method": method, "grid_size_factor": 3.0}
    request = RunRequest("classic", frames, tmp_path / "out", resolve({}, {}, values))
    events = []
    handle = start_run(request)
    for event in handle.events():
        events.append(event)
        if isinstance(event, PhaseProgress) and event.phase == phase:
            handle.cancel()
    assert [e.reason for e in events if isinstance(e, RunFinished)] == [FinishReason.CANCELLED]
    with pytest.raises(RunCancelled):
        handle.result()
    assert parts_in(tmp_path) == []
    assert not (tmp_path / "out" / "mosaic_classic.fits").exists()


def test_a_run_in_a_process_of_its_own_gives_the_same_mosaic(frames, classic, tmp_path):
    request = RunRequest("classic", frames, tmp_path / "out", resolve({}, {}, {"grid_workers": 2}))
    with start_run(request) as handle:
        result = handle.result()
    np.testing.assert_array_equal(read_image(result.mosaic_path, 0)[1], classic.mosaic)


# ---- real frames -----------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_frames_without_a_wcs_are_solved_grouped_and_mosaicked(real_data, tmp_path):
    need_real_solver()
    raw = tmp_path / "raw"
    raw.mkdir()
    for path in sorted((real_data / "m94").glob("*.fit"))[::3]:
        shutil.copy(path, raw)
    settings = replace(
        CLASSIC,
        solve=SolveOptions(method="astrometry_net"),
        groups=GroupSettings(orientation_split_deg=10.0),
    )
    run = ClassicRun(raw, tmp_path / "out", settings)
    assert run.result.complete
    assert run.result.n_used == 6
    assert len(run.tiles) == len(groups_of(run)["groups"]) >= 2
    m94 = SkyCoord(192.7214, 41.1206, unit="deg")
    for path in (run.paths.mosaic, *run.tiles):
        green = read_image(path, 0)[1][1]
        x, y = read_product_wcs(path).world_to_pixel(m94)
        j, i = round(float(y)), round(float(x))
        around = green[j - 60 : j + 61, i - 60 : i + 61]
        peak = np.unravel_index(np.nanargmax(around), around.shape)
        assert np.hypot(peak[0] - 60, peak[1] - 60) < 3


def test_settings_come_from_the_configuration():
    from classic_mode import ClassicSettings

    values = {"cluster_target_groups": 4, "final_assembly_method": "incremental", "grid_workers": 3}
    settings = ClassicSettings.from_config(resolve({}, {}, values), excluded=("a.fit",))
    assert settings.groups.target_groups == 4
    assert settings.final_assembly_method == "incremental"
    assert (settings.workers, settings.excluded) == (3, ("a.fit",))
    assert ClassicSettings.from_config(resolve({}, {}, {})) == ClassicSettings(workers=0)
    assert TWO_WORKERS.described().keys() - settings.described().keys() == {"overlap_px"}

"""Grid mode end to end: the same array whatever the division of labour, and close to the truth."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from grid_mode import GridSettings, run_grid_mode
from surveys import GRID_PHASES, TWO_WORKERS, Run, shuffled_copy, survey_in
from zemosaic_events import (
    FinishReason,
    PhaseProgress,
    RunFinished,
    RunStarted,
    TileDone,
    TilesPlanned,
    TileStarted,
)
from zemosaic_fits_products import read_image, read_product_wcs
from zemosaic_ledger import EXCLUDED
from zemosaic_synthetic import small_spec
from zemosaic_types import StackParams

COLOUR = small_spec(
    color=True, sip=True, rotation_deg=20.0, frames_per_panel=4, frame_shape=(240, 320), star_density=900.0, seed=5
)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A colour survey with rotation and distortion, and its mosaic from one worker."""
    folder = tmp_path_factory.mktemp("colour")
    survey = survey_in(folder / "frames", COLOUR)
    return survey, folder / "frames", Run(folder / "frames", folder / "out", replace(TWO_WORKERS, workers=1))


DIVISIONS = {
    "two workers": {"workers": 2},
    "small blocks": {"chunk_ram_mb": 1},
    "slabs of many rows": {"chunk_ram_mb": 12, "workers": 2},
    "small tiles": {"size_factor": 3.0, "workers": 2},
    "one tile": {"size_factor": 0.1},
    "one tile for three workers": {"size_factor": 0.1, "workers": 3, "chunk_ram_mb": 2},
    "tiles with a margin": {"overlap_px": 60, "size_factor": 2.0, "workers": 2},
}


@pytest.mark.parametrize("division", DIVISIONS)
def test_the_mosaic_is_the_same_bit_for_bit(colour, division, tmp_path):
    _, frames, reference = colour
    run = Run(frames, tmp_path / "out", replace(TWO_WORKERS, workers=1, **{}) if not division else
              replace(replace(TWO_WORKERS, workers=1), **DIVISIONS[division]))  # fmt: skip
    assert run.mosaic.shape[0] == 3
    np.testing.assert_array_equal(run.mosaic, reference.mosaic)
    np.testing.assert_array_equal(run.coverage, reference.coverage)
    np.testing.assert_array_equal(run.weight, reference.weight)


@pytest.mark.parametrize(("size_factor", "threads"), [(0.1, 5), (0.7, 2)])
def test_where_there_are_fewer_tiles_than_workers_each_is_stacked_by_several_threads(
    colour, size_factor, threads, tmp_path
):
    _, frames, reference = colour
    run = Run(frames, tmp_path / "out", replace(TWO_WORKERS, workers=5, size_factor=size_factor))
    assert len(list(run.paths.tiles.glob("*.fits"))) == 5 // threads
    text = run.paths.log.read_text(encoding="utf-8")
    assert f"[GRID] fewer tiles than workers: each is stacked by {threads} threads" in text
    np.testing.assert_array_equal(run.mosaic, reference.mosaic)


def test_tiles_are_announced_with_their_places_on_the_sky_and_when_they_start(colour):
    *_, run = colour
    (planned,) = [event for event in run.events if isinstance(event, TilesPlanned)]
    assert planned.shape == run.mosaic.shape[1:]
    wcs = read_product_wcs(run.paths.mosaic)
    for tile in planned.tiles:
        x, y = wcs.world_to_pixel_values(*zip(*tile.corners_deg, strict=True))
        np.testing.assert_allclose([x.min() + 0.5, x.max() + 0.5], [tile.rect.x0, tile.rect.x1], atol=1e-6)
        np.testing.assert_allclose([y.min() + 0.5, y.max() + 0.5], [tile.rect.y0, tile.rect.y1], atol=1e-6)
    started = [event.tile for event in run.events if isinstance(event, TileStarted)]
    done = [event for event in run.events if isinstance(event, TileDone)]
    assert started == [tile.tile for tile in planned.tiles] == sorted(event.tile for event in done)
    assert {tile.tile: tile.n_frames for tile in planned.tiles} == {event.tile: event.n_frames for event in done}
    for tile in started:
        events = [type(e) for e in run.events if getattr(e, "tile", None) == tile]
        assert events == [TileStarted, TileDone]


def test_a_frame_that_the_user_names_leaves_no_trace_and_stays_in_the_ledger(colour, tmp_path):
    _, frames, whole = colour
    name = whole.ledger[2]["frame_id"]
    run = Run(frames, tmp_path / "out", replace(TWO_WORKERS, excluded=(name, "nowhere.fits")))
    (row,) = [row for row in run.ledger if row["used"] == "no"]
    assert (row["frame_id"], row["reason"]) == (name, EXCLUDED)
    assert run.result.complete
    assert "nowhere.fits was to be left out and is not in the plan" in run.log
    others = shutil.copytree(frames, tmp_path / "others", ignore=shutil.ignore_patterns("*.csv", Path(name).name))
    reference = Run(others, tmp_path / "reference")
    np.testing.assert_array_equal(run.mosaic, reference.mosaic)


def test_the_order_of_the_plan_leaves_no_trace(colour, tmp_path):
    _, frames, reference = colour
    run = Run(shuffled_copy(frames, tmp_path / "frames"), tmp_path / "out")
    np.testing.assert_array_equal(run.mosaic, reference.mosaic)
    np.testing.assert_array_equal(run.coverage, reference.coverage)


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": "bilinear"},
        {"normalise": "sky_mean"},
        {"normalise": "none", "weight": "none"},
        {"weight": "noise_fwhm", "rgb_equalize": True},
        {"params": replace(TWO_WORKERS.params, reject="winsorized_sigma_clip", combine="median")},
        {"params": replace(TWO_WORKERS.params, reject="linear_fit_clip")},
        {"params": replace(TWO_WORKERS.params, spread="sample")},
    ],
    ids=str,
)
def test_every_choice_of_method_is_independent_of_the_tiles(colour, change, tmp_path):
    _, frames, reference = colour
    settings = replace(TWO_WORKERS, **change)
    first = Run(frames, tmp_path / "a", settings)
    second = Run(frames, tmp_path / "b", replace(settings, size_factor=2.0, chunk_ram_mb=2))
    np.testing.assert_array_equal(first.mosaic, second.mosaic)
    assert not np.array_equal(first.mosaic, reference.mosaic, equal_nan=True)
    assert first.result.complete


def test_products_agree_with_each_other_and_verify(colour):
    _, _, run = colour
    mosaic, coverage, weight = run.mosaic, run.coverage, run.weight
    assert mosaic.dtype == np.float32
    assert mosaic.shape == coverage.shape == weight.shape
    np.testing.assert_array_equal(np.isfinite(mosaic), coverage > 0)
    np.testing.assert_array_equal(weight > 0, coverage > 0)
    assert coverage.max() <= COLOUR.count
    for path in (run.paths.mosaic, run.paths.coverage, run.paths.weight, *run.paths.tiles.glob("*.fits")):
        with fits.open(path, checksum=True) as hdus:  # a wrong checksum warns, and warnings are errors
            assert all("CHECKSUM" in hdu.header and "DATASUM" in hdu.header for hdu in hdus)
            hdus.verify("exception")


def test_tiles_are_cut_from_the_pixel_grid_of_the_mosaic(colour, tmp_path):
    _, frames, reference = colour
    run = Run(frames, tmp_path / "out", replace(TWO_WORKERS, size_factor=3.0, overlap_px=60))
    whole = WCS(run.header, naxis=2)
    tiles = sorted(run.paths.tiles.glob("tile_*.fits"))
    assert len(tiles) > 4
    for path in tiles:
        header, image = read_image(path, 0)
        y0, x0, (ny, nx) = header["Y0"], header["X0"], image.shape[1:]
        np.testing.assert_array_equal(image, reference.mosaic[:, y0 : y0 + ny, x0 : x0 + nx])
        np.testing.assert_array_equal(
            read_image(path, "COVERAGE")[1], reference.coverage[:, y0 : y0 + ny, x0 : x0 + nx]
        )
        sky = WCS(header, naxis=2).pixel_to_world(3.25, 7.5)
        x, y = whole.world_to_pixel(sky)
        assert (float(x), float(y)) == pytest.approx((x0 + 3.25, y0 + 7.5), abs=1e-6)


def test_the_header_says_what_a_coadd_should(colour):
    _, _, run = colour
    header = run.header
    assert header["CTYPE1"] == "RA---TAN"
    assert header["RADESYS"] == "ICRS"
    assert header["NCOMBINE"] == header["STACKCNT"] == COLOUR.count
    assert header["EXPTIME"] == 10.0
    assert header["LIVETIME"] == header["TOTALEXP"] == 10.0 * COLOUR.count
    assert header["DATE-BEG"] == header["DATE-OBS"] < header["DATE-END"]
    assert header["EXPSTART"] < header["EXPEND"]
    assert header["COMBINET"] == "KAPPA_SIGMA+MEAN"
    assert header["RESAMPT1"] == "LANCZOS3"
    for key in ("SOFTNAME", "SOFTVERS", "SOFTDATE", "BUNIT", "ROWORDER", "SATURATE", "CFGDIGST", "FILTER"):
        assert key in header
    assert "HISTORY" in header
    for private in ("TELESCOP", "SITELAT", "SITELONG"):
        assert private not in header
    with fits.open(run.paths.mosaic) as hdus:
        table = hdus["INPUTS"].data
        assert sorted(table["FRAME_ID"]) == sorted(row["frame_id"] for row in run.ledger)
        assert table["GAIN"].shape == (COLOUR.count, 3)


def test_the_ledger_and_the_report_account_for_every_frame(colour):
    _, _, run = colour
    rows = run.ledger
    assert len(rows) == COLOUR.count
    assert {row["used"] for row in rows} == {"yes"}
    for row in rows:
        assert 0 <= float(row["rejected_fraction"]) < 0.1
        assert int(row["n_tiles"]) >= 1
        assert float(row["weight_g"]) > 0
    report = json.loads(run.paths.report.read_text(encoding="utf-8"))
    assert report["frames"] == {"planned": COLOUR.count, "used": COLOUR.count}
    phases = {"plan", "canvas", "measure", "refine", "flat", "match", "stack", "assemble"}
    assert set(report["seconds"]) == phases
    assert report["peak_memory_bytes"]["worker"] > 10**7
    assert report["settings"]["kernel"] == "lanczos3"
    assert {"zemosaic", "python", "numpy", "astropy"} <= set(report["software"])


def test_events_tell_the_run_and_end_once(colour):
    _, _, run = colour
    assert isinstance(run.events[0], RunStarted) or any(isinstance(e, RunStarted) for e in run.events)
    finished = [e for e in run.events if isinstance(e, RunFinished)]
    assert [e.reason for e in finished] == [FinishReason.COMPLETE]
    assert run.events[-1] is finished[0]
    phases = [e.phase for e in run.events if isinstance(e, PhaseProgress)]
    assert list(dict.fromkeys(phases)) == GRID_PHASES
    last = {e.phase: e for e in run.events if isinstance(e, PhaseProgress)}
    assert all(e.done == e.total for e in last.values())
    assert len([e for e in run.events if isinstance(e, TileDone)]) == last["stack"].total


def test_the_preview_is_transparent_where_there_is_no_data(colour):
    from PIL import Image

    _, _, run = colour
    with Image.open(run.paths.preview) as picture:
        rgba = np.asarray(picture)
    covered = (run.coverage > 0).any(axis=0)[::-1]
    np.testing.assert_array_equal(rgba[..., 3] > 0, covered)
    assert 10 < np.median(rgba[..., :3][covered]) < 80


def test_the_16_bit_version_keeps_the_scale(colour, tmp_path):
    _, frames, reference = colour
    run = Run(frames, tmp_path / "out", replace(TWO_WORKERS, save_uint16=True))
    with fits.open(run.paths.viewer, checksum=True) as hdus:
        viewer = hdus[0].data
    assert viewer.dtype == np.uint16
    expected = np.clip(np.rint(np.nan_to_num(reference.mosaic)), 0, 65535)
    np.testing.assert_array_equal(viewer, expected)


def test_the_library_call_with_its_defaults_gives_the_same_mosaic(colour, tmp_path):
    _, frames, reference = colour
    told = []
    result = run_grid_mode(
        frames, tmp_path / "out", lambda text, progress, level: told.append((text, progress, level))
    )
    np.testing.assert_array_equal(read_image(result.mosaic_path, 0)[1], reference.mosaic)
    assert any(progress is not None for _, progress, _ in told)
    assert {level for *_, level in told} <= {"DEBUG", "INFO", "WARNING", "ERROR"}
    log = (tmp_path / "out" / "zemosaic.log").read_text(encoding="utf-8")
    assert "[GRID] workers=1\n" in log
    assert "[GRID] GPU requested = False" in log


def test_radial_weights_are_independent_of_the_tiles_and_favour_the_centres(colour, tmp_path):
    from zemosaic_frame_source import RadialWeight

    _, frames, reference = colour
    settings = replace(TWO_WORKERS, radial=RadialWeight())
    first = Run(frames, tmp_path / "a", settings)
    second = Run(frames, tmp_path / "b", replace(settings, size_factor=3.0, chunk_ram_mb=2))
    np.testing.assert_array_equal(first.mosaic, second.mosaic)
    np.testing.assert_array_equal(first.coverage > 0, reference.coverage > 0)
    covered = reference.coverage > 0
    share = first.weight[covered] / reference.weight[covered]
    assert share.min() < 0.5
    assert share.max() <= 1.0 + 1e-6


def test_frames_end_softly_and_cover_the_same_pixels(colour, tmp_path):
    """Without a feather an edge is a step of a frame's whole weight; with one, neighbours differ little."""
    _, frames, _ = colour
    settings = replace(TWO_WORKERS, params=StackParams(reject="none"))
    bare, soft = (
        Run(frames, tmp_path / str(px), replace(settings, feather_px=px, overwrite=True)) for px in (0, 24)
    )
    np.testing.assert_array_equal(bare.coverage, soft.coverage)
    inside = (bare.coverage[1, :, 1:] > 0) & (bare.coverage[1, :, :-1] > 0)
    of_a_frame = np.nanmax(bare.weight[1] / bare.coverage[1].clip(1))
    steps = [np.abs(np.diff(run.weight[1], axis=1))[inside].max() / of_a_frame for run in (bare, soft)]
    assert steps[0] > 0.7
    assert steps[1] < 0.2  # three edges at once


def test_colour_equalisation_brings_the_three_skies_to_one_level(colour, tmp_path):
    _, frames, reference = colour
    run = Run(frames, tmp_path / "out", replace(TWO_WORKERS, rgb_equalize=True))
    before = [np.nanmedian(plane) for plane in reference.mosaic]
    after = [np.nanmedian(plane) for plane in run.mosaic]
    assert np.ptp(before) > 100
    assert np.ptp(after) < 5


def test_settings_come_from_the_configuration():
    from zemosaic_config import resolve

    config = resolve({}, {}, {"grid_workers": 3, "stacking_winsor_limits": "0.1,0.2", "apply_radial_weight": True})
    settings = GridSettings.from_config(config)
    assert settings.workers == 3
    assert settings.params.winsor_limits == (0.1, 0.2)
    assert settings.radial.feather == 0.8
    assert GridSettings.from_config(resolve({}, {}, {})) == GridSettings(workers=0)

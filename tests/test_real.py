"""Real Seestar frames of M 94: level mosaics of the galaxy, from files with and without a WCS of their own."""

import shutil

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.stats import sigma_clipped_stats

from surveys import Run
from zemosaic_events import TilesPlanned
from zemosaic_fits_products import read_product_wcs
from zemosaic_survey import SurveySettings, run_survey

pytestmark = pytest.mark.real

M94 = SkyCoord(192.7214, 41.1206, unit="deg")


@pytest.fixture(scope="module")
def panels(real_data, tmp_path_factory):
    return Run(real_data / "panels_m94", tmp_path_factory.mktemp("panels"))


@pytest.fixture(scope="module")
def whole(real_data, tmp_path_factory):
    return Run(real_data / "m94", tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", ["panels", "whole"])
def test_every_frame_is_used_and_the_galaxy_is_where_it_is(name, request):
    run = request.getfixturevalue(name)
    assert run.result.complete
    green = run.mosaic[1]
    x, y = read_product_wcs(run.paths.mosaic).world_to_pixel(M94)
    j, i = round(float(y)), round(float(x))
    around = green[j - 60 : j + 61, i - 60 : i + 61]
    peak = np.unravel_index(np.nanargmax(around), around.shape)
    assert np.hypot(peak[0] - 60, peak[1] - 60) < 3


def steps_at_edges(run, *, near=8, far=48, away_px=260):
    """Steps of the sky across every edge of every frame inside the mosaic, in sigma of a pixel there.

    Strips on both sides of an edge are compared, stars clipped, the galaxy and its halo left out.
    """
    planes, depth = run.mosaic, run.coverage.min(axis=0)
    gx, gy = read_product_wcs(run.paths.mosaic).world_to_pixel(M94)
    steps = []
    for row in run.ledger:
        corners = np.array(row["outline"].split(), dtype=float).reshape(4, 2)
        for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            length = np.hypot(*(end - start))
            along, across = (end - start) / length, np.array([start[1] - end[1], end[0] - start[0]]) / length
            t = np.arange(30.0, length - 30.0)[:, None, None]
            distance = np.arange(near, far)[None, :, None]
            inside, outside = (
                np.rint(start + t * along + sign * distance * across).astype(int) for sign in (1.0, -1.0)
            )
            both = np.ones(t.size, dtype=bool)
            for places in (inside, outside):
                x, y = places[..., 0], places[..., 1]
                within = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
                covered = within & (depth[np.where(within, y, 0), np.where(within, x, 0)] > 0)
                both &= covered.all(axis=1) & (np.hypot(x - gx, y - gy) > away_px).all(axis=1)
            if both.sum() < 150:
                continue
            for channel, plane in enumerate(planes):
                clipped = [sigma_clipped_stats(plane[p[both][..., 1], p[both][..., 0]]) for p in (inside, outside)]
                sigma = np.mean([c[2] for c in clipped])
                steps.append((row["path"][-12:], channel, (clipped[0][1] - clipped[1][1]) / sigma))
    return steps


def test_no_edge_of_a_panel_shows(panels):
    """The sky of the panels differs by 250 ADU; across no edge of a frame is a step left."""
    assert max(float(r["sky_g"]) for r in panels.ledger) - min(float(r["sky_g"]) for r in panels.ledger) > 200
    steps = steps_at_edges(panels)
    assert len(steps) >= 3 * 12
    for name, channel, step in steps:
        assert abs(step) < 0.15, f"{name}, channel {channel}: {step:+.3f} sigma"


def test_sessions_of_different_nights_come_out_level(whole):
    skies = np.array([float(row["gain_g"]) * float(row["sky_g"]) + float(row["offset_g"]) for row in whole.ledger])
    noise = np.array([float(row["noise_g"]) for row in whole.ledger])
    assert np.ptp(skies) < 0.25 * noise.mean()


def test_the_cosmic_ray_track_of_one_frame_is_not_in_the_mosaic(whole):
    """Frame ...212607 has a track of peak 37210 at (511, 508); its neighbours have not."""
    from astropy.io import fits
    from astropy.wcs import WCS

    name = next(row["path"] for row in whole.ledger if "212607" in row["path"])
    sidecar = name.replace(".fit", ".wcs.hdr")
    sky = WCS(fits.Header.fromtextfile(sidecar)).pixel_to_world(511, 508)
    x, y = read_product_wcs(whole.paths.mosaic).world_to_pixel(sky)
    around = whole.mosaic[:, round(float(y)) - 6 : round(float(y)) + 7, round(float(x)) - 6 : round(float(x)) + 7]
    assert np.isfinite(around).all()
    _, sky_level, sigma = sigma_clipped_stats(whole.mosaic[1][np.isfinite(whole.mosaic[1])][::97])
    assert np.nanmax(around[1]) < sky_level + 8 * sigma


def test_raw_frames_are_left_as_they_are(whole, real_data, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(real_data / "panels_m94", folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    Run(folder, tmp_path / "out")
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert before == after


@pytest.mark.parametrize("name", ["panels", "whole"])
def test_a_survey_foretells_the_canvas_and_the_tiles(name, request, tmp_path, real_data):
    run = request.getfixturevalue(name)
    planned = next(event for event in run.events if isinstance(event, TilesPlanned))
    folder = real_data / {"panels": "panels_m94", "whole": "m94"}[name]
    done = run_survey(folder, tmp_path / "out", SurveySettings(grid_mode=True))
    assert (done.shape, done.tiles) == (planned.shape, planned.tiles)
    assert done.n_usable == run.result.n_used

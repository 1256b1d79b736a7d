"""Real Seestar frames of M 94: level mosaics of the galaxy, from files with and without a WCS of their own."""

import shutil

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.stats import sigma_clipped_stats

from surveys import Run
from zemosaic_fits_products import read_product_wcs

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


def level(plane, rows, columns):
    """Clipped median of a strip and its standard error."""
    values = plane[rows, columns]
    _, median, sigma = sigma_clipped_stats(values[np.isfinite(values)], sigma=3)
    return median, 1.25 * sigma / np.sqrt(values.size), sigma


def test_panels_of_different_skies_come_out_level(panels):
    """The sky of the panels differs by 250 ADU; across the edges of the overlaps no step is left."""
    assert max(float(r["sky_g"]) for r in panels.ledger) - min(float(r["sky_g"]) for r in panels.ledger) > 200
    depth = panels.coverage.max(axis=0)
    for channel, plane in enumerate(panels.mosaic):
        for rows in (slice(150, 500), slice(1300, 1750)):
            edge = int(np.flatnonzero(np.diff((depth[rows] > 4).mean(axis=0) > 0.5))[0])
            left, _, sigma = level(plane, rows, slice(edge - 60, edge - 8))
            right, _, _ = level(plane, rows, slice(edge + 8, edge + 60))
            assert abs(left - right) < 0.15 * sigma, f"channel {channel} at column {edge}"


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

"""Canvas, footprints, pixel maps and resampling, against astropy, reproject and slow loops."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS, Sip
from astropy.wcs.utils import pixel_to_pixel
from reproject import reproject_interp

import references
from zemosaic_preprocess import bayer_colours, demosaic
from zemosaic_reproject import (
    KERNEL_REACH_PX,
    LEAST_FEATHER,
    MAP_TOLERANCE_PX,
    SAMPLE_NOISE,
    Canvas,
    Lattice,
    feather,
    frame_positions,
    lattice,
    optimal_canvas,
    place,
    place_roughly,
    resample,
    section_for,
    sky_outline,
)
from zemosaic_resample_kernels import FRACTIONS
from zemosaic_types import FrameError, Rect

SHAPE = (400, 300)


def frame_wcs(angle=15.0, *, crval=(192.0, 41.0), kind="TAN", scale=2.4, mirrored=False, frame="ICRS", sip=0.0):
    wcs = WCS(naxis=2)
    suffix = f"{kind}-SIP" if sip else kind
    lon, lat = {"GAL": ("GLON", "GLAT")}.get(frame, ("RA--", "DEC-"))
    wcs.wcs.ctype = [f"{lon}-{suffix}", f"{lat}-{suffix}"]
    wcs.wcs.crval = crval
    wcs.wcs.crpix = [SHAPE[1] / 2 + 0.5, SHAPE[0] / 2 + 0.5]
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    flip = 1 if mirrored else -1
    wcs.wcs.cd = np.array([[flip * c, -s], [flip * s, c]]) * scale / 3600
    if frame in ("FK5", "FK4"):
        wcs.wcs.radesys = frame
        wcs.wcs.equinox = {"FK5": 2000.0, "FK4": 1950.0}[frame]
    if sip:
        a, b = np.zeros((4, 4)), np.zeros((4, 4))
        a[2, 0], a[0, 2], a[3, 0] = 3e-5 * sip, -2e-5 * sip, 4e-8 * sip
        b[1, 1], b[0, 2], b[0, 3] = 2.5e-5 * sip, 1e-5 * sip, -3e-8 * sip
        wcs.sip = Sip(a, b, None, None, wcs.wcs.crpix)
    wcs.wcs.set()
    return wcs


KINDS = {
    "tan": {},
    "mirrored": {"mirrored": True},
    "sip": {"sip": 1.0},
    "strong sip": {"sip": 5.0},
    "fk5": {"frame": "FK5"},
    "fk4": {"frame": "FK4"},
    "galactic": {"frame": "GAL", "crval": (120.0, 76.0)},
    "sin": {"kind": "SIN"},
    "zea": {"kind": "ZEA"},
    "car": {"kind": "CAR", "crval": (192.0, 0.0)},
    "pole": {"crval": (37.0, 89.95)},
    "ra zero": {"crval": (0.02, -12.0)},
    "coarse": {"scale": 5.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixel_map_is_within_its_tolerance_everywhere(kind):
    wcs = frame_wcs(**KINDS[kind])
    canvas = optimal_canvas([(SHAPE, wcs)])
    placement = place(wcs, SHAPE, canvas)
    grid = lattice(wcs, canvas, placement.bounds, placement.step)
    area = placement.bounds.intersect(canvas.rect)
    x, y = frame_positions(grid, area)
    cy, cx = np.mgrid[area.y0 : area.y1 : 7, area.x0 : area.x1 : 5]
    ex, ey = pixel_to_pixel(canvas.wcs(), wcs, cx, cy)
    inside = (ex > -0.5) & (ex < SHAPE[1] - 0.5) & (ey > -0.5) & (ey < SHAPE[0] - 0.5)
    assert inside.sum() > 1000
    error = np.hypot(x[::7, ::5] - ex, y[::7, ::5] - ey)[inside]
    assert error.max() < MAP_TOLERANCE_PX


def test_a_wcs_that_bends_gets_a_finer_lattice():
    steps = []
    for sip in (0.0, 1.0, 5.0):
        wcs = frame_wcs(sip=sip)
        steps.append(place(wcs, SHAPE, optimal_canvas([(SHAPE, wcs)])).step)
    assert steps[0] == 64
    assert steps == sorted(steps, reverse=True)
    assert steps[2] < 64


@pytest.mark.parametrize("orientation", ["north_up", "auto"])
@pytest.mark.parametrize("kind", ["tan", "sip", "pole", "ra zero", "galactic"])
def test_the_canvas_holds_every_pixel_of_every_frame(kind, orientation):
    frames = [(SHAPE, frame_wcs(angle, **KINDS[kind])) for angle in (0.0, 30.0, 200.0)]
    canvas = optimal_canvas(frames, orientation=orientation)
    ny, nx = SHAPE
    edge = np.linspace(-0.5, 1, 400)
    for _, wcs in frames:
        x = np.concatenate([edge * nx, edge * nx, np.full(400, -0.5), np.full(400, nx - 0.5)])
        y = np.concatenate([np.full(400, -0.5), np.full(400, ny - 0.5), edge * ny, edge * ny])
        x, y = np.clip(x, -0.5, nx - 0.5), np.clip(y, -0.5, ny - 0.5)
        cx, cy = pixel_to_pixel(wcs, canvas.wcs(), x, y)
        assert cx.min() >= -0.6
        assert cy.min() >= -0.6
        assert cx.max() <= canvas.shape[1] - 0.4
        assert cy.max() <= canvas.shape[0] - 0.4


def test_the_canvas_is_north_up_at_the_median_scale():
    frames = [(SHAPE, frame_wcs(20, scale=scale)) for scale in (2.0, 2.4, 5.0)]
    canvas = optimal_canvas(frames)
    assert canvas.scale_deg * 3600 == pytest.approx(2.4, rel=1e-6)
    assert canvas.angle_deg == 0.0
    wcs = canvas.wcs()
    centre = wcs.pixel_to_world(canvas.shape[1] / 2, canvas.shape[0] / 2)
    above = wcs.pixel_to_world(canvas.shape[1] / 2, canvas.shape[0] / 2 + 10)
    beside = wcs.pixel_to_world(canvas.shape[1] / 2 + 10, canvas.shape[0] / 2)
    assert abs(centre.position_angle(above).wrap_at("180d").deg) < 0.5
    assert centre.position_angle(beside).deg == pytest.approx(270, abs=0.5)


def test_the_auto_canvas_is_smaller_than_the_north_up_one():
    frames = [(SHAPE, frame_wcs(33.0))]
    upright, auto = optimal_canvas(frames), optimal_canvas(frames, orientation="auto")
    assert np.prod(auto.shape) < 0.75 * np.prod(upright.shape)
    assert np.prod(auto.shape) == pytest.approx(np.prod(SHAPE), rel=0.03)


def test_a_window_of_the_canvas_is_on_the_same_pixel_grid():
    canvas = optimal_canvas([(SHAPE, frame_wcs())], orientation="auto")
    rect = Rect(30, 90, 11, 200)
    here = canvas.wcs().pixel_to_world(50, 60)
    there = canvas.window(rect).wcs().pixel_to_world(50 - rect.x0, 60 - rect.y0)
    assert here.separation(there).arcsec < 1e-6
    assert canvas.window(rect).shape == rect.shape


@pytest.mark.parametrize("far", [(12.0, -41.0), (192.0, -60.0), (12.0, 41.0)])
def test_a_frame_on_the_other_side_of_the_sky_has_no_place(far):
    canvas = optimal_canvas([(SHAPE, frame_wcs())])
    with pytest.raises(FrameError, match="cannot be projected"):
        place(frame_wcs(crval=far), SHAPE, canvas)


def test_the_area_ratio_is_that_of_the_pixels():
    canvas = optimal_canvas([(SHAPE, frame_wcs(scale=2.4))])
    assert place(frame_wcs(scale=4.8), SHAPE, canvas).area_ratio == pytest.approx(0.25, rel=1e-3)


def setup_frame(kind="tan", seed=1, channels=1):
    wcs = frame_wcs(**KINDS[kind])
    canvas = optimal_canvas([(SHAPE, wcs)])
    placement = place(wcs, SHAPE, canvas)
    grid = lattice(wcs, canvas, placement.bounds, placement.step)
    planes = np.random.default_rng(seed).normal(100, 10, (channels, *SHAPE)).astype(np.float32)
    return wcs, canvas, grid, planes


WHOLE = Rect(0, SHAPE[0], 0, SHAPE[1])


def test_lanczos_agrees_with_a_slow_loop():
    _, canvas, grid, planes = setup_frame()
    out = resample(planes, WHOLE, SHAPE, grid, canvas.rect)
    x, y = frame_positions(grid, canvas.rect)
    well_inside = (x > 4) & (x < SHAPE[1] - 5) & (y > 4) & (y < SHAPE[0] - 5)
    rows, columns = np.nonzero(well_inside)
    for k in range(0, rows.size, 997):
        j, i = rows[k], columns[k]
        rounded = [np.floor(p[j, i] * FRACTIONS + 0.5) / FRACTIONS for p in (x, y)]
        assert out[0, j, i] == pytest.approx(references.lanczos3(planes[0], *rounded), rel=1e-6)
        # The rounding of positions is far below what the map may be off.
        exact = references.lanczos3(planes[0], x[j, i], y[j, i])
        assert abs(out[0, j, i] - exact) < 0.1 * MAP_TOLERANCE_PX * np.ptp(planes[0])


@pytest.mark.parametrize("kind", ["tan", "sip", "mirrored"])
def test_bilinear_agrees_with_reproject_and_covers_the_same_pixels(kind):
    wcs, canvas, grid, planes = setup_frame(kind)
    out = resample(planes, WHOLE, SHAPE, grid, canvas.rect, kernel="bilinear")
    reference, footprint = reproject_interp((planes[0], wcs), canvas.wcs(), shape_out=canvas.shape)
    assert np.array_equal(np.isfinite(out[0]), footprint > 0)
    # A map that is 0.002 px off moves a pixel of 10 sigma-noise by a few hundredths.
    np.testing.assert_allclose(out[0], reference, atol=0.2 if kind == "sip" else 1e-3)


@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
@pytest.mark.parametrize("kind", ["tan", "sip"])
def test_the_division_into_rectangles_and_sections_leaves_no_trace(kernel, kind):
    _, canvas, grid, planes = setup_frame(kind, channels=3)
    whole = resample(planes, WHOLE, SHAPE, grid, canvas.rect, kernel=kernel)
    rng = np.random.default_rng(7)
    rows = np.sort(rng.choice(np.arange(1, canvas.shape[0]), 6, replace=False)).tolist()
    columns = np.sort(rng.choice(np.arange(1, canvas.shape[1]), 3, replace=False)).tolist()
    patched = np.zeros_like(whole)
    for y0, y1 in zip([0, *rows], [*rows, canvas.shape[0]], strict=True):
        for x0, x1 in zip([0, *columns], [*columns, canvas.shape[1]], strict=True):
            rect = Rect(y0, y1, x0, x1)
            section = section_for(grid, rect, SHAPE, KERNEL_REACH_PX[kernel])
            cut = np.ascontiguousarray(planes[(slice(None), *section.slices)])
            if section.empty:
                patched[(slice(None), *rect.slices)] = np.nan
            else:
                patched[(slice(None), *rect.slices)] = resample(cut, section, SHAPE, grid, rect, kernel=kernel)
    np.testing.assert_array_equal(patched, whole)


@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
def test_holes_stay_as_small_as_the_pixels_that_are_missing(kernel):
    _, canvas, grid, planes = setup_frame()
    planes[0, 150:160, 100:110] = np.nan
    out = resample(planes, WHOLE, SHAPE, grid, canvas.rect, kernel=kernel)[0]
    x, y = frame_positions(grid, canvas.rect)
    inside = (x >= -0.5) & (x < SHAPE[1] - 0.5) & (y >= -0.5) & (y < SHAPE[0] - 0.5)
    hole = (np.abs(x - 104.5) < 5) & (np.abs(y - 154.5) < 5)
    assert np.array_equal(np.isnan(out), ~inside | hole)
    assert np.nanmin(out) > 0
    assert np.nanmax(out) < 200


@pytest.mark.parametrize("kernel", ["lanczos3", "bilinear"])
def test_a_constant_frame_stays_constant_up_to_its_edges(kernel):
    _, canvas, grid, planes = setup_frame()
    planes[:] = 321.0
    planes[0, 50:53, 60:70] = np.nan
    out = resample(planes, WHOLE, SHAPE, grid, canvas.rect, kernel=kernel)
    np.testing.assert_allclose(out[np.isfinite(out)], 321.0, rtol=1e-6)


@pytest.mark.parametrize("fwhm", [2.0, 2.8, 4.0])
def test_lanczos_keeps_fluxes_and_positions_of_stars(fwhm):
    wcs, canvas, grid, planes = setup_frame()
    rng = np.random.default_rng(11)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    planes[:] = 100.0
    centres = [
        (cx + rng.uniform(-0.5, 0.5), cy + rng.uniform(-0.5, 0.5))
        for cx in range(40, 270, 40)
        for cy in range(40, 370, 40)
    ]
    for cx, cy in centres:
        planes[0] += 5000 * np.exp(-4 * np.log(2) * ((x - cx) ** 2 + (y - cy) ** 2) / fwhm**2).astype(np.float32)
    out = resample(planes, WHOLE, SHAPE, grid, canvas.rect)[0] - 100.0
    ratios, offsets = [], []
    for cx, cy in centres:
        sx, sy = pixel_to_pixel(wcs, canvas.wcs(), cx, cy)
        i, j = round(float(sx)), round(float(sy))
        before = planes[0, round(cy) - 12 : round(cy) + 13, round(cx) - 12 : round(cx) + 13].astype(float) - 100
        after = out[j - 12 : j + 13, i - 12 : i + 13].astype(float)
        ratios.append(after.sum() / before.sum())
        row, column = np.mgrid[j - 12 : j + 13, i - 12 : i + 13]
        offsets.append(((column * after).sum() / after.sum() - sx, (row * after).sum() / after.sum() - sy))
    bound = {2.0: 0.006, 2.8: 0.001, 4.0: 0.001}[fwhm]
    assert abs(np.mean(ratios) - 1) < bound
    assert np.sqrt(np.mean(np.square(offsets))) < 0.01


def test_a_hot_pixel_throws_no_dark_ring():
    _, canvas, grid, planes = setup_frame()
    planes[:] = 100.0
    planes[0, 200, 150] = 10000.0
    out = resample(planes, WHOLE, SHAPE, grid, canvas.rect)
    assert np.nanmin(out) > 99.0


@pytest.mark.parametrize("key", SAMPLE_NOISE)
def test_the_noise_of_samples_is_the_one_stated(key):
    kernel, layout = key
    rng = np.random.default_rng(5)
    found = []
    for angle in np.linspace(3, 86, 8):
        raw = rng.normal(0, 1, (400, 400)).astype(np.float32)
        planes = demosaic(raw, bayer_colours("GRBG")) if layout == "bayer" else np.stack([raw] * 3)
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        y, x = np.mgrid[0:513:64, 0:513:64] - 200.0
        nodes = np.stack([200 + c * x + s * y, 200 - s * x + c * y]) + rng.uniform(0, 1, (2, 1, 1))
        out = resample(
            planes,
            Rect(0, 400, 0, 400),
            (400, 400),
            Lattice(nodes, 0, 0, 64),
            Rect(110, 290, 110, 290),
            kernel=kernel,
        )
        found.append(out.std(axis=(1, 2)))
    assert np.mean(found, axis=0) == pytest.approx(SAMPLE_NOISE[key], rel=0.015)


@pytest.mark.parametrize("width", [1.0, 12.0, 500.0])
def test_the_feather_rises_from_the_edge_of_the_frame_as_it_says(width):
    _, canvas, grid, _ = setup_frame()
    weight = np.full(canvas.shape, 2.0, dtype=np.float32)
    feather(grid, canvas.rect, SHAPE, width, weight)
    x, y = frame_positions(grid, canvas.rect)
    distance = np.minimum.reduce([x + 0.5, SHAPE[1] - 0.5 - x, y + 0.5, SHAPE[0] - 0.5 - y])
    s = np.clip(distance / width, 0.0, 1.0)
    expected = 2.0 * np.where(s < 1, np.maximum(3 * s**2 - 2 * s**3, LEAST_FEATHER), 1.0)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
    part = Rect(40, 90, 30, 110)
    alone = np.full(part.shape, 2.0, dtype=np.float32)
    feather(grid, part, SHAPE, width, alone)
    np.testing.assert_array_equal(alone, weight[part.slices])


def test_unknown_kernels_are_named():
    _, canvas, grid, planes = setup_frame()
    with pytest.raises(ValueError, match="nearest"):
        resample(planes, WHOLE, SHAPE, grid, canvas.rect, kernel="nearest")


def test_sky_positions_survive_the_way_from_a_frame_to_the_canvas():
    wcs, canvas = frame_wcs(frame="FK5", sip=1.0), optimal_canvas([(SHAPE, frame_wcs())])
    sky = wcs.pixel_to_world(100, 200).icrs
    x, y = pixel_to_pixel(wcs, canvas.wcs(), 100, 200)
    assert sky.separation(SkyCoord(canvas.wcs().pixel_to_world(x, y))).arcsec < 1e-5


@pytest.mark.parametrize("system", ["ICRS", "FK5"])
def test_the_outline_of_a_frame_on_the_sky_is_that_of_its_canvas(system):
    canvas = Canvas((123.0, 45.0), (100.5, 80.5), 0.001, 30.0, (160, 200))
    wcs = canvas.wcs().deepcopy()
    if system == "FK5":
        wcs.wcs.radesys, wcs.wcs.equinox = "FK5", 2000.0
    corners = np.array(sky_outline(wcs, (160, 200)))
    np.testing.assert_allclose(corners, canvas.corners_deg(canvas.rect), atol=1e-4)


def test_a_frame_that_reaches_off_the_sky_has_no_outline():
    wcs = Canvas((0.0, 0.0), (1.0, 1.0), 1.0, 0.0, (4, 4)).wcs().deepcopy()
    wcs.wcs.ctype = ["RA---SIN", "DEC--SIN"]
    assert sky_outline(wcs, (400, 400)) == ()
    assert len(sky_outline(wcs, (4, 4))) == 4


def test_a_rough_place_is_the_place_without_its_lattice():
    canvas = Canvas((123.0, 45.0), (500.5, 480.5), 0.001, 10.0, (960, 1000))
    wcs = Canvas((123.1, 45.1), (100.5, 80.5), 0.0011, -20.0, (160, 200)).wcs()
    exact, rough = (find(wcs, (160, 200), canvas) for find in (place, place_roughly))
    assert rough == replace(exact, step=0)

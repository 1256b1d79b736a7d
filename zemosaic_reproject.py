"""Where frames lie on the canvas, and how their pixels get there.

The canvas is one TAN image for the whole run. A frame's pixel map is exact at the nodes of a lattice that is
anchored to the canvas, and interpolated between them; the spacing is the widest one whose error at the
midpoints stays below `MAP_TOLERANCE_PX`, chosen for each frame as a whole. Pixels are 0-based, centres at
integers, x along the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import astropy.units as u
import numpy as np
import shapely
from astropy.coordinates import ICRS, SkyCoord
from astropy.wcs import WCS

import zemosaic_resample_kernels as kernels
from zemosaic_sky_systems import from_icrs, to_icrs
from zemosaic_types import FrameError, Rect

MAP_TOLERANCE_PX = 0.002

_STEPS = (64, 32, 16, 8, 4)
_EDGE_SAMPLES = 16
_ZENITHAL = ("TAN", "TPV", "SIN", "STG", "ARC", "ZPN", "ZEA")

#: Pixels around a position that a kernel reads; Lanczos-3 looks at 3 and reads in vectors of eight.
KERNEL_REACH_PX = {"lanczos3": 5, "bilinear": 1}

#: Smallest weight that the feather of an edge leaves: data are data, wherever they are.
LEAST_FEATHER = 0.01

#: Noise of a canvas sample over that of an original pixel of its colour (red, green, blue), for white noise,
#: averaged over positions; a mono frame, and one that was demosaiced first. Measured; a test repeats it.
SAMPLE_NOISE = {
    ("lanczos3", "mono"): (0.889, 0.889, 0.889),
    ("lanczos3", "bayer"): (0.954, 0.846, 0.954),
    ("bilinear", "mono"): (0.668, 0.668, 0.668),
    ("bilinear", "bayer"): (0.791, 0.684, 0.791),
}


@dataclass(frozen=True, slots=True)
class Canvas:
    """The output image: a TAN projection in ICRS with square pixels.

    `crval_deg` and `crpix` (1-based, FITS) are (x, y) pairs; `angle_deg` turns the axes away from north up,
    east left.
    """

    crval_deg: tuple[float, float]
    crpix: tuple[float, float]
    scale_deg: float
    angle_deg: float
    shape: tuple[int, int]

    @property
    def rect(self) -> Rect:
        """All pixels of the canvas."""
        return Rect(0, self.shape[0], 0, self.shape[1])

    def window(self, rect: Rect) -> Canvas:
        """Return the part of the canvas that `rect` cuts out, on the same pixel grid."""
        crpix = self.crpix[0] - rect.x0, self.crpix[1] - rect.y0
        return replace(self, crpix=crpix, shape=rect.shape)

    def corners_deg(self, rect: Rect) -> tuple[tuple[float, float], ...]:
        """Return the outer corners of a rectangle of pixels, (right ascension, declination) ICRS, in order."""
        x = np.array([rect.x0, rect.x1, rect.x1, rect.x0]) - 0.5
        y = np.array([rect.y0, rect.y0, rect.y1, rect.y1]) - 0.5
        sky = self.wcs().pixel_to_world_values(x, y)
        return tuple(zip(*(axis.tolist() for axis in sky), strict=True))

    def wcs(self) -> WCS:
        """Return the celestial WCS."""
        return _canvas_wcs(self)


@lru_cache(maxsize=256)
def _canvas_wcs(canvas: Canvas) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = canvas.crval_deg
    wcs.wcs.crpix = canvas.crpix
    wcs.wcs.cdelt = [-canvas.scale_deg, canvas.scale_deg]
    angle = np.deg2rad(canvas.angle_deg)
    wcs.wcs.pc = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    wcs.array_shape = canvas.shape
    return wcs


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a frame lies on the canvas.

    Attributes
    ----------
    bounds : Rect
        Canvas pixels that the frame may touch; it can reach beyond the canvas.
    step : int
        Spacing of the frame's lattice.
    area_ratio : float
        Sky area of a canvas pixel over that of a frame pixel, at the frame's centre: what a frame's values are
        multiplied with so that the flux of a star is the same on both.
    polygon : tuple of (x, y)
        The frame's outline, sampled along its edges.
    """

    bounds: Rect
    step: int
    area_ratio: float
    polygon: tuple[tuple[float, float], ...]

    @property
    def centre(self) -> np.ndarray:
        """Return the middle of the outline, (x, y)."""
        return np.mean(self.polygon, axis=0)


def footprints(placements: Sequence[Placement]) -> np.ndarray:
    """Return the outlines of frames as an array (n,) of shapely polygons."""
    sizes = [len(placement.polygon) for placement in placements]
    corners = np.array([corner for placement in placements for corner in placement.polygon]).reshape(-1, 2)
    return shapely.polygons(shapely.linearrings(corners, indices=np.repeat(np.arange(len(sizes)), sizes)))


@dataclass(frozen=True)
class Lattice:
    """The pixel map of a frame at the nodes of the canvas's lattice.

    `nodes` has shape (2, my, mx): x and y in the frame, float64, NaN off the sky. Node (0, 0) is canvas pixel
    ``(row, column)``.
    """

    nodes: np.ndarray
    row: int
    column: int
    step: int

    @property
    def origin(self) -> tuple[int, int, int]:
        """Row, column and step, as the kernels want them."""
        return self.row, self.column, self.step


def optimal_canvas(frames: list[tuple[tuple[int, int], WCS]], *, orientation: str = "north_up") -> Canvas:
    """Return the canvas that holds all frames at their median pixel scale.

    Parameters
    ----------
    frames : list of (shape, WCS)
        ``(ny, nx)`` and celestial WCS of each frame, in frame order.
    orientation : str
        ``"north_up"``, or ``"auto"`` for the rotation that needs the smallest rectangle.
    """
    scale = float(np.median([pixel_scale_deg(wcs) for _, wcs in frames]))
    centre = _mean_position(frames)
    angle = _tightest_angle_deg(frames, centre, scale) if orientation == "auto" else 0.0
    return canvas_around(frames, (float(centre.ra.deg), float(centre.dec.deg)), scale, angle)


def canvas_around(
    frames: list[tuple[tuple[int, int], WCS]], centre_deg: tuple[float, float], scale_deg: float, angle_deg: float
) -> Canvas:
    """Return the canvas that holds all frames, tangent to the sky at a place (ICRS).

    Parameters
    ----------
    frames : list of (shape, WCS)
    centre_deg : tuple of float
    scale_deg, angle_deg : float
        See `Canvas`.

    Raises
    ------
    FrameError
        If a frame cannot be projected.
    """
    draft = Canvas(centre_deg, (1.0, 1.0), scale_deg, angle_deg, (1, 1))
    outlines = [np.array(footprint(frame_wcs, shape, draft)) for shape, frame_wcs in frames]
    low = np.floor(np.min([outline.min(axis=0) for outline in outlines], axis=0)).astype(int)
    high = np.ceil(np.max([outline.max(axis=0) for outline in outlines], axis=0)).astype(int)
    return draft.window(Rect(int(low[1]), int(high[1]) + 1, int(low[0]), int(high[0]) + 1))


def centre_icrs(wcs: WCS, shape: tuple[int, int]) -> tuple[float, float]:
    """Return right ascension and declination of a frame's centre in ICRS, degrees; NaN off the sky."""
    lon, lat = wcs.all_pix2world(0.5 * (shape[1] - 1), 0.5 * (shape[0] - 1), 0)
    if not np.isfinite([lon, lat]).all():
        return float("nan"), float("nan")
    lon, lat = to_icrs(wcs, np.atleast_1d(lon), np.atleast_1d(lat))
    return float(lon[0]), float(lat[0])


def sky_outline(wcs: WCS, shape: tuple[int, int]) -> tuple[tuple[float, float], ...]:
    """Return the outer corners of a frame, (right ascension, declination) ICRS in degrees; empty off the sky."""
    ny, nx = shape
    x, y = np.array([0.0, nx, nx, 0.0]) - 0.5, np.array([0.0, 0.0, ny, ny]) - 0.5
    ra, dec = frame_to_icrs(wcs, x, y)
    if not np.isfinite([ra, dec]).all():
        return ()
    return tuple(zip(ra.tolist(), dec.tolist(), strict=True))


def _tightest_angle_deg(frames: list[tuple[tuple[int, int], WCS]], centre: SkyCoord, scale: float) -> float:
    """Return the rotation of the smallest rectangle that holds all frames."""
    # A second of imports, spared where nobody asks for it.
    from reproject.mosaicking import find_optimal_celestial_wcs

    wcs, _ = find_optimal_celestial_wcs(
        frames,
        frame=ICRS(),
        reference=centre,
        projection="TAN",
        resolution=scale * u.deg,
        auto_rotate=True,
        negative_lon_cdelt=True,
    )
    pc = wcs.wcs.get_pc()
    return float(np.rad2deg(np.arctan2(pc[1, 0], pc[0, 0])))


def _mean_position(frames: list[tuple[tuple[int, int], WCS]]) -> SkyCoord:
    centres = SkyCoord([centre_icrs(wcs, shape) for shape, wcs in frames], unit="deg", frame="icrs")
    return SkyCoord(centres.cartesian.mean(), frame="icrs")


def pixel_scale_deg(wcs: WCS) -> float:
    """Return the geometric mean pixel scale at the reference point, in degrees."""
    return float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))


def footprint(wcs: WCS, shape: tuple[int, int], canvas: Canvas) -> tuple[tuple[float, float], ...]:
    """Return the outline of a frame on the canvas, `_EDGE_SAMPLES` points an edge.

    Raises
    ------
    FrameError
        If a part of the outline cannot be projected onto the canvas.
    """
    ny, nx = shape
    t = np.arange(_EDGE_SAMPLES) / _EDGE_SAMPLES
    x = np.concatenate([t, np.ones_like(t), 1 - t, np.zeros_like(t)]) * nx - 0.5
    y = np.concatenate([np.zeros_like(t), t, np.ones_like(t), 1 - t]) * ny - 0.5
    cx, cy = frame_to_canvas(wcs, x, y, canvas)
    if not (np.isfinite(cx).all() and np.isfinite(cy).all()):
        raise FrameError("its footprint cannot be projected onto the mosaic")
    return tuple(zip(cx.tolist(), cy.tolist(), strict=True))


def frame_to_canvas(wcs: WCS, x: np.ndarray, y: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Return the canvas positions of frame positions, exact; NaN off the canvas's half of the sky."""
    return _world_to_pixel(canvas.wcs(), *frame_to_icrs(wcs, x, y))


def frame_to_icrs(wcs: WCS, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return right ascension and declination of frame positions in ICRS, degrees, exact; NaN off the sky."""
    return to_icrs(wcs, *wcs.all_pix2world(x, y, 0))


def canvas_to_frame(wcs: WCS, x: np.ndarray, y: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame positions of canvas positions, exact; NaN where the frame's WCS has none."""
    lon, lat = canvas.wcs().wcs_pix2world(x, y, 0)
    return _world_to_pixel(wcs, *from_icrs(wcs, lon, lat))


def place(wcs: WCS, shape: tuple[int, int], canvas: Canvas) -> Placement:
    """Return where a frame lies on the canvas, with the lattice spacing that its WCS needs.

    Raises
    ------
    FrameError
        If the frame cannot be projected, or its WCS bends too sharply for the finest lattice.
    """
    rough = place_roughly(wcs, shape, canvas)
    for step in _STEPS:
        if _midpoint_error(lattice(wcs, canvas, rough.bounds, step // 2)) < MAP_TOLERANCE_PX:
            return replace(rough, step=step)
    raise FrameError("its WCS is too strongly distorted to be interpolated")


def place_roughly(wcs: WCS, shape: tuple[int, int], canvas: Canvas) -> Placement:
    """Return where a frame lies on the canvas, without its lattice, whose `step` is 0; far cheaper than `place`.

    Raises
    ------
    FrameError
        If the frame cannot be projected.
    """
    polygon = footprint(wcs, shape, canvas)
    outline = np.array(polygon)
    x0, y0 = (int(v) - 2 for v in np.floor(outline.min(axis=0)))
    x1, y1 = (int(v) + 3 for v in np.ceil(outline.max(axis=0)))
    return Placement(Rect(y0, y1, x0, x1), 0, _area_ratio(outline, shape), polygon)


def _area_ratio(outline: np.ndarray, shape: tuple[int, int]) -> float:
    """Frame pixels per canvas pixel, from the area of the outline on the canvas."""
    x, y = outline.T
    area = 0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
    return shape[0] * shape[1] / area


def _midpoint_error(half: Lattice) -> float:
    """Return the largest error at the midpoints of a lattice of twice the step of `half`."""
    nodes = half.nodes
    # The wider lattice takes every second node; drop a last odd row or column, which has no neighbour.
    my, mx = (nodes.shape[1] - 1) // 2 * 2 + 1, (nodes.shape[2] - 1) // 2 * 2 + 1
    nodes = nodes[:, :my, :mx]
    even = nodes[:, ::2, ::2]
    rows = 0.5 * (even[:, :, 1:] + even[:, :, :-1]) - nodes[:, ::2, 1::2]
    columns = 0.5 * (even[:, 1:] + even[:, :-1]) - nodes[:, 1::2, ::2]
    centres = 0.5 * (rows[:, 1:] + rows[:, :-1] + nodes[:, 2::2, 1::2] + nodes[:, :-1:2, 1::2])
    centres = centres - nodes[:, 1::2, 1::2]
    errors = np.concatenate([np.hypot(*e).ravel() for e in (rows, columns, centres)])
    errors = errors[np.isfinite(errors)]
    return float(errors.max()) if errors.size else np.inf


def lattice(wcs: WCS, canvas: Canvas, bounds: Rect, step: int) -> Lattice:
    """Return the exact pixel map of a frame at every `step`-th canvas pixel in and around `bounds`.

    The nodes are those canvas pixels whose coordinates are multiples of `step`; at least one lies beyond each
    side of `bounds`. They depend on the frame and the canvas only.
    """
    # Two steps at a time, so that the nodes of twice the step are among them.
    rows = np.arange(bounds.y0 // (2 * step) * 2, -(-bounds.y1 // (2 * step)) * 2 + 1) * step
    columns = np.arange(bounds.x0 // (2 * step) * 2, -(-bounds.x1 // (2 * step)) * 2 + 1) * step
    cx, cy = np.meshgrid(columns.astype(float), rows.astype(float))
    nodes = np.stack(canvas_to_frame(wcs, cx.ravel(), cy.ravel(), canvas)).reshape(2, *cx.shape)
    return Lattice(nodes, int(rows[0]), int(columns[0]), step)


def _world_to_pixel(wcs: WCS, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frame positions, NaN where the WCS has none or its inversion did not converge."""
    if not wcs.has_distortion:
        return _linear_world_to_pixel(wcs, lon, lat)
    x, y = wcs.all_world2pix(lon, lat, 0, tolerance=1e-6, maxiter=50, quiet=True, detect_divergence=False)
    back_lon, back_lat = wcs.all_pix2world(x, y, 0)
    cos_lat = np.cos(np.deg2rad(lat))
    off = np.hypot((np.mod(back_lon - lon + 180.0, 360.0) - 180.0) * cos_lat, back_lat - lat)
    bad = ~(off < 1e-3 * pixel_scale_deg(wcs))
    return np.where(bad, np.nan, x), np.where(bad, np.nan, y)


def _linear_world_to_pixel(wcs: WCS, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Invert a WCS without distortion; a zenithal one has no positions on the far side of the sky."""
    x, y = wcs.wcs_world2pix(lon, lat, 0)
    if wcs.wcs.ctype[0][5:8] not in _ZENITHAL:
        return x, y
    lon0, lat0 = np.deg2rad(wcs.wcs.crval)
    lon, lat = np.deg2rad(lon), np.deg2rad(lat)
    near = np.sin(lat0) * np.sin(lat) + np.cos(lat0) * np.cos(lat) * np.cos(lon - lon0) > 0.0
    return np.where(near, x, np.nan), np.where(near, y, np.nan)


def section_for(grid: Lattice, rect: Rect, shape: tuple[int, int], reach: int) -> Rect:
    """Return the part of a frame that filling `rect` of the canvas needs, clipped to the frame; may be empty.

    Parameters
    ----------
    grid : Lattice
    rect : Rect
        Canvas pixels, inside the lattice.
    shape : tuple of int
        ``(ny, nx)`` of the frame.
    reach : int
        Frame pixels around a position that are looked at.
    """
    part = _nodes_around(grid, rect)
    valid = np.isfinite(part).all(axis=0)
    if not valid.any():
        return Rect(0, 0, 0, 0)
    (x_low, y_low), (x_high, y_high) = part[:, valid].min(axis=1), part[:, valid].max(axis=1)
    limit = 10.0 * max(shape) + 10.0 * reach
    low = np.floor(np.clip([y_low, x_low], -limit, limit)).astype(int) - reach
    high = np.floor(np.clip([y_high, x_high], -limit, limit)).astype(int) + reach + 2
    return Rect(int(low[0]), int(high[0]), int(low[1]), int(high[1])).intersect(Rect(0, shape[0], 0, shape[1]))


def _nodes_around(grid: Lattice, rect: Rect) -> np.ndarray:
    """Return the nodes (2, j, i) between which the positions of a rectangle of the canvas lie."""
    j0, j1 = (rect.y0 - grid.row) // grid.step, -(-(rect.y1 - grid.row) // grid.step) + 1
    i0, i1 = (rect.x0 - grid.column) // grid.step, -(-(rect.x1 - grid.column) // grid.step) + 1
    return grid.nodes[:, j0:j1, i0:i1]


@lru_cache(maxsize=1)
def _lanczos_table() -> np.ndarray:
    return kernels.lanczos3_table()


def resample(
    planes: np.ndarray,
    section: Rect,
    shape: tuple[int, int],
    grid: Lattice,
    rect: Rect,
    *,
    kernel: str = "lanczos3",
) -> np.ndarray:
    """Resample a section of a frame onto a rectangle of the canvas.

    Parameters
    ----------
    planes : ndarray, shape (c, h, w), float32
        The frame's pixels in `section`; NaN = no data.
    section : Rect
        At least what `section_for` names for `rect`.
    shape : tuple of int
        ``(ny, nx)`` of the whole frame.
    grid : Lattice
    rect : Rect
        Canvas pixels to fill, inside the lattice.
    kernel : str
        ``"lanczos3"`` or ``"bilinear"``.

    Returns
    -------
    ndarray, shape (c, *rect.shape), float32
        NaN where the frame has no data.
    """
    check_kernel(kernel)
    out = np.empty((planes.shape[0], *rect.shape), dtype=np.float32)
    where = (section.y0, section.x0), tuple(shape), grid.nodes, grid.origin, (rect.y0, rect.x0)
    if kernel == "lanczos3":
        kernels.lanczos3(planes, *where, _lanczos_table(), out)
    else:
        kernels.bilinear(planes, *where, out)
    return out


def check_kernel(kernel: str, *, has_table: bool = True) -> None:
    """Check the name of a resampling kernel, and that Lanczos-3 gets the table of its weights.

    Raises
    ------
    ValueError
        If the kernel is unknown, or the table missing.
    """
    if kernel not in KERNEL_REACH_PX:
        raise ValueError(f"unknown resampling kernel {kernel!r}; known: {', '.join(KERNEL_REACH_PX)}")
    if kernel == "lanczos3" and not has_table:
        raise ValueError("Lanczos-3 needs its table of weights")


def nearest(planes: np.ndarray, section: Rect, shape: tuple[int, int], grid: Lattice, rect: Rect) -> np.ndarray:
    """Return the pixel of a frame that each canvas pixel falls into; 0 outside the frame.

    It is the pixel whose absence makes the sample of Lanczos-3 missing. Parameters as for `resample`.

    Returns
    -------
    ndarray, shape (c, *rect.shape), dtype of `planes`
    """
    out = np.empty((planes.shape[0], *rect.shape), dtype=planes.dtype)
    where = (section.y0, section.x0), tuple(shape), grid.nodes, grid.origin, (rect.y0, rect.x0)
    kernels.nearest(planes, *where, out)
    return out


def sample_noise(kernel: str, bayer: bool, n_channels: int) -> np.ndarray:
    """Return the noise of a canvas sample over that of an original pixel, a value a channel of the mosaic."""
    return np.array(SAMPLE_NOISE[kernel, "bayer" if bayer else "mono"][:n_channels])


def frame_positions(grid: Lattice, rect: Rect) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame x and y of canvas pixels, float64, shape ``rect.shape`` each."""
    x, y = np.empty(rect.shape), np.empty(rect.shape)
    kernels.positions(grid.nodes, grid.origin, (rect.y0, rect.x0), x, y)
    return x, y


def is_inside(grid: Lattice, rect: Rect, frame_shape: tuple[int, int], margin: float) -> bool:
    """Return whether a rectangle of the canvas surely lies in a frame, all of it `margin` pixels from its edge."""
    nodes = _nodes_around(grid, rect)
    if not nodes.size or not np.isfinite(nodes).all():
        return False
    (x_low, y_low), (x_high, y_high) = nodes.min(axis=(1, 2)), nodes.max(axis=(1, 2))
    ny, nx = frame_shape
    return bool(min(x_low, y_low, nx - 1 - x_high, ny - 1 - y_high) + 0.5 >= margin)


def feather(grid: Lattice, rect: Rect, frame_shape: tuple[int, int], width: float, weight: np.ndarray) -> None:
    """Lower the weights of canvas pixels towards the edges of their frame, in place.

    Parameters
    ----------
    grid : Lattice
    rect : Rect
        Canvas pixels of `weight`.
    frame_shape : tuple of int
        ``(ny, nx)``.
    width : float
        Frame pixels from the edge at which the weight is whole.
    weight : ndarray, shape ``rect.shape``, float32
    """
    ny, nx = frame_shape
    kernels.feather(grid.nodes, grid.origin, (rect.y0, rect.x0), ny, nx, width, LEAST_FEATHER, weight)

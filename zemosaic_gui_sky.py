"""The geometry of the sky map, without Qt: a tangent plane, footprints on it, their depth, a grid of the sky.

Positions on the plane are degrees, x to the west, y to the north, so that east is left and north is up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from zemosaic_sphere import place_deg, unit_vectors

_MIN_COSINE = 0.1  # what is farther than 84 degrees from the centre is not on the map
_DEC_STEPS_ARCSEC = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 54000)
_RA_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800)
_LINES = 6  # about so many of a kind
_POINTS = 48  # of a line
_MAX_CROSSINGS = 500_000  # of a chunk of the raster: 20 MB or so, and no call of numpy that lasts


class TangentPlane:
    """A gnomonic projection about a point.

    Parameters
    ----------
    ra_deg, dec_deg : float
        ICRS.
    """

    def __init__(self, ra_deg: float, dec_deg: float) -> None:
        self.centre = (float(ra_deg), float(dec_deg))
        self._wcs = WCS(naxis=2)
        self._wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        self._wcs.wcs.cunit = ["deg", "deg"]
        self._wcs.wcs.crval = self.centre
        self._wcs.wcs.cdelt = [-1.0, 1.0]
        self._wcs.wcs.crpix = [1.0, 1.0]
        self._wcs.wcs.set()
        self._pole = unit_vectors(np.array([self.centre]))[0]

    def project(self, sky_deg: np.ndarray) -> np.ndarray:
        """Return plane positions, (..., 2), of ``(ra, dec)``, (..., 2); NaN where they are too far away."""
        sky = np.asarray(sky_deg, dtype=np.float64)
        flat = sky.reshape(-1, 2)
        near = unit_vectors(flat) @ self._pole > _MIN_COSINE
        plane = np.full(flat.shape, np.nan)
        if near.any():
            plane[near] = self._wcs.wcs_world2pix(flat[near], 0)
        return plane.reshape(sky.shape)

    def sky(self, plane: np.ndarray) -> np.ndarray:
        """Return ``(ra, dec)`` in degrees, (..., 2), of plane positions, (..., 2)."""
        plane = np.asarray(plane, dtype=np.float64)
        return self._wcs.wcs_pix2world(plane.reshape(-1, 2), 0).reshape(plane.shape)


def middle_of(corners_deg: np.ndarray) -> tuple[float, float]:
    """Return where most footprints, (n, 4, 2), are: the median direction, which a lost frame does not move."""
    vectors = unit_vectors(np.asarray(corners_deg).reshape(-1, 2))
    return place_deg(np.median(vectors, axis=0))


# ---- depth -----------------------------------------------------------------------------------------------


def depth_image(
    quads: np.ndarray, extent: tuple[float, float, float, float], shape: tuple[int, int]
) -> np.ndarray:
    """Return how many footprints cover each cell of a raster.

    A row of the raster enters a footprint where it crosses an edge that goes one way round, and leaves it at one
    that goes the other way; both are noted as differences and summed along the rows, so that the cost grows with
    the footprints' heights and not with their areas. Where footprints touch a cell is of one of them.

    Parameters
    ----------
    quads : ndarray, shape (n, 4, 2)
        Corners of convex footprints, in order; those with a NaN are passed over.
    extent : tuple of float
        ``(x0, x1, y0, y1)`` of the raster's outer edges.
    shape : tuple of int
        ``(rows, columns)``; row 0 at ``y0``.

    Returns
    -------
    ndarray, shape `shape`, int32
        A cell counts where its centre is covered.
    """
    rows, columns = shape
    x0, x1, y0, y1 = extent
    cells = (np.asarray(quads, dtype=np.float64) - (x0, y0)) / ((x1 - x0) / columns, (y1 - y0) / rows) - 0.5
    cells = cells[np.isfinite(cells).all(axis=(1, 2))]
    edges = np.stack([cells, np.roll(cells, -1, axis=1)], axis=2)
    turn = np.sign(_cross(edges[:, :, 0], edges[:, :, 1]).sum(axis=1))  # the way round
    way = np.sign(edges[:, :, 0, 1] - edges[:, :, 1, 1]) * turn[:, None]  # 1 where a row enters
    edges, way = edges.reshape(-1, 2, 2), way.ravel().astype(np.int64)
    first, stop = np.ceil(np.sort(edges[:, :, 1], axis=1)).clip(0, rows).astype(np.int64).T
    seen = stop > first
    edges, way, first, height = edges[seen], way[seen], first[seen], (stop - first)[seen]
    steps = np.zeros(rows * (columns + 1), dtype=np.int64)
    ends = np.cumsum(height)
    start = 0
    while start < len(edges):
        done = ends[start - 1] if start else 0
        until = max(start + 1, int(np.searchsorted(ends, done + _MAX_CROSSINGS)))
        part = slice(start, until)
        _add_crossings(steps, edges[part], way[part], first[part], height[part], columns)
        start = until
    return np.cumsum(steps.reshape(rows, columns + 1)[:, :columns], axis=1).astype(np.int32)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _add_crossings(
    steps: np.ndarray, edges: np.ndarray, way: np.ndarray, first: np.ndarray, height: np.ndarray, columns: int
) -> None:
    """Add to the differences where rows cross some edges, from row `first` on."""
    (xa, ya), (xb, yb) = edges[:, 0].T, edges[:, 1].T
    slope = (xb - xa) / (yb - ya)
    edge = np.repeat(np.arange(len(edges)), height)
    row = np.arange(len(edge)) + np.repeat(first - np.cumsum(height) + height, height)
    x = (xa - ya * slope)[edge] + row * slope[edge]
    place = row * (columns + 1) + np.ceil(x).clip(0, columns).astype(np.int64)
    steps += np.bincount(place, weights=way[edge], minlength=len(steps)).astype(np.int64)


def covering(quads: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return the indices of the convex footprints, (n, 4, 2), that hold a position, ascending."""
    if len(quads) == 0:
        return np.array([], dtype=np.int64)
    to_point = np.array([x, y]) - quads
    edge = np.roll(quads, -1, axis=1) - quads
    side = edge[..., 0] * to_point[..., 1] - edge[..., 1] * to_point[..., 0]
    return np.flatnonzero((side >= 0).all(axis=1) | (side <= 0).all(axis=1))


# ---- grid ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SkyGrid:
    """Lines of equal right ascension and declination, and where they meet the edges of the view.

    `x` and `y` hold all lines, separated by NaN; `bottom` and `left` hold (position on the edge, label).
    """

    x: np.ndarray
    y: np.ndarray
    bottom: list[tuple[float, str]]
    left: list[tuple[float, str]]


def sky_grid(plane: TangentPlane, extent: tuple[float, float, float, float]) -> SkyGrid:
    """Return a grid for a view of the plane, ``(x0, x1, y0, y1)``."""
    x0, x1, y0, y1 = extent
    edge = np.linspace(0.0, 1.0, 9)
    mesh = np.stack(np.meshgrid(x0 + (x1 - x0) * edge, y0 + (y1 - y0) * edge), axis=-1)
    seen = plane.sky(mesh).reshape(-1, 2)
    dec_low, dec_high = float(seen[:, 1].min()), float(seen[:, 1].max())
    dra = (seen[:, 0] - plane.centre[0] + 180.0) % 360.0 - 180.0
    ra_low, ra_high = float(dra.min()), float(dra.max())
    if _holds_a_pole(plane, extent):
        ra_low, ra_high = -180.0, 180.0
        dec_low, dec_high = (dec_low, 90.0) if plane.centre[1] > 0 else (-90.0, dec_high)
    dec_step = _step((dec_high - dec_low) * 3600.0, _DEC_STEPS_ARCSEC) / 3600.0
    ra_step = _step((ra_high - ra_low) * 240.0, _RA_STEPS_S) / 240.0
    margin_dec, margin_ra = 0.1 * (dec_high - dec_low), 0.1 * (ra_high - ra_low)
    decs = _multiples(max(dec_low - margin_dec, -89.999), min(dec_high + margin_dec, 89.999), dec_step)
    ras = _multiples(plane.centre[0] + ra_low, plane.centre[0] + ra_high, ra_step)
    along_ra = np.linspace(ra_low - margin_ra, ra_high + margin_ra, _POINTS) + plane.centre[0]
    along_dec = np.linspace(max(dec_low - margin_dec, -90.0), min(dec_high + margin_dec, 90.0), _POINTS)
    parallels = [plane.project(np.column_stack([along_ra, np.full(_POINTS, dec)])) for dec in decs]
    meridians = [plane.project(np.column_stack([np.full(_POINTS, ra), along_dec])) for ra in ras]
    gap = np.full((1, 2), np.nan)
    lines = np.concatenate([part for line in parallels + meridians for part in (line, gap)] or [gap])
    bottom = [
        (x, ra_text(ra, ra_step)) for ra, line in zip(ras, meridians, strict=True) for x in _crossings(line, 1, y0)
    ]
    left = [
        (y, dec_text(dec, dec_step))
        for dec, line in zip(decs, parallels, strict=True)
        for y in _crossings(line, 0, x0)
    ]
    return SkyGrid(
        lines[:, 0],
        lines[:, 1],
        [(x, text) for x, text in bottom if x0 <= x <= x1],
        [(y, text) for y, text in left if y0 <= y <= y1],
    )


def _holds_a_pole(plane: TangentPlane, extent: tuple[float, float, float, float]) -> bool:
    x0, x1, y0, y1 = extent
    x, y = plane.project(np.array([0.0, 90.0 if plane.centre[1] >= 0 else -90.0]))
    return bool(x0 <= x <= x1 and y0 <= y <= y1)


def _step(span: float, steps: tuple[float, ...]) -> float:
    """Return the step of a list that gives about `_LINES` lines."""
    return next((step for step in steps if span / step <= _LINES), steps[-1])


def _multiples(low: float, high: float, step: float) -> np.ndarray:
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1.0) * step


def _crossings(line: np.ndarray, axis: int, level: float) -> list[float]:
    """Return where a line crosses a level of an axis, as positions on the other."""
    along, other = line[:, axis] - level, line[:, 1 - axis]
    a, b = along[:-1], along[1:]
    cut = np.flatnonzero((a <= 0) != (b <= 0))
    cut = cut[np.isfinite(a[cut]) & np.isfinite(b[cut])]
    t = a[cut] / (a[cut] - b[cut])
    return (other[cut] + t * (other[cut + 1] - other[cut])).tolist()


def ra_text(ra_deg: float, step_deg: float = 0.0) -> str:
    """Return a right ascension in hours, as fine as a step of the grid needs (seconds and tenths by default)."""
    tenths = round((ra_deg % 360.0) * 240.0 * 10.0) % 864000
    hours, rest = divmod(tenths, 36000)
    minutes, seconds = divmod(rest, 600)
    step = step_deg * 240.0
    if step >= 3599.9:
        return f"{hours}ʰ"
    if step >= 59.9:
        return f"{hours}ʰ{minutes:02d}ᵐ"
    if step >= 0.99:
        return f"{hours}ʰ{minutes:02d}ᵐ{seconds // 10:02d}ˢ"
    return f"{hours}ʰ{minutes:02d}ᵐ{seconds // 10:02d}.{seconds % 10}ˢ"


def dec_text(dec_deg: float, step_deg: float = 0.0) -> str:
    """Return a declination in degrees, as fine as a step of the grid needs (arcseconds by default)."""
    arcsec = round(abs(dec_deg) * 3600.0)
    degrees, rest = divmod(arcsec, 3600)
    minutes, seconds = divmod(rest, 60)
    sign = "−" if dec_deg < 0 and arcsec else "+"
    if step_deg >= 0.9999:
        return f"{sign}{degrees}°"
    if step_deg * 60.0 >= 0.9999:
        return f"{sign}{degrees}°{minutes:02d}′"
    return f"{sign}{degrees}°{minutes:02d}′{seconds:02d}″"

"""The photometric match: gains and offsets that make all frames agree where they overlap.

Two sparse weighted least-squares problems a channel, over overlapping pairs only. Gains come from the fluxes
of stars that two frames share, so the noise of the sky does not dilute them; offsets come from the sky itself,
the medians of small boxes around the same points of the canvas. Both are solved with Huber weights, without
random numbers; groups of frames that touch no other group are solved each for itself and tied by their mean
sky.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import coo_matrix, csc_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

#: A pair's gain needs this many common stars.
MIN_COMMON_STARS = 3
#: Stars fainter than this in either frame say nothing about a gain.
MIN_SIGNAL_TO_NOISE = 8.0
#: Two detections closer than this on the canvas are one star.
MATCH_RADIUS_PX = 2.0

_FLUX_FLOOR = 0.01  # relative; flat field, crowding and undersampling of even the brightest star
_HUBER = 1.5
_ROUNDS = 20
_MAD_TO_SIGMA = 1.482602218505602


@dataclass(frozen=True)
class FrameMeasure:
    """What the measuring pass found in one frame, c channels of the mosaic.

    Attributes
    ----------
    sky, noise : ndarray, shape (c,), float64
        Sky level and noise of one original pixel, frame units.
    fwhm_px, elongation : float
        Median over the frame's stars, in frame pixels; NaN without stars.
    star_x, star_y : ndarray, shape (m,), float64
        Stars on the canvas, in canvas pixels.
    frame_x, frame_y : ndarray, shape (m,), float32
        The same stars in pixels of the frame.
    flux, flux_error : ndarray, shape (m, c), float32
        Aperture fluxes, frame units; NaN where the aperture is incomplete.
    cell : ndarray, shape (k,), int64
        Numbers of the canvas's coarse cells that lie in the frame, ascending.
    level : ndarray, shape (k, c), float32
        Median of the frame in a box around the centre of each cell, frame units.
    cell_x, cell_y : ndarray, shape (k,), float32
        Centres of those boxes in pixels of the frame.
    """

    sky: np.ndarray
    noise: np.ndarray
    fwhm_px: float
    elongation: float
    star_x: np.ndarray
    star_y: np.ndarray
    frame_x: np.ndarray
    frame_y: np.ndarray
    flux: np.ndarray
    flux_error: np.ndarray
    cell: np.ndarray
    level: np.ndarray
    cell_x: np.ndarray
    cell_y: np.ndarray


@dataclass(frozen=True)
class Match:
    """The solution: ``gain * value + offset`` brings every frame to one scale.

    `gain` and `offset` are float64 (n, c). `group` (n,) numbers the groups of frames that overlap each other,
    `gain_group` (n, c) those that common stars tie to each other; between groups of the latter gains are not
    known and their means are taken as equal.
    """

    gain: np.ndarray
    offset: np.ndarray
    group: np.ndarray
    gain_group: np.ndarray


def box_medians(plane: np.ndarray, x: np.ndarray, y: np.ndarray, half: int) -> np.ndarray:
    """Return medians of square boxes of side ``2 * half + 1``, NaN where a box leaves the plane or lacks data.

    Parameters
    ----------
    plane : ndarray, shape (ny, nx), float32
    x, y : ndarray, shape (k,)
        Centres, rounded to the nearest pixel; NaN allowed.
    half : int
    """
    out = np.full(x.shape, np.nan, dtype=np.float32)
    side = 2 * half + 1
    if min(plane.shape) < side:
        return out
    fits = (x >= half) & (x <= plane.shape[1] - 1 - half) & (y >= half) & (y <= plane.shape[0] - 1 - half)
    column = np.rint(x[fits]).astype(int) - half
    row = np.rint(y[fits]).astype(int) - half
    windows = sliding_window_view(plane, (side, side))
    boxes = windows[row, column].reshape(row.size, -1)
    # NaN sorts last and np.median returns NaN for it: a box with missing pixels is no measurement.
    out[fits] = np.median(boxes, axis=1)
    return out


def solve_match(measures: list[FrameMeasure], pairs: np.ndarray, area_ratio: np.ndarray, *, method: str) -> Match:
    """Solve the gains and offsets of all frames.

    Parameters
    ----------
    measures : list of FrameMeasure
        In frame order.
    pairs : ndarray, shape (p, 2), int64
        Indices of frames whose footprints overlap, first < second.
    area_ratio : ndarray, shape (n,)
        What a frame's values are multiplied with to conserve flux on the canvas; part of the gain.
    method : str
        ``"none"`` (gain of `area_ratio`, no offset), ``"sky_mean"`` (an offset too) or ``"linear_fit"`` (gain
        and offset).

    Returns
    -------
    Match

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    if method not in ("none", "sky_mean", "linear_fit"):
        raise ValueError(f"unknown normalisation {method!r}; known: none, sky_mean, linear_fit")
    n, channels = len(measures), measures[0].sky.size
    gain = np.ones((n, channels))
    gain_group = np.tile(np.arange(n)[:, None], channels)
    if method == "linear_fit":
        stars = identify_stars(measures)
        common = [_common_stars(stars[i], stars[j]) for i, j in pairs]
        for c in range(channels):
            gain[:, c], gain_group[:, c] = _solve_gains(measures, pairs, common, c)
    gain *= area_ratio[:, None]
    group = _groups(n, pairs)
    offset = np.zeros((n, channels))
    if method != "none":
        shared = [_shared_cells(measures[i], measures[j]) for i, j in pairs]
        for c in range(channels):
            offset[:, c], group = _solve_offsets(measures, pairs, shared, gain[:, c], c)
    return Match(gain, offset, group, gain_group)


def identify_stars(measures: list[FrameMeasure]) -> list[np.ndarray]:
    """Return the number of the star that each detection of each frame belongs to; -1 if that is not clear.

    Frames are gone through in order; a detection within `MATCH_RADIUS_PX` of a known star is that star, any
    other founds a new one. Two detections of one frame that claim one star are both left out.
    """
    known = np.empty((0, 2))
    numbers = []
    for measure in measures:
        points = np.column_stack([measure.star_x, measure.star_y])
        number = np.full(len(points), -1)
        if len(known) and len(points):
            distance, nearest = cKDTree(known).query(points, distance_upper_bound=MATCH_RADIUS_PX)
            number = np.where(np.isfinite(distance), nearest, -1)
        new = np.flatnonzero(number < 0)
        number[new] = len(known) + np.arange(new.size)
        known = np.concatenate([known, points[new]])
        _, first, count = np.unique(number, return_inverse=True, return_counts=True)
        numbers.append(np.where(count[first] == 1, number, -1))
    return numbers


def _common_stars(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices of the detections of common stars in two lists of star numbers."""
    _, a, b = np.intersect1d(first, second, return_indices=True)
    clear = first[a] >= 0
    return a[clear], b[clear]


def _solve_gains(
    measures: list[FrameMeasure], pairs: np.ndarray, common: list, channel: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return gains of mean logarithm 0 in each group of frames tied by stars, and the groups."""
    edges, value, error = [], [], []
    for (i, j), (a, b) in zip(pairs, common, strict=True):
        found = _flux_ratio(measures[i], measures[j], a, b, [channel])
        if found is None:
            # Too faint in this colour: the light of all colours is the next best witness.
            found = _flux_ratio(measures[i], measures[j], a, b, list(range(measures[i].sky.size)))
        if found is not None:
            edges.append((i, j))
            value.append(-found[0])
            error.append(found[1])
    edges = np.array(edges, dtype=np.int64).reshape(-1, 2)
    log_gain, group = _solve_differences(len(measures), edges, np.array(value), np.array(error))
    log_gain -= _group_means(log_gain, group)[group]
    return np.exp(log_gain), group


def _flux_ratio(
    first: FrameMeasure, second: FrameMeasure, a: np.ndarray, b: np.ndarray, channels: list[int]
) -> tuple[float, float] | None:
    """Return the mean logarithm of the flux ratio of common stars and its error, None if there are too few.

    Fluxes are summed over `channels`.
    """
    fa, ea = _summed(first, a, channels)
    fb, eb = _summed(second, b, channels)
    bright = (fa > MIN_SIGNAL_TO_NOISE * ea) & (fb > MIN_SIGNAL_TO_NOISE * eb)
    if bright.sum() < MIN_COMMON_STARS:
        return None
    fa, fb, ea, eb = fa[bright], fb[bright], ea[bright], eb[bright]
    variance = (ea / fa) ** 2 + (eb / fb) ** 2 + 2 * _FLUX_FLOOR**2
    return _robust_mean(np.log(fa / fb), variance)


def _summed(measure: FrameMeasure, stars: np.ndarray, channels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    flux = measure.flux[np.ix_(stars, channels)].astype(np.float64).sum(axis=1)
    error = np.square(measure.flux_error[np.ix_(stars, channels)].astype(np.float64)).sum(axis=1)
    return flux, np.sqrt(error)


def _robust_mean(values: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """Return a Huber-weighted mean from the median onwards, and its error from the scatter."""
    centre = float(np.median(values))
    scatter = max(1.0, _MAD_TO_SIGMA * float(np.median(np.abs(values - centre) / np.sqrt(variance))))
    for _ in range(_ROUNDS):
        pull = np.abs(values - centre) / (scatter * np.sqrt(variance))
        weight = np.minimum(1.0, _HUBER / np.maximum(pull, 1e-12)) / variance
        before, centre = centre, float(np.sum(weight * values) / np.sum(weight))
        if abs(centre - before) < 1e-9:
            break
    return centre, scatter / np.sqrt(np.sum(weight))


def _shared_cells(first: FrameMeasure, second: FrameMeasure) -> tuple[np.ndarray, np.ndarray]:
    _, a, b = np.intersect1d(first.cell, second.cell, assume_unique=True, return_indices=True)
    return a, b


def _solve_offsets(
    measures: list[FrameMeasure], pairs: np.ndarray, shared: list, gain: np.ndarray, channel: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return offsets that level the sky, keeping every group's mean sky at the mean of all frames."""
    edges, value, error = [], [], []
    for (i, j), (a, b) in zip(pairs, shared, strict=True):
        difference = gain[j] * measures[j].level[b, channel] - gain[i] * measures[i].level[a, channel]
        difference = difference[np.isfinite(difference)]
        if difference.size == 0:
            continue
        centre = float(np.median(difference))
        scatter = _MAD_TO_SIGMA * float(np.median(np.abs(difference - centre)))
        floor = 0.1 * np.hypot(gain[i] * measures[i].noise[channel], gain[j] * measures[j].noise[channel])
        edges.append((i, j))
        value.append(centre)
        error.append(np.hypot(scatter, floor) / np.sqrt(difference.size))
    edges = np.array(edges, dtype=np.int64).reshape(-1, 2)
    offset, group = _solve_differences(len(measures), edges, np.array(value), np.array(error))
    sky = np.array([measure.sky[channel] for measure in measures])
    level = offset + gain * sky
    return offset - _group_means(level, group)[group] + sky.mean(), group


def _groups(n: int, edges: np.ndarray) -> np.ndarray:
    graph = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    return connected_components(graph, directed=False)[1]


def _group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.bincount(group, weights=values) / np.bincount(group)


def _solve_differences(
    n: int, edges: np.ndarray, value: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve ``u[i] - u[j] = value`` over edges (i, j) by least squares with Huber weights.

    The first frame of every group is held at 0, which leaves a system of full rank.
    """
    group = _groups(n, edges)
    _, anchors = np.unique(group, return_index=True)
    free = np.ones(n, dtype=bool)
    free[anchors] = False
    solution = np.zeros(n)
    if not free.any():
        return solution, group
    rows = np.repeat(np.arange(len(edges)), 2)
    signs = np.tile([1.0, -1.0], len(edges))
    design = csc_matrix((signs, (rows, edges.ravel())), shape=(len(edges), n))[:, free]
    scale = 1.0
    for _ in range(_ROUNDS):
        pull = np.abs(value - (solution[edges[:, 0]] - solution[edges[:, 1]])) / error
        weight = np.minimum(1.0, _HUBER * scale / np.maximum(pull, 1e-12)) / error**2
        before = solution[free]
        weighted = design.multiply(weight[:, None]).T.tocsc()
        solution[free] = splu((weighted @ design).tocsc()).solve(weighted @ value)
        pull = np.abs(value - (solution[edges[:, 0]] - solution[edges[:, 1]])) / error
        scale = max(1.0, _MAD_TO_SIGMA * float(np.median(pull)))
        if np.max(np.abs(solution[free] - before)) < 1e-9 * max(1.0, np.abs(solution).max()):
            break
    return solution, group

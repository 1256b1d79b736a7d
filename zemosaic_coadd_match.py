"""Master tiles made to agree, if they do not already: gains, offsets and planes that must prove their worth.

The frames of all tiles were matched together before they were stacked, so most often nothing is left to do, and a
second match could only add its own errors. Therefore it is tried on one half of the sky and judged on the other
(cross-validation; M. Stone, J. R. Stat. Soc. B 36, 111, 1974): what does not bring stars or sky of the half it has
not seen closer together is not applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from zemosaic_detections import STAR_COLUMNS, Detections
from zemosaic_photometry import (
    MIN_SIGNAL_TO_NOISE,
    FrameMeasure,
    Geometry,
    cell_place,
    solve_match,
)

#: A correction must leave no more than this share of the mean square that it has not seen.
WORTHWHILE = 0.9

_BLOCK_CELLS = 4  # side of the fields that one half of the sky is made of
_MIN_SIGHTINGS = 6
_FLUX_ERROR = 0.01
_MOST_SIGMAS = 5.0


@dataclass(frozen=True)
class Agreement:
    """What brings tiles together: ``gain * value + offset + gradient . (place - centre)``.

    Attributes
    ----------
    gain, offset : ndarray, shape (n, c), float64
    gradient : ndarray, shape (n, c, 2), float64
    by_stars, by_sky : bool
        Whether gains differ from the ratios of areas, and whether offsets and gradients are not 0.
    """

    gain: np.ndarray
    offset: np.ndarray
    gradient: np.ndarray
    by_stars: bool = False
    by_sky: bool = False


def untouched(geometry: Geometry, n_channels: int) -> Agreement:
    """Return what leaves tiles as they are."""
    n = len(geometry.area_ratio)
    gain = np.repeat(geometry.area_ratio[:, None], n_channels, axis=1)
    return Agreement(gain, np.zeros((n, n_channels)), np.zeros((n, n_channels, 2)))


def agreement(measures: list[FrameMeasure], geometry: Geometry, *, method: str) -> Agreement:
    """Return what brings master tiles together, as little of it as is worth it.

    Parameters
    ----------
    measures : list of FrameMeasure
        Of the tiles.
    geometry : Geometry
    method : str
        As for `zemosaic_photometry.solve_match`: what may be corrected at all.
    """
    as_they_are = untouched(geometry, measures[0].sky.size)
    halves = [[_half(m, geometry.cell_px, parity) for m in measures] for parity in (0, 1)]
    solve = partial(_solved, geometry, method)
    by_stars = method in ("linear_fit", "global") and _is_worth_it(halves, solve, as_they_are, _star_scatter)
    seen = measures if by_stars else [_without_stars(m) for m in measures]
    halves = halves if by_stars else [[_without_stars(m) for m in half] for half in halves]
    by_sky = method != "none" and _is_worth_it(halves, solve, as_they_are, partial(_sky_scatter, geometry))
    if not (by_stars or by_sky):
        return as_they_are
    solved = solve(seen)
    if not by_sky:
        solved = replace(as_they_are, gain=solved.gain)
    return replace(solved, by_stars=by_stars, by_sky=by_sky)


def _is_worth_it(
    halves: list[list[FrameMeasure]],
    solve: Callable[[list[FrameMeasure]], Agreement],
    before: Agreement,
    scatter: Callable[[Agreement, list[FrameMeasure]], np.ndarray],
) -> bool:
    """Return whether what is solved on either half of the sky brings the other half closer together."""
    for seen, unseen in (halves, halves[::-1]):
        without = scatter(before, unseen)
        if without.size < _MIN_SIGHTINGS:
            return False
        if not _mean(scatter(solve(seen), unseen)) < WORTHWHILE * _mean(without):
            return False
    return True


def _mean(squares: np.ndarray) -> float:
    """Return the mean of squared deviations of which none counts as more than `_MOST_SIGMAS`."""
    return float(np.minimum(squares, _MOST_SIGMAS**2).mean())


def _solved(geometry: Geometry, method: str, measures: list[FrameMeasure]) -> Agreement:
    match = solve_match(measures, geometry, method=method)
    return Agreement(match.gain, match.offset, match.gradient)


def _half(measure: FrameMeasure, cell_px: int, parity: int) -> FrameMeasure:
    """Return what was measured on every other field of the sky."""
    row, column = cell_place(measure.cell)
    side = _BLOCK_CELLS * cell_px
    cells = (row // _BLOCK_CELLS + column // _BLOCK_CELLS) % 2 == parity
    stars = (np.floor(measure.star_x / side) + np.floor(measure.star_y / side)) % 2 == parity
    of_cells = {name: getattr(measure, name)[cells] for name in ("cell", "level", "cell_x", "cell_y")}
    return replace(_with_stars(measure, stars), **of_cells)


def _with_stars(measure: FrameMeasure, chosen: np.ndarray) -> FrameMeasure:
    return replace(measure, **{name: getattr(measure, name)[chosen] for name in STAR_COLUMNS})


def _without_stars(measure: FrameMeasure) -> FrameMeasure:
    return _with_stars(measure, np.zeros(measure.star_x.size, dtype=bool))


def _star_scatter(solution: Agreement, measures: list[FrameMeasure]) -> np.ndarray:
    """Return squared differences of the magnitudes of common stars from their means, over their errors."""
    stars = Detections.of(measures).identified()
    good = (stars.star >= 0) & (stars.flux > MIN_SIGNAL_TO_NOISE * stars.error).all(axis=1)
    stars = stars.chosen(good)
    value = np.log(solution.gain[stars.frame] * stars.flux)
    sigma = np.hypot(stars.error / stars.flux, _FLUX_ERROR)
    return _squares(stars.star, value, sigma)


def _sky_scatter(geometry: Geometry, solution: Agreement, measures: list[FrameMeasure]) -> np.ndarray:
    """Return squared differences of the levels of common cells from their means, in noises of a pixel."""
    frame = np.repeat(np.arange(len(measures)), [m.cell.size for m in measures])
    cell, level = (np.concatenate([getattr(m, name) for m in measures]) for name in ("cell", "level"))
    row, column = cell_place(cell)
    away = np.column_stack([column, row]) * float(geometry.cell_px) - geometry.centre[frame]
    ramp = np.einsum("kcx,kx->kc", solution.gradient[frame], away)
    value = solution.gain[frame] * level + solution.offset[frame] + ramp
    sigma = solution.gain[frame] * np.array([m.noise for m in measures])[frame]
    good = np.isfinite(value).all(axis=1)
    return _squares(cell[good], value[good], sigma[good])


def _squares(point: np.ndarray, value: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Return ``((value - mean) / sigma) ** 2`` of sightings (k, c) of points that several tiles show, flat."""
    _, index, count = np.unique(point, return_inverse=True, return_counts=True)
    total = np.zeros((count.size, value.shape[1]))
    np.add.at(total, index, value)
    shared = count[index] > 1
    return np.square((value - total[index] / count[index, None]) / sigma)[shared].ravel()

"""The photometric match: gains, offsets and gradients that make all frames agree where they overlap.

Gains come from the fluxes of stars that several frames show, so the noise of the sky does not dilute them; offsets
and planes come from the sky itself, the medians of small boxes around the same points of the canvas. Each is one
sparse robust fit for all frames at once (`zemosaic_overlap_fit`), without random numbers. A plane that all frames
have in common cannot be seen in overlaps: it is settled so that the sky of the mosaic, nebulae aside, is level.
Groups of frames that touch no other group are levelled each by itself and tied by their mean sky.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zemosaic_cameras import Cameras, common_scale
from zemosaic_detections import Detections
from zemosaic_links import members_of
from zemosaic_overlap_fit import OverlapFit, Sightings, fit_overlaps
from zemosaic_types import MAD_TO_SIGMA, Tell, part_of, tell_nobody

#: A frame's gain needs this many stars that other frames show too.
MIN_COMMON_STARS = 3
#: Stars fainter than this in a frame say nothing about its gain.
MIN_SIGNAL_TO_NOISE = 8.0
#: The methods: names of the configuration.
METHODS = ("none", "sky_mean", "linear_fit", "global")

_GRID_WIDTH = 1 << 24  # columns of coarse cells that a number has room for
_FLUX_FLOOR = 0.01  # relative; flat field, crowding and undersampling of even the brightest star
_LEVEL_FLOOR = 0.01  # of a pixel's noise; what the median of a box owes to its stars
_LEVEL_NOISE = 2.0  # noise of a box's median, in noise of a pixel over the side of the box; behind colour filters
_ROUNDS = 50
_MIN_PLANE_CELLS = 12
_MOST_PLANE_CELLS = 20_000
_LARGER = 2.0  # since neighbouring blocks of a nebula are alike after all
_BLOCKS = 4  # along each axis, of the jackknife
_TRUSTED = 0.5  # of the weight of a sighting that agrees with the others
_NEBULA_SIGMA = 3.0
# Shares of the work, roughly: of the gains in the match, of identifying stars in the gains.
_SHARE_OF_GAINS, _SHARE_OF_IDENTIFYING = 0.4, 0.5


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
        The canvas's coarse cells that lie in the frame, ascending; `cell_number` numbers them.
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


class Placed(Protocol):
    """What `Geometry.of` asks of a `zemosaic_reproject.Placement`."""

    centre: np.ndarray
    area_ratio: float


@dataclass(frozen=True)
class Geometry:
    """Where the frames of a match lie.

    Attributes
    ----------
    centre : ndarray, shape (n, 2)
        Of each frame, x and y on the canvas.
    area_ratio : ndarray, shape (n,)
        What a frame's values are multiplied with to conserve flux on the canvas; part of the gain.
    cell_px : int
        Spacing of the coarse cells.
    """

    centre: np.ndarray
    area_ratio: np.ndarray
    cell_px: int

    @classmethod
    def of(cls, placements: Sequence[Placed], cell_px: int) -> Geometry:
        """Return the geometry of frames from where they lie on the canvas."""
        return cls(np.array([p.centre for p in placements]), np.array([p.area_ratio for p in placements]), cell_px)


@dataclass(frozen=True)
class Match:
    """The solution: ``gain * value + offset + gradient . (place - centre)`` brings every frame to one scale.

    Attributes
    ----------
    gain, offset : ndarray, shape (n, c), float64
    gradient : ndarray, shape (n, c, 2), float64
        Along x and y of the canvas, mosaic units a pixel.
    residual : ndarray, shape (n, c), float64
        Root mean square of what is left between a frame's sky and its neighbours', less what noise explains;
        mosaic units; NaN for frames that share no sky.
    group : ndarray, shape (n,), int64
        Numbers of the groups of frames that overlap each other.
    gain_group : ndarray, shape (n,), int64
        Of those that common stars tie to each other; between them frames of one camera are taken as alike.
    by_sky : ndarray of bool, shape (n,)
        Frames of cameras whose gains no star ties to those of the usual one: the sky says how bright they are.
    cell : ndarray, shape (k,), int64
        The cells that frames see.
    disagreement : ndarray, shape (k, c), float64
        Root mean square of the frames' residuals in a cell, in units of a pixel's noise; NaN if only one sees it.
    """

    gain: np.ndarray
    offset: np.ndarray
    gradient: np.ndarray
    residual: np.ndarray
    group: np.ndarray
    gain_group: np.ndarray
    by_sky: np.ndarray
    cell: np.ndarray
    disagreement: np.ndarray


def cell_number(row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return the number of a coarse cell."""
    return np.asarray(row, dtype=np.int64) * _GRID_WIDTH + column


def cell_place(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of coarse cells."""
    return number // _GRID_WIDTH, number % _GRID_WIDTH


def solve_match(
    measures: list[FrameMeasure],
    geometry: Geometry,
    *,
    method: str,
    cameras: Cameras | None = None,
    tell: Tell = tell_nobody,
) -> Match:
    """Solve the gains, offsets and gradients of all frames, in units of the usual ones (`Cameras.usual`).

    Parameters
    ----------
    measures : list of FrameMeasure
        In frame order.
    geometry : Geometry
    method : str
        ``"none"`` (gain of the area ratio, no offset), ``"sky_mean"`` (an offset too), ``"linear_fit"`` (gain and
        offset) or ``"global"`` (gain, offset and gradient).
    cameras : Cameras, optional
        Who made the frames; without it one camera, with one exposure.
    tell : callable
        Told the share that is done; may end the work.

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"unknown normalisation {method!r}; known: {', '.join(METHODS)}")
    n, channels = len(measures), measures[0].sky.size
    cameras = Cameras.one(n) if cameras is None else cameras
    gain, gain_group, by_sky = np.ones((n, channels)), np.arange(n), np.zeros(n, dtype=bool)
    usual = np.arange(n)
    if method in ("linear_fit", "global"):
        log_gain, gain_group = _solve_gains(measures, geometry, part_of(tell, 0.0, _SHARE_OF_GAINS))
        log_gain, by_sky = common_scale(log_gain, gain_group, cameras, _light(measures, geometry))
        gain, usual = np.exp(log_gain), cameras.usual()
    gain = gain * geometry.area_ratio[:, None]
    sky = _Sky(measures, geometry, usual)
    parts = _parts(part_of(tell, _SHARE_OF_GAINS, 1.0), channels)
    fits = [sky.fit(gain[:, c], c, planes=method == "global", tell=parts[c]) for c in range(channels)]
    residual = np.stack([sky.residual_of_frames(fit, gain[:, c], c) for c, fit in enumerate(fits)], axis=1)
    apart = np.stack([sky.disagreement(fit, gain[:, c], c) for c, fit in enumerate(fits)], axis=1)
    offset, gradient = np.zeros((n, channels)), np.zeros((n, channels, 2))
    if method != "none":
        levels = [sky.pinned(fit, gain[:, c], c) for c, fit in enumerate(fits)]
        offset = np.stack([constant for constant, _ in levels], axis=1)
        gradient = np.stack([slope for _, slope in levels], axis=1)
    return Match(gain, offset, gradient, residual, sky.group, gain_group, by_sky, sky.cell, apart)


def _parts(tell: Tell, count: int) -> list[Tell]:
    """Return what each of `count` equal parts of a piece of work tells."""
    return [part_of(tell, k / count, (k + 1) / count) for k in range(count)]


def _light(measures: list[FrameMeasure], geometry: Geometry) -> np.ndarray:
    """Return how bright the sky is in a pixel of the mosaic, (n, c); its noise if levels may have been shifted."""
    sky = np.array([m.sky for m in measures])
    if not (sky > 0).all():
        sky = np.array([m.noise for m in measures])
    return sky * geometry.area_ratio[:, None]


# ---- gains from stars ------------------------------------------------------------------------------------


def _solve_gains(measures: list[FrameMeasure], geometry: Geometry, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """Return logarithms of gains (n, c), of mean 0 in each group of frames tied by stars, and the groups (n,).

    In a colour of which a frame shows too few stars it has the gain of all its light.
    """
    stars, channels = Detections.of(measures).identified(), measures[0].sky.size
    colours = channels if channels > 1 else 0
    parts = _parts(part_of(tell, _SHARE_OF_IDENTIFYING, 1.0), 1 + colours)
    whole, group = _gains_of_light(stars, list(range(channels)), geometry, parts[0])
    if not colours:
        return whole[:, None], group
    gains = []
    for c in range(channels):
        log_gain, own = _gains_of_light(stars, [c], geometry, parts[1 + c])
        # One colour may tie fewer frames, down to single ones; the light of all colours settles the rest.
        gains.append(log_gain + _group_means(whole - log_gain, own)[own])
    return np.stack(gains, axis=1), group


def _gains_of_light(
    stars: Detections, channels: list[int], geometry: Geometry, tell: Tell
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithms of gains (n,) from the summed light of channels, mean 0 a group, and the groups."""
    flux, error = stars.light(channels)
    n = len(geometry.centre)
    good = (stars.star >= 0) & (flux > MIN_SIGNAL_TO_NOISE * error)
    good = _shared_enough(stars.frame, stars.star, good, n)
    _, first, point = np.unique(stars.star[good], return_index=True, return_inverse=True)
    start = np.concatenate([[0], np.cumsum(np.bincount(stars.frame[good], minlength=n))])
    sightings = Sightings(start, point, stars.places[good][first], geometry.centre)
    group = sightings.groups(np.ones(point.size, dtype=bool))
    if not point.size:
        return np.zeros(n), group
    sigma = np.hypot(error[good] / flux[good], _FLUX_FLOOR)
    fit = fit_overlaps(sightings, np.log(flux[good]), sigma, planes=False, tell=tell)
    log_gain = fit.coefficients[:, 0]
    return log_gain - _group_means(log_gain, group)[group], group


def _shared_enough(frame: np.ndarray, number: np.ndarray, good: np.ndarray, n: int) -> np.ndarray:
    """Return which detections are of stars that several frames show, of frames that show enough such stars."""
    good = good.copy()
    size = int(number.max(initial=0)) + 1
    while good.any():
        before = int(good.sum())
        good &= np.bincount(number[good], minlength=size)[number] > 1
        good &= np.bincount(frame[good], minlength=n)[frame] >= MIN_COMMON_STARS
        if int(good.sum()) == before:
            break
    return good


# ---- offsets and gradients from the sky ------------------------------------------------------------------


class _Sky:
    """The coarse levels of all frames as sightings of the canvas's cells; `usual` frames tell how bright it is."""

    def __init__(self, measures: list[FrameMeasure], geometry: Geometry, usual: np.ndarray) -> None:
        self.geometry, self.usual = geometry, usual
        sizes = [m.cell.size for m in measures]
        self.frame = np.repeat(np.arange(len(measures)), sizes)
        self.cell, point = np.unique(np.concatenate([m.cell for m in measures]), return_inverse=True)
        row, column = cell_place(self.cell)
        place = np.column_stack([column, row]) * float(geometry.cell_px)
        start = np.concatenate([[0], np.cumsum(sizes)])
        self.sightings = Sightings(start, point, place, geometry.centre)
        self.level = np.concatenate([m.level for m in measures])
        self.sky = np.array([m.sky for m in measures])
        self.noise = np.array([m.noise for m in measures])
        self.group = self.sightings.groups(np.isfinite(self.level).any(axis=1))

    def fit(self, gain: np.ndarray, channel: int, *, planes: bool, tell: Tell) -> OverlapFit:
        """Return the models that make the sky of one channel agree."""
        value = gain[self.frame] * self.level[:, channel]
        sigma = self._sigma(gain, channel)[self.frame]
        return fit_overlaps(self.sightings, value, sigma, planes=planes, tell=tell)

    def _sigma(self, gain: np.ndarray, channel: int) -> np.ndarray:
        pixels = self.geometry.cell_px * np.sqrt(self.geometry.area_ratio)  # of the frame along a box
        return gain * self.noise[:, channel] * np.hypot(_LEVEL_NOISE / pixels, _LEVEL_FLOOR)

    def residual_of_frames(self, fit: OverlapFit, gain: np.ndarray, channel: int) -> np.ndarray:
        """Return each frame's root mean square residual less what noise explains; NaN where nothing is shared.

        A cell counts for a frame only if another frame is trusted there: where two alone contradict each other,
        the good one must not be blamed for the bad one.
        """
        n, sigma = gain.size, self._sigma(gain, channel)
        trust = np.where(np.isfinite(fit.residual), fit.weight * np.square(sigma[self.frame]), 0.0)
        total = np.bincount(self.sightings.point, trust, minlength=self.cell.size)
        known = np.isfinite(fit.residual) & (total[self.sightings.point] - trust > _TRUSTED)
        count = np.bincount(self.frame[known], minlength=n)
        square = np.bincount(self.frame[known], np.square(fit.residual[known]), minlength=n)
        mean = np.divide(square, count, out=np.full(n, np.nan), where=count > 0)
        return np.sqrt(np.maximum(mean - np.square(sigma), 0.0))

    def disagreement(self, fit: OverlapFit, gain: np.ndarray, channel: int) -> np.ndarray:
        """Return the root mean square residual of each cell, in units of a pixel's noise."""
        known = np.isfinite(fit.residual)
        noise = (gain * self.noise[:, channel])[self.frame[known]]
        point = self.sightings.point[known]
        count = np.bincount(point, minlength=self.cell.size)
        square = np.bincount(point, np.square(fit.residual[known] / noise), minlength=self.cell.size)
        return np.sqrt(np.divide(square, count, out=np.full(self.cell.size, np.nan), where=count > 0))

    def pinned(self, fit: OverlapFit, gain: np.ndarray, channel: int) -> tuple[np.ndarray, np.ndarray]:
        """Return offsets (n,) and gradients (n, 2) with what overlaps leave open settled, group by group.

        The sky of the mosaic is level as a whole, and the mean sky of every group is that of the usual frames.
        """
        offset, slope = fit.coefficients[:, 0].copy(), np.zeros((gain.size, 2))
        group = self.sightings.groups(np.isfinite(self.level[:, channel]))  # one colour may tie fewer frames
        if fit.coefficients.shape[1] > 1:
            slope = fit.coefficients[:, 1:].copy()
            for members in members_of(group):
                tilt = self._common_tilt(fit, members)
                slope[members] -= tilt
                offset[members] -= self.geometry.centre[members] @ tilt
        level = offset + gain * self.sky[:, channel]
        sky = self.sky[:, channel] if self.usual.size == gain.size else self.sky[self.usual, channel]
        return offset - _group_means(level, group)[group] + sky.mean(), slope

    def _common_tilt(self, fit: OverlapFit, members: np.ndarray) -> np.ndarray:
        """Return the slope (x, y) that the frames of a group have in common and the sky has not.

        Two witnesses are heard, each with its error: the sky of the mosaic, which is level where no nebula fills
        the field, and the frames, whose own gradients point in all directions.
        """
        parts = [np.arange(self.sightings.start[k], self.sightings.start[k + 1]) for k in members]
        seen = np.unique(self.sightings.point[np.concatenate(parts)])
        seen = seen[np.isfinite(fit.truth[seen])]
        sky, of_sky = tilt_of_sky(self.sightings.place[seen], fit.truth[seen])
        frames, of_frames = _mean_slope(fit.coefficients[members, 1:])
        weight = 1.0 / np.maximum(np.square([of_sky, of_frames]), 1e-300)  # 0 for who has nothing to say
        total = weight.sum(axis=0)
        mean = (weight * np.stack([sky, frames])).sum(axis=0)
        return np.divide(mean, total, out=np.zeros(2), where=total > 0)


def tilt_of_sky(place: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the slope (x, y) of a sky beside its nebulae, and its error: infinite if there are too few places.

    The error is that of the jackknife over blocks of the field (J. Tukey, Ann. Math. Stat. 29, 614, 1958): a
    nebula that fills the field is not the same in any two blocks.

    Parameters
    ----------
    place : ndarray, shape (k, 2)
    level : ndarray, shape (k,)
    """
    if len(place) < _MIN_PLANE_CELLS:
        return np.zeros(2), np.full(2, np.inf)
    step = -(-len(place) // _MOST_PLANE_CELLS)
    place, level = place[::step], level[::step]
    low, high = place.min(axis=0), place.max(axis=0)
    block = np.minimum(_BLOCKS * (place - low) / np.maximum(high - low, 1e-12), _BLOCKS - 1).astype(int)
    block = np.unique(block @ np.array([1, _BLOCKS]), return_inverse=True)[1]
    count = int(block.max()) + 1
    without = np.array([sky_plane(place[block != b], level[block != b]) for b in range(count)])
    error = np.sqrt((count - 1) / count * np.square(without - without.mean(axis=0)).sum(axis=0))
    return sky_plane(place, level), _LARGER * error


def _mean_slope(slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of slopes (n, 2) that do not stand out, and its error; infinite for fewer than two."""
    middle = np.median(slopes, axis=0)
    scatter = MAD_TO_SIGMA * np.median(np.abs(slopes - middle), axis=0)
    usual = (np.abs(slopes - middle) <= 3.0 * scatter).all(axis=1)
    if usual.sum() < 2:
        return np.zeros(2), np.full(2, np.inf)
    return slopes[usual].mean(axis=0), slopes[usual].std(axis=0) / np.sqrt(usual.sum())


def sky_plane(place: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return the slope (x, y) of a sky, nebulae and their wings left out; 0 if there are too few places.

    Least squares, reweighted: what is brighter than the plane by three times the scatter of what is fainter does
    not count.

    Parameters
    ----------
    place : ndarray, shape (k, 2)
    level : ndarray, shape (k,)
    """
    if len(place) < _MIN_PLANE_CELLS:
        return np.zeros(2)
    middle = place.mean(axis=0)
    length = max(float(np.abs(place - middle).max()), 1e-12)
    design = np.vstack([np.ones(len(place)), (place - middle).T / length])
    weight = np.ones(len(place))
    solution = np.zeros(3)
    for _ in range(_ROUNDS):
        before = solution
        # Three by three: to decompose all places would wake threads, whose waiting costs more than they save.
        weighted = design * weight
        solution = np.linalg.lstsq(weighted @ design.T, weighted @ level, rcond=1e-12)[0]
        distance = level - solution[0] - solution[1] * design[1] - solution[2] * design[2]
        below = distance[distance < 0]
        scatter = max(MAD_TO_SIGMA * float(np.median(-below)) if below.size else 0.0, 1e-12)
        pull = np.abs(distance) / (_NEBULA_SIGMA * scatter)
        weight = 1.0 / (1.0 + pull**4)
        if np.abs(solution - before).max() < 1e-3 * scatter:
            break
    return solution[1:] / length


def _group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.bincount(group, weights=values) / np.bincount(group)

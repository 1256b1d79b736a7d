"""What each frame does to the mosaic, and which frames it would be better without.

A place of the mosaic is the weighted mean of the frames that cover it. With weights w, noise s of a frame's pixel,
residual r (what the match leaves of a frame's difference from its neighbours, alike over many pixels) and width f
of its stars, sums over the frames of the place::

    noise variance   N = sum (w s)^2 / (sum w)^2
    seam variance    S = sum (w r)^2 / (sum w)^2
    FWHM squared     B = sum w f^2 / sum w

Noise averages out over pixels and seams do not, so what a viewer sees is the error of a small patch of
`PATCH_PX` x `PATCH_PX` pixels, ``E^2 = N / PATCH_PX^2 + S``. The harm of a frame is what leaving it out would
take from ``ln E`` and ``ln sqrt(B)``, averaged over the places where it lies: to first order, what the signal to
noise of a faint star would gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely

#: A patch of so many pixels a side is what is compared with its neighbours by eye.
PATCH_PX = 8
#: Leaving a frame out must gain this much (0.01 = 1 %) to be suggested.
MIN_GAIN = 0.01
#: At most this share of the frames is suggested.
MAX_SHARE = 0.1
#: Cells of the coarse grid of places along the short side of a frame.
CELLS_ACROSS = 8
#: The outermost strip of the mosaic, in short sides of a frame, that may be lost; whatever lies deeper may not.
RIM = 0.08

_BATCH_CELLS = 200_000  # of frames looked at together
_NEGLIGIBLE_PX2 = 1.0


@dataclass(frozen=True)
class Places:
    """Where frames lie, on a coarse grid of cells.

    Attributes
    ----------
    start : ndarray, shape (n + 1,), int64
        The cells of frame ``i`` are ``cell[start[i]:start[i + 1]]``; none where the outline is not known.
    cell : ndarray of int64
        Numbers of the cells whose centres lie in a frame.
    n_cells : int
    polygons : ndarray of shapely polygons, shape (n,)
        Outlines in mosaic pixels, None where not known.
    rim_px : float
        Width of the strip along the edge of the mosaic that may be lost.
    """

    start: np.ndarray
    cell: np.ndarray
    n_cells: int
    polygons: np.ndarray
    rim_px: float

    def of(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells of some frames, and for each cell which of the frames (0, 1, ..) it belongs to."""
        count = np.diff(self.start)[frames]
        owner = np.repeat(np.arange(len(frames)), count)
        first = np.cumsum(count) - count
        within = np.arange(owner.size) - first[owner]
        return self.cell[self.start[frames][owner] + within], owner


@dataclass(frozen=True)
class Quality:
    """What decides a frame's part in the mosaic.

    Attributes
    ----------
    weight, noise, residual : ndarray, shape (n, c), float64
        In units of the mosaic; a weight of 0 where a frame lacks a colour.
    width2 : ndarray, shape (n,), float64
        Square of the width of its stars in the mosaic, in square pixels.
    """

    weight: np.ndarray
    noise: np.ndarray
    residual: np.ndarray
    width2: np.ndarray


@dataclass(frozen=True)
class Harm:
    """What leaving a frame out would gain (negative: lose), as shares: 0.01 is 1 %.

    `noise` and `seam` are parts of the error of a patch, `blur` of the width of stars; NaN where a frame's place
    is not known. Where a frame is alone, leaving it out costs everything: -1 of the noise.
    """

    noise: np.ndarray
    seam: np.ndarray
    blur: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """What the signal to noise of a faint star would gain."""
        return self.noise + self.seam + self.blur


@dataclass(frozen=True)
class Levels:
    """Root mean squares over some cells and colours: noise of a pixel, seam, FWHM (px), error of a patch."""

    noise: float
    seam: float
    fwhm_px: float
    error: float


@dataclass(frozen=True)
class Prediction:
    """What leaving frames out does: `here` where they lie, `all` over the whole mosaic, as (with, without) them.

    `area` is the share of the mosaic where they lie, `lost` the share that would be lost at its rim.
    """

    here: tuple[Levels, Levels]
    all: tuple[Levels, Levels]
    area: float
    lost: float


# ---- places ----------------------------------------------------------------------------------------------


def places_of(outlines: np.ndarray) -> Places:
    """Return where frames lie.

    Parameters
    ----------
    outlines : ndarray, shape (n, 4, 2), float64
        Corners (x, y) of each frame in mosaic pixels, in order around it; NaN where not known.
    """
    known = np.flatnonzero(np.isfinite(outlines).all(axis=(1, 2)))
    polygons = np.full(len(outlines), None, dtype=object)
    if known.size == 0:
        return Places(np.zeros(len(outlines) + 1, np.int64), np.empty(0, np.int64), 0, polygons, 0.0)
    polygons[known] = shapely.make_valid(shapely.polygons(outlines[known]))
    sides = np.hypot(*np.moveaxis(np.roll(outlines[known], -1, axis=1) - outlines[known], 2, 0))
    short = max(float(np.median(sides.min(axis=1))), 1.0)
    corners = (outlines - outlines[known].reshape(-1, 2).min(axis=0)) / (short / CELLS_ACROSS)
    n_rows, n_columns = (np.floor(np.nanmax(corners[..., axis])).astype(int) + 1 for axis in (1, 0))
    count, cells = np.zeros(len(outlines), np.int64), []
    # Frames of one size are looked at together, so that one large one does not blow up all others' windows.
    reach = np.ceil(np.ptp(corners[known], axis=1).max(axis=1)).astype(int) + 1
    step = max(1, _BATCH_CELLS // int(np.median(reach)) ** 2)
    for first in range(0, known.size, step):
        batch = known[first : first + step]
        owner, row, column = _centres_inside(corners[batch], int(reach[first : first + step].max()))
        count[batch] = np.bincount(owner, minlength=batch.size)
        cells.append(row * n_columns + column)
    start = np.concatenate([[0], np.cumsum(count)])
    return Places(start, np.concatenate(cells), int(n_rows * n_columns), polygons, RIM * short)


def _centres_inside(corners: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (frame, row, column) of the cells whose centres lie in convex quadrangles, in units of cells."""
    first = np.floor(corners.min(axis=1))[:, None, :]
    y, x = np.divmod(np.arange(reach * reach), reach)
    centre = first + np.stack([x, y], axis=-1) + 0.5
    after = np.roll(corners, -1, axis=1)
    edge = after - corners
    turn = np.sign(np.sum(corners[..., 0] * after[..., 1] - corners[..., 1] * after[..., 0], axis=1))[:, None]
    inside = np.ones(centre.shape[:2], dtype=bool)
    for k in range(4):
        away = centre - corners[:, None, k]
        inside &= turn * (edge[:, None, k, 0] * away[..., 1] - edge[:, None, k, 1] * away[..., 0]) >= 0
    owner, place = np.nonzero(inside)
    column, row = (np.floor(centre[owner, place, axis]).astype(np.int64) for axis in (0, 1))
    return owner, row, column


# ---- the mosaic with and without frames ------------------------------------------------------------------


class Stack:
    """Sums over the frames of every cell, from which frames can be taken out.

    Parameters
    ----------
    places : Places
    quality : Quality
        Rows in frame order: sums are formed in that order.
    """

    def __init__(self, places: Places, quality: Quality) -> None:
        self.places = places
        self.present = quality.weight > 0
        weight = np.where(self.present, quality.weight, 0.0)
        terms = (
            self.present.astype(np.float64),
            weight,
            np.square(weight * np.where(self.present, quality.noise, 0.0)),
            np.square(weight * np.where(self.present, quality.residual, 0.0)),
            weight * quality.width2[:, None],
        )
        self._terms = np.stack(terms)
        self._inside = np.ones(len(weight), dtype=bool)
        cell, owner = places.of(np.arange(len(weight)))
        shape = (*self._terms.shape[::2], places.n_cells)
        self._sums = np.zeros(shape)
        for k, c in np.ndindex(shape[:2]):
            term = self._terms[k, :, c]
            self._sums[k, c] = np.bincount(cell, weights=term[owner], minlength=places.n_cells)

    def harm(self, frames: np.ndarray) -> Harm:
        """Return what leaving each of some frames out, alone, would gain."""
        parts = np.full((3, len(frames)), np.nan)
        size = np.diff(self.places.start)[frames]
        batch = (np.cumsum(size) - size) // _BATCH_CELLS
        for number in np.unique(batch):
            chosen = np.flatnonzero((batch == number) & (size > 0))
            if chosen.size:
                parts[:, chosen] = self._harm(frames[chosen])
        return Harm(*parts)

    def _harm(self, frames: np.ndarray) -> np.ndarray:
        cell, owner = self.places.of(frames)
        total, count = np.zeros((3, len(frames))), np.zeros(len(frames))
        for c in range(self._sums.shape[1]):
            here = self.present[frames, c][owner]
            at, who = cell[here], owner[here]
            whole = self._sums[:, c, at]
            rest = whole - self._terms[:, frames[who], c]
            changes = _changes(whole, rest)
            total += [np.bincount(who, weights=change, minlength=len(frames)) for change in changes]
            count += np.bincount(who, minlength=len(frames))
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def remove(self, frame: int) -> np.ndarray:
        """Take a frame out; return its cells."""
        cell, _ = self.places.of(np.array([frame]))
        # Each cell occurs once in a frame, so this needs no np.subtract.at.
        self._sums[:, :, cell] -= self._terms[:, frame, :, None]
        self._inside[frame] = False
        return cell

    def opens_hole(self, frame: int, tree: shapely.STRtree) -> bool:
        """Whether a piece of the mosaic, as it was at first and in any colour, is lost deeper than its rim."""
        polygons, rim = self.places.polygons, self.places.rim_px
        near = np.sort(tree.query(polygons[frame].buffer(3.0 * rim)))
        of_colours = [near[self.present[near, c]] for c in np.flatnonzero(self.present[frame])]
        for members in {colour.tobytes(): colour for colour in of_colours}.values():
            others = members[self._inside[members] & (members != frame)]
            if _opens_hole(polygons[frame], polygons[others], polygons[members], rim):
                return True
        return False

    def levels(self, cells: np.ndarray) -> Levels:
        """Return the mean levels of some cells where there are frames."""
        depth, weight, noise, seam, blur = self._sums[:, :, cells]
        covered = depth > 0.5
        if not covered.any():
            return Levels(np.nan, np.nan, np.nan, np.nan)
        weight = weight[covered]
        n, s = noise[covered] / weight**2, np.maximum(seam[covered], 0.0) / weight**2
        means = n.mean(), s.mean(), (blur[covered] / weight).mean(), (n / PATCH_PX**2 + s).mean()
        return Levels(*(float(np.sqrt(value)) for value in means))

    def covered(self) -> np.ndarray:
        """Return which cells have a frame, shape (n_cells,)."""
        return (self._sums[0] > 0.5).any(axis=0)


def _changes(whole: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return changes of noise, seam and blur from the sums of cells with and without a frame.

    ``(a - b) / (a + b)`` is half of ``ln(a / b)`` to second order, adds up over the parts of a variance, and is -1
    where nothing is left.
    """
    alone = rest[0] < 0.5
    weight = np.where(alone, 1.0, rest[1])
    noise, seam = whole[2:4] / whole[1] ** 2
    noise_left, seam_left = np.where(alone, 0.0, np.maximum(rest[2:4], 0.0)) / weight**2
    blur, blur_left = whole[4] / whole[1], rest[4] / weight
    noise, noise_left = noise / PATCH_PX**2, noise_left / PATCH_PX**2
    both = np.maximum(noise + seam + noise_left + seam_left, np.finfo(float).tiny)
    return (
        np.where(alone, -1.0, (noise - noise_left) / both),
        np.where(alone, 0.0, (seam - seam_left) / both),
        np.where(alone, 0.0, (blur - blur_left) / np.maximum(blur + blur_left, np.finfo(float).tiny)),
    )


def _opens_hole(polygon: shapely.Geometry, others: np.ndarray, everyone: np.ndarray, rim_px: float) -> bool:
    """Whether a part of the polygon that no other covers lies deeper than the rim of everyone's union."""
    distance = shapely.distance(shapely.centroid(others), shapely.centroid(polygon))
    lost = polygon
    for other in others[np.argsort(distance, kind="stable")]:
        lost = shapely.difference(lost, other)
        if shapely.area(lost) <= _NEGLIGIBLE_PX2:
            return False
    # Only the surroundings of what is lost matter; where they are cut off is too far away for the rim.
    around = shapely.buffer(lost, 2.0 * rim_px)
    deep = shapely.buffer(shapely.union_all(shapely.intersection(everyone, around)), -rim_px)
    return bool(shapely.area(shapely.intersection(lost, deep)) > _NEGLIGIBLE_PX2)


# ---- the suggestion --------------------------------------------------------------------------------------


def suggest(places: Places, quality: Quality, suspects: np.ndarray, limit: int) -> list[int]:
    """Return the frames that the mosaic would be better without, worst first.

    One after the other, the frame that harms most is taken out and its neighbours are judged again, as long as
    that gains at least `MIN_GAIN`. A frame without which the mosaic would have a hole stays.

    Parameters
    ----------
    suspects : ndarray of bool, shape (n,)
        Frames that may be suggested.
    limit : int
        Number of frames not to be exceeded.
    """
    stack, tree = Stack(places, quality), shapely.STRtree(places.polygons)
    waiting = np.flatnonzero(suspects)
    gain = stack.harm(waiting).total
    cell, owner = places.of(waiting)
    out: list[int] = []
    while len(out) < limit and (gain >= MIN_GAIN).any():
        worst = int(np.nanargmax(gain))
        gain[worst] = np.nan
        if stack.opens_hole(waiting[worst], tree):
            continue
        changed = np.zeros(places.n_cells, dtype=bool)
        changed[stack.remove(waiting[worst])] = True
        out.append(int(waiting[worst]))
        touched = np.bincount(owner, weights=changed[cell], minlength=waiting.size) > 0
        again = np.flatnonzero(touched & np.isfinite(gain))
        gain[again] = stack.harm(waiting[again]).total
    return out


def predict(places: Places, quality: Quality, frames: list[int]) -> Prediction:
    """Return what leaving some frames out does to noise, seams and sharpness."""
    whole, rest = Stack(places, quality), Stack(places, quality)
    here = np.zeros(places.n_cells, dtype=bool)
    for frame in frames:
        here[rest.remove(frame)] = True
    before, after = whole.covered(), rest.covered()
    regions = np.flatnonzero(here & after), np.flatnonzero(after)
    pairs = [(whole.levels(cells), rest.levels(cells)) for cells in regions]
    n_cells = max(int(before.sum()), 1)
    return Prediction(*pairs, float((here & before).sum() / n_cells), float((before & ~after).sum() / n_cells))

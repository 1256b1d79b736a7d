"""Detections: the stars of all frames in one table, and which of them are one star.

Two ways tell which detections are one star, for positions of two kinds. `cluster_stars` is for those that are
still uncertain: no frame is a reference, a star is one whatever its positions scatter, and what is crowded is left
out. `catalogue_stars` is for those that are settled: stars as close as the radius are told apart, but one whose
positions scatter by more falls into several. Either leaves out what one frame shows twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np

import zemosaic_detection_kernels as kernels

#: Two detections closer than this on the canvas are one star, once positions are settled.
MATCH_RADIUS_PX = 2.0

#: The columns of a `StarMeasure`.
STAR_COLUMNS = ("star_x", "star_y", "frame_x", "frame_y", "flux", "flux_error")


class StarMeasure(Protocol):
    """The columns of a `zemosaic_photometry.FrameMeasure` that `Detections.of` asks for."""

    star_x: np.ndarray
    star_y: np.ndarray
    frame_x: np.ndarray
    frame_y: np.ndarray
    flux: np.ndarray
    flux_error: np.ndarray


@dataclass(frozen=True)
class Detections:
    """What frames show of stars, m detections in c colours, in frame order.

    Attributes
    ----------
    frame : ndarray, shape (m,), int64
        Index of the frame, ascending.
    star : ndarray, shape (m,), int64
        Number of the star; -1 if that is not clear, or not asked yet.
    x, y : ndarray, shape (m,), float64
        Places on the canvas, px.
    frame_x, frame_y : ndarray, shape (m,), float32
        Places on the detector, pixels of the frame.
    flux, error : ndarray, shape (m, c), float32
        Frame units; NaN where it could not be measured.
    """

    frame: np.ndarray
    star: np.ndarray
    x: np.ndarray
    y: np.ndarray
    frame_x: np.ndarray
    frame_y: np.ndarray
    flux: np.ndarray
    error: np.ndarray

    @classmethod
    def of(cls, measures: Sequence[StarMeasure], most: int | None = None) -> Detections:
        """Return the detections of measured frames, or the first `most` of each; their stars have no numbers."""
        frame = np.repeat(np.arange(len(measures)), [m.star_x[:most].size for m in measures])
        columns = (np.concatenate([getattr(m, name)[:most] for m in measures]) for name in STAR_COLUMNS)
        return cls(frame, np.full(frame.size, -1), *columns)

    @property
    def places(self) -> np.ndarray:
        """Places on the canvas, (m, 2)."""
        return np.column_stack([self.x, self.y])

    def identified(self) -> Detections:
        """Return the detections with the numbers of `catalogue_stars`."""
        return replace(self, star=catalogue_stars(self.places, self.frame))

    def chosen(self, which: np.ndarray) -> Detections:
        """Return some of the detections: `which` is a mask (m,) or ascending indices."""
        return Detections(*(getattr(self, field.name)[which] for field in fields(self)))

    def light(self, channels: Sequence[int] | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and error (m,), float64, of the summed light of some colours, or of all."""
        flux = self.flux[:, channels].sum(axis=1, dtype=np.float64)
        return flux, np.sqrt(np.square(self.error[:, channels], dtype=np.float64).sum(axis=1))


# ---- which detections are one star: by density -----------------------------------------------------------


def cluster_stars(places: np.ndarray, frame: np.ndarray, radius: float) -> np.ndarray:
    """Return the number of each detection's star; -1 if no other frame shows it, or it is not clear.

    Where the detections are densest in cells of `radius`, there is a star; a detection belongs to the nearest one
    within `radius`. Two detections of one frame that claim one star are both left out. No frame is a reference,
    and the order of the frames does not matter.

    Parameters
    ----------
    places : ndarray, shape (m, 2), float64
    frame : ndarray, shape (m,), int64
    radius : float

    Returns
    -------
    ndarray, shape (m,), int64
        Numbers from 0 of the stars that at least two frames show.
    """
    if len(places) == 0:
        return np.empty(0, dtype=np.int64)
    seeds = _dense_places(places, radius)
    for _ in range(2):
        nearest = _nearest(seeds, places, radius)
        inside = nearest >= 0
        count = np.bincount(nearest[inside], minlength=len(seeds))
        sums = [np.bincount(nearest[inside], places[inside, axis], minlength=len(seeds)) for axis in range(2)]
        seeds = np.column_stack(sums)[count > 0] / count[count > 0, None]
    return renumbered(_without_doubles(_nearest(seeds, places, radius), frame))


def _nearest(seeds: np.ndarray, places: np.ndarray, radius: float) -> np.ndarray:
    """Return the index (m,) of the nearest of the seeds within `radius` of places (m, 2), -1 if there is none."""
    number = np.empty(len(seeds) + len(places), dtype=np.int64)
    kernels.identify(np.vstack([seeds, places]), np.array([0, len(seeds), number.size]), 1, radius, number)
    return number[len(seeds) :]


def renumbered(star: np.ndarray) -> np.ndarray:
    """Number the stars that at least two detections show from 0; the others become -1."""
    count = np.bincount(star[star >= 0], minlength=1)
    number = np.cumsum(count >= 2) - 1
    seen = (star >= 0) & (count[star] >= 2)
    return np.where(seen, number[star], -1)


def _without_doubles(star: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Return `star` with -1 for detections of one frame that claim one star."""
    order = np.lexsort((frame, star))
    same = (np.diff(star[order]) == 0) & (np.diff(frame[order]) == 0)
    double = np.zeros(star.size, dtype=bool)
    double[order[1:][same]] = True
    double[order[:-1][same]] = True
    return np.where(double, -1, star)


def _dense_places(places: np.ndarray, radius: float) -> np.ndarray:
    """Return the centroids of the 3 x 3 cells that hold most detections of all around them."""
    cell = np.floor(places / radius).astype(np.int64)
    cell -= cell.min(axis=0) - 1
    width = int(cell[:, 0].max()) + 2
    key, inverse, count = np.unique(cell[:, 1] * width + cell[:, 0], return_inverse=True, return_counts=True)
    sums = np.column_stack([count, *(np.bincount(inverse, places[:, axis]) for axis in range(2))])
    around = [_neighbour(key, dy * width + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    # A row of zeros behind the last cell stands for an empty one.
    block = np.sum([np.vstack([sums, np.zeros(3)])[index] for index in around], axis=0)
    held = np.append(block[:, 0], 0.0)
    peak = np.ones(key.size, dtype=bool)
    for k, index in enumerate(around):
        if k != 4:
            peak &= (block[:, 0] > held[index]) if k < 4 else (block[:, 0] >= held[index])
    return block[peak, 1:] / block[peak, :1]


def _neighbour(key: np.ndarray, step: int) -> np.ndarray:
    """Return where ``key + step`` stands in the sorted `key`, its length if nowhere."""
    index = np.searchsorted(key, key + step)
    found = (index < key.size) & (key[np.minimum(index, key.size - 1)] == key + step)
    return np.where(found, index, key.size)


# ---- which detections are one star: by a catalogue -------------------------------------------------------


def catalogue_stars(places: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Return the number of each detection's star; -1 if that is not clear.

    Frames are gone through in order; a detection within `MATCH_RADIUS_PX` of a known star is the nearest such
    star, any other founds a new one, where it lies. Two detections of one frame that claim one star are both left
    out.

    Parameters
    ----------
    places : ndarray, shape (m, 2), float64
    frame : ndarray, shape (m,), int64
        Ascending.

    Returns
    -------
    ndarray, shape (m,), int64
        Numbers from 0, of stars that one frame alone shows too.
    """
    star = np.empty(frame.size, dtype=np.int64)
    start = np.concatenate([[0], np.flatnonzero(np.diff(frame)) + 1, [frame.size]])
    kernels.identify(np.ascontiguousarray(places, dtype=float), start, start.size - 1, MATCH_RADIUS_PX, star)
    return _without_doubles(star, frame)

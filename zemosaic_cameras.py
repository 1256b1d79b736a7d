"""One scale for frames of several cameras and exposures, where stars tie only some of them to each other.

Stars give the gains of every group of frames that share some, up to a factor a group. Frames of one camera see a
second of light alike, in whatever group they are; so one factor a camera and one a group are solved together.
Cameras that no group ties to the others are put beside them by the brightness of their sky.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

#: Exposures that differ by no more than this share are one.
SAME_EXPOSURE = 0.1


@dataclass(frozen=True)
class Cameras:
    """Who made the frames.

    Attributes
    ----------
    number : ndarray, shape (n,), int64
        Of the camera of each frame, from 0 on.
    seconds : ndarray, shape (n,), float64
        Exposures, positive.
    """

    number: np.ndarray
    seconds: np.ndarray

    @classmethod
    def one(cls, n: int) -> Cameras:
        """Return what says that `n` frames are of one camera and one exposure."""
        return cls(np.zeros(n, dtype=np.int64), np.ones(n))

    def members(self) -> list[np.ndarray]:
        """Return the indices of the frames of each camera."""
        return [np.flatnonzero(self.number == k) for k in range(int(self.number.max()) + 1)]

    def usual(self) -> np.ndarray:
        """Return the indices of the frames of the camera, and exposure, that most frames are of."""
        most = self.members()[int(np.argmax(np.bincount(self.number)))]
        log = np.log(self.seconds[most])
        ordered = np.sort(log)
        count = np.searchsorted(ordered, ordered + SAME_EXPOSURE, side="right") - np.arange(log.size)
        shortest = ordered[np.argmax(count)]
        return most[(log >= shortest) & (log <= shortest + SAME_EXPOSURE)]


def classes_of(values: np.ndarray, gap: float) -> np.ndarray:
    """Return the classes (n,) that values fall into where none lie between them for more than `gap`."""
    order = np.argsort(values, kind="stable")
    number = np.empty(values.size, dtype=np.int64)
    number[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > gap)])
    return number


def common_scale(
    log_gain: np.ndarray, group: np.ndarray, cameras: Cameras, light: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put gains that are known up to a factor a group on the scale of the usual frames.

    Parameters
    ----------
    log_gain : ndarray, shape (n, c), float64
        Logarithms of gains of mean 0 in every group.
    group : ndarray, shape (n,), int64
    cameras : Cameras
    light : ndarray, shape (n, c), float64
        Positive, and alike for all frames once they have their gains: the sky, seen by pixels of the mosaic.

    Returns
    -------
    log_gain : ndarray, shape (n, c)
        Of mean 0 over `Cameras.usual`.
    by_sky : ndarray of bool, shape (n,)
        Frames whose camera is compared with the usual one by the sky alone.
    """
    usual = cameras.usual()
    if usual.size == len(log_gain):
        return log_gain, np.zeros(len(log_gain), dtype=bool)
    second = log_gain + np.log(cameras.seconds)[:, None]
    second, family = _balanced(second, group, cameras.number)
    log_gain = second - np.log(cameras.seconds)[:, None]
    main = family[usual[0]]
    brightness = np.log(light) + log_gain
    for other in np.unique(family[family != main]):
        away = np.median(brightness[family == main], axis=0) - np.median(brightness[family == other], axis=0)
        log_gain[family == other] += away
    return log_gain - log_gain[usual].mean(axis=0), family != main


def _balanced(values: np.ndarray, group: np.ndarray, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values (n, c) with a constant a group, so that each camera's are alike, and their families (n,).

    Least squares for a constant a group and one a camera, the groups eliminated; families are groups and cameras
    that hang together.
    """
    shared = csr_array((np.ones(group.size), (group, camera))).toarray()
    of_group, of_camera = shared.sum(axis=1), shared.sum(axis=0)
    mean = _sums(group, values) / of_group[:, None]
    matrix = np.diag(of_camera) - shared.T @ (shared / of_group[:, None])
    constant = np.linalg.lstsq(matrix, _sums(camera, values - mean[group]), rcond=None)[0]
    wanted = (shared / of_group[:, None]) @ constant
    family = connected_components(csr_array(shared.T @ shared), directed=False)[1]
    return values + (wanted - mean)[group], family[camera]


def _sums(number: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(number, column) for column in values.T], axis=1)

"""What several frames saw of common points, made to agree: one sparse robust least-squares fit.

The model of the match, for stars and sky alike: frame ``i`` saw ``value`` at point ``k``, and
``value + model_i(place_k) = truth_k`` but for noise, where the model is a constant or a plane and the truth of a
point is not known. The truths are eliminated, which couples the frames that see a common point and no others;
the normal equations are never formed but multiplied through, sighting by sighting, in preconditioned conjugate
gradients (`zemosaic_two_levels`). So time and memory grow with the number of sightings, not with that of pairs of
frames.

Outliers are kept out by iteratively reweighted least squares: Huber's weights, then Tukey's (P. J. Huber,
Robust Statistics, 1981). Slopes are kept to what the overlaps show by a normal prior about no slope, whose spread
is estimated from the slopes themselves (C. N. Morris, JASA 78, 47, 1983): without it, frames that touch at a
narrow strip would bend the mosaic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from zemosaic_events import tagged_logger
from zemosaic_links import tied_groups
from zemosaic_overlap_kernels import frame_sums, modelled, normal_product, own_blocks, point_sums, residuals
from zemosaic_two_levels import Boxes, CoarseLevel, conjugate_gradients, without_means
from zemosaic_types import MAD_TO_SIGMA, Tell, tell_nobody

logger = tagged_logger("ZeMosaicWorker.match")

_HUBER = 1.5
_TUKEY = 6.0
_HUBER_ROUNDS = 12
_TUKEY_ROUNDS = 8
_CONVERGED = 1e-3  # of a sighting's error
_FIRST_SPREAD = 3.0  # of slopes, in scatters of the sightings: no restraint at first
_LEAST_SPREAD = 0.01
_CG_TOLERANCE = 1e-8
_CG_ROUNDS = 2000
_ROUNDING = 1e-13
_TRACE = 1e-12
_SHARED = 1e-9  # share of a point's weight that others must have before it counts as seen by several


@dataclass(frozen=True)
class Sightings:
    """What frames saw of points, ordered by frame.

    Attributes
    ----------
    start : ndarray, shape (n + 1,), int64
        Sightings of frame i are ``start[i]`` to ``start[i + 1]``.
    point : ndarray, shape (m,), int64
        Number of the point, 0 to k - 1.
    place : ndarray, shape (k, 2), float64
        Where each point is, x and y.
    centre : ndarray, shape (n, 2), float64
        Where each frame is: its model is a plane about this place.
    """

    start: np.ndarray
    point: np.ndarray
    place: np.ndarray
    centre: np.ndarray

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return self.start.size - 1

    @property
    def frame(self) -> np.ndarray:
        """Frame of each sighting, (m,)."""
        return np.repeat(np.arange(self.n_frames), np.diff(self.start))

    def groups(self, used: np.ndarray) -> np.ndarray:
        """Number the groups of frames that common points tie to each other, by the sightings that are `used`."""
        return tied_groups(self.frame[used], self.point[used], self.n_frames)


@dataclass(frozen=True)
class OverlapFit:
    """The solution of `fit_overlaps`.

    Attributes
    ----------
    coefficients : ndarray, shape (n, p), float64
        Constant of each frame's model, and its slopes along x and y.
    truth : ndarray, shape (k,), float64
        Of the points; NaN for those that nobody saw.
    residual : ndarray, shape (m,), float64
        ``value + model - truth``; NaN at points that no other frame sees.
    weight : ndarray, shape (m,), float64
        Final weight of each sighting; 0 for outliers.
    spread : float
        Standard deviation of the slopes' prior.
    """

    coefficients: np.ndarray
    truth: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    spread: float


def fit_overlaps(
    sightings: Sightings, value: np.ndarray, sigma: np.ndarray, *, planes: bool, tell: Tell = tell_nobody
) -> OverlapFit:
    """Return the models that make frames agree best, one coefficient a frame or (`planes`) three.

    Parameters
    ----------
    sightings : Sightings
    value, sigma : ndarray, shape (m,), float64
        What was seen, and its error; a NaN in either takes the sighting out.
    planes : bool
        Models are planes, not constants.
    tell : callable
        Told the share that is done, in each step of a solution too; may end the work.

    Returns
    -------
    OverlapFit
        Every connected group of frames keeps a common constant undetermined; the fit's has the mean 0. A common
        plane is small but arbitrary.
    """
    fit = _Fit(sightings, value, sigma, 3 if planes else 1)
    if not np.isfinite(fit.residual).any():  # nobody shares anything
        return fit.result()
    fit.prepare()
    for robust, first, rounds in ((_huber, 0, _HUBER_ROUNDS), (_tukey, _HUBER_ROUNDS, _TUKEY_ROUNDS)):
        for k in range(rounds):
            between = partial(tell, (first + k) / (_HUBER_ROUNDS + _TUKEY_ROUNDS))
            between()
            if fit.improve(robust, between) < _CONVERGED:
                break
    return fit.result()


class _Fit:
    """The state of the iteration; slopes are in values per `length`, so that all coefficients are of one size."""

    def __init__(self, sightings: Sightings, value: np.ndarray, sigma: np.ndarray, p: int) -> None:
        known = np.isfinite(value) & np.isfinite(sigma)
        self.value = np.where(known, value, 0.0)
        self.sigma = np.where(known, sigma, 1.0)
        self.base = np.where(known, 1.0 / np.square(self.sigma), 0.0)
        self.typical = float(np.median(self.sigma[known])) if known.any() else 1.0
        self.length, radius = _extent(sightings)
        place, centre = sightings.place / self.length, sightings.centre / self.length
        self.where = (sightings.start, sightings.point, np.ascontiguousarray(place), np.ascontiguousarray(centre))
        self.boxes = Boxes.of(centre, radius / self.length)
        self.theta = np.zeros((sightings.n_frames, p))
        self.group = sightings.groups(known)
        self.weight = self.base
        self._settle()
        self.spread = _FIRST_SPREAD * self.scale * self.typical

    def prepare(self) -> None:
        """Form the equations of boxes of frames, by the first weights: the later ones are much like them."""
        self._weigh(self.base)
        (start, point, place, centre), (n, p) = self.where, self.theta.shape
        boxes = self.boxes

        def basis(at: np.ndarray, box: np.ndarray) -> np.ndarray:
            return np.column_stack([np.ones(at.size), place[at] - boxes.centre[box]])[:, :p]

        shares = np.repeat(np.eye(p)[None], n, axis=0)
        shares[:, 0, 1:] = (centre - boxes.centre[boxes.number])[:, : p - 1]
        frame = np.repeat(np.arange(n), np.diff(start))
        prior = np.broadcast_to(self.ridge, (n, p))
        self.coarse = CoarseLevel(boxes, shares, frame, point, self.weight, self.weights, basis, prior)

    def improve(self, robust: Callable[[np.ndarray], np.ndarray], between: Callable[[], None]) -> float:
        """Reweight and solve once; return the largest change of a coefficient in units of a sighting's error.

        `between` is called in each step.
        """
        before = self.theta
        self._weigh(self.base * robust(np.abs(np.nan_to_num(self.pull)) / self.scale))
        self._solve(between)
        self._settle()
        if self.theta.shape[1] > 1:
            # Of the slopes and of what is not known of them: a spread near their errors would shrink to nothing.
            slope = MAD_TO_SIGMA * float(np.median(np.abs(self.theta[:, 1:])))
            error = np.median(np.diagonal(self.inverse, axis1=1, axis2=2)[:, 1:])
            self.spread = max(float(np.hypot(slope, np.sqrt(error))), _LEAST_SPREAD * self.typical)
        return float(np.abs(self.theta - before).max(initial=0.0) / (self.scale * self.typical))

    def result(self) -> OverlapFit:
        """Return the solution in the units of the sightings."""
        coefficients = self.theta.copy()
        coefficients[:, 1:] /= self.length
        return OverlapFit(coefficients, self.truth, self.residual, self.weight, self.spread / self.length)

    def _weigh(self, weight: np.ndarray) -> None:
        """Take new weights: sums over points, the prior of the slopes, and the frames' own blocks."""
        p = self.theta.shape[1]
        self.weight = weight
        total, self.weights = point_sums(*self.where[:2], weight, self.value, len(self.where[2]))
        self.mean = np.divide(total, self.weights, out=np.zeros_like(total), where=self.weights > 0)
        self.ridge = np.zeros(p)
        self.ridge[1:] = 1.0 / self.spread**2
        n = len(self.theta)
        blocks = np.empty((n, p, p))
        own_blocks(*self.where, weight, self.weights, blocks)
        # A frame that shares nothing has an empty block; what it is does not matter, since its right side is 0.
        least = 1e-9 * np.trace(blocks, axis1=1, axis2=2).max(initial=0.0) / p + 1e-300
        self.inverse = np.linalg.inv(blocks + np.diag(self.ridge + least))

    def _settle(self) -> None:
        """Bring truths, residuals and the scale of the residuals up to date with the coefficients."""
        model = np.empty_like(self.value)
        modelled(*self.where, self.theta, model)
        seen, point = self.value + model, self.where[1]
        # A point whose sightings are all outliers has their mean: without it they would be taken back in.
        weight = self.weight + _TRACE * self.base
        total, weights = point_sums(*self.where[:2], weight, seen, len(self.where[2]))
        self.truth = np.divide(total, weights, out=np.full_like(total, np.nan), where=weights > 0)
        self.residual, self.pull = np.empty_like(seen), np.empty_like(seen)
        residuals(point, weight, weights, seen, self.truth, self.sigma, _SHARED, self.residual, self.pull)
        shared = self.pull[np.isfinite(self.pull)]
        self.scale = max(1.0, MAD_TO_SIGMA * float(np.median(np.abs(shared)))) if shared.size else 1.0

    def _solve(self, between: Callable[[], None]) -> None:
        shape = self.theta.shape
        right, size_of_terms, scratch = np.empty(shape), np.empty(shape), np.empty(len(self.where[2]))
        frame_sums(*self.where, self.weight, self.mean[self.where[1]] - self.value, right)
        frame_sums(*self.where, self.weight, np.abs(self.value), size_of_terms)
        goal = max(_CG_TOLERANCE * np.linalg.norm(right), _ROUNDING * np.linalg.norm(size_of_terms))

        def product(flat: np.ndarray) -> np.ndarray:
            theta, out = flat.reshape(shape), np.empty(shape)
            normal_product(*self.where, self.weight, self.weights, theta, scratch, out)
            return (out + self.ridge * theta).reshape(-1, 1)

        def precondition(flat: np.ndarray) -> np.ndarray:
            level = self._without_means(flat.reshape(shape))
            smooth = self.coarse(level.reshape(-1, 1)).reshape(shape)
            return self._without_means(np.einsum("nij,nj->ni", self.inverse, level) + smooth).reshape(-1, 1)

        solution, done = conjugate_gradients(
            product,
            precondition,
            right.reshape(-1, 1),
            self.theta.reshape(-1, 1),
            lambda residual, _: np.linalg.norm(residual, axis=0) <= goal,
            most=_CG_ROUNDS,
            between=between,
        )
        if not done:
            logger.warning("the match has not converged in %d rounds; panels may show", _CG_ROUNDS)
        self.theta = self._without_means(solution.reshape(shape))

    def _without_means(self, theta: np.ndarray) -> np.ndarray:
        """Return coefficients whose constants have the mean 0 in every group; a group's own is not determined."""
        return np.hstack([without_means(theta[:, :1], self.group), theta[:, 1:]])


def _extent(sightings: Sightings) -> tuple[float, np.ndarray]:
    """Return the root mean square distance of a point, along an axis, and of each frame's points (n,) from it."""
    distance = sightings.place[sightings.point] - sightings.centre[sightings.frame]
    squared = np.square(distance).sum(axis=1)
    count = np.diff(sightings.start)
    radius = np.sqrt(np.bincount(sightings.frame, squared, minlength=count.size) / np.maximum(count, 1))
    mean = float(squared.mean()) if squared.size else 0.0
    return float(np.sqrt(mean / 2.0)) if mean > 0.0 else 1.0, radius


def _huber(pull: np.ndarray) -> np.ndarray:
    return np.minimum(1.0, _HUBER / np.maximum(pull, 1e-12))


def _tukey(pull: np.ndarray) -> np.ndarray:
    return np.square(np.maximum(0.0, 1.0 - np.square(pull / _TUKEY)))

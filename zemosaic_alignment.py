"""The alignment: small corrections of all frames' positions that make the same stars coincide.

One robust, weighted least-squares problem over all detections of all frames. Unknown are a similarity for each
frame (shift, rotation, scale) and the true position of each star; the latter are eliminated, so the cost of the
normal equations grows with the detections and not with the pairs of frames. They are solved by conjugate
gradients without forming their matrix. A weak prior holds every frame where its own WCS puts it: it pins what the
stars leave open, the common shift, rotation and scale of each group of frames, and keeps errors from adding up
along a row of panels. Within, places and shifts are complex numbers, ``x + i y``: a similarity is two of them.

Frames that are far off are found before that from the offsets at which the stars of overlapping pairs coincide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.sparse import coo_matrix, diags_array
from scipy.sparse.linalg import cg
from scipy.spatial.distance import cdist

import zemosaic_alignment_kernels as kernels
from zemosaic_detections import cluster_stars, renumbered
from zemosaic_links import linked_groups, members_of
from zemosaic_two_levels import Boxes, CoarseLevel, conjugate_gradients
from zemosaic_types import Tell, part_of, tell_nobody

#: Offsets are searched up to this distance along an axis, px of the canvas.
SEARCH_PX = 42.0
#: A frame that must be moved further than this has a wrong WCS.
MAX_CORRECTION_PX = 5.0
#: A frame that gains so much (px along an axis, in quadrature) needs its correction whatever the others need.
MIN_FRAME_GAIN_PX = 0.3
#: So many common stars allow a shift, and so many a rotation and a scale too.
MIN_STARS_SHIFT, MIN_STARS_SIMILARITY = 2, 6

_MATCH_RADII_PX = (3.0, 2.0, 2.0)
# The prior: one standard deviation of a frame's displacement, and where its pull stops growing.
_PRIOR_PX, _PRIOR_HUBER_PX = 1.0, 0.5
_HUBER, _TUKEY = 1.5, 6.0
_HUBER_ROUNDS, _TUKEY_ROUNDS = 3, 4
_RAYLEIGH_MEDIAN = 1.1774100225154747
_LEAST_SCALE, _LEAST_SHARE = 0.3, 1e-3
_ROUGH, _FINE, _MOST_STEPS = 1e-5, 1e-10, 3000
_MIN_VOTES = 5
_MOST_BY_CHANCE = 0.5
_MOST_UNDECIDED = 2000
_DIFFERENCE_ROUNDS = 20
# The least F ratio (variance explained a parameter over what is left) that is more than noise.
_LEAST_RATIO = 4.0


@dataclass(frozen=True)
class Positions:
    """Where the WCS of all frames put the stars that they show, and how surely; d detections in frame order.

    Attributes
    ----------
    frame : ndarray, shape (d,), int64
        Index of the frame, ascending.
    x, y : ndarray, shape (d,), float64
        Positions on the canvas, px.
    sigma : ndarray, shape (d,), float64
        Standard error of a position along an axis, px.
    centre : ndarray, shape (n, 2), float64
        Centres (x, y) of the frames on the canvas.
    radius : ndarray, shape (n,), float64
        Root mean square distance of a frame's pixels from its centre.
    """

    frame: np.ndarray
    x: np.ndarray
    y: np.ndarray
    sigma: np.ndarray
    centre: np.ndarray
    radius: np.ndarray

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.centre)

    def only(self, chosen: np.ndarray) -> Positions:
        """Return the detections that `chosen` (d,) marks, of the same frames."""
        parts = (values[chosen] for values in (self.frame, self.x, self.y, self.sigma))
        return Positions(*parts, self.centre, self.radius)


@dataclass(frozen=True)
class Alignment:
    """What the alignment found, for n frames and d detections.

    Attributes
    ----------
    correction : ndarray, shape (n, 4), float64
        Shift along x and y, scale and rotation, all in px: the latter two at the frame's `Positions.radius`. See
        `displace`.
    star : ndarray, shape (d,), int64
        Number of the star of each detection; -1 for one that no other frame shows, or its frame's only one.
    weight : ndarray, shape (d,), float64
        Its weight in the solution; 0 for an outlier.
    n_common : ndarray, shape (n,), int64
        Detections of each frame that other frames show.
    before, after : ndarray, shape (n,), float64
        Root mean square distance (px) of a frame's stars from where the other frames see them, by their own WCS
        and corrected; NaN without common stars.
    alone : ndarray of bool, shape (n,)
        Frames whose stars come closer to those of their corrected neighbours by `MIN_FRAME_GAIN_PX` or more.
    common_gain_px : float
        How much of the distance, along an axis and in quadrature, the correction of the other frames takes away
        beyond what as many free parameters take of noise; 0 if that is nothing.
    """

    correction: np.ndarray
    star: np.ndarray
    weight: np.ndarray
    n_common: np.ndarray
    before: np.ndarray
    after: np.ndarray
    alone: np.ndarray
    common_gain_px: float

    @property
    def moved_px(self) -> np.ndarray:
        """Root mean square displacement of each frame's pixels, (n,)."""
        return np.sqrt(np.sum(np.square(self.correction), axis=1))

    def rms(self, per_frame: np.ndarray) -> float:
        """Return the root mean square of `before` or `after` over the frames with common stars; NaN without."""
        known = np.isfinite(per_frame)
        return float(np.sqrt(np.mean(np.square(per_frame[known])))) if known.any() else float("nan")


@dataclass(frozen=True)
class Offsets:
    """How far frames are off as a whole, judged by the pairs of overlapping frames.

    Attributes
    ----------
    shift : ndarray, shape (n, 2), float64
        What must be added to a frame's positions (x, y), px; 0 where nothing is known.
    witnesses : ndarray, shape (n,), int64
        Neighbours within `MAX_CORRECTION_PX` of their place whose stars say so.
    undecided : tuple of (ndarray, float)
        Groups of frames that contradict each other without a majority, and how far apart they are, px; their
        `shift` is 0.
    trusted : ndarray of bool, shape (n,)
        Frames whose stars may be matched where they are: a neighbour confirms them, or they have so few stars that
        chance makes none coincide.
    """

    shift: np.ndarray
    witnesses: np.ndarray
    undecided: tuple[tuple[np.ndarray, float], ...]
    trusted: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """Frames (n,) further off than `MAX_CORRECTION_PX`."""
        return np.hypot(*self.shift.T) > MAX_CORRECTION_PX


def displace(x: np.ndarray, y: np.ndarray, correction: np.ndarray, centre: np.ndarray, radius: float) -> tuple:
    """Return the corrected positions of canvas positions in one frame.

    Parameters
    ----------
    x, y : ndarray
        Canvas px.
    correction : ndarray, shape (4,)
        Row of `Alignment.correction`.
    centre : ndarray, shape (2,)
    radius : float
        Of `Positions`.
    """
    tx, ty, a, b = correction
    u, v = (x - centre[0]) / radius, (y - centre[1]) / radius
    return x + tx + a * u - b * v, y + ty + b * u + a * v


# ---- frames that are far off -----------------------------------------------------------------------------


def find_offsets(positions: Positions, pairs: np.ndarray) -> Offsets:
    """Find how far frames are off, up to `SEARCH_PX`, from the offsets at which pairs of frames coincide.

    The offsets of the pairs are solved for one shift a frame by robust least squares. What they leave open, the
    place of a connected group, is decided by the majority: the median frame is where it should be. A group without
    one place that more frames share than any other is left as it is.

    Parameters
    ----------
    positions : Positions
    pairs : ndarray, shape (p, 2), int64
        Frames whose footprints overlap (first < second), or enough of them.
    """
    n = positions.n_frames
    found = _pair_offsets(positions, pairs)
    votes, chance = found[:, 2], found[:, 3]
    # The largest of hundreds of places: Poisson noise has five standard deviations to try.
    clear = (votes >= _MIN_VOTES) & (votes > chance + 5.0 * np.sqrt(chance) + 3.0)
    edges = pairs[clear]
    shift = _solve_shifts(n, edges, found[clear, :2], votes[clear])
    shift, undecided = _settle_groups(shift, linked_groups(edges, n))
    near = np.hypot(*shift.T) <= MAX_CORRECTION_PX
    witnesses = np.bincount(edges[near[edges[:, 1]], 0], minlength=n)
    witnesses += np.bincount(edges[near[edges[:, 0]], 1], minlength=n)
    by_chance = np.bincount(pairs.ravel(), np.repeat(chance, 2), minlength=n)
    trusted = (witnesses > 0) | (by_chance < _MOST_BY_CHANCE)
    for members, _ in undecided:
        trusted[members] = False
    return Offsets(shift, witnesses, undecided, trusted)


def _pair_offsets(positions: Positions, pairs: np.ndarray) -> np.ndarray:
    """Return offset (x, y), coinciding stars and those by chance of each pair, (p, 4)."""
    order = np.lexsort((positions.y, positions.frame))
    start = np.searchsorted(positions.frame, np.arange(positions.n_frames + 1))
    found = np.empty((len(pairs), 4))
    pairs = np.ascontiguousarray(pairs, dtype=np.int64)
    kernels.pair_offsets(pairs, start, positions.x[order], positions.y[order], SEARCH_PX, found)
    return found


def _solve_shifts(n: int, edges: np.ndarray, offset: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Solve ``shift[first] - shift[second] = offset`` by least squares with Huber weights at 1 px."""
    shift = np.zeros((n, 2))
    first, second = edges.T
    pull = np.zeros(len(edges))
    for _ in range(_DIFFERENCE_ROUNDS if len(edges) else 0):
        weight = votes / np.maximum(1.0, pull)
        graph = coo_matrix((weight, (first, second)), shape=(n, n))
        graph = (graph + graph.T).tocsc()
        degree = np.asarray(graph.sum(axis=0)).ravel()
        # What holds the groups somewhere: their place is settled afterwards.
        diagonal = degree + 1e-6
        matrix, before = (diags_array(diagonal) - graph).tocsr(), shift
        shift = np.empty((n, 2))
        for axis in range(2):
            pulls = weight * offset[:, axis]
            right = np.bincount(first, pulls, minlength=n) - np.bincount(second, pulls, minlength=n)
            how = {"x0": before[:, axis], "rtol": _FINE, "atol": 0.0, "maxiter": _MOST_STEPS}
            shift[:, axis], _ = cg(matrix, right, M=diags_array(1.0 / diagonal), **how)
        pull = np.hypot(*(offset - (shift[first] - shift[second])).T)
        if np.abs(shift - before).max() < 1e-3:
            break
    return shift


def _settle_groups(shift: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Put each group where most of its frames need no shift; return also the groups where no place has most."""
    settled, undecided = np.zeros_like(shift), []
    for members in members_of(group):
        if members.size == 1:
            continue
        place = _place_of_most(shift[members])
        if place is None:
            undecided.append((members, float(np.hypot(*np.ptp(shift[members], axis=0)))))
        else:
            settled[members] = shift[members] - place
    return settled, tuple(undecided)


def _place_of_most(shift: np.ndarray) -> np.ndarray | None:
    """Return the median of the largest cluster of shifts; None if another one is as large."""
    place = np.median(shift, axis=0)
    near = np.hypot(*(shift - place).T) <= MAX_CORRECTION_PX
    if near.sum() <= len(shift) / 2:
        if len(shift) > _MOST_UNDECIDED:
            return None
        close = cdist(shift, shift) <= MAX_CORRECTION_PX
        n_close = close.sum(axis=1)
        near = close[np.argmax(n_close)]
        if n_close[~near].max(initial=0) >= near.sum():
            return None
    return np.median(shift[near], axis=0)


# ---- the solution ----------------------------------------------------------------------------------------


def align(
    positions: Positions,
    shift: np.ndarray | None = None,
    *,
    held: np.ndarray | None = None,
    tell: Tell = tell_nobody,
) -> Alignment:
    """Solve the corrections of all frames: match the stars, solve, match again with better positions.

    Parameters
    ----------
    positions : Positions
    shift : ndarray, shape (n, 2), optional
        What is known of the frames' offsets, to match the stars with (`Offsets.shift`).
    held : ndarray of bool, shape (n,), optional
        Frames that are not to be corrected.
    tell : callable
        Told the share that is done, in each step of the solution too; may end the work.

    Returns
    -------
    Alignment
        Frames without common stars are not corrected, frames with few are shifted only.
    """
    correction = np.zeros((positions.n_frames, 2), dtype=complex)
    if shift is not None:
        correction[:, 0] = _complex(*shift.T)
    if held is not None:
        correction[held] = 0.0
    rounds = len(_MATCH_RADII_PX)
    for k, radius in enumerate(_MATCH_RADII_PX):
        tell(k / rounds)
        star = cluster_stars(_corrected(positions, correction), positions.frame, radius)
        star = _of_frames_with(MIN_STARS_SHIFT, star, positions.frame)
        system, correction, weight = _solve_in_turn(
            positions, star, held, correction, part_of(tell, k / rounds, (k + 1) / rounds)
        )
    return _judged(positions, system, correction, weight)


def _complex(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x + 1j * y


def _corrected(positions: Positions, correction: np.ndarray) -> np.ndarray:
    """Return the places (d, 2) by corrections (n, 2), complex."""
    f, p = positions.frame, correction.view(float)
    x, y = displace(positions.x, positions.y, p[f].T, positions.centre[f].T, positions.radius[f])
    return np.column_stack([x, y])


def _of_frames_with(least: int, star: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Return `star` (d,) without the detections of frames that share fewer than `least` stars with the others."""
    while True:
        common = np.bincount(frame[star >= 0], minlength=int(frame.max(initial=0)) + 1)
        few = (star >= 0) & (common[frame] < least)
        if not few.any():
            return star
        star = renumbered(np.where(few, -1, star))


def _solve_in_turn(
    positions: Positions, star: np.ndarray, held: np.ndarray | None, correction: np.ndarray, tell: Tell
) -> tuple[_System, np.ndarray, np.ndarray]:
    """Solve the frames with many common stars, then those with few against them.

    A frame that cannot be turned would pin the rotation of all others.
    """
    main = _of_frames_with(MIN_STARS_SIMILARITY, star, positions.frame)
    solved, weight = _solve_robustly(_System.of(positions, main, held), correction, tell)
    system = _System.of(positions, star, held)
    if np.array_equal(main, star):
        return system, solved, weight
    left = np.bincount(positions.frame[main >= 0], minlength=positions.n_frames) == 0
    base = np.where(left[:, None], 0.0, solved)
    offset = system.offset + system.displacements(base)
    rest = replace(system, free=system.free & left[:, None], offset=offset)
    solved, weight = _solve_robustly(rest, np.where(left[:, None], correction, 0.0), lambda _: tell(1.0))
    return system, base + solved, weight


@dataclass(frozen=True)
class _System:
    """The equations of the detections that belong to a star, n frames, k stars, m detections.

    `offset` (m,) are positions less those of their star, `place` (m,) the star's place in the frame in units of
    the frame's radius; that place is the same for all frames, so that a common motion changes no residual.
    `start` (n + 1,) is where the detections of a frame begin. `free` (n, 2) tells which frames are shifted, and
    which are turned and scaled. `there` (k,) are the stars' places on the canvas, `centre` and `radius` (n,) the
    frames'.
    """

    used: np.ndarray
    frame: np.ndarray
    start: np.ndarray
    star: np.ndarray
    place: np.ndarray
    offset: np.ndarray
    sigma: np.ndarray
    free: np.ndarray
    there: np.ndarray
    centre: np.ndarray
    radius: np.ndarray

    @classmethod
    def of(cls, positions: Positions, star: np.ndarray, held: np.ndarray | None = None) -> _System:
        used = np.flatnonzero(star >= 0)
        frame, star = positions.frame[used], star[used]
        seen, centre = _complex(positions.x[used], positions.y[used]), _complex(*positions.centre.T)
        n_stars = int(star.max(initial=-1)) + 1
        there = _sums(star, seen, n_stars) / np.bincount(star, minlength=n_stars)
        place = (there[star] - centre[frame]) / positions.radius[frame]
        common = np.bincount(frame, minlength=positions.n_frames)
        free = np.column_stack([common >= MIN_STARS_SHIFT, common >= MIN_STARS_SIMILARITY])
        if held is not None:
            free &= ~held[:, None]
        start = np.concatenate([[0], np.cumsum(common)])
        sigma = positions.sigma[used]
        return cls(
            used, frame, start, star, place, seen - there[star], sigma, free, there, centre, positions.radius
        )

    def displacements(self, correction: np.ndarray) -> np.ndarray:
        """Return how far corrections (n, 2) move the detections, (m,)."""
        return correction[self.frame, 0] + correction[self.frame, 1] * self.place

    def totals(self, weight: np.ndarray) -> np.ndarray:
        """Return the sums (k,) of the weights of each star's detections."""
        return np.bincount(self.star, weight, minlength=self.there.size)

    def gradient(
        self, weight: np.ndarray, total: np.ndarray, offset: np.ndarray, correction: np.ndarray
    ) -> np.ndarray:
        """Return the gradient (n, 2) of half the weighted squares of what is left about the stars' means."""
        out, at_star = np.empty(self.free.shape, dtype=complex), np.empty(self.there.size, dtype=complex)
        equations = self.start, self.star, self.place, weight, total
        kernels.gradient(*equations, offset, correction * self.free, at_star, out)
        return out * self.free

    def blocks(self, weight: np.ndarray) -> np.ndarray:
        """Return the frames' own blocks of the normal matrix, stars eliminated, (n, 2, 2)."""
        total, n = self.totals(weight)[self.star], len(self.free)
        own = weight * (1.0 - weight / np.where(total > 0.0, total, 1.0))
        s, turned = np.bincount(self.frame, own, minlength=n), _sums(self.frame, own * self.place, n)
        square = np.bincount(self.frame, own * _squared(self.place), minlength=n)
        blocks = np.moveaxis(np.array([[s, turned], [turned.conj(), square]]), 2, 0)
        return np.where(self.free[:, :, None] & self.free[:, None, :], blocks, 0.0)

    def coarse_level(self, weight: np.ndarray, prior: np.ndarray) -> CoarseLevel:
        """Return the equations of boxes of frames; a box has the coefficients of a frame at its centre."""
        boxes = Boxes.of(np.column_stack([self.centre.real, self.centre.imag]), self.radius)
        middle, length = _complex(*boxes.centre.T), float(self.radius.max(initial=0.0))
        shares = np.zeros((*self.free.shape, 2), dtype=complex)
        shares[:, 0, 0] = 1.0
        shares[:, 0, 1] = (self.centre - middle[boxes.number]) / length
        shares[:, 1, 1] = self.radius / length

        def basis(star: np.ndarray, box: np.ndarray) -> np.ndarray:
            return np.column_stack([np.ones(star.size), (self.there[star] - middle[box]) / length])

        return CoarseLevel(
            boxes,
            shares * self.free[:, :, None],
            self.frame,
            self.star,
            weight * self.free[self.frame, 0],
            self.totals(weight),
            basis,
            np.repeat(prior[:, None], 2, axis=1),
        )

    def residuals(self, weight: np.ndarray, correction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return distances (m,) from where the other detections put the star, and their share of its weight.

        NaN and 0 where no other detection has a weight.
        """
        values = self.offset + self.displacements(correction)
        total = self.totals(weight)
        total = np.where(total > 0.0, total, np.inf)
        others = 1.0 - weight / total[self.star]
        away = values - (_sums(self.star, weight * values, total.size) / total)[self.star]
        alone = (others < 1e-9) | np.isinf(total[self.star])
        others[alone], away[alone] = 0.0, np.nan
        return away / np.where(alone, 1.0, others), others


def _sums(index: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Return the sums of complex values by their index, (n,)."""
    return _complex(np.bincount(index, values.real, minlength=n), np.bincount(index, values.imag, minlength=n))


def _squared(values: np.ndarray) -> np.ndarray:
    return np.square(values.real) + np.square(values.imag)


def _solve_robustly(system: _System, correction: np.ndarray, tell: Tell) -> tuple[np.ndarray, np.ndarray]:
    """Return corrections and weights: Huber's weights first, which find their way, then Tukey's, which forget."""
    accuracy = np.square(1.0 / system.sigma)
    weight = _robust_weights(system, accuracy, accuracy, correction, huber=True)
    coarse = system.coarse_level(weight, _prior(correction))
    n_rounds = _HUBER_ROUNDS + _TUKEY_ROUNDS
    for k in range(n_rounds):
        tolerance = _FINE if k == n_rounds - 1 else _ROUGH
        between = partial(tell, k / n_rounds)
        correction = _solve(system, coarse, weight, _prior(correction), correction, tolerance, between)
        if k < n_rounds - 1:
            weight = _robust_weights(system, accuracy, weight, correction, huber=k < _HUBER_ROUNDS - 1)
    return correction, weight


def _prior(correction: np.ndarray) -> np.ndarray:
    """Return the weight (n,) that holds each frame at its place; a frame that is far off pulls no harder."""
    away = np.sqrt(np.sum(_squared(correction), axis=1))
    return np.minimum(1.0, _PRIOR_HUBER_PX / np.maximum(away, 1e-12)) / _PRIOR_PX**2


def _robust_weights(
    system: _System, accuracy: np.ndarray, weight: np.ndarray, correction: np.ndarray, *, huber: bool
) -> np.ndarray:
    if weight.size == 0:
        return weight
    # Two detections that contradict each other are still compared when both have lost their weight.
    away, others = system.residuals(np.maximum(weight, _LEAST_SHARE * accuracy), correction)
    pull = np.abs(away) * np.sqrt(others) / system.sigma
    judged = weight > 0.0 if weight.any() else np.ones(weight.size, dtype=bool)
    pull /= max(_LEAST_SCALE, float(np.median(pull[judged])) / _RAYLEIGH_MEDIAN)
    if huber:
        return accuracy * np.minimum(1.0, _HUBER / np.maximum(pull, 1e-12))
    return accuracy * np.square(np.maximum(0.0, 1.0 - np.square(pull / _TUKEY)))


def _solve(
    system: _System,
    coarse: CoarseLevel,
    weight: np.ndarray,
    prior: np.ndarray,
    guess: np.ndarray,
    tolerance: float,
    between: Callable[[], None],
) -> np.ndarray:
    """Solve the normal equations by conjugate gradients, preconditioned by the frames' own blocks and boxes.

    What is left of the right side is measured as these do: as the energy of the error, px squared by weight.
    """
    shape = guess.shape
    inverse = np.linalg.inv(system.blocks(weight) + prior[:, None, None] * np.eye(2))
    total, none = system.totals(weight), np.zeros_like(system.offset)

    def product(flat: np.ndarray) -> np.ndarray:
        correction = flat.reshape(shape)
        return (system.gradient(weight, total, none, correction) + prior[:, None] * correction).reshape(-1, 1)

    def precondition(flat: np.ndarray) -> np.ndarray:
        return np.einsum("nij,nj->ni", inverse, flat.reshape(shape)).reshape(-1, 1) + coarse(flat)

    right = -system.gradient(weight, total, system.offset, np.zeros(shape, dtype=complex)).reshape(-1, 1)
    goal = tolerance**2 * np.vdot(right, precondition(right)).real
    solution, _ = conjugate_gradients(
        product,
        precondition,
        right,
        np.where(system.free, guess, 0.0).reshape(-1, 1),
        lambda _, norm: norm <= goal,
        most=_MOST_STEPS,
        between=between,
    )
    return solution.reshape(shape)


def _judged(positions: Positions, system: _System, correction: np.ndarray, weight: np.ndarray) -> Alignment:
    star, all_weight = np.full(positions.frame.size, -1), np.zeros(positions.frame.size)
    star[system.used], all_weight[system.used] = system.star, weight
    return Alignment(
        correction.view(float),
        star,
        all_weight,
        n_common=np.bincount(system.frame, minlength=positions.n_frames),
        before=_rms(system, weight, np.zeros_like(correction)),
        after=_rms(system, weight, correction),
        **_gains(system, weight, correction),
    )


def residual_px(positions: Positions, found: Alignment, correction: np.ndarray) -> np.ndarray:
    """Return `Alignment.after` (n,) as it is with another correction, such as one of some frames only."""
    correction = np.ascontiguousarray(correction).view(complex)
    return _rms(_System.of(positions, found.star), found.weight[found.star >= 0], correction)


def _rms(system: _System, weight: np.ndarray, correction: np.ndarray) -> np.ndarray:
    n = len(system.free)
    away, others = system.residuals(weight, correction)
    share = np.where(others > 0.0, weight, 0.0)
    total = np.bincount(system.frame, share, minlength=n)
    squares = np.bincount(system.frame, share * np.nan_to_num(_squared(away)), minlength=n)
    return np.sqrt(np.where(total > 0.0, squares, np.nan) / np.where(total > 0.0, total, 1.0))


def _gains(system: _System, weight: np.ndarray, correction: np.ndarray) -> dict:
    """Return what the correction brings single frames whose neighbours are corrected, and the others together."""
    n, n_fitted = len(system.free), 2 * system.free.sum(axis=1)
    after, others = system.residuals(weight, correction)
    seen = (weight > 0.0) & (others > 0.0)

    def chi2(away: np.ndarray) -> np.ndarray:
        squares = np.nan_to_num(_squared(away))
        return np.bincount(system.frame, np.where(seen, weight * others, 0.0) * squares, minlength=n)

    # The means of the stars take their part of the degrees of freedom.
    places = 2.0 * np.bincount(system.frame, np.where(seen, others, 0.0), minlength=n)
    total = np.bincount(system.frame, np.where(seen, weight, 0.0), minlength=n)
    unit = np.bincount(system.frame[seen], minlength=n) / np.where(total > 0.0, total, 1.0)
    able = (places > n_fitted) & (n_fitted > 0)
    left = chi2(after)
    gain = np.where(
        able, _gain_px(chi2(after - system.displacements(correction)), left, places, n_fitted, unit), 0.0
    )
    alone = gain > MIN_FRAME_GAIN_PX
    start = chi2(system.residuals(weight, correction * alone[:, None])[0])
    rest = able & ~alone
    sums = (np.sum(values[rest]) for values in (start, left, places, n_fitted))
    common = _gain_px(*sums, np.mean(unit[rest]) if rest.any() else 0.0)
    return {"alone": alone, "common_gain_px": float(common)}


def _gain_px(
    before: np.ndarray, after: np.ndarray, places: np.ndarray, n_fitted: np.ndarray, unit: np.ndarray
) -> np.ndarray:
    """Return how much scatter falls from chi square `before` to `after`, px along an axis and in quadrature.

    `unit` is the variance (px squared) of unit weight. What is no more than fitting noise would bring, by the F
    ratio, counts as 0.
    """
    free = np.maximum(places - n_fitted, 1e-9)
    significant = (before - after) * free > _LEAST_RATIO * after * n_fitted
    gain = (before / np.maximum(places, 1e-9) - after / free) * unit
    return np.where(significant, np.sqrt(np.maximum(gain, 0.0)), 0.0)

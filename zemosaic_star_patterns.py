"""Star patterns: which frames show the same stars, and by which similarity one becomes the other.

Kernels over arrays. A pattern is a frame's brightest stars and its quads: four near stars, whose shape survives a
similarity and tells mirrored from plain. The shape's code is that of D. Lang et al. (AJ 139, 1782, 2010): the two
stars furthest apart are put at 0 and 1, the places of the other two are the code. One quad seen in both frames is
enough for a guess; a guess counts only if far more stars coincide by it than chance would bring together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from astropy.wcs import WCS
from scipy.sparse import coo_array, csr_array
from scipy.spatial import KDTree
from scipy.special import betainc

from zemosaic_sphere import place_deg, unit_vectors

#: So many of a frame's stars, the brightest, are its pattern; with fewer than so many it has none.
MOST_STARS, FEWEST_STARS = 150, 6
#: The probability that stars of two skies coincide as well by chance, above which they are no match.
MOST_BY_CHANCE = 1e-8
#: A star counts as common within so many pixels of its place (of the coarser frame).
REACH_PX = 2.0

# Quads are made of the so many brightest stars, each with near ones: frames of unlike depth have some in common.
_DEPTHS = (15, 30, 60, 120)
_NEAR = 6
_SHORTEST_SIDE_PX = 12.0
_CODE_TOLERANCE = 0.02
_VOTE_TOLERANCE = 0.01
_QUADS_THAT_VOTE = 1000
_VOTES_A_QUAD = 16
_LIKE_QUADS = 4
_MOST_GUESSES, _MOST_REFINED = 200, 4
_ROUNDS = 4
_NARROW_PX = 0.7
_FIXED_BY_GUESS = 4
# What stays at the same pixels while the rest does not may be defects of the detector.
_LEAST_SHARE, _LEAST_SHARE_UNMOVED = 0.2, 0.4
_FIELD_POINTS = 24
# The density around a star is that of so many of its neighbours.
_CROWD = 8
_SOFT_ROUNDS, _TAN_ROUNDS = 10, 3
_SOFT_PX, _CLIP_SIGMA, _CLIP_FLOOR_PX = 0.1, 4.0, 0.3
_WIDEST_DEG = 60.0  # of a frame; stars further apart are not in one


@dataclass(frozen=True)
class StarPattern:
    """The brightest stars of a frame and the shapes that four near ones form.

    Attributes
    ----------
    z : ndarray, shape (n,), complex128
        Places ``x + iy`` in pixels, brightest first.
    shape : tuple of int
        ``(ny, nx)`` of the image.
    quads : ndarray, shape (q, 4), int64
        Stars of each quad, the two furthest apart first; quads of the brightest stars first.
    codes : ndarray, shape (q, 4), float64
        Shapes of the quads: equal, but for noise, under shift, rotation and scale.
    """

    z: np.ndarray
    shape: tuple[int, int]
    quads: np.ndarray
    codes: np.ndarray

    def mirrored(self) -> StarPattern:
        """Return the pattern of the image with its columns reversed."""
        flipped = self.shape[1] - 1 - self.z.real
        return star_pattern(flipped, self.z.imag, self.shape)


@dataclass(frozen=True)
class PatternMatch:
    """Two patterns that show the same stars.

    Attributes
    ----------
    turn, shift : complex
        The similarity: ``turn * z + shift`` takes a place in the first image to the second.
    first, second : ndarray, shape (m,), int64
        The common stars in either pattern.
    chance : float
        Upper bound of the probability that unrelated stars coincide so well.
    """

    turn: complex
    shift: complex
    first: np.ndarray
    second: np.ndarray
    chance: float


# ---- patterns --------------------------------------------------------------------------------------------


def star_pattern(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> StarPattern:
    """Return the pattern of a frame.

    Parameters
    ----------
    x, y : ndarray, shape (m,)
        Centres of its stars in pixels, brightest first, finite.
    shape : tuple of int
        ``(ny, nx)`` of the image.
    """
    z = (np.asarray(x, dtype=np.float64) + 1j * np.asarray(y, dtype=np.float64))[:MOST_STARS]
    if z.size < FEWEST_STARS:
        return StarPattern(z, shape, np.empty((0, 4), dtype=np.int64), np.empty((0, 4)))
    quads, codes = _coded(z, _near_quads(z))
    return StarPattern(z, shape, quads, codes)


def _near_quads(z: np.ndarray) -> np.ndarray:
    """Return quads (q, 4) of stars that lie near each other, those of the brightest stars first."""
    groups = []
    for depth in _DEPTHS:
        places = _plane(z[:depth])
        _, near = KDTree(places).query(places, k=min(_NEAR + 1, len(places)))
        groups += [near[:, (0, *others)] for others in combinations(range(1, near.shape[1]), 3)]
        if depth >= z.size:
            break
    quads = np.unique(np.sort(np.concatenate(groups), axis=1), axis=0)
    return quads[np.lexsort((*quads.T[:3], quads[:, 3]))]


def _plane(z: np.ndarray) -> np.ndarray:
    """Return complex places as (n, 2)."""
    return np.column_stack([z.real, z.imag])


def _coded(z: np.ndarray, quads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return quads in their canonical order, those too small for a sure shape left out, and their codes."""
    sides = np.array(list(combinations(range(4), 2)))
    length = np.abs(z[quads[:, sides[:, 0]]] - z[quads[:, sides[:, 1]]])
    longest = length.argmax(axis=1)
    rows = np.arange(len(quads))
    ends, others = sides[longest], sides[::-1][longest]  # sides k and 5 - k have no star in common
    order = np.column_stack([ends, others])
    quads = quads[rows[:, None], order]
    a, b, c, d = z[quads].T
    with np.errstate(divide="ignore", invalid="ignore"):
        c, d = (c - a) / (b - a), (d - a) / (b - a)
    turned = (c + d).real > 1.0
    c, d = np.where(turned, 1.0 - c, c), np.where(turned, 1.0 - d, d)
    quads[turned, :2] = quads[turned, 1::-1]
    swapped = c.real > d.real
    c, d = np.where(swapped, d, c), np.where(swapped, c, d)
    quads[swapped, 2:] = quads[swapped, :1:-1]
    large = length[rows, longest] >= _SHORTEST_SIDE_PX
    return quads[large], np.column_stack([c.real, c.imag, d.real, d.imag])[large]


def common_shapes(seekers: Sequence[StarPattern], known: Sequence[StarPattern]) -> csr_array:
    """Return how many shapes of quads each of some patterns has in common with each of others.

    It tells whom it is worth to compare: a quad of a seeker looks for the few that are most like it among those of
    all known patterns.

    Parameters
    ----------
    seekers, known : sequences of n and m StarPattern

    Returns
    -------
    csr_array of int64, shape (n, m)
    """
    shape = len(seekers), len(known)
    mine, owner = _owners(seekers), _owners(known)
    if not (mine.size and owner.size):
        return csr_array(shape, dtype=np.int64)
    codes, theirs = (np.concatenate([p.codes[:_QUADS_THAT_VOTE] for p in some]) for some in (seekers, known))
    k = np.arange(1, min(_VOTES_A_QUAD, owner.size) + 1)
    _, like = KDTree(theirs).query(codes, k=k, distance_upper_bound=_VOTE_TOLERANCE, workers=-1)
    row, column = np.nonzero(like < owner.size)
    pairs = mine[row], owner[like[row, column]]
    return coo_array((np.ones(row.size, dtype=np.int64), pairs), shape=shape).tocsr()


def _owners(patterns: Sequence[StarPattern]) -> np.ndarray:
    """Return the pattern of each quad that votes."""
    return np.repeat(np.arange(len(patterns)), [len(p.codes[:_QUADS_THAT_VOTE]) for p in patterns])


# ---- two patterns ----------------------------------------------------------------------------------------


def match_patterns(first: StarPattern, second: StarPattern) -> PatternMatch | None:
    """Return the similarity by which two patterns coincide, None if they do not.

    Parameters
    ----------
    first, second : StarPattern

    Notes
    -----
    Every pair of like quads is a guess. The best are refined by all stars that they bring together. The binomial
    probability that so many coincide by chance, times the guesses there were, must be below `MOST_BY_CHANCE`, and
    the common stars at least a fifth of those that either frame shows of the other's field, or twice as many where
    they are at the same pixels in both.
    """
    turn, shift = _guesses(first, second)
    if not turn.size:
        return None
    tree = KDTree(_plane(second.z))
    reach = REACH_PX * np.maximum(1.0, np.abs(turn))
    mapped = turn[:, None] * first.z + shift[:, None]
    distance, _ = tree.query(np.stack([mapped.real, mapped.imag], axis=-1), distance_upper_bound=reach.max())
    count = (distance <= reach[:, None]).sum(axis=1)
    best = None
    for k in np.argsort(-count, kind="stable")[:_MOST_REFINED]:
        refined = _refined(first, second, tree, turn[k], shift[k], turn.size)
        if refined is not None and (best is None or refined.chance < best.chance):
            best = refined
    return best


def _guesses(first: StarPattern, second: StarPattern) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarities (h,) that pairs of like quads suggest, those of the likest first."""
    nothing = np.empty(0, dtype=np.complex128)
    if not (len(first.quads) and len(second.quads)):
        return nothing, nothing
    near, like = KDTree(second.codes).query(
        first.codes, k=min(_LIKE_QUADS, len(second.codes)), distance_upper_bound=_CODE_TOLERANCE
    )
    near, like = (a.reshape(len(first.codes), -1) for a in (near, like))
    rows, columns = np.nonzero(np.isfinite(near))
    order = np.argsort(near[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    turn, shift = _similarities(first.z[first.quads[rows]], second.z[second.quads[like[rows, columns]]])
    known = np.isfinite(turn)
    return turn[known][:_MOST_GUESSES], shift[known][:_MOST_GUESSES]


def _similarities(a: np.ndarray, b: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarities that take places a (..., m) to b best, by least squares."""
    weight = np.ones(a.shape[-1]) if weight is None else weight
    mean_a, mean_b = ((weight * z).sum(axis=-1, keepdims=True) / weight.sum() for z in (a, b))
    off_a, off_b = a - mean_a, b - mean_b
    pull = weight * off_a.conj()
    turn = (pull * off_b).sum(axis=-1) / (pull * off_a).sum(axis=-1).real
    return turn, mean_b[..., 0] - turn * mean_a[..., 0]


def _refined(
    first: StarPattern, second: StarPattern, tree: KDTree, turn: complex, shift: complex, n_guesses: int
) -> PatternMatch | None:
    """Return a guess refined by the stars that it brings together, None if chance would bring as many."""
    for _ in range(_ROUNDS):
        i, j, _ = _mutual(first.z * turn + shift, tree, REACH_PX * max(1.0, abs(turn)))
        if i.size < FEWEST_STARS:
            return None
        turn, shift = _similarities(first.z[i], second.z[j])
    i, j, distance = _mutual(first.z * turn + shift, tree, REACH_PX * max(1.0, abs(turn)))
    seen_first, seen_second, density = _common_field(first, second, tree, turn, shift)
    unmoved = np.abs(first.z * turn + shift - first.z).max() < REACH_PX
    least = _LEAST_SHARE_UNMOVED if unmoved else _LEAST_SHARE
    if i.size < max(FEWEST_STARS, least * min(seen_first, seen_second)):
        return None
    chances = []
    for reach in (REACH_PX, _NARROW_PX):
        radius = reach * max(1.0, abs(turn))
        single = min(1.0, np.pi * radius**2 * density)
        chances.append(_chance(int((distance <= radius).sum()), max(seen_first, i.size), single))
    chance = min(1.0, len(chances) * n_guesses * min(chances))
    if not chance < MOST_BY_CHANCE:
        return None
    return PatternMatch(complex(turn), complex(shift), i, j, chance)


def _mutual(z: np.ndarray, tree: KDTree, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs of places (i of z, j of the tree) that are each other's nearest within `reach`; distances."""
    distance, nearest = tree.query(_plane(z), distance_upper_bound=reach)
    i = np.flatnonzero(np.isfinite(distance))
    i = i[np.argsort(distance[i], kind="stable")]
    _, once = np.unique(nearest[i], return_index=True)
    i = np.sort(i[once])
    return i, nearest[i], distance[i]


def _common_field(
    first: StarPattern, second: StarPattern, tree: KDTree, turn: complex, shift: complex
) -> tuple[int, int, float]:
    """Return how many stars either pattern shows in the field of both, and how dense those of the second are.

    Where stars cluster more of them coincide by chance, so the density is at least that around the first's stars.
    """
    ny, nx = first.shape
    steps = (np.arange(_FIELD_POINTS) + 0.5) / _FIELD_POINTS
    points = (steps * nx)[None, :] - 0.5 + 1j * ((steps * ny)[:, None] - 0.5)
    share = max(_inside(points * turn + shift, second.shape).mean(), 1.0 / points.size)
    mapped = first.z * turn + shift
    mapped = mapped[_inside(mapped, second.shape)]
    seen = int(_inside((second.z - shift) / turn, first.shape).sum())
    density = seen / (share * nx * ny * abs(turn) ** 2)
    near = min(_CROWD, second.z.size)
    if mapped.size:
        distance, _ = tree.query(_plane(mapped), k=[near])
        density = max(density, float(np.mean((near - 1) / (np.pi * np.maximum(distance, REACH_PX) ** 2))))
    return mapped.size, seen, density


def _inside(z: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return (z.real > -0.5) & (z.imag > -0.5) & (z.real < shape[1] - 0.5) & (z.imag < shape[0] - 0.5)


def _chance(n_common: int, n_seen: int, single: float) -> float:
    """Return the probability of so many common stars or more, if each is common with the probability `single`.

    Those that the guess itself rests on are taken off.
    """
    common, seen = n_common - _FIXED_BY_GUESS, n_seen - _FIXED_BY_GUESS
    return 1.0 if common <= 0 else float(betainc(common, seen - common + 1, single))


# ---- a place on the sky ----------------------------------------------------------------------------------


def fit_tan(
    x: np.ndarray,
    y: np.ndarray,
    sky_deg: np.ndarray,
    shape: tuple[int, int],
    parity: int,
    sigma: np.ndarray | None = None,
) -> WCS:
    """Return the TAN WCS of square pixels that puts stars where they are on the sky, ICRS; CRPIX is the middle.

    Parameters
    ----------
    x, y : ndarray, shape (m,)
        Places in the frame's pixels; m >= 2. Those of a minority that fit far worse than the others do not count.
    sky_deg : ndarray, shape (m, 2)
        Right ascension and declination of the same stars. Those that a wrong WCS puts far from the others, or
        nowhere (NaN), do not count either.
    shape : tuple of int
        ``(ny, nx)`` of the frame.
    parity : int
        Sign of the determinant of the matrix: -1 for the sky as it is seen, 1 for a mirrored one.
    sigma : ndarray, shape (m,), optional
        Standard errors of the stars' distances; without them all count alike.
    """
    centre = 0.5 * (shape[1] - 1) + 0.5j * (shape[0] - 1)
    away = x + 1j * y - centre
    away = away if parity > 0 else away.conj()
    weight = np.ones(away.size) if sigma is None else sigma**-2.0
    together = _together(sky_deg)
    away, sky_deg, weight = away[together], sky_deg[together], weight[together]
    wcs, pull = tan_wcs(_mean_direction(sky_deg), np.eye(2), shape), weight
    for _ in range(_SOFT_ROUNDS):
        _, off = _settled(wcs, away, sky_deg, pull)
        pull = weight / np.maximum(off, _SOFT_PX)
    used = off <= max(_CLIP_FLOOR_PX, _CLIP_SIGMA * float(np.median(off)))
    for _ in range(_TAN_ROUNDS):
        turn, _ = _settled(wcs, away, sky_deg, weight * used)
    matrix = np.array([[turn.real, -parity * turn.imag], [turn.imag, parity * turn.real]])
    return tan_wcs(tuple(wcs.wcs.crval), matrix, shape)


def _settled(wcs: WCS, away: np.ndarray, sky_deg: np.ndarray, weight: np.ndarray) -> tuple[complex, np.ndarray]:
    """Move the reference of a WCS of the unit matrix to where the fit of stars puts the middle of their frame.

    That turns north a little, so it takes some rounds. `away` are places relative to the middle, complex. Returned
    are degrees a pixel with their rotation, and the stars' distances from their places in px.
    """
    seen = wcs.wcs_world2pix(sky_deg, 0) - (wcs.wcs.crpix - 1.0)
    plane = seen[:, 0] + 1j * seen[:, 1]
    turn, shift = _similarities(away, plane, weight)
    wcs.wcs.crval = np.ravel(wcs.wcs_pix2world(*(wcs.wcs.crpix - 1.0 + [shift.real, shift.imag])[:, None], 0))
    wcs.wcs.set()
    return complex(turn), np.abs(turn * away + shift - plane) / abs(turn)


def tan_wcs(crval_deg: tuple[float, float], matrix: np.ndarray, shape: tuple[int, int]) -> WCS:
    """Return a TAN WCS, ICRS, with its reference in the middle of a frame and the matrix CD (degrees a pixel)."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = crval_deg
    wcs.wcs.crpix = [0.5 * (shape[1] + 1), 0.5 * (shape[0] + 1)]
    wcs.wcs.cd = matrix
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs


def _together(sky_deg: np.ndarray) -> np.ndarray:
    """Return which stars (m,) can be in one frame: those around the one that has the most others near it."""
    direction = unit_vectors(sky_deg)
    near = direction @ direction.T > np.cos(np.deg2rad(_WIDEST_DEG))
    return near[near.sum(axis=1).argmax()]


def _mean_direction(sky_deg: np.ndarray) -> tuple[float, float]:
    return place_deg(np.array([axis.sum() for axis in unit_vectors(sky_deg).T]))

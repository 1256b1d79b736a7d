"""Who belongs together: pointings, position angles and kinds of frames in, numbers of groups out.

Frames are friends if they are of one kind and their centres lie within a threshold of each other; friends of
friends form a group. That is the minimum spanning tree of the centres without its longer edges, so one tree serves
every threshold. Where a chain of friends walks over the sky it is cut until every group fits into a circle; then
groups are split by orientation, if asked. The cost is that of n log n, also where thousands of frames share one
pointing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import cKDTree

from zemosaic_links import linked_groups, members_of
from zemosaic_sphere import chord_angle_deg, normalised, north_east, places_deg, unit_vectors

#: A frame turned by this angle covers the same field.
HALF_TURN_DEG = 180.0

# Distances and angles that differ by less are the same: rounding must not decide how many groups there are.
_SAME_DEG = 1e-7
_NEIGHBOURS = 12


@dataclass(frozen=True, slots=True)
class GroupRules:
    """What makes a group.

    Attributes
    ----------
    threshold_deg : float
        Largest distance between the centres of two friends; not used with a target.
    radius_deg : float
        No frame lies further than this from the centre of its group; not used with a target.
    target : int
        Number of groups, before orientation splits them, that the threshold is chosen for; 0 = none.
    orientation_split_deg : float
        Position angles in a group differ by no more than this, modulo 180 deg; 0 = any may.
    """

    threshold_deg: float
    radius_deg: float = np.inf
    target: int = 0
    orientation_split_deg: float = 0.0


@dataclass(frozen=True)
class Grouping:
    """The groups of n frames; g groups are numbered from 0 by the first of their frames.

    Attributes
    ----------
    number : ndarray of int, shape (n,)
        Group of each frame.
    centre_deg : ndarray of float64, shape (g, 2)
        Right ascension and declination of the mean of the frames' centres.
    radius_deg : ndarray of float64, shape (g,)
        Distance from there to the furthest of them.
    angle_deg : ndarray of float64, shape (g,)
        Middle of the position angles, 0 to 180 at the group's centre; NaN if orientation was not asked for.
    cut, turned : ndarray of bool, shape (g,)
        Whether the group is part of a chain that was cut, and of a pointing that orientation split.
    threshold_deg : float
        The threshold that was used.
    n_linked : int
        Number of groups before chains were cut and orientation split them.
    """

    number: np.ndarray
    centre_deg: np.ndarray
    radius_deg: np.ndarray
    angle_deg: np.ndarray
    cut: np.ndarray
    turned: np.ndarray
    threshold_deg: float
    n_linked: int


def group_pointings(
    centre_deg: np.ndarray, angle_deg: np.ndarray, kinds: Sequence[tuple[str, ...]], rules: GroupRules
) -> Grouping:
    """Group frames by pointing, within each kind, and by orientation if asked.

    The groups do not depend on the order of the frames, to the last bit, nor on where on the sky the frames lie:
    the pole and right ascension 0 are places like any other.

    Parameters
    ----------
    centre_deg : ndarray of float, shape (n, 2)
        Right ascension and declination of the frames' centres; n >= 1.
    angle_deg : ndarray of float, shape (n,)
        Position angle of the frames' x axis, from north through east.
    kinds : sequence of n tuples of str
        Frames of different kinds (filters, instruments) are never in one group.
    rules : GroupRules

    Raises
    ------
    ValueError
        If lengths differ, there is no frame, a position or angle is not finite, or a rule is out of range.
    """
    sky, kind = _checked(centre_deg, angle_deg, kinds, rules)
    # Frames at the same spot are one point; sorting the spots makes every sum independent of the frames' order.
    spots, spot = np.unique(np.column_stack([kind, sky]), axis=0, return_inverse=True)
    spot = spot.ravel()
    points, count = spots[:, 1:], np.bincount(spot)
    pairs, length_deg = _forest(points, spots[:, 0])
    threshold, radius = rules.threshold_deg, rules.radius_deg
    if rules.target:
        threshold, radius = threshold_for(length_deg, len(points), rules.target), np.inf
    linked = linked_groups(pairs[length_deg <= threshold], len(points))
    piece, cut = _cut_chains(points, count, linked, radius)
    order = np.argsort(spot, kind="stable")
    number, angle, turned = piece[spot], None, np.zeros(cut.size, dtype=bool)
    if rules.orientation_split_deg:
        direction = _directions(centre_deg, angle_deg)
        number, angle, parent = _split_turned(sky, direction, number, order, rules.orientation_split_deg)
        turned, cut = np.bincount(parent)[parent] > 1, cut[parent]
    number, first = _by_first_frame(number)
    centre = _means(sky, number, order)
    return Grouping(
        number=number,
        centre_deg=places_deg(centre),
        radius_deg=_largest(chord_angle_deg(np.linalg.norm(sky - centre[number], axis=1)), number),
        angle_deg=np.full(len(first), np.nan) if angle is None else angle[first],
        cut=cut[first],
        turned=turned[first],
        threshold_deg=float(threshold),
        n_linked=int(linked.max()) + 1,
    )


def _checked(
    centre_deg: np.ndarray, angle_deg: np.ndarray, kinds: Sequence[tuple[str, ...]], rules: GroupRules
) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors (n, 3) and the kind (n,) of each frame as a number."""
    centre_deg, angle_deg = np.asarray(centre_deg, dtype=float), np.asarray(angle_deg, dtype=float)
    n = len(kinds)
    if n == 0 or centre_deg.shape != (n, 2) or angle_deg.shape != (n,):
        raise ValueError(f"{n} kinds, but positions {centre_deg.shape} and angles {angle_deg.shape}")
    if not (np.isfinite(centre_deg).all() and np.isfinite(angle_deg).all()):
        raise ValueError("a position or an angle is not finite")
    wanted = rules.threshold_deg >= 0 and rules.radius_deg > 0 and rules.target >= 0
    if not (wanted and rules.orientation_split_deg >= 0):
        raise ValueError(f"a rule is out of range: {rules}")
    ranks = {kind: rank for rank, kind in enumerate(sorted(set(kinds)))}
    return unit_vectors(centre_deg), np.array([ranks[kind] for kind in kinds])


# ---- pointings ------------------------------------------------------------------------------------------


def _forest(points: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of one spanning tree a kind, (m, 2), and their lengths in degrees; `kind` is sorted."""
    starts = np.flatnonzero(np.diff(kind, prepend=-1))
    trees = [start + spanning_tree(part) for start, part in zip(starts, np.split(points, starts[1:]), strict=True)]
    pairs = np.concatenate(trees)
    return pairs, chord_angle_deg(np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1))


def spanning_tree(points: np.ndarray) -> np.ndarray:
    """Return the minimum spanning tree of points in space.

    Boruvka's algorithm (1926): each component is tied to its nearest point outside, until one is left. A point's
    nearest stranger is among its nearest neighbours as a rule; see `_strangers` for where it is not. Cost is
    n log n times the logarithm of the number of components, squared; memory grows with n.

    Parameters
    ----------
    points : ndarray of float64, shape (n, d)

    Returns
    -------
    ndarray of int, shape (n - 1, 2)
    """
    n = len(points)
    distance, neighbour = cKDTree(points).query(points, k=min(_NEIGHBOURS, n))
    distance, neighbour = distance.reshape(n, -1), neighbour.reshape(n, -1)
    label = np.arange(n)
    edges = [np.empty((0, 2), dtype=int)]
    while label.max() > 0:
        away, stranger = _nearest_stranger(points, label, distance, neighbour)
        order = np.lexsort((away, label))
        nearest = order[np.flatnonzero(np.diff(label[order], prepend=-1))]
        edges.append(np.column_stack([nearest, stranger[nearest]]))
        label = linked_groups(label[edges[-1]], label.max() + 1)[label]
    return _without_cycles(np.unique(np.sort(np.concatenate(edges), axis=1), axis=0), points)


def _nearest_stranger(
    points: np.ndarray, label: np.ndarray, distance: np.ndarray, neighbour: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return distance and index of each point's nearest point of another component, (n,) each."""
    strange = label[neighbour] != label[:, None]
    row, first = np.arange(len(points)), strange.argmax(axis=1)
    away, stranger = distance[row, first], neighbour[row, first]
    lonely = np.flatnonzero(~strange.any(axis=1))
    if lonely.size:
        away[lonely], stranger[lonely] = _strangers(points, label, lonely)
    return away, stranger


def _strangers(points: np.ndarray, label: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Search among all points of other components: their labels differ in at least one binary digit."""
    away, stranger = np.full(which.size, np.inf), np.zeros(which.size, dtype=int)
    for digit in range(int(label.max()).bit_length()):
        side = (label >> digit & 1).astype(bool)
        for here in (False, True):
            others, asking = np.flatnonzero(side != here), np.flatnonzero(side[which] == here)
            if not (others.size and asking.size):
                continue
            found, index = cKDTree(points[others]).query(points[which[asking]])
            better = found < away[asking]
            away[asking[better]], stranger[asking[better]] = found[better], others[index[better]]
    return away, stranger


def _without_cycles(edges: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Drop the edges that equal distances closed to cycles."""
    length = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    # Ranks for lengths: scipy takes an edge of length 0 for none.
    rank = np.empty(len(edges))
    rank[np.argsort(length, kind="stable")] = np.arange(1, len(edges) + 1)
    graph = coo_matrix((rank, tuple(edges.T)), shape=(len(points),) * 2)
    return np.column_stack(minimum_spanning_tree(graph).nonzero())


def threshold_for(length_deg: np.ndarray, n_points: int, target: int) -> float:
    """Return the threshold that leaves the number of groups nearest to a target.

    A larger threshold never leaves more groups. Of two numbers equally near it is the larger one, and the
    threshold is the middle of those that give it.

    Parameters
    ----------
    length_deg : ndarray of float, shape (m,)
        Lengths of the edges of the spanning forest.
    n_points : int
    target : int
    """
    edges = np.sort(length_deg)
    last = edges[-1] if edges.size else 0.0
    below, above = np.append(0.0, edges), np.append(edges, 2.0 * last + 2.0 * _SAME_DEG)
    possible = np.flatnonzero(above - below > _SAME_DEG)
    chosen = possible[np.argmin(np.abs(n_points - possible - target))]
    return float(0.5 * (below[chosen] + above[chosen]))


# ---- chains ---------------------------------------------------------------------------------------------


def _cut_chains(
    points: np.ndarray, count: np.ndarray, linked: np.ndarray, radius_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the piece of each point (n,) and whether a piece was cut from a wider group."""
    piece, cut = np.empty(len(points), dtype=int), []
    for members in members_of(linked):
        parts = list(_pieces(members, lambda part: _halves(points[part], count[part], radius_deg)))
        for part in parts:
            piece[part] = len(cut)
            cut.append(len(parts) > 1)
    return piece, np.array(cut)


def _pieces(members: np.ndarray, halves: Callable[[np.ndarray], np.ndarray | None]) -> Iterator[np.ndarray]:
    """Yield the parts of `members` that `halves` (which of them go to the upper half, or None) leaves whole."""
    waiting = [members]
    while waiting:
        part = waiting.pop()
        upper = halves(part)
        if upper is None:
            yield part
        else:
            waiting += [part[upper], part[~upper]]


def _halves(points: np.ndarray, count: np.ndarray, radius_deg: float) -> np.ndarray | None:
    """Return which points (n,) lie above the cut across the longest extent, None if all lie within the radius."""
    centre = normalised((points * count[:, None]).sum(axis=0))
    away = points - centre
    if chord_angle_deg(np.linalg.norm(away, axis=1).max()) <= max(radius_deg, _SAME_DEG):
        return None
    axis = np.linalg.eigh((away * count[:, None]).T @ away)[1][:, -1]
    along = away @ (axis * np.sign(axis[np.abs(axis).argmax()]))
    return along > _gap(np.sort(along))


def _gap(values: np.ndarray) -> float:
    """Return the middle of the widest gap between sorted values, of those near the middle of their range."""
    middle = 0.5 * (values[:-1] + values[1:])
    quarter = 0.25 * (values[-1] - values[0])
    inside = (middle >= values[0] + quarter) & (middle <= values[-1] - quarter)
    return float(middle[np.where(inside, np.diff(values), -1.0).argmax()])


# ---- orientation ----------------------------------------------------------------------------------------


def _split_turned(
    sky: np.ndarray, direction: np.ndarray, number: np.ndarray, order: np.ndarray, split_deg: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the group of each frame (n,), and middle angle and former group of each group (g,)."""
    centre = _means(sky, number, order)
    split, angle, parent = np.empty_like(number), [], []
    for members in members_of(number, order):
        turn = _angles_at(centre[number[members[0]]], sky[members], direction[members])
        for part, middle in _turns(turn, split_deg):
            split[members[part]] = len(parent)
            angle.append(middle)
            parent.append(number[members[0]])
    return split, np.array(angle), np.array(parent)


def _turns(turn: np.ndarray, split_deg: float) -> Iterator[tuple[np.ndarray, float]]:
    """Yield the frames of each range of angles (modulo 180) at most `split_deg` wide, and its middle."""
    split_deg = max(split_deg, _SAME_DEG)
    ranks = np.argsort(turn, kind="stable")
    gaps = np.diff(turn[ranks], append=turn[ranks[0]] + HALF_TURN_DEG)
    start = (gaps.argmax() + 1) % gaps.size  # the circle is opened at its widest gap
    ranks = np.roll(ranks, -start)
    line = np.where(turn[ranks] < turn[ranks[0]], turn[ranks] + HALF_TURN_DEG, turn[ranks])

    def halves(part: np.ndarray) -> np.ndarray | None:
        return None if line[part[-1]] - line[part[0]] <= split_deg else line[part] > _gap(line[part])

    for run in np.split(np.arange(line.size), np.flatnonzero(np.diff(line) > split_deg) + 1):
        for part in _pieces(run, halves):
            yield ranks[part], 0.5 * (line[part[0]] + line[part[-1]]) % HALF_TURN_DEG


def _directions(centre_deg: np.ndarray, angle_deg: np.ndarray) -> np.ndarray:
    """Return the frames' x axes as unit vectors (n, 3) along the sphere."""
    north, east = north_east(centre_deg)
    angle = np.deg2rad(angle_deg)[:, None]
    return np.cos(angle) * north + np.sin(angle) * east


def _angles_at(centre: np.ndarray, sky: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return position angles (n,), 0 to 180, after the frames were moved to one place along great circles.

    Near the pole north is another direction for each frame, which this takes out.
    """
    step = (direction @ centre) / np.maximum(1.0 + sky @ centre, 1e-12)
    moved = direction - step[:, None] * (sky + centre)
    north, east = north_east(places_deg(centre[None]))
    return _half_turn(np.rad2deg(np.arctan2(moved @ east[0], moved @ north[0])))


def _half_turn(angle_deg: np.ndarray) -> np.ndarray:
    angle = np.mod(angle_deg, HALF_TURN_DEG)
    return np.where(angle < HALF_TURN_DEG, angle, 0.0)  # a tiny negative angle is rounded to 180


def position_angle_deg(start_deg: np.ndarray, end_deg: np.ndarray) -> np.ndarray:
    """Return the position angle (n,), north through east, of the way from one place to another, both (n, 2)."""
    north, east = north_east(start_deg)
    way = unit_vectors(end_deg) - unit_vectors(start_deg)
    return np.rad2deg(np.arctan2((way * east).sum(axis=1), (way * north).sum(axis=1)))


# ---- the numbers ------------------------------------------------------------------------------------------


def _by_first_frame(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers in the order in which groups first appear, and the old number of each new one."""
    old, first, inverse = np.unique(number, return_index=True, return_inverse=True)
    ranks = np.argsort(first)
    new = np.empty_like(ranks)
    new[ranks] = np.arange(ranks.size)
    return new[inverse], old[ranks]


def _means(sky: np.ndarray, number: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the centres of the groups (g, 3), summed in the given order of the frames."""
    return normalised(np.column_stack([np.bincount(number[order], weights=axis[order]) for axis in sky.T]))


def _largest(values: np.ndarray, number: np.ndarray) -> np.ndarray:
    largest = np.zeros(number.max() + 1)
    np.maximum.at(largest, number, values)
    return largest

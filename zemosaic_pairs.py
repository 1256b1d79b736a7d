"""Which frames are compared with each other: enough pairs of overlapping frames, never all of them.

A thousand frames of one pointing make half a million pairs, which say no more than some thousand. So frames whose
centres lie in one box of the canvas are compared with some of their neighbours there and with a few of every other
box, and what those leave apart although it overlaps is found among outlines. Time and memory grow with the frames.
"""

from __future__ import annotations

import itertools

import numpy as np
import shapely
from scipy.sparse.csgraph import minimum_spanning_tree

from zemosaic_links import linked_groups, members_of, pair_graph
from zemosaic_reproject import Placement, footprints

# A box is so many short sides of its frames: frames of one box overlap, however they are turned.
_BOX_SHORT_SIDES = 0.7
# So many frames of a box, spread over its time, stand for it before the frames of other boxes.
_ENVOYS = 8


def partner_pairs(placements: list[Placement], most: int) -> np.ndarray:
    """Return pairs of overlapping frames that tie together all frames that overlaps tie together.

    Where a frame has no more than `most` partners, and its surroundings no more than `_ENVOYS` frames a box, all
    its pairs are there. Else it has about so many, at evenly spaced distances, so that the few that reach into the
    next panel are among them.

    Parameters
    ----------
    placements : list of Placement
    most : int

    Returns
    -------
    ndarray, shape (p, 2), int64
        first < second, sorted.
    """
    if len(placements) < 2:
        return np.empty((0, 2), dtype=np.int64)
    polygons = footprints(placements)
    pairs = _tied_together(_candidates(polygons, most), polygons)
    return thin_pairs(pairs, _centres(polygons), most)


def thin_pairs(pairs: np.ndarray, centres: np.ndarray, most: int) -> np.ndarray:
    """Return enough of the pairs to tie together all frames that the pairs tie together.

    A frame with more than `most` partners takes the ones at evenly spaced distances, so that the few that reach
    into the next panel are among them; a spanning forest is added, so that no group is torn.

    Parameters
    ----------
    pairs : ndarray, shape (p, 2)
        first < second, sorted.
    centres : ndarray, shape (n, 2)
        Positions of the frames.
    most : int
    """
    n = len(centres)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    bounds = np.searchsorted(both[:, 0], np.arange(n + 1))
    chosen = [_spanning_forest(pairs, n)]
    for frame, (start, stop) in enumerate(itertools.pairwise(bounds)):
        partners = both[start:stop, 1]
        if partners.size > most:
            distance = np.hypot(*(centres[partners] - centres[frame]).T)
            order = np.argsort(distance, kind="stable")
            steps = np.linspace(0.0, distance[order[-1]], most)
            nearest = np.searchsorted(distance[order], steps).clip(max=partners.size - 1)
            partners = partners[order[np.unique(nearest)]]
        chosen.append(np.column_stack([np.minimum(frame, partners), np.maximum(frame, partners)]))
    return np.unique(np.concatenate(chosen), axis=0)


def _candidates(polygons: np.ndarray, most: int) -> np.ndarray:
    """Return the overlapping pairs of every frame with others of its box and with the envoys of all boxes."""
    boxes = _boxes(polygons)
    first, second = np.concatenate([_within(box, most) for box in boxes]).T
    touch = shapely.intersects(polygons[first], polygons[second])
    envoys = np.concatenate([box[_spread(box.size, _ENVOYS)] for box in boxes])
    frame, envoy = shapely.STRtree(polygons[envoys]).query(polygons, predicate="intersects")
    envoy = envoys[envoy]
    box_of = np.empty(len(polygons), dtype=np.int64)
    box_of[np.concatenate(boxes)] = np.repeat(np.arange(len(boxes)), [box.size for box in boxes])
    apart = box_of[frame] != box_of[envoy]
    return _sorted_pairs(
        np.concatenate([first[touch], frame[apart]]), np.concatenate([second[touch], envoy[apart]])
    )


def _boxes(polygons: np.ndarray) -> list[np.ndarray]:
    """Return the indices, ascending, of the frames of about one size whose centres share a box."""
    size = np.rint(np.log2(np.maximum(_short_sides(polygons), 1.0)))
    side = _BOX_SHORT_SIDES * 2.0 ** (size - 0.5)  # the shortest that are rounded to this size
    key = np.column_stack([size, np.floor(_centres(polygons) / side[:, None])])
    return members_of(np.unique(key, axis=0, return_inverse=True)[1].ravel())


def _short_sides(polygons: np.ndarray) -> np.ndarray:
    """Return the short sides of rectangles from their areas and circumferences."""
    half = shapely.length(polygons) / 2.0
    return (half - np.sqrt(np.maximum(np.square(half) - 4.0 * shapely.area(polygons), 0.0))) / 2.0


def _within(box: np.ndarray, most: int) -> np.ndarray:
    """Return pairs of a box: all of them, or of each frame with `most` others at even steps of time, in a ring."""
    n = box.size
    if n <= most + 1:
        return box[np.column_stack(np.triu_indices(n, 1))]
    steps = 1 + _spread(n // 2, most // 2)
    return np.concatenate([np.column_stack([box, np.roll(box, -step)]) for step in steps])


def _spread(n: int, most: int) -> np.ndarray:
    """Return at most `most` of the numbers below `n`, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _tied_together(pairs: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """Add a pair wherever two groups of frames overlap that no pair ties together."""
    groups = members_of(linked_groups(pairs, len(polygons)))
    if len(groups) == 1:
        return pairs
    covered = np.array([shapely.union_all(polygons[members]) for members in groups], dtype=object)
    missing = [pairs.T]
    for a, b in zip(*shapely.STRtree(covered).query(covered, predicate="intersects"), strict=True):
        if a < b:
            for one in groups[a][shapely.intersects(covered[b], polygons[groups[a]])][:1]:
                other = groups[b][shapely.intersects(polygons[one], polygons[groups[b]])][:1]
                missing.append([np.full(other.size, one), other])
    return _sorted_pairs(*np.concatenate(missing, axis=1))


def _spanning_forest(pairs: np.ndarray, n: int) -> np.ndarray:
    return np.column_stack(minimum_spanning_tree(pair_graph(pairs, n)).nonzero()).astype(pairs.dtype)


def _sorted_pairs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return pairs of different frames, the smaller index first, each once, sorted."""
    pairs = np.column_stack([np.minimum(one, other), np.maximum(one, other)])
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def _centres(polygons: np.ndarray) -> np.ndarray:
    return shapely.get_coordinates(shapely.centroid(polygons))

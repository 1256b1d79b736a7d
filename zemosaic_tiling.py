"""How the canvas is cut into cells, which frames touch which cell, and which frames belong to one mosaic.

All searches go through a spatial index of footprint polygons, so the cost grows with overlaps.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import shapely
from scipy.spatial import cKDTree

from zemosaic_links import linked_groups
from zemosaic_reproject import Placement, footprints
from zemosaic_sphere import chord_angle_deg, unit_vectors
from zemosaic_types import Rect

#: Frames closer than this many frame diagonals (centre to centre) belong to one mosaic.
MAX_GAP_DIAGONALS = 4.0

_MIN_CELL_PX = 64


def cell_length_px(sizes: list[tuple[int, int]], factor: float) -> int:
    """Return the wished side of a cell: the frames' median long side over `factor`, in canvas pixels."""
    long_side = float(np.median([max(size) for size in sizes]))
    return max(_MIN_CELL_PX, round(long_side / factor))


def cut_cells(shape: tuple[int, int], length: int, *, step: int = 1) -> list[Rect]:
    """Return disjoint cells of nearly equal size, about `length` a side, that cover a canvas exactly once.

    Cells are in row-major order and start at multiples of `step`; their sides differ by little more than `step`
    pixels, so there are no slivers.
    """
    rows, columns = (_edges(size, length, step) for size in shape)
    return [Rect(y0, y1, x0, x1) for y0, y1 in itertools.pairwise(rows) for x0, x1 in itertools.pairwise(columns)]


def _edges(size: int, length: int, step: int) -> list[int]:
    edges = np.linspace(0, size, max(1, math.ceil(size / length)) + 1)
    edges = np.rint(edges / step).astype(int) * step
    edges[-1] = size
    return np.unique(edges).tolist()


def frames_of_cells(placements: list[Placement], cells: list[Rect]) -> list[list[int]]:
    """Return for each cell the indices of the frames whose footprint touches it, ascending.

    The footprint is taken a little larger than it is, so that no pixel at an edge is missed.
    """
    tree = shapely.STRtree(footprints(placements))
    boxes = [shapely.box(c.x0 - 3.0, c.y0 - 3.0, c.x1 + 2.0, c.y1 + 2.0) for c in cells]
    which, frame = tree.query(boxes, predicate="intersects")
    return [np.sort(frame[which == k]).tolist() for k in range(len(cells))]


def separate_isolated(centres_deg: np.ndarray, diagonals_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell the frames of the mosaic from those too far away to belong to it.

    Frames are linked when their centres are closer than `MAX_GAP_DIAGONALS` of the larger diagonal; the mosaic
    is the linked group with the most frames (the first of equals).

    Parameters
    ----------
    centres_deg : ndarray, shape (n, 2)
        Right ascension and declination.
    diagonals_deg : ndarray, shape (n,)

    Returns
    -------
    inside : ndarray of bool, shape (n,)
    distance_deg : ndarray, shape (n,)
        From each frame to the nearest frame of the mosaic (0 for its own frames).
    """
    points = unit_vectors(centres_deg)
    reach = MAX_GAP_DIAGONALS * np.deg2rad(diagonals_deg)
    pairs = cKDTree(points).query_pairs(_chord(float(reach.max())), output_type="ndarray")
    separation = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    pairs = pairs[separation < _chord(np.maximum(reach[pairs[:, 0]], reach[pairs[:, 1]]))]
    group = linked_groups(pairs, len(points))
    inside = group == np.argmax(np.bincount(group))
    chord, _ = cKDTree(points[inside]).query(points)
    return inside, chord_angle_deg(chord)


def _chord(angle_rad: np.ndarray | float) -> np.ndarray | float:
    return 2.0 * np.sin(np.minimum(angle_rad, np.pi) / 2.0)
